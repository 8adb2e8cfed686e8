"""Step 2: every model of the pool answers every question, greedily."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from mergekit_3h.data.backends.protocol import Request
from mergekit_3h.data.generation.asking import Ask, AskAll
from mergekit_3h.data.generation.reports import StepReport
from mergekit_3h.data.records import Record
from mergekit_3h.data.sections import Section


class AnswerSettings(Section):
    """Who answers the questions."""

    models: tuple[str, ...] = Field(min_length=1, description="The pool: names under models, the base model included.")
    max_new_tokens: int = Field(512, ge=1, description="Longest answer, in tokens.")


def answered(
    questions: Sequence[Record], *, model: str, max_new_tokens: int, ask: AskAll, report: StepReport
) -> list[Record]:
    """The questions with one model's answers; a question whose request failed is left out and counted."""
    asks = [
        Ask(question.id, Request(messages=question.chat(), max_new_tokens=max_new_tokens)) for question in questions
    ]
    report.requests += len(asks)
    records: list[Record] = []
    for question, outcome in zip(questions, ask(asks), strict=True):
        if outcome.text is None:
            report.fail(outcome.failure or "")
        else:
            records.append(
                question.changed(id=answer_id(question, model), response=outcome.text.strip(), source=model, label=None)
            )
    report.kept = len(records)
    return records


def answer_id(question: Record, model: str) -> str:
    """The id of a model's answer to a question."""
    return f"{question.id}:{model}"
