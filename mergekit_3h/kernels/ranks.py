"""How many singular values a task keeps: the paper's budget (Eq. 9-10) and what limits it further."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mergekit_3h.kernels.settings import Settings
from mergekit_3h.kernels.tasks import TaskMatrices

EPSILON_FLOAT32 = float(torch.finfo(torch.float32).eps)


def sparsity(tasks: TaskMatrices, settings: Settings) -> float:
    """Omega of Eq. 9: the share of entries, over all tasks, with |delta| < epsilon."""
    count = len(tasks) * tasks.rows * tasks.columns
    threshold = settings.epsilon
    if settings.epsilon_mode == "relative":
        squares = sum(
            (block.square().sum() for i in range(len(tasks)) for block in tasks.blocks_as_stored(i)),
            start=torch.zeros((), dtype=torch.float64, device=tasks.device),
        )
        threshold *= math.sqrt(float(squares) / count)
    below = sum(
        ((block.abs_() < threshold).sum() for i in range(len(tasks)) for block in tasks.blocks_as_stored(i)),
        start=torch.zeros((), dtype=torch.int64, device=tasks.device),
    )
    return int(below) / count


def rank_budget(tasks: TaskMatrices, settings: Settings, omega: float) -> int:
    """Rank that each task may have: k_l of Eq. 10, or its n-th part. At least 1."""
    layer_rank = tasks.columns
    if settings.rank_selection == "sparsity":
        layer_rank = math.floor(tasks.columns * (1 - settings.gamma * omega))  # Eq. 10
    return max(1, layer_rank // len(tasks) if settings.rank_budget == "shared" else layer_rank)


def significant(values: Tensor, tasks: TaskMatrices) -> int:
    """How many of the descending singular ``values`` are not zero for a float32 matrix of this size.

    The vectors of the others are arbitrary, yet they would turn the polar factor; see docs/methods.md.
    """
    if values.numel() == 0 or float(values[0]) == 0.0:
        return 0
    return int((values > tasks.rows * EPSILON_FLOAT32 * values[0]).sum())


def rank_for_energy(values: Tensor, total_square: float, energy: float) -> int:
    """The fewest leading ``values`` whose squares hold the share ``energy`` of ``total_square``."""
    if energy >= 1.0:
        return values.numel()
    reached = torch.cumsum(values.square(), 0) >= energy * total_square
    return int((~reached).sum()) + 1
