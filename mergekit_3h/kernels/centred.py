"""Updates seen from their mean, cut to their leading directions there (arXiv 2412.12153).

With the mean C = 1/n sum_j delta_j and T_i the truncation of delta_i - C, the merged update is

    M = sum_i w_i (delta_i / n + gain T_i)

which for w_i = 1 is C + gain sum_i T_i. The centre does not depend on the weights, so M is linear in them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mergekit_3h.kernels.noise_floors import NoiseFloor, task_edges
from mergekit_3h.kernels.sums import SumSpectrum, UpdateSum, sum_spectrum
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.kernels.workers import run_all


@dataclass(frozen=True)
class CentredReport:
    """How the merge of one matrix came about, one entry a task."""

    ranks: list[int]
    noise_edges: list[float]
    """Of the updates; an edge seen from the mean is that of independent roundings."""
    decompositions: list[str]


class CentredTruncations:
    """The T_i of rank ``most`` at most; nothing of it where rounding explains all."""

    def __init__(self, tasks: TaskMatrices, most: int, edges: Sequence[float]) -> None:
        self.tasks = tasks
        n = len(tasks)
        self.kept: list[SumSpectrum] = []
        found: list[SumSpectrum | None] = [None] * n

        def find(i: int) -> None:
            weights = [float(i == j) - 1 / n for j in range(n)]
            edge = math.hypot(*(weight * each for weight, each in zip(weights, edges, strict=True)))
            spectrum = sum_spectrum(UpdateSum(tasks, weights), edge)
            rank = min(most, int((spectrum.values > edge).sum()))
            found[i] = SumSpectrum(spectrum.values[:rank], spectrum.right[:, :rank].clone())

        run_all(tasks.device, [partial(find, i) for i in range(n)])
        self.kept = [spectrum for spectrum in found if spectrum is not None]

    def weighted_sum(self, weights: Sequence[float], gain: float) -> Tensor:
        """M, in the checkpoint's orientation."""
        tasks, n = self.tasks, len(self.tasks)
        shape = (tasks.columns, tasks.rows) if tasks.is_wide else (tasks.rows, tasks.columns)
        result = torch.empty(shape, dtype=tasks.result_dtype, device=tasks.device)
        tall = result.T if tasks.is_wide else result

        def fill(rows: slice) -> None:
            centre = self._centre(rows)
            total = torch.zeros_like(centre)
            for i, (weight, kept) in enumerate(zip(weights, self.kept, strict=True)):
                block = tasks.block(i, rows)
                total.add_(block, alpha=weight / n)
                total.addmm_(block.sub_(centre) @ kept.right, kept.right.T, alpha=weight * gain)
            tall[rows] = total.to(tasks.result_dtype)

        run_all(tasks.device, [partial(fill, rows) for rows in tasks.row_spans()])
        return result

    def share(self, i: int, gain: float) -> tuple[Tensor, Tensor]:
        """Factors of delta_i / n + gain T_i, tall side up."""
        tasks, right, rows = self.tasks, self.kept[i].right, slice(0, self.tasks.rows)
        whole = tasks.block(i, rows)
        reduced = (whole - self._centre(rows)) @ right
        left = torch.cat([whole / len(tasks), gain * reduced], 1)
        unit = torch.eye(tasks.columns, dtype=whole.dtype, device=whole.device)
        return left, torch.cat([unit, right.T])

    def _centre(self, rows: slice) -> Tensor:
        n = len(self.tasks)
        return UpdateSum(self.tasks, [1 / n] * n).rows(rows)


@torch.no_grad()
def merge_centred(
    tasks: TaskMatrices, weights: Sequence[float], rank_share: float, gain: float, noise_floor: NoiseFloor
) -> tuple[Tensor, CentredReport]:
    """M and how it came about."""
    edges = task_edges(tasks, noise_floor)
    shares = CentredTruncations(tasks, most_directions(tasks.full_rank, rank_share), edges)
    report = CentredReport([kept.rank for kept in shares.kept], edges, ["exact"] * len(tasks))
    return shares.weighted_sum(weights, gain), report


@torch.no_grad()
def centred_components(
    tasks: TaskMatrices, rank_share: float, gain: float, noise_floor: NoiseFloor
) -> list[tuple[Tensor, Tensor]]:
    """Factors of every task's share of M."""
    most = most_directions(tasks.full_rank, rank_share)
    shares = CentredTruncations(tasks, most, task_edges(tasks, noise_floor))
    found = [shares.share(i, gain) for i in range(len(tasks))]
    return [(right.T, left.T) for left, right in found] if tasks.is_wide else found


def most_directions(rank: int, share: float) -> int:
    """One at least. Rounded first: 100 * 0.29 is 28.999999999999996 in float64."""
    return max(1, math.floor(round(rank * share, 9)))
