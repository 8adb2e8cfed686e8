"""Truncations of the updates, rescaled to the sum of singular values that the whole ones had (arXiv 2502.10339).

Of every delta_i the fewest leading singular values stay whose sum is the share eta of the sum of all. Their truncation
T_i is multiplied by c_i, the sum of all over the sum of those that stay, and averaged: M = 1/n sum_i w_i c_i T_i.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mergekit_3h.kernels.noise_floors import NoiseFloor, task_edges
from mergekit_3h.kernels.spectra import RESOLVED, Spectrum, exact_spectrum
from mergekit_3h.kernels.sums import UpdateSum
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.kernels.truncations import Truncations
from mergekit_3h.kernels.workers import run_all


@dataclass(frozen=True)
class RescaledReport:
    """How the merge of one matrix came about, one entry a task."""

    ranks: list[int]
    noise_edges: list[float]
    scales: list[float]
    """c_i; 0 for an update of nothing."""
    decompositions: list[str]


@torch.no_grad()
def merge_rescaled(
    tasks: TaskMatrices, weights: Sequence[float], eta: float, noise_floor: NoiseFloor
) -> tuple[Tensor, RescaledReport]:
    """M and how it came about."""
    shares, report = _shares(tasks, eta, noise_floor)
    scales = [weight * scale for weight, scale in zip(weights, report.scales, strict=True)]
    return shares.weighted_sum(scales), report


@torch.no_grad()
def rescaled_components(tasks: TaskMatrices, eta: float, noise_floor: NoiseFloor) -> list[tuple[Tensor, Tensor]]:
    """Factors of c_i T_i / n: M is linear in the user's factors."""
    shares, report = _shares(tasks, eta, noise_floor)
    found = [
        (left * scale, right)
        for scale, (left, right) in zip(report.scales, map(shares.share, range(len(tasks))), strict=True)
    ]
    return [(right.T, left.T) for left, right in found] if tasks.is_wide else found


def _shares(tasks: TaskMatrices, eta: float, noise_floor: NoiseFloor) -> tuple[Truncations, RescaledReport]:
    n, edges, eps = len(tasks), task_edges(tasks, noise_floor), torch.finfo(tasks.number_dtype).eps
    spectra: list[Spectrum | None] = [None] * n
    scales = [0.0] * n

    def find(i: int) -> None:
        alone = UpdateSum(tasks, [float(i == j) for j in range(n)])

        def rank(values: Tensor, total_square: float) -> int:
            nothing = max(2 * eps * math.sqrt(total_square), alone.number_error(), RESOLVED * float(values[0]))
            there = values[: _above(values, nothing, edges[i])]
            if there.numel() == 0:
                return 0
            sums = there.cumsum(0)
            kept = int((sums < eta * sums[-1]).sum()) + 1
            scales[i] = float(sums[-1] / sums[kept - 1])
            return kept

        spectra[i] = exact_spectrum(tasks, i, rank)

    run_all(tasks.device, [partial(find, i) for i in range(n)])
    ranks = [0 if spectrum is None else spectrum.rank for spectrum in spectra]
    return Truncations(tasks, spectra, divisor=n), RescaledReport(ranks, edges, scales, ["exact"] * n)


def _above(values: Tensor, nothing: float, edge: float) -> int:
    """How many singular values stand out of the rounding edge; where none does, how many are something."""
    above = int((values > max(nothing, edge)).sum())
    return above or int((values > nothing).sum())
