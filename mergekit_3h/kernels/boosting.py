"""The smaller singular values of a merged update raised to one of its larger ones (arXiv 2506.16506).

Of the merged update U S V^T, j is the first index at which s_1 + .. + s_j is the share beta of the sum of all, and
M = U diag(max(S, s_j)) V^T. Only directions that are there are raised: those that rounding explains stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mergekit_3h.kernels.isotropic import with_values
from mergekit_3h.kernels.sums import UpdateSum, sum_spectrum
from mergekit_3h.kernels.tasks import TaskMatrices


@dataclass(frozen=True)
class Boosting:
    """What became of the merged update."""

    rank: int
    """Directions of the merged update that count."""
    kept: int
    """Directions that were large enough: the others were raised."""
    growth: float
    """Of the merged update, in the Frobenius norm."""


@torch.no_grad()
def boosted(
    merged: Tensor, tasks: TaskMatrices, weights: Sequence[float], beta: float, edge: float
) -> tuple[Tensor, Boosting]:
    """M of the ``merged`` update, which is as the checkpoint is oriented and best in float64, and what was done.

    ``edge`` is what rounding the experts explains of it.
    """
    total = UpdateSum(TaskMatrices([merged]), [1.0])
    spectrum = sum_spectrum(total)
    values = spectrum.values
    size = math.sqrt(float(values.square().sum()))
    nothing = max(2 * torch.finfo(tasks.number_dtype).eps * size, UpdateSum(tasks, weights).number_error(), edge)
    rank = int((values > nothing).sum())
    if rank == 0:
        return merged.to(tasks.result_dtype), Boosting(0, 0, 1.0)
    sums = values[:rank].cumsum(0)
    first = int((sums < beta * sums[-1]).sum())
    raised = torch.cat([values[:rank].clamp_min(float(values[first])), values[rank:]])
    growth = math.sqrt(float(raised.square().sum())) / size
    return with_values(total, spectrum, raised).to(tasks.result_dtype), Boosting(rank, first + 1, growth)
