"""The minimiser behind the gradient solver, on a function that is steep where it starts and flattens out."""

from __future__ import annotations

import torch
from torch import Tensor

from mergekit_3h.search.solvers.quasi_newton import Minimiser


def flattening(x: Tensor) -> tuple[float, Tensor]:
    """Exponential slopes of very different steepness along coupled coordinates; the value and its gradient."""
    x = x.clone().requires_grad_(True)
    index = torch.arange(x.numel()) % 4
    steepness = torch.tensor([100.0, 2.0, 5.0, 1.0], dtype=x.dtype)[index]
    height = torch.tensor([10.0, 0.3, 0.5, 0.2], dtype=x.dtype)[index]
    value = (height * torch.exp(-steepness * (x - 0.3 * x.roll(1)))).mean()
    (gradient,) = torch.autograd.grad(value, x)
    return float(value.detach()), gradient


def test_curvature_learnt_on_a_steep_first_step_is_not_taken_for_convergence() -> None:
    minimiser = Minimiser(
        evaluate=flattening, value=lambda sample: sample, lower=0.0, upper=2.0, step_limit=0.2, convergence=1e-3
    )
    start = torch.full((33,), 0.1, dtype=torch.float64)
    _, (value, _), reason = minimiser.run(start, flattening(start), steps=80)
    assert reason == "converged"
    # From 0.196; the stiff curvature alone stops at 0.041, fresh curvature goes on to 0.014.
    assert value < 0.02
