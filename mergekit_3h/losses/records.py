"""Records with the place they come from, so that an error about one can name its file and line."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mergekit_3h.data.guards.keyword_refusal import KeywordRefusal
from mergekit_3h.data.reading import numbered_lines, read_records
from mergekit_3h.data.records import DataError, Record

log = logging.getLogger(__name__)

SETS = ("safety", "domain", "overrefusal")
_EXAMPLES, _LONGEST_EXAMPLE = 3, 60
_UNWANTED = {"safety": ("unsafe", "compliance"), "domain": ("refusal", "unsafe"), "overrefusal": ("refusal", "unsafe")}


@dataclass(frozen=True)
class LocatedRecord:
    """A record, and where it was read."""

    record: Record
    place: str

    def __str__(self) -> str:
        return f"{self.place} (record {self.record.id!r})"


def located_records(paths: str | Path | Iterable[str | Path]) -> list[LocatedRecord]:
    """All records of one or several JSONL files. Invalid lines are errors that name each of them."""
    if isinstance(paths, (str, Path)):
        paths = [paths]
    found: list[LocatedRecord] = []
    for path in paths:
        records = read_records(path)
        numbers = [number for number, _ in numbered_lines(Path(path))]
        found += [
            LocatedRecord(record, f"{path}, line {number}") for record, number in zip(records, numbers, strict=True)
        ]
    return found


def in_memory(records: Iterable[Record]) -> list[LocatedRecord]:
    """Records that do not come from a file."""
    return [LocatedRecord(record, f"record number {i}") for i, record in enumerate(records, start=1)]


def by_set(records: Sequence[LocatedRecord], needed: Collection[str]) -> dict[str, list[LocatedRecord]]:
    """The sets that are there. Raises if one that is ``needed`` is missing, empty, or has nothing to learn from."""
    sets = {name: [r for r in records if r.record.set == name] for name in SETS}
    for name, members in sets.items():
        if name in needed and not members:
            raise DataError(
                f"no record of the set {name!r} among {len(records)}; the search needs at least one. Build the set "
                "with mergekit-3h data, or set the weight of its loss to 0."
            )
        if members and not any(member.record.weight for member in members):
            raise DataError(f"all {len(members)} records of the set {name!r} have weight 0; expected some above 0")
        try:
            _require_answers(name, members)
        except DataError as error:
            if name in needed:
                raise
            log.warning("the set %r, whose loss has no weight, is not measured: %s", name, error)
            sets[name] = []
    return {name: members for name, members in sets.items() if members}


def _require_answers(name: str, members: Sequence[LocatedRecord]) -> None:
    unanswered = [member for member in members if not (member.record.response or "").strip()]
    if unanswered:
        what = "a refusal" if name == "safety" else "a response"
        answered = len(members) - len(unanswered)
        some = f"only {answered} of {len(members)} records have" if answered else f"none of {len(members)} records has"
        raise DataError(
            f"set {name!r}: {some} {what}; the first without is {unanswered[0]}. The "
            "search learns from the answers: add them with mergekit-3h data answer and label, or remove these records."
        )
    wrong = [member for member in members if member.record.label in _UNWANTED[name]]
    if wrong:
        raise DataError(
            f"set {name!r}: {len(wrong)} of {len(members)} records have an answer that the search would learn from but "
            f"must not, labelled {wrong[0].record.label!r} at {wrong[0]}. Remove these records or answer them anew."
        )


def require_refusals(safety: Sequence[LocatedRecord], *, strict: bool) -> None:
    """Warn of records without a label whose response is no refusal, as far as its words tell; ``strict``: raise.

    A search makes the responses of the safety set likelier, whatever they say.
    """
    doubtful = [member for member in safety if member.record.label is None and not _refuses(member.record)]
    if not doubtful:
        return
    text = _doubt(doubtful, len(safety))
    if strict:
        raise DataError(f"{text}. Label or remove them; without the option strict they are only warned of.")
    if text not in _warned:
        _warned.add(text)
        log.warning("%s. Label or remove them; the option strict refuses such data.", text)


_warned: set[str] = set()
"""A problem is checked again when its model gets its weights, and would repeat what it said."""


def _refuses(record: Record) -> bool:
    return KeywordRefusal().verdict(record, []).label == "refusal"


def _doubt(doubtful: Sequence[LocatedRecord], total: int) -> str:
    examples = "; ".join(f"{_beginning(one.record.response or '')!r} at {one.place}" for one in doubtful[:_EXAMPLES])
    have, seems = ("has", "its response seems") if len(doubtful) == 1 else ("have", "their responses seem")
    return (
        f"set 'safety': {len(doubtful)} of {total} records {have} no label, and by the guard 'keyword' {seems} to be "
        f"no refusal: {examples}. The search would make such answers likelier"
    )


def _beginning(response: str) -> str:
    words = " ".join(response.split())
    return words if len(words) <= _LONGEST_EXAMPLE else f"{words[:_LONGEST_EXAMPLE].rstrip()}..."


def digest(records: Sequence[LocatedRecord]) -> str:
    """Changes when the content or the order of the records does."""
    content = hashlib.sha256()
    for located in records:
        content.update(located.record.model_dump_json().encode())
    return content.hexdigest()[:20]
