"""LM-Cocktail (arXiv 2311.13534): coefficients from the single models' losses, lambda_i = softmax(-L_i / T).

L_i is the mean loss over the records of all sets together, each record with the weight of its set; with equal
weights that is LM-Cocktail's loss over the union. No merge is needed to find the coefficients. One is made to score
them, and a second for the uniform merge, so that a result worse than that is noticed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from mergekit_3h.search.search import Search
from mergekit_3h.search.solvers import BUDGET_SPENT

log = logging.getLogger(__name__)


def solve(search: Search) -> str:
    """Score LM-Cocktail's coefficients and the uniform merge."""
    experts = list(search.layout.experts)
    labels = [label for label in search.models if label not in experts][:1] if search.options.include_base else []
    labels += experts
    shares = softmax([-_union_loss(search, label) / search.options.temperature for label in labels])
    of_experts = shares[-len(experts) :]
    points = search.evaluate([search.clipped(of_experts * len(search.layout.groups)), search.start])
    if len(points) < 2:
        return BUDGET_SPENT
    if points[1].rank < points[0].rank:
        log.warning(
            "LM-Cocktail's coefficients score %.4g, the uniform merge %.4g: the latter is the result",
            points[0].score,
            points[1].score,
        )
    return "no more to do"


def softmax(values: Sequence[float]) -> list[float]:
    highest = max(values)
    powers = [math.exp(value - highest) for value in values]
    return [power / math.fsum(powers) for power in powers]


def _union_loss(search: Search, label: str) -> float:
    weights = search.options.set_weights()
    losses = search.models[label].losses
    masses = {name: weights[name] * search.set_weights[name] for name in losses}
    return math.fsum(masses[name] * losses[name] for name in losses) / math.fsum(masses.values())
