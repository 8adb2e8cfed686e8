"""Rank correlations with the gain that merges keep beyond the sum's, and how often chance has such ones."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

SHUFFLES = 2000
FEWEST = 4
"""Points from which a correlation is shown."""

Points = Mapping[Hashable, Sequence[tuple[float, float]]]
"""By group; what is shuffled to see what chance does stays within its group."""


def cell(points: Points) -> str:
    """The correlation over all points, the share of shuffles in which it is as far from 0, and the number of points.

    A group of one point says nothing. In bold where the share is under 1 %.
    """
    groups = [list(own) for own in points.values() if len(own) > 1]
    count = sum(map(len, groups))
    if count < FEWEST:
        return ""
    found, draw, as_far = rank_correlation([point for own in groups for point in own]), random.Random(0), 0
    for _ in range(SHUFFLES):
        shuffled = [
            (x, y) for own in groups for (x, _), y in zip(own, _shuffled([y for _, y in own], draw), strict=True)
        ]
        as_far += abs(rank_correlation(shuffled)) >= abs(found) - 1e-9
    p = (as_far + 1) / (SHUFFLES + 1)
    text = f"{found:+.2f} (p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}, {count})"
    return f"**{text}**" if p < 0.01 else text


def _shuffled(values: list[float], draw: random.Random) -> list[float]:
    return draw.sample(values, len(values))


def rank_correlation(points: Sequence[tuple[float, float]]) -> float:
    """Spearman's; 0 where one side has a single value."""
    first, second = (_ranks([point[side] for point in points]) for side in (0, 1))
    middle = (len(points) - 1) / 2
    spread = (sum((x - middle) ** 2 for x in first) * sum((y - middle) ** 2 for y in second)) ** 0.5
    return sum((x - middle) * (y - middle) for x, y in zip(first, second, strict=True)) / spread if spread else 0.0


def _ranks(values: Sequence[float]) -> list[float]:
    """Equal values share the mean of their ranks."""
    places: defaultdict[float, list[int]] = defaultdict(list)
    for place, value in enumerate(sorted(values)):
        places[value].append(place)
    return [fmean(places[value]) for value in values]


Sample = tuple[Hashable, str, int, float, float]
"""A merge: its case, row and seed, a measure of it, and what it keeps more than the sum."""


def over_rows(samples: Iterable[Sample]) -> Points:
    """Means of the seeds, beside the other rows of the case."""
    return _centred(_means(samples, lambda sample: (sample[0], sample[1])))


def over_seeds(samples: Iterable[Sample]) -> Points:
    """Means of the rows, beside the other seeds of the case."""
    return _centred(_means(samples, lambda sample: (sample[0], sample[2])))


def over_cases(samples: Iterable[Sample]) -> Points:
    """Means of seeds and rows, of those rows that every case has."""
    every = list(samples)
    cases = {case for case, *_ in every}
    common = set.intersection(*({row for own, row, *_ in every if own == case} for case in cases)) if cases else set()
    return {None: list(_means((one for one in every if one[1] in common), lambda sample: (sample[0],)).values())}


def _means(samples: Iterable[Sample], key: Callable[[Sample], tuple[Any, ...]]) -> dict[Any, tuple[float, float]]:
    groups: defaultdict[Any, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[key(sample)].append(sample)
    return {name: (fmean(one[3] for one in own), fmean(one[4] for one in own)) for name, own in groups.items()}


def _centred(means: Mapping[Any, tuple[float, float]]) -> Points:
    """By case, each side less its mean over the case."""
    groups: defaultdict[Hashable, list[tuple[float, float]]] = defaultdict(list)
    for (case, _), point in means.items():
        groups[case].append(point)
    return {
        case: [(x - fmean(p[0] for p in own), y - fmean(p[1] for p in own)) for x, y in own]
        for case, own in groups.items()
    }
