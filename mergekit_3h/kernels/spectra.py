"""Leading singular values and right singular vectors of a task matrix, from its Gram matrix in float64.

Squaring the matrix is safe here: the float64 Gram resolves singular values down to 1e-8 of the largest, and those
under ``ranks.significant`` (5e-4 of it for 4096 columns, 8e-6 for 64) are dropped anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mergekit_3h.kernels.dense import eigh_in_place
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.kernels.workers import run_all, spans

TILE = 128
"""Columns of a tile of a Gram matrix; only tiles on and above the diagonal are computed."""

TILE_ON_DEVICE = 1024
"""The same on a GPU, which needs larger products to be busy."""

SEED = 250206876
"""No usual one: vectors that a synthetic update was made from as well would not be random to it."""

RESOLVED = 1e-7
"""Of the largest singular value: smaller ones a Gram matrix in float64 may make of nothing."""

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
    perturbation: float = 0.0
    """How far the nearest matrix is for which this is exact, as a share of the noise edge, where that was measured."""

    @property
    def rank(self) -> int:
        return self.values.numel()


def exact_spectrum(tasks: TaskMatrices, i: int, rank_rule: RankFunction, method: str = "exact") -> Spectrum:
    """By a full symmetric eigendecomposition."""
    return spectrum_of_gram(gram_of(tasks, i), rank_rule, method)


def gram_of(tasks: TaskMatrices, i: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """delta_i^T delta_i, upper triangle."""
    gram = torch.zeros(tasks.columns, tasks.columns, dtype=dtype, device=tasks.device)
    for block in tasks.blocks(i, dtype):
        add_gram(gram, block)
    return gram


def spectrum_of_gram(gram: Tensor, rank_rule: RankFunction, method: str = "exact") -> Spectrum:
    """``exact_spectrum``, from the Gram matrix in float64, whose memory is used up."""
    found: list[tuple[Tensor, float]] = []

    def rank(squares: Tensor) -> int:
        squares = squares.clamp_min(0).flip(0)
        found.append((squares.sqrt(), float(squares.sum())))
        return rank_rule(*found[0])

    _, vectors = eigh_in_place(gram, rank)
    values, total_square = found[0]
    return Spectrum(values[: vectors.shape[1]], vectors.flip(1), total_square, method)


def random_vectors(count: int, columns: int, like: Tensor) -> Tensor:
    """The same at every call, as rows."""
    generator = torch.Generator().manual_seed(SEED)
    return torch.randn(count, columns, generator=generator, dtype=torch.float64).to(like)


def likely_values(values: Tensor, parts: Tensor, columns: int) -> Tensor:
    """What all eigenvalues of G may be, descending, from the Ritz ``values`` of a Krylov space, which descend too.

    ``parts`` are the random vectors that it began with (columns, orthonormal), as the Ritz vectors (rows) see them: the
    mean square of a row is the weight of the eigenvalues that the Ritz value stands for, up to the errors of a sample
    and of a quadrature. The value is taken to lie in the middle of them, and in between is interpolated.
    """
    weights = parts.square().sum(1).to(torch.float64) * (columns / parts.shape[1])
    middles, values = weights.cumsum(0) - weights / 2, values.to(torch.float64)
    at = torch.arange(columns, dtype=torch.float64, device=values.device) + 0.5
    after = torch.searchsorted(middles, at).clamp_(1, values.numel() - 1)
    low, high = middles[after - 1], middles[after]
    share = ((at - low) / (high - low)).clamp_(0, 1)
    return torch.lerp(values[after - 1], values[after], share)


def total_square(tasks: TaskMatrices, i: int) -> float:
    """Sum of the squares of the entries of delta_i, or of its singular values."""
    return float(torch.stack([block.square_().sum() for block in tasks.blocks(i)]).sum())


def add_gram(gram: Tensor, block: Tensor) -> None:
    """Add the upper tiles of block^T block to ``gram``."""
    for tile in tiles(gram.device, gram.shape[0]):
        gram[tile, tile.start :].addmm_(block[:, tile].T, block[:, tile.start :])


def symmetric_product(left: Tensor, right: Tensor) -> Tensor:
    """left right^T where that is symmetric: the tiles on and above the diagonal, and their mirror image."""
    side = left.shape[0]
    product = left.new_empty(side, side)

    def fill(tile: slice) -> None:
        torch.mm(left[tile], right[tile.start :].T, out=product[tile, tile.start :])
        product[tile.stop :, tile] = product[tile, tile.stop :].T
        own = product[tile, tile]
        own.copy_(own.triu() + own.triu(1).T)

    run_all(left.device, [partial(fill, tile) for tile in tiles(left.device, side)])
    return product


def tiles(device: torch.device, columns: int) -> list[slice]:
    return spans(columns, TILE if device.type == "cpu" else TILE_ON_DEVICE)
