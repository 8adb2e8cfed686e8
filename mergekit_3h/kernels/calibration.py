"""Singular values of a merged update, corrected for what the experts counted several times (arXiv 2602.05536).

Of the merged update D_m = U S V^T, direction r is what D_m makes of it, a_r = u_r^T D_m, and every expert's update,
a_r^i = u_r^T delta_i. With s_r^i = <a_r, a_r^i> / |a_r^i|^2, above 1 where expert i's part is there too often,

    M = U diag(gamma_r S_r) V^T,   gamma_r = n / sum_i max(alpha, s_r^i)

An expert that has nothing in direction r counts there with alpha; so does one whose update is nothing, everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mergekit_3h.kernels.isotropic import with_values
from mergekit_3h.kernels.sums import UpdateSum, sum_spectrum
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.kernels.values import floats
from mergekit_3h.kernels.workers import run_all

NOTHING = 1e-12
"""|a_r^i|^2 up to this share of |delta_i|^2 is none. The paper has an absolute 1e-12, under which small updates
fall."""


@dataclass(frozen=True)
class Calibration:
    """What became of the merged update."""

    rank: int
    """Its directions."""
    least_factor: float
    """The smallest gamma: 1 where no direction is counted twice."""
    median_factor: float


@torch.no_grad()
def calibrated(merged: Tensor, tasks: TaskMatrices, alpha: float) -> tuple[Tensor, Calibration]:
    """M of the ``merged`` update, which is as the checkpoint is oriented and best in float64, and what was done.

    Its singular vectors are as far from those of the merge before rounding as rounding is large beside the gaps.
    """
    total = UpdateSum(TaskMatrices([merged]), [1.0])
    spectrum = sum_spectrum(total)
    if spectrum.rank == 0:
        return merged.to(tasks.result_dtype), Calibration(0, 1.0, 1.0)
    right, scaled = spectrum.right, spectrum.right / spectrum.values
    factors = [spectrum.values] * len(tasks)

    def measure(i: int) -> None:
        part = _wide_part(tasks, total, i, right) if tasks.is_wide else _tall_part(tasks, total, i, scaled, right)
        overlap, square = part
        # <a_r, a_r^i> is s_r u_r^T delta_i v_r.
        is_there = square > NOTHING * square.sum()
        factors[i] = torch.where(is_there, spectrum.values * overlap / torch.where(is_there, square, 1.0), 0.0)

    run_all(tasks.device, [partial(measure, i) for i in range(len(tasks))])
    gamma = len(tasks) / torch.stack(factors).clamp_min(alpha).sum(0)
    told = Calibration(spectrum.rank, min(floats(gamma)), float(gamma.median()))
    return with_values(total, spectrum, gamma * spectrum.values).to(tasks.result_dtype), told


def _tall_part(tasks: TaskMatrices, total: UpdateSum, i: int, scaled: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """u_r^T delta_i v_r and |u_r^T delta_i|^2, U being the longer side."""
    image = right.new_zeros(right.shape[1], tasks.columns)
    for rows in tasks.row_spans():
        image.addmm_((total.rows(rows) @ scaled).T, tasks.block(i, rows))
    return (image * right.T).sum(1), image.square().sum(1)


def _wide_part(tasks: TaskMatrices, total: UpdateSum, i: int, right: Tensor) -> tuple[Tensor, Tensor]:
    """The same where U is the shorter side, which the kernels see as the right one."""
    overlap, square = right.new_zeros(right.shape[1]), right.new_zeros(right.shape[1])
    lengths = right.new_zeros(right.shape[1])
    for rows in tasks.row_spans():
        image, own = tasks.block(i, rows) @ right, total.rows(rows) @ right
        overlap += (image * own).sum(0)
        square += image.square().sum(0)
        lengths += own.square().sum(0)
    return overlap / lengths.sqrt(), square
