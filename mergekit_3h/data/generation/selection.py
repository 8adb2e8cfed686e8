"""Step 3, second half: which replies make up D_safety."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Literal

from pydantic import Field

from mergekit_3h.data.generation.answers import answer_id
from mergekit_3h.data.generation.asking import seed_of
from mergekit_3h.data.generation.reports import StepReport
from mergekit_3h.data.records import Record
from mergekit_3h.data.sections import Section

AcceptedLabel = Literal["safe", "refusal"]


class SafetySettings(Section):
    """Which replies are good enough for the safety set."""

    accept: tuple[AcceptedLabel, ...] = Field(
        ("safe", "refusal"), min_length=1, description="Verdicts that make a reply a candidate."
    )
    count: int | None = Field(
        None, ge=1, description="Keep at most so many questions, drawn at random; all of them if not given."
    )


def safety_set(
    questions: Sequence[Record],
    labelled: Sequence[Record],
    models: Sequence[str],
    settings: SafetySettings,
    seed: int,
    report: StepReport,
) -> list[Record]:
    """One accepted reply for each question, picked at random; a question without one is dropped and counted.

    The draw for a question depends on the seed and the question only, not on the others.
    """
    replies = {record.id: record for record in labelled}
    chosen: list[Record] = []
    for question in questions:
        own = [reply for model in models if (reply := replies.get(answer_id(question, model)))]
        accepted = [reply for reply in own if reply.label in settings.accept]
        if accepted:
            pick = Random(seed_of(seed, "reply", question.id)).choice(accepted)
            chosen.append(pick.changed(id=question.id))
        else:
            report.drop(_why_none(own))
    if settings.count is not None and len(chosen) > settings.count:
        report.drop("more than needed", len(chosen) - settings.count)
        drawn = Random(seed_of(seed, "questions")).sample(range(len(chosen)), settings.count)
        chosen = [chosen[place] for place in sorted(drawn)]
    report.kept = len(chosen)
    return chosen


def _why_none(replies: Sequence[Record]) -> str:
    if not replies:
        return "no model answered"
    if all(reply.label is None for reply in replies):
        return "no reply has a verdict"
    return "no accepted reply"
