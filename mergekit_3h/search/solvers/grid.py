"""Evenly spaced coefficients: the full product of values where the budget allows it, else one value for all."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice, product

from mergekit_3h.search.search import Search
from mergekit_3h.search.solvers import BUDGET_SPENT

log = logging.getLogger(__name__)

_CHUNK = 64
"""Candidates handed to the runner at once: enough to keep many workers busy."""


def solve(search: Search) -> str:
    """Score the uniform merge, then the grid."""
    search.evaluate([search.start])
    points, shared = _size(search)
    values = [search.lower + (search.upper - search.lower) * i / (points - 1) for i in range(points)]
    if shared:
        log.info("grid: %d values, shared by all %d coefficients", points, search.dimension)
    candidates = _candidates(values, search.dimension, shared)
    while chunk := list(islice(candidates, _CHUNK)):
        if len(search.evaluate(chunk)) < len(chunk):
            log.warning("the grid was not finished: max_evaluations is %d", search.options.max_evaluations)
            return BUDGET_SPENT
    return "grid finished"


def _candidates(values: list[float], dimension: int, shared: bool) -> Iterator[tuple[float, ...]]:
    if shared:
        return ((value,) * dimension for value in values)
    return product(values, repeat=dimension)


def _size(search: Search) -> tuple[int, bool]:
    """Values per coefficient, and whether all coefficients share one."""
    given, budget = search.options.grid_points, max(search.remaining, 2)
    if given is not None:
        return given, False
    points = 2
    if points**search.dimension > budget:
        return budget, True
    while (points + 1) ** search.dimension <= budget:
        points += 1
    return points, False
