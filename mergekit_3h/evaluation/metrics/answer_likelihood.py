"""How likely a model finds given reference answers: smooth, fast, without generation and without a judge."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from pydantic import Field

from mergekit_3h.data.records import Message, Record
from mergekit_3h.evaluation.items import EvaluatedItem, Measured
from mergekit_3h.evaluation.journal import Journal, Step
from mergekit_3h.evaluation.local_rows import LocalRow, RowSettings, file_digest, require_file
from mergekit_3h.evaluation.metrics.answer_losses import answer_losses
from mergekit_3h.evaluation.metrics.contract import Surroundings
from mergekit_3h.evaluation.subject import EvaluatedModel
from mergekit_3h.losses.answers import tokenized
from mergekit_3h.losses.options import LossOptions
from mergekit_3h.losses.records import LocatedRecord


class AnswerLikelihood(RowSettings):
    """Mean negative log-likelihood of the answers' tokens in nats; lower is better."""

    kind: Literal["answer-likelihood"]
    prompt: str = Field("prompt", description="The column with the question; `messages` holds a whole conversation.")
    answer: str = Field("response", description="The column with the reference answer.")

    def require_ready(self, name: str, around: Surroundings) -> None:
        require_file(around.file(self.data), name)
        self._rows(around)

    def depends_on(self, around: Surroundings) -> list[str]:
        return [file_digest(around.file(self.data))]

    def measure(
        self, name: str, subject: EvaluatedModel, journal: Journal, around: Surroundings, done: Step
    ) -> Measured:
        rows = self._rows(around)
        options = LossOptions.model_validate(
            {"chat_template": "plain" if subject.settings.template == "plain" else "auto"}
        )
        records = [LocatedRecord(self._record(row), row.place) for row in rows]
        answers = tokenized(records, subject.tokenizer, options, subject.context)
        losses = answer_losses(name, answers, subject, journal, done)
        items = [
            EvaluatedItem(
                id=row.id,
                prompt=located.record.question,
                reply=located.record.response,
                value=loss if math.isfinite(loss) else None,
                reason=None if math.isfinite(loss) else "the likelihood is not finite",
            )
            for row, located, loss in zip(rows, records, losses, strict=True)
        ]
        return Measured(items, better="lower", scale=1.0)

    def _rows(self, around: Surroundings) -> list[LocalRow]:
        path: Path = around.file(self.data)
        return self.rows(path, [self.prompt, self.answer], around.keep)

    def _record(self, row: LocalRow) -> Record:
        answer = row.text(self.answer)
        asked = row.cells[self.prompt]
        if isinstance(asked, list):
            turns = tuple(Message.model_validate(turn) for turn in asked)
            return Record(id=row.id, messages=turns, response=answer, set="domain")
        return Record(id=row.id, prompt=row.text(self.prompt), response=answer, set="domain")
