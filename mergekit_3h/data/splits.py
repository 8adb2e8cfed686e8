"""Dividing records into parts, the same way every time, without the same question in two parts."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

from mergekit_3h.data.records import DataError, Record
from mergekit_3h.data.similarity import SimilarTexts
from mergekit_3h.data.text import normalised_text

log = logging.getLogger(__name__)

Assignment = Literal["hash", "exact"]
Stratum = tuple[str | None, ...]


def split(
    records: Sequence[Record],
    shares: Mapping[str, float],
    seed: int = 0,
    by: Assignment = "hash",
    stratify: Sequence[Literal["set", "category"]] = ("set", "category"),
    near_duplicates: float | None = None,
) -> dict[str, list[Record]]:
    """The records of each part, in the order they were given.

    ``by="hash"`` places a record by its id and the seed alone: records added later move no others, and the shares
    are met on average. ``by="exact"`` meets the shares as closely as whole records allow, in every stratum (the
    values of ``stratify``). Records with the same prompt always share a part, and so do conversations that open with
    the same question (one may be the other's beginning); with ``near_duplicates`` those at least that similar do, too,
    also along a chain of similar ones.
    """
    require_shares(shares)
    groups = _groups(records, near_duplicates)
    place = _by_hash(groups, shares, seed) if by == "hash" else _by_quota(groups, shares, seed, stratify)
    parts: dict[str, list[Record]] = {name: [] for name in shares}
    for record, part in zip(records, place, strict=True):
        parts[part].append(record)
    for name, part in parts.items():
        if records and not part:
            log.warning("split: the part %r is empty", name)
    return parts


def require_shares(shares: Mapping[str, float]) -> None:
    """Raise unless every share is positive and together they are the whole."""
    total = sum(shares.values())
    if not shares or min(shares.values()) <= 0 or abs(total - 1.0) > 1e-6:
        given = ", ".join(f"{name}: {share:g}" for name, share in shares.items()) or "no parts"
        raise DataError(f"split: got {given} (sum {total:g}); expected positive shares that sum to 1")


class _Groups:
    """Records that must stay together. ``members[i]`` are the places of group i, ``keys[i]`` its stable name."""

    def __init__(self, records: Sequence[Record], roots: Sequence[int]) -> None:
        by_root: defaultdict[int, list[int]] = defaultdict(list)
        for place, root in enumerate(roots):
            by_root[root].append(place)
        self.records = records
        self.members = list(by_root.values())
        self.keys = [min(records[place].id for place in members) for members in self.members]


def _groups(records: Sequence[Record], threshold: float | None) -> _Groups:
    parent = list(range(len(records)))

    def root_of(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    first: dict[str, int] = {}
    opened: dict[str, int] = {}
    for place, record in enumerate(records):
        parent[place] = first.setdefault(record.normalised, place)
        parent[root_of(place)] = root_of(opened.setdefault(_opening(record), place))
    if threshold is not None:
        distinct = list(first.values())
        index = SimilarTexts(list(first), threshold)
        for position, place in enumerate(distinct):
            for other in index.matches(position):
                parent[root_of(place)] = root_of(distinct[other])
            index.add(position)
    return _Groups(records, [root_of(place) for place in range(len(records))])


def _opening(record: Record) -> str:
    """What the user asks first."""
    return normalised_text(next(turn["content"] for turn in record.chat() if turn["role"] == "user"))


def _by_hash(groups: _Groups, shares: Mapping[str, float], seed: int) -> list[str]:
    names = list(shares)
    place = [""] * len(groups.records)
    for key, members in zip(groups.keys, groups.members, strict=True):
        position, upper = _uniform(seed, key), 0.0
        part = names[-1]
        for name in names:
            upper += shares[name]
            if position < upper:
                part = name
                break
        for member in members:
            place[member] = part
    return place


def _by_quota(
    groups: _Groups, shares: Mapping[str, float], seed: int, stratify: Sequence[Literal["set", "category"]]
) -> list[str]:
    strata: defaultdict[Stratum, list[int]] = defaultdict(list)
    for number, members in enumerate(groups.members):
        record = groups.records[members[0]]
        strata[tuple(getattr(record, name) for name in stratify)].append(number)
    place = [""] * len(groups.records)
    owed = dict.fromkeys(shares, 0.0)  # carried from stratum to stratum, so that small ones do not all round alike
    for stratum in sorted(strata, key=repr):
        shuffled = sorted(strata[stratum], key=lambda number: _uniform(seed, groups.keys[number]))
        size = sum(len(groups.members[number]) for number in shuffled)
        for name, share in shares.items():
            owed[name] += share * size
        for number in shuffled:
            part = max(owed, key=owed.__getitem__)
            owed[part] -= len(groups.members[number])
            for member in groups.members[number]:
                place[member] = part
    return place


def _uniform(seed: int, key: str) -> float:
    """A number in [0, 1) that depends on nothing but its arguments."""
    digest = hashlib.sha256(f"{seed}\n{key}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
