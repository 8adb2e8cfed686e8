"""What every guard and judge is: it asks a model about a reply and reads its answer as a verdict.

A guard neither loads nor calls a model. ``requests`` says what to ask, a backend answers, ``verdict`` reads.
An answer that cannot be read gives the label ``unscored`` with the reason: never ``safe`` or ``refusal``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import ClassVar, Literal, Protocol, cast

from pydantic import BaseModel, ConfigDict, Field

from mergekit_3h.data.backends.protocol import Backend, Completion, Request
from mergekit_3h.data.records import Label, Record

VerdictLabel = Literal["safe", "unsafe", "refusal", "compliance", "rated", "unscored"]


class Verdict(BaseModel):
    """A guard's judgement of one reply."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: VerdictLabel = Field(description="rated: a judge gave only a score. unscored: no verdict, see reason.")
    category: str | None = Field(default=None, description="The violated categories or the kind of refusal.")
    score: float | None = Field(default=None, description="The judge's number, on the judge's own scale.")
    raw: str = Field(default="", description="What the guard wrote, unchanged.")
    reason: str | None = Field(default=None, description="Why there is no verdict, or what was odd about it.")


class Guard(Protocol):
    """The contract. ``needs_model`` is False for a guard that makes no requests."""

    name: ClassVar[str]
    needs_model: ClassVar[bool]

    def requests(self, record: Record) -> list[Request]:
        """What to ask about a record's reply."""
        ...

    def verdict(self, record: Record, answers: Sequence[str]) -> Verdict:
        """Read the answers, one for each request. Never raises."""
        ...


def unscored(reason: str, raw: str = "") -> Verdict:
    """No verdict, and why."""
    return Verdict(label="unscored", raw=raw, reason=reason)


def judged(
    guard: Guard, records: Iterable[Record], backend: Backend | None = None, at_once: int = 64
) -> Iterator[tuple[Record, Verdict]]:
    """Every record with its verdict, in order; ``at_once`` records are handed to the backend together.

    A record without a reply, and one whose request failed, is unscored.
    """
    source = iter(records)
    while chunk := list(islice(source, at_once)):
        asked = [guard.requests(record) if record.response is not None else [] for record in chunk]
        requests = [request for of_one_record in asked for request in of_one_record]
        completions = iter(backend.complete(requests) if backend and requests else [])
        for record, of_one_record in zip(chunk, asked, strict=True):
            yield record, _verdict(guard, record, list(islice(completions, len(of_one_record))))


def _verdict(guard: Guard, record: Record, completions: Sequence[Completion]) -> Verdict:
    if record.response is None:
        return unscored("the record has no response")
    if guard.needs_model and not completions:
        return unscored(f"the guard {guard.name} needs a model and there is none")
    answers = [completion.text for completion in completions if completion.text is not None]
    if len(answers) < len(completions):
        failure = next(completion.failure for completion in completions if completion.text is None)
        return unscored(f"the request failed: {failure}", "\n".join(answers))
    return guard.verdict(record, answers)


def labelled(record: Record, verdict: Verdict) -> Record:
    """The record with the verdict's label; without one if it is unscored or only rated."""
    has_label = verdict.label not in ("rated", "unscored")
    return record.changed(label=cast(Label, verdict.label) if has_label else None)


def conversation(record: Record) -> str:
    """The conversation without the reply as one text: a transcript if it has several turns."""
    turns = record.chat()
    if len(turns) == 1:
        return turns[0]["content"]
    return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in turns)


def visible(answer: str) -> str:
    """An answer without the reasoning that some models put before it; empty if it was cut off inside that."""
    after = answer.rpartition("</think>")[2]
    return "" if "<think>" in after else after.strip()
