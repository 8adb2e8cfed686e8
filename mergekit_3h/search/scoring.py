"""Candidates compared by their losses: one number to minimise, with or without a constraint on safety, or the front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mergekit_3h.search.options import SearchOptions

PENALTY = 10.0
"""Score per nat of safety loss beyond the limit. A heuristic: an exact penalty needs more than the exchange rate
of domain loss for safety loss at the optimum, which was below 5 on everything tried."""


@dataclass(frozen=True)
class Scoring:
    """The score of a candidate; lower is better. ``safety_limit`` is the greatest safety loss allowed, if any."""

    weights: Mapping[str, float]
    safety_limit: float | None = None

    def score(self, losses: Mapping[str, float]) -> float:
        return self.plain(losses) + PENALTY * max(0.0, self.violation(losses))

    def plain(self, losses: Mapping[str, float]) -> float:
        """The weighted sum of the losses, without the constraint."""
        return math.fsum(self.weights.get(name, 0.0) * loss for name, loss in losses.items())

    def violation(self, losses: Mapping[str, float]) -> float:
        """By how many nats the safety loss exceeds its limit; negative or zero where it does not."""
        return -math.inf if self.safety_limit is None else losses["safety"] - self.safety_limit


def scoring_of(options: SearchOptions, safety_of_models: Mapping[str, float]) -> Scoring:
    """The score that the options ask for; ``safety_of_models`` are the single models' safety losses."""
    weights = options.set_weights()
    if options.min_safety is None:
        return Scoring(weights)
    weights["safety"] = 0.0
    return Scoring(weights, min(safety_of_models.values()) - math.log(options.min_safety))


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
