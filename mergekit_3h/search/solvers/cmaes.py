"""CMA-ES over the coefficients, as EvoMM does (package ``cma``): ask for a generation, score it, tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mergekit_3h.optional import optional
from mergekit_3h.search.search import Point, Search
from mergekit_3h.search.solvers import BUDGET_SPENT


def solve(search: Search) -> str:
    """Score the uniform merge, then generations around it until the strategy stops or the budget is spent."""
    search.evaluate([search.start])
    # The strategy refuses one dimension: it gets a second coordinate that nothing depends on.
    padding = 1 if search.dimension == 1 else 0
    strategy = _strategy(search, padding)
    while not strategy.stop():
        asked = strategy.ask()
        candidates = [search.clipped(vector[: search.dimension]) for vector in asked]
        points = search.evaluate(candidates)
        if len(points) < len(candidates):
            return BUDGET_SPENT
        strategy.tell(asked, _finite_scores(points))
    return "converged: " + ", ".join(strategy.stop())


def _strategy(search: Search, padding: int) -> Any:
    cma = optional("cma", "search", "solver 'cmaes' (which solver 'gradient' may replace)")
    import numpy as np

    # A generator of its own: seeding cma would seed numpy's global one, and others' draws would change the search.
    generator = np.random.default_rng(search.options.seed)

    def draw(*shape: int) -> Any:
        return generator.standard_normal(shape)

    options: dict[str, Any] = {
        "bounds": [search.lower, search.upper],
        "popsize": search.options.population or _population(search.dimension),
        "randn": draw,
        "seed": np.nan,
        "verbose": -10,
        "verb_log": 0,
    }
    start = [*search.start, *[(search.lower + search.upper) / 2] * padding]
    return cma.CMAEvolutionStrategy(start, search.options.sigma0, options)


def _population(dimension: int) -> int:
    return 4 + math.floor(3 * math.log(dimension))


def _finite_scores(points: Sequence[Point]) -> list[float]:
    """Scores with failed candidates as the worst of their generation; the strategy cannot rank infinity."""
    finite = [point.score for point in points if math.isfinite(point.score)]
    worst = max(finite, default=0.0) + 1.0
    return [point.score if math.isfinite(point.score) else worst for point in points]
