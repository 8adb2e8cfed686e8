"""Means over seeds with their errors, and rank correlations."""

from __future__ import annotations

import random
from collections.abc import Hashable, Mapping, Sequence
from statistics import fmean, mean, stdev

RESAMPLES = 400
SHUFFLES = 2000
Points = Sequence[tuple[float, float]]


def about(values: Sequence[float], sign: str = "", digits: int = 3) -> str:
    """The mean and its standard error."""
    error = f" ± {stdev(values) / len(values) ** 0.5:.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):{sign}.{digits}f}{error}"


def rank_correlation(points: Points) -> float:
    """Spearman's; 0 where one side has a single value."""
    first, second = (_ranks([point[side] for point in points]) for side in (0, 1))
    a, b = fmean(first), fmean(second)
    spread = (sum((x - a) ** 2 for x in first) * sum((y - b) ** 2 for y in second)) ** 0.5
    return sum((x - a) * (y - b) for x, y in zip(first, second, strict=True)) / spread if spread else 0.0


def _ranks(values: Sequence[float]) -> list[float]:
    """Equal values share the mean of their ranks."""
    places: dict[float, list[int]] = {}
    for place, value in enumerate(sorted(values)):
        places.setdefault(value, []).append(place)
    return [fmean(places[value]) for value in values]


def interval(groups: Mapping[Hashable, Points]) -> tuple[float, float]:
    """Of the rank correlation over all points, at 95 %: whole groups are drawn again."""
    draw, names = random.Random(0), list(groups)
    found: list[float] = []
    for _ in range(RESAMPLES):
        drawn = draw.choices(names, k=len(names))
        found.append(rank_correlation([point for name in drawn for point in groups[name]]))
    found.sort()
    return found[int(0.025 * RESAMPLES)], found[int(0.975 * RESAMPLES)]


def with_chance(points: Points) -> str:
    """The rank correlation, and how often shuffled values have one as far from 0; in bold where that is under 1 %."""
    draw, found = random.Random(0), rank_correlation(points)
    firsts, seconds = [point[0] for point in points], [point[1] for point in points]
    as_far = 0
    for _ in range(SHUFFLES):
        draw.shuffle(seconds)
        as_far += abs(rank_correlation(list(zip(firsts, seconds, strict=True)))) >= abs(found) - 1e-9
    p = (as_far + 1) / (SHUFFLES + 1)
    text = f"{found:+.2f} (p {'< 0.001' if p < 0.001 else f'= {p:.3f}'})"
    return f"**{text}**" if p < 0.01 else text


def correlation(groups: Mapping[Hashable, Points]) -> str:
    """The rank correlation with its interval, in bold where that leaves out 0."""
    low, high = interval(groups)
    text = f"{rank_correlation([point for own in groups.values() for point in own]):+.2f} [{low:+.2f}, {high:+.2f}]"
    return f"**{text}**" if low > 0 or high < 0 else text
