"""Multiple choice over local files: the model is asked nothing, the likelihoods of the choices are compared."""

from __future__ import annotations

import json
import math
import string
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, cast

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from mergekit_3h.data.records import DataError
from mergekit_3h.evaluation.items import EvaluatedItem, Measured
from mergekit_3h.evaluation.journal import Journal, Step
from mergekit_3h.evaluation.local_rows import LocalRow, RowSettings, file_digest, places_in, require_file
from mergekit_3h.evaluation.metrics.answer_losses import answer_losses
from mergekit_3h.evaluation.metrics.contract import Surroundings
from mergekit_3h.evaluation.subject import EvaluatedModel
from mergekit_3h.losses.answers import Answer


@dataclass(frozen=True)
class Choices:
    """The choices of one question; ``right`` are the places of those that are."""

    texts: Sequence[str]
    right: frozenset[int]


class MultipleChoice(RowSettings):
    """Share of the questions whose most likely choice is a right one, or the probability of the right ones."""

    kind: Literal["multiple-choice"]
    question: str = Field("{question}", description="What is asked; {COLUMN} stands for a row's text in that column.")
    choices: str | list[str] | None = Field(
        None, description="A column with a list, or several columns with a choice each."
    )
    answer: str | None = Field(
        None, description="With choices: the column with the right one, as its number from 0, its letter, or its text."
    )
    right: str | None = Field(None, description="Instead of choices: the column with the right choices,")
    wrong: str | None = Field(None, description="and the column with the wrong ones.")
    separator: str = Field(";", min_length=1, description="Between several choices in a column with text.")
    joint: str = Field(" ", description="Between the question and a choice.")
    score: Literal["accuracy", "accuracy-by-length", "probability"] = Field(
        "accuracy",
        description="accuracy: the likeliest choice is right. accuracy-by-length: the likeliest by letter of its text. "
        "probability: the share of the right choices in all choices' probability (TruthfulQA's mc2).",
    )
    chat: bool = Field(False, description="Ask through the tokenizer's chat template, as the user's turn.")

    @model_validator(mode="after")
    def _one_way_to_give_choices(self) -> MultipleChoice:
        listed, divided = (self.choices, self.answer), (self.right, self.wrong)
        if None in listed and None in divided:
            raise PydanticCustomError("choices", "give either choices and answer, or right and wrong")
        if any(listed) and any(divided):
            raise PydanticCustomError("choices", "got both choices/answer and right/wrong; give one of the two pairs")
        return self

    def require_ready(self, name: str, around: Surroundings) -> None:
        require_file(around.file(self.data), name)
        for row in self._rows(around):
            self._choices(row)

    def depends_on(self, around: Surroundings) -> list[str]:
        return [file_digest(around.file(self.data))]

    def measure(
        self, name: str, subject: EvaluatedModel, journal: Journal, around: Surroundings, done: Step
    ) -> Measured:
        rows = self._rows(around)
        questions = [row.filled(self.question) for row in rows]
        choices = [self._choices(row) for row in rows]
        answers = [
            self._answer(subject, question, text, row)
            for row, question, these in zip(rows, questions, choices, strict=True)
            for text in these.texts
        ]
        losses = iter(answer_losses(name, answers, subject, journal, done))
        lengths = iter([len(answer.ids) - answer.prompt_length for answer in answers])
        items: list[EvaluatedItem] = []
        for row, question, these in zip(rows, questions, choices, strict=True):
            likelihoods = [-next(losses) * next(lengths) for _ in these.texts]
            items.append(self._item(row.id, question, these, likelihoods))
        return Measured(items)

    def _item(self, name: str, question: str, these: Choices, likelihoods: list[float]) -> EvaluatedItem:
        if not all(map(math.isfinite, likelihoods)):
            return EvaluatedItem(id=name, prompt=question, reason="a choice's likelihood is not finite")
        by = likelihoods
        if self.score == "accuracy-by-length":
            by = [value / max(len(text), 1) for value, text in zip(likelihoods, these.texts, strict=True)]
        best = max(range(len(by)), key=by.__getitem__)
        value = float(best in these.right)
        if self.score == "probability":
            weights = [math.exp(value - max(likelihoods)) for value in likelihoods]
            value = math.fsum(weights[place] for place in these.right) / math.fsum(weights)
        verdict = "right" if best in these.right else "wrong"
        return EvaluatedItem(id=name, prompt=question, reply=these.texts[best], value=value, verdict=verdict)

    def _answer(self, subject: EvaluatedModel, question: str, choice: str, row: LocalRow) -> Answer:
        start, ids = (_in_a_chat if self.chat else _as_one_text)(subject.tokenizer, question, self.joint, choice)
        if not start or len(start) >= len(ids):
            raise DataError(f"{row.place}: the question or the choice {choice!r} has no tokens of its own")
        if subject.context is not None and len(ids) > subject.context:
            raise DataError(
                f"{row.place}: {len(ids)} tokens, more than the {subject.context} that the model holds; leave the row "
                "out with `where`, or shorten it"
            )
        return Answer(tuple(ids), len(start), 1.0)

    def _rows(self, around: Surroundings) -> list[LocalRow]:
        columns = places_in(self.question) + [column for column in (self.answer, self.right, self.wrong) if column]
        columns += [self.choices] if isinstance(self.choices, str) else self.choices or []
        return self.rows(around.file(self.data), columns, around.keep)

    def _choices(self, row: LocalRow) -> Choices:
        if self.right is not None and self.wrong is not None:
            right, wrong = self._listed(row, self.right), self._listed(row, self.wrong)
            return Choices([*right, *wrong], frozenset(range(len(right))))
        if isinstance(self.choices, list):
            texts = [row.text(column) for column in self.choices]
        else:
            texts = self._listed(row, self.choices or "")
        return Choices(texts, frozenset([self._place_of_answer(row, texts)]))

    def _listed(self, row: LocalRow, column: str) -> list[str]:
        value: Any = row.cells[column]
        if isinstance(value, str) and value.lstrip().startswith("["):
            with suppress(ValueError):  # a text that begins with a bracket
                value = json.loads(value)
        values = value if isinstance(value, list) else row.text(column).split(self.separator)
        texts = list(dict.fromkeys(str(text).strip() for text in cast("list[Any]", values) if str(text).strip()))
        if not texts:
            raise DataError(f"{row.place}: no choice in the column {column!r}")
        return texts

    def _place_of_answer(self, row: LocalRow, texts: list[str]) -> int:
        given = row.text(self.answer or "")
        if given in texts:
            return texts.index(given)
        if given.isdecimal() and int(given) < len(texts):
            return int(given)
        letters = string.ascii_uppercase[: len(texts)]
        if len(given) == 1 and given.upper() in letters:
            return letters.index(given.upper())
        raise DataError(
            f"{row.place}: the answer {given!r} is none of the {len(texts)} choices, neither as a text nor as a number "
            f"from 0 nor as a letter"
        )


def _in_a_chat(tokenizer: Any, question: str, joint: str, choice: str) -> tuple[list[int], list[int]]:
    """The choice begins where the model's turn begins."""
    turn = [{"role": "user", "content": question}]
    asked = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    start = cast("list[int]", tokenizer(asked, add_special_tokens=False)["input_ids"])
    return start, start + cast("list[int]", tokenizer(choice, add_special_tokens=False)["input_ids"])


def _as_one_text(tokenizer: Any, question: str, joint: str, choice: str) -> tuple[list[int], list[int]]:
    """Question and choice are tokenized together, so that the model sees what it has been trained on."""
    start = cast("list[int]", tokenizer(question)["input_ids"])
    ids = cast("list[int]", tokenizer(question + joint + choice)["input_ids"])
    if len(start) > 1 and start[-1] == tokenizer.eos_token_id and ids[-1] == tokenizer.eos_token_id:
        return start[:-1], ids[:-1]  # some tokenizers close every text
    return start, ids
