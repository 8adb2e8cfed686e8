"""How many singular values a task keeps: the paper's budget (Eq. 9-10) and what limits it further."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mergekit_3h.kernels.settings import Settings
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.kernels.workers import run_all

SMALLEST_KRYLOV_SIDE = 768
"""Columns from which a Krylov method is tried unasked; a smaller matrix is decomposed in milliseconds."""

KRYLOV_SHARE = 8
"""A Krylov subspace stays under this part of the columns; beyond it a full decomposition costs no more."""

HELD_EXACTLY = 1e-12
"""Relative difference of two sums of squares that is rounding alone."""

EPSILON_FLOAT32 = float(torch.finfo(torch.float32).eps)


def sparsity(tasks: TaskMatrices, settings: Settings) -> float:
    """Omega of Eq. 9: the share of entries, over all tasks, with |delta| < epsilon."""
    count = len(tasks) * math.prod(tasks.full_shape)
    threshold = settings.epsilon
    if settings.epsilon_mode == "relative":
        threshold *= math.sqrt(_total(tasks, lambda block: block.square_()) / count)
    return _total(tasks, lambda block: block.abs_() < threshold) / count


def _total(tasks: TaskMatrices, term: Callable[[Tensor], Tensor]) -> float:
    """Sum of ``term`` over the entries of all tasks."""
    sums = [0.0] * len(tasks)

    def add_up(i: int) -> None:
        total = torch.zeros((), dtype=torch.float64, device=tasks.device)
        for block in tasks.entry_blocks(i):
            total += term(block).sum()
        sums[i] = float(total)

    run_all(tasks.device, [partial(add_up, i) for i in range(len(tasks))])
    return sum(sums)


def rank_budget(tasks: TaskMatrices, settings: Settings, omega: float) -> int:
    """Rank that each task may have: k_l of Eq. 10, or its n-th part. At least 1."""
    layer_rank = tasks.full_rank
    if settings.rank_selection == "sparsity":
        # Eq. 10. Rounded first: 100 (1 - 0.9) is 9.999999999999998 in float64.
        layer_rank = math.floor(round(tasks.full_rank * (1 - settings.gamma * omega), 9))
    return max(1, layer_rank // len(tasks) if settings.rank_budget == "shared" else layer_rank)


def significant(values: Tensor, columns: int) -> int:
    """How many of the descending singular ``values`` are not zero for a float32 matrix; ``columns`` its smaller side.

    The vectors of the others are arbitrary, yet they would turn the polar factor; see docs/methods.md. Rounding every
    entry moves a singular value by at most eps ||delta||_F <= eps sqrt(columns) s_1, however tall the matrix: a limit
    that grew with the rows would cut an embedding's spectrum at a hundredth of its largest value.
    """
    if values.numel() == 0 or float(values[0]) == 0.0:
        return 0
    return int((values > columns * EPSILON_FLOAT32 * values[0]).sum())


def rank_for_energy(values: Tensor, total_square: float, energy: float) -> int:
    """The fewest leading ``values`` whose squares hold the share ``energy`` of ``total_square``.

    Where they hold it exactly, the last digits of float64 must not ask for one more.
    """
    if energy >= 1.0:
        return values.numel()
    reached = torch.cumsum(values.square(), 0) >= (1 - HELD_EXACTLY) * energy * total_square
    return int((~reached).sum()) + 1


@dataclass(frozen=True)
class RankRule:
    """How many of a task's singular values are kept: the least of all limits."""

    columns: int
    budget: int
    noise_edge: float
    energy: float

    def __call__(self, values: Tensor, total_square: float) -> int:
        """``values`` descend and may be only the first ones; ``total_square`` sums the squares of all."""
        limits = [self.budget, significant(values, self.columns), rank_for_energy(values, total_square, self.energy)]
        above_noise = int((values > self.noise_edge).sum())
        # Where nothing stands out of the noise the floor cannot tell what to keep, and an expert must not vanish.
        return min([*limits, above_noise] if above_noise else limits)

    def most(self, total_square: float) -> int:
        """What is known of the rank before any decomposition: more values cannot reach beyond the noise than their
        squares allow. Where none does the budget decides."""
        beyond = math.floor(total_square / self.noise_edge**2) if self.noise_edge > 0 else self.columns
        return min(self.budget, self.columns, max(1, beyond))

    @property
    def keeps_everything(self) -> bool:
        return self.budget >= self.columns and self.noise_edge == 0 and self.energy >= 1

    @property
    def may_be_small(self) -> bool:
        """Whether the rank could be so far below the matrix size that a Krylov method pays."""
        return self.budget <= self.columns // KRYLOV_SHARE or self.noise_edge > 0 or self.energy < 1
