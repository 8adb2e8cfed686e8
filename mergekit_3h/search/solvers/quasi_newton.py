"""Minimisation in a box by a trust-region BFGS method: one function value with gradient for each step.

Few dimensions and expensive, deterministic gradients: so the model's curvature is a dense matrix, every evaluation
(a rejected step's too) teaches it, and there is no line search.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor

SMALLEST_STEP = 1e-4
"""Coefficients closer than this are not told apart: candidates rounded to bf16 hardly differ any more."""

Sample = TypeVar("Sample")
Evaluate = Callable[[Tensor], "Sample | None"]
"""What is known at a point; None if the budget is spent."""
Value = Callable[["Sample"], "tuple[float, Tensor]"]
"""Function value and gradient of a sample; the value is infinite where the function is not defined."""


@dataclass
class Minimiser(Generic[Sample]):
    """The state of a minimisation. ``step_limit`` is the radius of the trust region, per coordinate."""

    evaluate: Evaluate[Sample]
    value: Value[Sample]
    lower: float
    upper: float
    step_limit: float
    convergence: float

    def run(self, x: Tensor, sample: Sample, steps: int) -> tuple[Tensor, Sample, str]:
        """At most ``steps`` steps from ``x``, where ``sample`` is known. Returns the best point and why it ended."""
        f, g = self.value(sample)
        first_limit = self.step_limit
        curvature, is_fresh, small_gains = self._fresh_curvature(g), True, 0
        is_first = True
        for _ in range(steps):
            step, predicted = self._planned(x, f, g, curvature)
            if small_gains == 2 or predicted <= 0:
                if is_fresh:
                    return x, sample, "converged"
                # The model may be too stiff, learnt where the function was steep: only a new one's word counts.
                self.step_limit = first_limit
                curvature, is_fresh, is_first, small_gains = self._fresh_curvature(g), True, True, 0
                step, predicted = self._planned(x, f, g, curvature)
                if predicted <= 0:
                    return x, sample, "converged"
            tried = self.evaluate(x + step)
            if tried is None:
                return x, sample, "budget spent"
            f_new, g_new = self.value(tried)
            if f_new < float("inf"):
                curvature = updated_curvature(curvature, step, g_new - g, is_first)
                is_first = False
            gain = f - f_new
            self._adapt(step, gain / predicted)
            if gain <= 0:
                continue
            is_small = gain <= self.convergence * abs(f)
            small_gains = small_gains + 1 if is_small else 0
            is_fresh = is_fresh and is_small
            x, sample, f, g = x + step, tried, f_new, g_new
        return x, sample, "steps spent"

    def _fresh_curvature(self, g: Tensor) -> Tensor:
        """Before anything is known: one step of steepest descent goes to the edge of the trust region."""
        return torch.eye(g.numel(), dtype=g.dtype) * max(float(g.abs().max()), 1e-12) / self.step_limit

    def _planned(self, x: Tensor, f: float, g: Tensor, curvature: Tensor) -> tuple[Tensor, float]:
        """The next step and what the model expects of it: 0 if that is too little to try."""
        step = self._step(x, g, curvature)
        predicted = -float(g @ step + 0.5 * step @ curvature @ step)
        too_little = predicted <= self.convergence * abs(f) or float(step.abs().max()) < SMALLEST_STEP
        return step, 0.0 if too_little else predicted

    def _adapt(self, step: Tensor, quality: float) -> None:
        length = float(step.abs().max())
        if quality < 0.25:
            self.step_limit = length / 4
        elif length > 0.9 * self.step_limit:
            self.step_limit *= 3

    def _step(self, x: Tensor, g: Tensor, curvature: Tensor) -> Tensor:
        """Minimum of the quadratic model in the box, by fixing the coordinates that leave it and solving again."""
        low = (self.lower - x).clamp(min=-self.step_limit)
        high = (self.upper - x).clamp(max=self.step_limit)
        step = torch.zeros_like(x)
        free = ~(((low >= 0) & (g > 0)) | ((high <= 0) & (g < 0)))
        while bool(free.any()):
            right = -(g + curvature @ torch.where(free, torch.zeros_like(step), step))[free]
            step[free] = _solved(curvature[free][:, free], right)
            outside = free & ((step < low) | (step > high))
            step = torch.maximum(torch.minimum(step, high), low)
            if not bool(outside.any()):
                break
            free = free & ~outside
        if float(g @ step) < 0:
            return step
        slope = g / g.abs().max().clamp(min=1e-300)
        return torch.maximum(torch.minimum(-self.step_limit * slope, high), low)


def updated_curvature(curvature: Tensor, step: Tensor, change: Tensor, is_first: bool) -> Tensor:
    """The BFGS update, damped as Powell does so that the matrix stays positive definite."""
    product = float(step @ change)
    if is_first and product > 0:
        curvature = torch.eye(step.numel(), dtype=step.dtype) * float(change @ change) / product
    pushed = curvature @ step
    expected = float(step @ pushed)
    if 0 < product < 0.2 * expected:  # losses flatten out as they fall: along other directions than this one too
        shrink = max(0.1, product / expected)
        curvature, pushed, expected = curvature * shrink, pushed * shrink, expected * shrink
    if product < 0.2 * expected:
        share = 0.8 * expected / (expected - product)
        change = share * change + (1 - share) * pushed
        product = float(step @ change)
    return curvature - torch.outer(pushed, pushed) / expected + torch.outer(change, change) / product


def _solved(matrix: Tensor, right: Tensor) -> Tensor:
    """x with matrix @ x = right."""
    untyped: Any = torch.linalg
    return cast(Tensor, untyped.solve(matrix, right))
