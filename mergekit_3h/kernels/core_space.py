"""Updates of low rank, delta_i = B_i A_i (LoRA), merged in the small space that all of them share (arXiv 2509.17786).

With orthonormal bases U of the columns of [B_1 .. B_n] and V of the rows of [A_1; ..; A_n], K = sum_i r_i columns each,

    delta_i = U C_i V^T,   C_i = (U^T B_i) (A_i V),   M = U merge(C_1 .. C_n) V^T

for every merge that turns with its inputs: merge(P delta_i Q^T) = P merge(delta_i) Q^T. The C_i are K x K, so what
takes minutes for a matrix of 4096 columns takes milliseconds. What such a merge derives from the shape of the
checkpoint's matrix (a budget of ranks, the size of what rounding explains) it has to take from the tasks'
``full_shape``, and what it derives from single entries from their ``entry_blocks``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from mergekit_3h.kernels.dense import orthonormal_basis, singular_triplets
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.kernels.workers import run_all, spans

BLOCK_ELEMENTS = 1 << 20
"""Elements of a block of B A (8 MB): tall enough for the speed of a product with few inner columns."""

PRODUCT_ROWS = 1024
"""Rows of a basis that are multiplied at once."""

Merge = Callable[[TaskMatrices], Tensor]
"""The merged update of tasks, as they are oriented."""


@dataclass(frozen=True)
class LowRank:
    """The matrix ``scale`` left @ right."""

    left: Tensor
    right: Tensor
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0], self.right.shape[1]

    @property
    def rank(self) -> int:
        """At most."""
        return self.left.shape[1]

    def to(self, device: torch.device) -> LowRank:
        """In float64."""
        return LowRank(self.left.to(device, torch.float64), self.right.to(device, torch.float64), self.scale)

    def rows(self, rows: slice) -> Tensor:
        """Some rows in float64."""
        return (self.left[rows].double() @ self.right.double()).mul_(self.scale)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """All of it, rounded once."""
        result = torch.empty(self.shape, dtype=dtype, device=self.left.device)
        exact = self.to(result.device)

        def fill(rows: slice) -> None:
            result[rows] = exact.rows(rows).to(dtype)

        run_all(result.device, [partial(fill, rows) for rows in exact.row_spans()])
        return result

    def row_spans(self) -> list[slice]:
        rows, columns = self.shape
        return spans(rows, max(1, BLOCK_ELEMENTS // max(1, columns)))


class CoreMatrices(TaskMatrices):
    """The C_i, which stand for updates as large as the checkpoint's matrix.

    They are computed in float64 and taken to be known to float32, as they would be multiplied out: directions that
    factors share but for a rounding count as shared.
    """

    def __init__(self, cores: Sequence[Tensor], updates: Sequence[LowRank]) -> None:
        super().__init__(cores)
        self._updates = list(updates)
        self.number_dtype = torch.float32

    @property
    def full_shape(self) -> tuple[int, int]:
        return self._updates[0].shape

    def entry_blocks(self, i: int) -> Iterator[Tensor]:
        return (self._updates[i].rows(rows) for rows in self._updates[i].row_spans())


def is_smaller(updates: Sequence[LowRank]) -> bool:
    """Whether the core space is smaller than the matrices."""
    return sum(update.rank for update in updates) < min(updates[0].shape)


@torch.no_grad()
def merged_in_core_space(updates: Sequence[LowRank], merge: Merge) -> LowRank:
    """M in float64, of rank K at most, by a merge that turns with its inputs."""
    device = updates[0].left.device
    exact = [update.to(device) for update in updates]
    ends = list(accumulate((update.rank for update in exact), initial=0))
    # By Householder reflections the bases are orthonormal also where the factors are linearly dependent.
    output, left, input_, right = _bases(
        torch.cat([update.left for update in exact], dim=1), torch.cat([update.right for update in exact], dim=0).T
    )
    cores = [left.new_empty(left.shape[0], left.shape[0]) for _ in exact]

    def turn(i: int, start: int, end: int) -> None:
        torch.mm(left[:, start:end], right[:, start:end].T, out=cores[i]).mul_(exact[i].scale)

    run_all(device, [partial(turn, i, *part) for i, part in enumerate(pairwise(ends))])
    core = merge(CoreMatrices(cores, exact)).double()
    return LowRank(_product(output, core), input_.T)


def weighted_low_rank_sum(updates: Sequence[LowRank], weights: Sequence[float]) -> LowRank:
    """sum_i w_i delta_i, in float64."""
    exact = [update.to(update.left.device) for update in updates]
    left = [update.left * (weight * update.scale) for update, weight in zip(exact, weights, strict=True)]
    return LowRank(torch.cat(left, dim=1), torch.cat([update.right for update in exact], dim=0))


@dataclass(frozen=True)
class Truncation:
    """A matrix of low rank with as few columns as it needs, or as it may have."""

    kept: LowRank
    """Both factors with the square roots of the singular values."""
    lost_square: float
    """Sum of the squares of the entries that were cut."""
    total_square: float


@torch.no_grad()
def truncated(matrix: LowRank, most: int | None = None) -> Truncation:
    """The nearest matrix of rank ``most``; directions of no size are left out in any case."""
    exact, found = matrix.to(matrix.left.device), list[tuple[Tensor, Tensor, Tensor]]()
    output, left, input_, right = _bases(exact.left, exact.right.T)
    run_all(left.device, [lambda: found.append(singular_triplets((left @ right.T).mul_(exact.scale)))])
    u, s, v = found[0]
    nothing = s.numel() * torch.finfo(torch.float64).eps * (float(s[0]) if s.numel() else 0.0)
    rank = int((s > nothing).sum())
    rank = rank if most is None else min(rank, most)
    roots, squares = s[:rank].sqrt(), s.square()
    kept = LowRank(_product(output, u[:, :rank] * roots), _product(input_, v[:, :rank] * roots).T)
    return Truncation(kept, float(squares[rank:].sum()), float(squares.sum()))


def lost_share(truncations: Sequence[Truncation]) -> float:
    """How far the cut matrices together are from the whole ones, relative to these."""
    total = sum(each.total_square for each in truncations)
    return math.sqrt(sum(each.lost_square for each in truncations) / total) if total else 0.0


def _bases(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each of two matrices orthonormal columns, and the coordinates in them: their product is the matrix."""
    found = [(left, left), (right, right)]

    def find(i: int, matrix: Tensor) -> None:
        found[i] = orthonormal_basis(matrix)

    run_all(left.device, [partial(find, 0, left), partial(find, 1, right)])
    return *found[0], *found[1]


def _product(tall: Tensor, small: Tensor) -> Tensor:
    """Some rows at a time, so that its bits do not depend on the threads."""
    result = tall.new_empty(tall.shape[0], small.shape[1])

    def fill(rows: slice) -> None:
        torch.mm(tall[rows], small, out=result[rows])

    run_all(tall.device, [partial(fill, rows) for rows in spans(tall.shape[0], PRODUCT_ROWS)])
    return result
