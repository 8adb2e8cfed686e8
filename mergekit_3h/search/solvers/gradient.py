"""Descent along exact derivatives: one forward and backward pass gives those by all coefficients.

With a constraint on safety the function descended is an augmented Lagrangian, whose multiplier is adapted between
rounds; the derivatives of each set are known apart, so this needs no pass of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mergekit_3h.kernels.values import floats
from mergekit_3h.search.search import Point, Search, SearchError
from mergekit_3h.search.solvers import BUDGET_SPENT
from mergekit_3h.search.solvers.quasi_newton import Minimiser

_ROUND = 8
"""Steps between two changes of the multiplier; a heuristic, enough for BFGS to settle in."""
_ROUNDS = 12
_MARGIN = 1e-3
"""Nats by which the search aims below the safety limit, so that it ends on the allowed side of it."""


@dataclass
class Lagrangian:
    """The score as a smooth function: weighted losses, and (stiffness / 2) max(0, c + multiplier / stiffness)^2."""

    search: Search
    multiplier: float = 0.0
    stiffness: float = 10.0

    def constraint(self, point: Point) -> float:
        return point.violation + _MARGIN

    def __call__(self, point: Point) -> tuple[float, Tensor]:
        if point.measured.failure:
            return math.inf, torch.zeros(self.search.dimension, dtype=torch.float64)
        scoring, losses = self.search.scoring, point.measured.losses
        gradients = {name: _vector(values) for name, values in (point.measured.gradients or {}).items()}
        value = scoring.plain(losses)
        slope = torch.zeros(self.search.dimension, dtype=torch.float64)
        for name, gradient in gradients.items():
            slope += scoring.weights.get(name, 0.0) * gradient
        if scoring.safety_limit is not None:
            excess = max(0.0, self.constraint(point) + self.multiplier / self.stiffness)
            value += self.stiffness / 2 * excess**2
            slope += self.stiffness * excess * gradients["safety"]
        return value, slope

    def adapt(self, point: Point) -> None:
        self.multiplier = max(0.0, self.multiplier + self.stiffness * self.constraint(point))


def solve(search: Search) -> str:
    """Descend from the uniform merge until it has converged or the budget is spent."""
    start = search.evaluate([search.start], gradient=True)[0]
    if start.measured.failure:
        raise SearchError(
            f"the first candidate, the uniform merge, cannot be scored ({start.measured.failure}); the gradient needs "
            "a finite loss to start from. Set a smaller start, dtype float32, or solver cmaes."
        )
    if search.options.optimizer == "adam":
        return _adam(search, start)
    return _bfgs(search, start)


def _bfgs(search: Search, point: Point) -> str:
    lagrangian = Lagrangian(search)
    constrained = search.scoring.safety_limit is not None
    x, reason = _vector(point.coefficients), "steps spent"
    for _ in range(_ROUNDS if constrained else 1):
        minimiser = Minimiser(
            evaluate=lambda x: _evaluated(search, x),
            value=lagrangian,
            lower=search.lower,
            upper=search.upper,
            step_limit=search.options.learning_rate,
            convergence=search.options.convergence,
        )
        steps = _ROUND if constrained else search.options.max_evaluations
        x, point, reason = minimiser.run(x, point, steps)
        if reason == BUDGET_SPENT or not constrained:
            return reason
        before = lagrangian.multiplier
        lagrangian.adapt(point)
        is_steady = abs(lagrangian.multiplier - before) <= 0.01 * max(before, 1.0)
        if reason == "converged" and is_steady and point.violation <= 0:
            return reason
    return reason


def _adam(search: Search, point: Point) -> str:
    """Adam with projection onto the bounds; the step is halved where the score has not improved for a while."""
    lagrangian = Lagrangian(search)
    x = _vector(point.coefficients)
    mean, square = torch.zeros_like(x), torch.zeros_like(x)
    rate, lowest, waited = search.options.learning_rate, math.inf, 0
    step = 0
    while rate >= search.options.learning_rate / 64:
        value, slope = lagrangian(point)
        if value < lowest - search.options.convergence * abs(value):
            lowest, waited = value, 0
        else:
            waited += 1
        if waited == 3:
            rate, waited = rate / 2, 0
            lagrangian.adapt(point)
            lowest = lagrangian(point)[0]
        step += 1
        mean = 0.9 * mean + 0.1 * slope
        square = 0.99 * square + 0.01 * slope**2
        direction = (mean / (1 - 0.9**step)) / ((square / (1 - 0.99**step)).sqrt() + 1e-12)
        x = (x - rate * direction).clamp(search.lower, search.upper)
        tried = _evaluated(search, x)
        if tried is None:
            return BUDGET_SPENT
        if tried.measured.failure:
            return f"stopped at a candidate without a score: {tried.measured.failure}"
        point = tried
    return "converged"


def _evaluated(search: Search, x: Tensor) -> Point | None:
    points = search.evaluate([search.clipped(floats(x))], gradient=True)
    return points[0] if points else None


def _vector(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
