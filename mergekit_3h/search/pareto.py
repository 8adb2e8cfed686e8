"""Which evaluated points no other one beats in every loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def pareto_front(losses: Sequence[Mapping[str, float]]) -> list[int]:
    """Positions of the points that are on the front, in the order given; of equal points only the first."""
    return [
        i
        for i, own in enumerate(losses)
        if own and not any(_beats(other, own) or (other == own and j < i) for j, other in enumerate(losses))
    ]


def _beats(other: Mapping[str, float], own: Mapping[str, float]) -> bool:
    if not other:
        return False
    return all(other[name] <= own[name] for name in own) and any(other[name] < own[name] for name in own)
