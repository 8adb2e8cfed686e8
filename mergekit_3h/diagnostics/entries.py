"""What the single weights tell: sizes of the updates, unchanged entries, tails, cosines and sign conflicts.

Everything comes out of one pass over the updates of a tensor, in float64. All pairs of experts are compared by products
of the block's entries (experts x entries) with their own transpose, so ten experts cost one pass too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mergekit_3h.kernels.tasks import TaskMatrices

SMALLEST_EXPONENT, LARGEST_EXPONENT = -64, 8
"""Of the thresholds 2^(e/2) under which entries are counted: from 2.3e-10, far under any update that training makes, to
16, far above."""


@dataclass(frozen=True)
class EntrySums:
    """Sums over the entries of one tensor, an expert each where there is a first axis. On the CPU, in float64."""

    count: int
    dots: Tensor
    """(n x n) <D_i, D_j>."""
    agreements: Tensor
    """(n x n) entries that both experts move the same way, minus those that they move in opposite ones."""
    both_changed: Tensor
    """(n x n) entries that both experts change; on the diagonal those that the expert changes."""
    firsts: Tensor
    thirds: Tensor
    fourths: Tensor
    """Sums of d, d^3 and d^4."""
    largest: Tensor
    with_base: Tensor
    """<D_i, W_0>."""
    base_square: float
    below: Tensor
    """Entries of all experts together with d^2 < 2^e, for e from ``SMALLEST_EXPONENT`` to ``LARGEST_EXPONENT``."""

    def norm(self, i: int) -> float:
        return math.sqrt(float(self.dots[i, i]))

    def rms(self) -> float:
        """Root mean square of the entries of all updates: what ``epsilon_mode: relative`` multiplies."""
        return math.sqrt(float(self.dots.diagonal().sum()) / (self.count * len(self.dots)))

    def relative_size(self, i: int) -> float | None:
        """|D_i| / |W_0|; None for a base of zeros."""
        return self.norm(i) / math.sqrt(self.base_square) if self.base_square > 0 else None

    def weight_cosine(self, i: int) -> float:
        """The cosine of the expert's weights with the base's: near 1 for a fine-tune, near 0 for another model."""
        product = self.base_square + float(self.with_base[i])
        expert_square = self.base_square + 2 * float(self.with_base[i]) + float(self.dots[i, i])
        return _ratio(product, math.sqrt(max(0.0, self.base_square * expert_square)))

    def unchanged(self, i: int) -> float:
        """Share of the entries that are the base's own."""
        return (self.count - float(self.both_changed[i, i])) / self.count

    def kurtosis(self, i: int) -> float:
        """Fourth central moment over the squared variance: 3 for a Gaussian, more for heavy tails; 0 without spread."""
        mean = float(self.firsts[i]) / self.count
        second, third, fourth = (float(s[i]) / self.count for s in (self.dots.diagonal(), self.thirds, self.fourths))
        variance = second - mean**2
        central = fourth - 4 * mean * third + 6 * mean**2 * second - 3 * mean**4
        return _ratio(central, variance**2)

    def cosine(self, i: int, j: int) -> float:
        """Of two experts' updates; 0 where one is zero."""
        return _ratio(float(self.dots[i, j]), self.norm(i) * self.norm(j))

    def distance(self, i: int, j: int) -> float:
        """|D_i - D_j| by its parts; what is under 1e-7 of their norms is cancellation."""
        return math.sqrt(max(0.0, float(self.dots[i, i] + self.dots[j, j] - 2 * self.dots[i, j])))

    def sign_conflicts(self, i: int, j: int) -> float:
        """Of the entries that both experts change, the share that they move in opposite directions."""
        both = float(self.both_changed[i, j])
        return _ratio((both - float(self.agreements[i, j])) / 2, both)

    def sparsity_below(self, exponent: int) -> float:
        """Omega of Eq. 9 for the absolute epsilon 2^(exponent/2)."""
        return float(self.below[exponent - SMALLEST_EXPONENT]) / (self.count * len(self.dots))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


@torch.no_grad()
def sum_entries(tasks: TaskMatrices) -> EntrySums:
    """One pass over all updates and the base of a tensor."""
    n, device = len(tasks), tasks.device
    squares = torch.zeros(3, n, n, dtype=torch.float64, device=device)
    moments = torch.zeros(5, n, dtype=torch.float64, device=device)
    base_square = torch.zeros((), dtype=torch.float64, device=device)
    counts = torch.zeros(LARGEST_EXPONENT - SMALLEST_EXPONENT + 1, dtype=torch.int64, device=device)
    for entries, base in _flat_blocks(tasks):
        signs = entries.sign()
        changed = signs.abs()
        for total, factor in zip(squares, (entries, signs, changed), strict=True):
            total.addmm_(factor, factor.T)
        square = entries.square()
        moments[0] += entries.sum(1)
        moments[1] += (square * entries).sum(1)
        moments[2] += square.square().sum(1)
        moments[3] = torch.maximum(moments[3], square.amax(1))
        moments[4] += entries @ base
        base_square += base @ base
        counts += _by_exponent(square)
    squares, moments = squares.cpu(), moments.cpu()
    return EntrySums(
        count=tasks.rows * tasks.columns,
        dots=squares[0],
        agreements=squares[1],
        both_changed=squares[2],
        firsts=moments[0],
        thirds=moments[1],
        fourths=moments[2],
        largest=moments[3].sqrt(),
        with_base=moments[4],
        base_square=float(base_square),
        below=counts.cumsum(0).cpu(),
    )


def _flat_blocks(tasks: TaskMatrices):
    """Blocks of all updates (experts x entries) with the base's entries beside them."""
    start = 0
    for blocks in zip(*(tasks.blocks_as_stored(i) for i in range(len(tasks))), strict=True):
        rows = slice(start, start + blocks[0].shape[0])
        start = rows.stop
        base = torch.zeros_like(blocks[0]) if tasks.base is None else tasks.base[rows].to(torch.float64)
        yield torch.stack([block.reshape(-1) for block in blocks]), base.reshape(-1)


def _by_exponent(square: Tensor) -> Tensor:
    """How many entries have their square in [2^(e-1), 2^e), for each e; those under the smallest count with it."""
    exponents = torch.frexp(square)[1].clamp_(SMALLEST_EXPONENT, LARGEST_EXPONENT + 1)
    exponents = torch.where(square == 0, SMALLEST_EXPONENT, exponents) - SMALLEST_EXPONENT
    counted = torch.bincount(exponents.reshape(-1), minlength=LARGEST_EXPONENT - SMALLEST_EXPONENT + 2)
    return counted[:-1]
