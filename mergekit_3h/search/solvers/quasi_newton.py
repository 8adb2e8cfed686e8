"""Minimisation in a box by a trust-region BFGS method: one function value with gradient for each step.

Few dimensions and expensive, deterministic gradients: so the model's curvature is a dense matrix, every evaluation
(a rejected step's too) teaches it, and there is no line search.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from mergekit_3h.search.typed import solved

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
        curvature = torch.eye(x.numel(), dtype=x.dtype) * max(float(g.abs().max()), 1e-12) / self.step_limit
        is_first, small_gains = True, 0
        for _ in range(steps):
            step = self._step(x, g, curvature)
            predicted = -float(g @ step + 0.5 * step @ curvature @ step)
            if predicted <= self.convergence * abs(f) or float(step.abs().max()) < SMALLEST_STEP:
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
            small_gains = small_gains + 1 if gain <= self.convergence * abs(f) else 0
            x, sample, f, g = x + step, tried, f_new, g_new
            if small_gains == 2:
                return x, sample, "converged"
        return x, sample, "steps spent"

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
            step[free] = solved(curvature[free][:, free], right)
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
    if product < 0.2 * expected:
        share = 0.8 * expected / (expected - product)
        change = share * change + (1 - share) * pushed
        product = float(step @ change)
    return curvature - torch.outer(pushed, pushed) / expected + torch.outer(change, change) / product
