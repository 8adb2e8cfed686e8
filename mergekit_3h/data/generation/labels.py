"""Step 3, first half: a guard's or judge's verdict on every answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field

from mergekit_3h.data.backends.protocol import Backend
from mergekit_3h.data.generation.asking import key_of, unfinished
from mergekit_3h.data.generation.reports import StepReport
from mergekit_3h.data.guards import Guard, Verdict, judged, labelled
from mergekit_3h.data.records import Record
from mergekit_3h.data.sections import Section
from mergekit_3h.data.store import Store

# How many replies are handed to the guard's model together; the server keeps all its workers busy with it.
_AT_ONCE = 64


class LabelSettings(Section):
    """Who judges the replies."""

    guard: str = Field(
        "keyword", description="A guard or judge; keyword needs no model but is no guard model, only phrases."
    )
    model: str | None = Field(None, description="The guard's model, a name under models.")


class VerdictLine(Verdict):
    """A verdict in a journal."""

    id: str


def verdicts(
    answers: Sequence[Record],
    guard: Guard,
    *,
    journal: Path,
    model: str,
    backend: Callable[[], Backend],
    done: Callable[[int], object],
    report: StepReport,
) -> list[Record]:
    """The answers with their labels; one without a verdict keeps no label and is counted with the reason."""
    keys = {
        answer.id: key_of(answer.id, guard.name, model, answer.response, asked_by(guard, answer)) for answer in answers
    }
    with Store(journal, VerdictLine) as store:
        known: dict[str, Verdict] = {line.id: line for line in store}
        pending = list(unfinished(answers, _AT_ONCE, lambda answer: keys[answer.id] in known))
        done(sum(key in known for key in keys.values()))
        judge = backend() if pending and guard.needs_model else None
        for answer, verdict in judged(guard, pending, judge, _AT_ONCE):
            key = keys[answer.id]
            if store.append(VerdictLine(id=key, **verdict.model_dump())):
                done(1)
                known[key] = verdict
    report.requests += len(answers) if guard.needs_model else 0
    return [_counted(answer, known[keys[answer.id]], report) for answer in answers]


def asked_by(guard: Guard, answer: Record) -> list[dict[str, Any]]:
    """What a guard asks about an answer, as plain JSON data."""
    return json.loads(json.dumps([asdict(request) for request in guard.requests(answer)]))


def _counted(answer: Record, verdict: Verdict, report: StepReport) -> Record:
    if verdict.label == "unscored":
        report.leave_unscored(verdict.reason or "no reason given")
    else:
        report.label(verdict.label)
    report.kept += 1
    return labelled(answer, verdict)
