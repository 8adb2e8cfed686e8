"""Finding records that ask the same: exactly after normalisation, or nearly, by character n-grams."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from mergekit_3h.data.records import Record
from mergekit_3h.data.similarity import SimilarTexts
from mergekit_3h.data.text import normalised_text

Compare = Literal["prompt", "prompt_and_response"]

# The place of the record that stays instead, and how similar it is.
Winner: TypeAlias = "tuple[int, float]"

# What makes the better of two duplicates, the best first; the order in the file decides between equals.
_RANKS = ("an accepted reply", "a reply without verdict", "no reply", "an unaccepted reply")


@dataclass(frozen=True)
class Duplicate:
    """A record that was dropped, the one that was kept instead, and why."""

    dropped: str
    kept: str
    similarity: float
    reason: str

    @property
    def exact(self) -> bool:
        """Whether the normalised texts are equal."""
        return self.similarity == 1.0


@dataclass
class Deduplication:
    """What is left, in the order it was given, and what was dropped."""

    kept: list[Record]
    duplicates: list[Duplicate] = field(default_factory=list[Duplicate])

    def counts(self) -> dict[str, int]:
        """How many records were kept, dropped as exact and dropped as near duplicates."""
        kinds = Counter("exact" if duplicate.exact else "near" for duplicate in self.duplicates)
        return {"kept": len(self.kept), "exact": kinds["exact"], "near": kinds["near"]}


def deduplicated(
    records: Sequence[Record], threshold: float | None = None, compare: Compare = "prompt"
) -> Deduplication:
    """``records`` without duplicates within each set.

    Exact duplicates always go; with a ``threshold`` (0.8, say) so do records whose n-grams have at least that
    Jaccard similarity with those of a record that is kept. Of two duplicates the one with an accepted reply (safe
    or a refusal) stays, else the one with a reply, else the first.
    """
    by_preference = sorted(range(len(records)), key=lambda place: _rank(records[place]))
    texts = [_text(record, compare) for record in records]
    winners: dict[int, Winner] = {}
    for name in dict.fromkeys(record.set for record in records):
        places = [place for place in by_preference if records[place].set == name]
        winners.update(_exact(texts, places))
        if threshold is not None:
            distinct = [place for place in places if place not in winners]
            winners.update(_near(texts, distinct, threshold))
    kept = [record for place, record in enumerate(records) if place not in winners]
    duplicates = [_duplicate(records, place, _final(winners, place)) for place in sorted(winners)]
    return Deduplication(kept, duplicates)


def _exact(texts: list[str], places: list[int]) -> dict[int, Winner]:
    first: dict[str, int] = {}
    return {place: (first[texts[place]], 1.0) for place in places if first.setdefault(texts[place], place) != place}


def _near(texts: list[str], places: list[int], threshold: float) -> dict[int, Winner]:
    index = SimilarTexts([texts[place] for place in places], threshold)
    found: dict[int, Winner] = {}
    for position, place in enumerate(places):
        matches = index.matches(position)
        if matches:
            best = max(matches, key=lambda other: (matches[other], -other))
            # Different texts can have the same set of n-grams; similarity 1 is for equal texts only.
            found[place] = places[best], min(matches[best], 0.9999)
        else:
            index.add(position)
    return found


def _final(winners: dict[int, Winner], place: int) -> Winner:
    """The record that is kept: the winner over an equal text may itself have lost to a similar one."""
    kept, similarity = winners[place]
    return winners.get(kept, (kept, similarity))


def _duplicate(records: Sequence[Record], dropped: int, winner_there: Winner) -> Duplicate:
    kept, similarity = winner_there
    loser, winner = _rank(records[dropped]), _rank(records[kept])
    why = "came first" if loser == winner else f"has {_RANKS[winner]}, the other {_RANKS[loser]}"
    same = "same text" if similarity == 1.0 else f"{similarity:.0%} of the n-grams shared"
    return Duplicate(records[dropped].id, records[kept].id, similarity, f"{same}; the one kept {why}")


def _rank(record: Record) -> int:
    if record.response is None:
        return 2
    return {None: 1, "safe": 0, "refusal": 0, "compliance": 1, "unsafe": 3}[record.label]


def _text(record: Record, compare: Compare) -> str:
    if compare == "prompt" or record.response is None:
        return record.normalised
    return f"{record.normalised}\n{normalised_text(record.response)}"
