"""Prompts of a local file, answered by the model, judged by a guard or a judge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from mergekit_3h.data.backends.protocol import Backend, Completion, Request
from mergekit_3h.data.guards import RATING_GUARDS, Verdict, judged, unscored
from mergekit_3h.data.records import DataError, Message, Record
from mergekit_3h.errors import OptionError
from mergekit_3h.evaluation.items import EvaluatedItem, Measured
from mergekit_3h.evaluation.journal import Journal, Step
from mergekit_3h.evaluation.local_rows import LocalRow, RowSettings, file_digest, places_in, require_file
from mergekit_3h.evaluation.metrics.contract import Surroundings
from mergekit_3h.evaluation.subject import EvaluatedModel
from mergekit_3h.suggestions import did_you_mean

_LABELS = ("safe", "unsafe", "refusal", "compliance")


@dataclass(frozen=True)
class AskedTurn:
    """A conversation up to the model's reply; ``follows`` is the turn before it in the same conversation."""

    id: str
    messages: tuple[Message, ...]
    reply: Completion | None = None


class JudgedPrompts(RowSettings):
    """Share of the replies that get one of the ``good`` labels, or the mean rating."""

    kind: Literal["judged"]
    prompt: str = Field(
        "{prompt}",
        description="What the model is asked; {COLUMN} stands for a row's text there. A column with a list is a "
        "conversation whose turns are asked one after the other (MT-Bench).",
    )
    system: str | None = Field(None, description="A system message before the first turn.")
    reference: str | None = Field(None, description="Column with what a judge may compare the reply with.")
    judge: str = Field(description="One of the suite's judges.")
    good: list[Literal["safe", "unsafe", "refusal", "compliance"]] | None = Field(
        None, min_length=1, description="The labels that count as good. Not for a judge that gives ratings."
    )
    scale: float | None = Field(
        None, gt=0.0, allow_inf_nan=False, description="Factor on the mean; unset: 100 for shares, 1 for ratings."
    )
    max_new_tokens: int = Field(512, ge=1, description="Longest reply.")
    temperature: float = Field(0.0, ge=0.0, description="0 is greedy.")

    @model_validator(mode="before")
    @classmethod
    def _one_label_may_stand_alone(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(cast("dict[str, Any]", given).get("good"), str):
            return {**given, "good": [given["good"]]}
        if isinstance(given, dict) and given.get("good") == []:
            raise PydanticCustomError("good", "good: expected at least one of {labels}", {"labels": ", ".join(_LABELS)})
        return cast(Any, given)

    def require_ready(self, name: str, around: Surroundings) -> None:
        require_file(around.file(self.data), name)
        self._rows(around)
        if self.judge not in around.judges:
            raise OptionError(f"metric {name!r}: no judge {self.judge!r}; {did_you_mean(self.judge, around.judges)}")
        judge = around.judges[self.judge]
        rates = judge.guard.name in RATING_GUARDS
        if rates == (self.good is not None):
            raise OptionError(
                f"metric {name!r}: the judge {judge.guard.name} gives ratings; leave `good` out"
                if rates
                else f"metric {name!r}: say with `good` which of the labels {', '.join(_LABELS)} count as good"
            )
        judge.require_ready()

    def depends_on(self, around: Surroundings) -> list[str]:
        return [file_digest(around.file(self.data)), around.judges[self.judge].identity]

    def measure(
        self, name: str, subject: EvaluatedModel, journal: Journal, around: Surroundings, done: Step
    ) -> Measured:
        with_model = _Replies(self, name, subject, journal, around.seed, done)
        turns = with_model.of([self._turns(row) for row in self._rows(around)])
        references = {row.id: self._reference(row) for row in self._rows(around)}
        records = [self._record(turn, references) for turn in turns]
        items = [
            self._item(turn, verdict)
            for turn, (_, verdict) in zip(turns, self._verdicts(name, records, journal, around), strict=True)
        ]
        return Measured(items, scale=self.scale or (100.0 if self.good is not None else 1.0))

    def _verdicts(
        self, name: str, records: Sequence[Record], journal: Journal, around: Surroundings
    ) -> Iterator[tuple[Record, Verdict]]:
        judge = around.judges[self.judge]
        if not judge.guard.needs_model:
            return judged(judge.guard, records)
        backend = journal.backend(f"{name}.verdicts", judge.identity, judge.open, lambda _: None)
        return judged(judge.guard, records, backend)

    def _item(self, turn: AskedTurn, verdict: Verdict) -> EvaluatedItem:
        reply = turn.reply or Completion(failure="not asked")
        if reply.failure is not None:
            verdict = unscored(f"the model gave no reply: {reply.failure}")
        value = None
        if verdict.label == "rated":
            value = verdict.score
        elif verdict.label != "unscored" and self.good is not None:
            value = float(verdict.label in self.good)
        elif verdict.label != "unscored":
            verdict = unscored(f"the judge gave the label {verdict.label}, expected a rating", verdict.raw)
        notes = [note for note in (verdict.reason, verdict.category) if note]
        return EvaluatedItem(
            id=turn.id,
            prompt="\n\n".join(message.content for message in turn.messages if message.role == "user"),
            reply=reply.text,
            value=value,
            verdict=verdict.label,
            reason="; ".join(notes) or None,
        )

    def _rows(self, around: Surroundings) -> list[LocalRow]:
        columns = places_in(self.prompt) + ([self.reference] if self.reference else [])
        return self.rows(around.file(self.data), columns, around.keep)

    def _turns(self, row: LocalRow) -> tuple[str, list[str]]:
        """The row's id, and what the user says one after the other."""
        column = self.prompt.strip("{}")
        value = row.cells.get(column) if self.prompt == f"{{{column}}}" else None
        if isinstance(value, list):
            turns = [str(turn).strip() for turn in cast("list[Any]", value)]
            if not turns or not all(turns):
                raise DataError(f"{row.place}: the column {column!r} holds a turn without text")
            return row.id, turns
        return row.id, [row.filled(self.prompt)]

    def _reference(self, row: LocalRow) -> str | None:
        return row.text(self.reference) if self.reference else None

    def _record(self, turn: AskedTurn, references: dict[str, str | None]) -> Record:
        """What the judge sees. Records know no reference of their own, so it stands with the question."""
        messages = turn.messages
        reference = references.get(turn.id.partition("/")[0])
        if reference is not None:
            last = messages[-1]
            told = f"{last.content}\n\n[Reference answer]\n{reference}\n[End of the reference answer]"
            messages = (*messages[:-1], last.model_copy(update={"content": told}))
        text = turn.reply.text if turn.reply is not None else None
        return Record(id=turn.id, messages=messages, response=text, set="domain")


@dataclass(frozen=True)
class _Replies:
    """Asks the model, first all first turns, then all second ones with the replies to the first."""

    metric: JudgedPrompts
    name: str
    subject: EvaluatedModel
    journal: Journal
    seed: int
    done: Step

    def of(self, conversations: Sequence[tuple[str, list[str]]]) -> list[AskedTurn]:
        found: dict[str, list[AskedTurn]] = {name: [] for name, _ in conversations}
        for number in range(max(len(turns) for _, turns in conversations)):
            asked = [
                self._turn(name, turns, number, found[name]) for name, turns in conversations if number < len(turns)
            ]
            for turn, reply in zip(asked, self._answers(asked), strict=True):
                found[turn.id.partition("/")[0]].append(replace(turn, reply=reply))
        return [turn for turns in found.values() for turn in turns]

    def _turn(self, name: str, turns: Sequence[str], number: int, before: Sequence[AskedTurn]) -> AskedTurn:
        if number:
            last = before[-1]
            reply = Message(role="assistant", content=(last.reply.text if last.reply else None) or "")
            messages = (*last.messages, reply)
        else:
            messages = (Message(role="system", content=self.metric.system),) if self.metric.system else ()
        messages = (*messages, Message(role="user", content=turns[number]))
        return AskedTurn(name if len(turns) == 1 else f"{name}/{number + 1}", messages)

    def _answers(self, asked: Sequence[AskedTurn]) -> list[Completion]:
        requests = [
            Request(
                messages=[message.model_dump() for message in turn.messages],
                max_new_tokens=self.metric.max_new_tokens,
                temperature=self.metric.temperature,
                seed=self.seed,
            )
            for turn in asked
        ]
        opened: list[Any] = []

        def open_backend() -> Backend:
            opened.append(self.subject.answering())
            return opened[0].__enter__()

        try:
            backend = self.journal.backend(f"{self.name}.replies", self.subject.key, open_backend, self.done)
            return list(backend.complete(requests))
        finally:
            for context in opened:
                context.__exit__(None, None, None)
