"""Leading singular values and right singular vectors of a task matrix, from its Gram matrix in float64.

Squaring the matrix is safe here: the float64 Gram resolves singular values down to 1e-8 of the largest, and those
under ``ranks.significant`` (5e-4 of it for 4096 columns, 8e-6 for 64) are dropped anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mergekit_3h.kernels.dense import eigh_in_place
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.kernels.workers import spans

TILE = 128
"""Columns of a tile of a Gram matrix; only tiles on and above the diagonal are computed."""

TILE_ON_DEVICE = 1024
"""The same on a GPU, which needs larger products to be busy."""

RankFunction = Callable[[Tensor, float], int]
"""Descending singular values and the sum of all their squares -> how many of them to keep."""


@dataclass(frozen=True)
class Spectrum:
    """The kept singular values, descending, and their right singular vectors as columns."""

    values: Tensor
    right: Tensor
    total_square: float
    """Sum of the squares of all singular values, kept or not."""
    method: str = "exact"
    residual: float = 0.0
    """Bound on the sine of the angle between ``right`` and the true leading subspace, from the residuals that an
    iterative method left (infinite where it knows none); exact leaves none."""

    @property
    def rank(self) -> int:
        return self.values.numel()


def exact_spectrum(tasks: TaskMatrices, i: int, rank_rule: RankFunction, method: str = "exact") -> Spectrum:
    """By a full symmetric eigendecomposition."""
    gram = torch.zeros(tasks.columns, tasks.columns, dtype=torch.float64, device=tasks.device)
    for block in tasks.blocks(i):
        add_gram(gram, block)
    squares, vectors = eigh_in_place(gram)
    squares = squares.clamp_min_(0).flip(0)
    values = squares.sqrt()
    total_square = float(squares.sum())
    rank = rank_rule(values, total_square)
    return Spectrum(values[:rank], vectors[:, vectors.shape[1] - rank :].flip(1), total_square, method)


def add_gram(gram: Tensor, block: Tensor) -> None:
    """Add the upper tiles of block^T block to ``gram``."""
    for tile in tiles(gram.device, gram.shape[0]):
        gram[tile, tile.start :].addmm_(block[:, tile].T, block[:, tile.start :])


def tiles(device: torch.device, columns: int) -> list[slice]:
    return spans(columns, TILE if device.type == "cpu" else TILE_ON_DEVICE)
