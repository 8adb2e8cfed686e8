"""Counts over records, as plain data: by set, category, label and source, and how often each model refuses."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from mergekit_3h.data.records import Record

NONE = "(none)"


@dataclass(frozen=True)
class Rates:
    """The replies of one source (a model, or a data set) to the prompts of one set, by verdict."""

    source: str
    set: str
    replies: int
    labels: dict[str, int]
    refusal_rate: float | None
    """Refusals among the replies with a verdict; None if no verdict in the data speaks of refusing."""
    safe_rate: float | None
    """Safe replies and refusals among those with a verdict; None if no verdict speaks of safety."""

    @property
    def unscored(self) -> int:
        """Replies without a verdict; they are in no rate."""
        return self.labels.get(NONE, 0)


@dataclass(frozen=True)
class Statistics:
    """What a collection of records holds. ``unique_prompts`` counts prompts that differ after normalisation."""

    records: int
    unique_prompts: int
    with_response: int
    sets: dict[str, int]
    unique_by_set: dict[str, int]
    categories: dict[str, int]
    labels: dict[str, int]
    sources: dict[str, int]
    rates: list[Rates]


@dataclass
class _Tally:
    records: int = 0
    with_response: int = 0
    sets: Counter[str] = field(default_factory=Counter[str])
    categories: Counter[str] = field(default_factory=Counter[str])
    labels: Counter[str] = field(default_factory=Counter[str])
    sources: Counter[str] = field(default_factory=Counter[str])
    prompts: dict[str, set[bytes]] = field(default_factory=lambda: defaultdict(set))
    replies: dict[tuple[str, str], Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def add(self, record: Record) -> None:
        source, label = record.source or NONE, record.label or NONE
        self.records += 1
        self.sets[record.set] += 1
        self.categories[record.category or NONE] += 1
        self.sources[source] += 1
        # A digest instead of the text: a million prompts take 100 MB, not their length.
        self.prompts[record.set].add(hashlib.blake2b(record.normalised.encode(), digest_size=8).digest())
        if record.response is not None:
            self.with_response += 1
            self.labels[label] += 1
            self.replies[source, record.set][label] += 1


def statistics(records: Iterable[Record]) -> Statistics:
    """Counts over ``records``, which are gone through once."""
    tally = _Tally()
    for record in records:
        tally.add(record)
    unique: set[bytes] = set[bytes]().union(*tally.prompts.values())
    return Statistics(
        records=tally.records,
        unique_prompts=len(unique),
        with_response=tally.with_response,
        sets=_sorted(tally.sets),
        unique_by_set={name: len(tally.prompts[name]) for name in _sorted(tally.sets)},
        categories=_sorted(tally.categories),
        labels=_sorted(tally.labels),
        sources=_sorted(tally.sources),
        rates=[_rates(*key, tally.replies[key], tally.labels) for key in sorted(tally.replies)],
    )


def _rates(source: str, set_name: str, labels: Counter[str], everywhere: Counter[str]) -> Rates:
    """Guards differ in what they tell: one says safe or unsafe, another refusal or compliance, a third both."""
    scored = sum(labels.values()) - labels[NONE]
    tells_refusal = everywhere["refusal"] + everywhere["compliance"] > 0
    tells_safety = everywhere["safe"] + everywhere["unsafe"] > 0 and labels["compliance"] == 0
    return Rates(
        source=source,
        set=set_name,
        replies=sum(labels.values()),
        labels=_sorted(labels),
        refusal_rate=labels["refusal"] / scored if scored and tells_refusal else None,
        safe_rate=(labels["safe"] + labels["refusal"]) / scored if scored and tells_safety else None,
    )


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
