"""Weighted sums of updates with entries left out: TIES (arXiv 2306.01708) and DARE (arXiv 2311.03099).

    D'_i: of delta_i the share ``density`` of its entries, the largest (TIES), or any of them by chance, divided by the
          density (DARE)
    M_e = sum_i w_i D'_i,e over the experts whose w_i D'_i,e has the sign of the sum of all of them (elected), or
          over all experts

Normalised, M_e is divided by the sum of the w_i that it is made of. Chance is drawn from a seed for each expert and a
few rows at a time, so it is the same on every machine and for every number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b

import torch
from torch import Tensor

from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.kernels.workers import run_all, spans

BLOCK_ELEMENTS = 1 << 16
"""Entries that are summed at once, and drawn from one seed: on every device the same."""

CANCELLED = 1e-8
"""Weights whose sum is below this share of their sizes cancel out, and nothing is divided by them."""

_DIGIT_BITS = 16
_DIGITS = 64 // _DIGIT_BITS


@dataclass(frozen=True)
class SparseSum:
    """Which entries are summed, and what they are divided by."""

    density: float
    seed: int | None
    """Of chance; None: the largest entries stay."""
    elects: bool
    normalizes: bool


@torch.no_grad()
def sparse_sum(tasks: TaskMatrices, weights: Sequence[float], how: SparseSum) -> tuple[Tensor, list[float]]:
    """M as the checkpoint is oriented, and the share of every expert's entries that stayed."""
    limits = [0.0] * len(tasks)
    if how.seed is None and how.density < 1.0:

        def find(i: int) -> None:
            limits[i] = _least_kept(tasks, i, how.density)

        run_all(tasks.device, [partial(find, i) for i in range(len(tasks))])
    result = torch.empty(
        (tasks.columns, tasks.rows) if tasks.is_wide else (tasks.rows, tasks.columns),
        dtype=tasks.result_dtype,
        device=tasks.device,
    )
    tall = result.T if tasks.is_wide else result
    row_spans = row_spans_of((tasks.rows, tasks.columns))
    counts = torch.zeros(len(row_spans), len(tasks), dtype=torch.int64)

    def fill(at: int, rows: slice) -> None:
        kept = [_kept(tasks, i, rows, how, limits[i]) for i in range(len(tasks))]
        counts[at] = torch.tensor([int((block != 0).sum()) for block in kept])
        tall[rows] = _summed(kept, weights, how).to(tasks.result_dtype)

    run_all(tasks.device, [partial(fill, *each) for each in enumerate(row_spans)])
    return result, [int(count) / (tasks.rows * tasks.columns) for count in counts.sum(0)]


def chosen(seed: int, i: int, rows: slice, columns: int, density: float) -> Tensor:
    """Which entries of these rows of expert i chance leaves, tall side up."""
    drawn_from = blake2b(f"{seed} {i} {rows.start}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(drawn_from, "big") >> 1)
    return torch.rand(rows.stop - rows.start, columns, generator=generator, dtype=torch.float64) < density


def row_spans_of(shape: tuple[int, int]) -> list[slice]:
    """Rows that are summed at once, of a matrix with at least as many rows as columns."""
    return spans(shape[0], max(1, BLOCK_ELEMENTS // shape[1]))


def _kept(tasks: TaskMatrices, i: int, rows: slice, how: SparseSum, limit: float) -> Tensor:
    block = tasks.block(i, rows)
    if how.density >= 1.0:
        return block
    if how.seed is None:
        return block.masked_fill_(block.abs() < limit, 0.0)
    stays = chosen(how.seed, i, rows, tasks.columns, how.density).to(tasks.device)
    return block.masked_fill_(~stays, 0.0).div_(how.density)


def _summed(kept: Sequence[Tensor], weights: Sequence[float], how: SparseSum) -> Tensor:
    parts = [block * weight for block, weight in zip(kept, weights, strict=True)]
    total = torch.stack(parts).sum(0)
    if not how.elects:
        divisor = sum(weights)
        return total / divisor if how.normalizes and abs(divisor) > CANCELLED * sum(map(abs, weights)) else total
    sign = torch.where(total >= 0, 1.0, -1.0)
    mixed, divisor, size = (torch.zeros_like(total) for _ in range(3))
    for part, weight in zip(parts, weights, strict=True):
        agrees = (part.sign() == sign).to(total.dtype)
        mixed += part * agrees
        divisor += weight * agrees
        size += abs(weight) * agrees
    return mixed / torch.where(divisor.abs() <= CANCELLED * size, 1.0, divisor) if how.normalizes else mixed


def _least_kept(tasks: TaskMatrices, i: int, density: float) -> float:
    """Size of the smallest entry that stays: of floor(density * entries), at least one. Equal ones stay with it.

    The bits of positive floats are in the order of the numbers, so the size is found digit by digit, from histograms.
    """
    rest = max(1, int(density * tasks.rows * tasks.columns))
    prefix = 0
    for shift in range(_DIGIT_BITS * (_DIGITS - 1), -1, -_DIGIT_BITS):
        counts = _histogram(tasks, i, prefix, shift)
        above = counts.flip(0).cumsum(0)  # entries with this digit or a larger one
        at = int((above >= rest).nonzero()[0])
        digit = counts.numel() - 1 - at
        rest -= int(above[at - 1]) if at else 0
        prefix = (prefix << _DIGIT_BITS) | digit
    return float(torch.tensor(prefix, dtype=torch.int64).view(torch.float64))


def _histogram(tasks: TaskMatrices, i: int, prefix: int, shift: int) -> Tensor:
    """How many entries have each value of the digit at ``shift``, among those whose digits before are ``prefix``."""
    counts = torch.zeros(1 << _DIGIT_BITS, dtype=torch.int64)
    for rows in row_spans_of((tasks.rows, tasks.columns)):
        bits = tasks.block(i, rows).abs().contiguous().view(torch.int64).view(-1)
        if shift < _DIGIT_BITS * (_DIGITS - 1):
            bits = bits[bits >> (shift + _DIGIT_BITS) == prefix]
        digits = (bits >> shift) & ((1 << _DIGIT_BITS) - 1)
        counts += torch.bincount(digits, minlength=1 << _DIGIT_BITS).cpu()
    return counts
