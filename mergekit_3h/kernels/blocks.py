"""Factors on blocks of every task's singular components, the largest first, after the idea of arXiv 2503.22178."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from mergekit_3h.kernels.shares import Shares
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.kernels.workers import run_all


def block_slices(rank: int, blocks: int) -> list[slice]:
    """``rank`` components in so many blocks of almost one size; where there are fewer, some blocks are empty."""
    ends = [rank * j // blocks for j in range(blocks + 1)]
    return [slice(start, stop) for start, stop in pairwise(ends)]


def spread(factors: Sequence[float], rank: int, like: Tensor) -> Tensor:
    """A factor for every component, from those of its blocks."""
    result = like.new_empty(rank)
    for part, factor in zip(block_slices(rank, len(factors)), factors, strict=True):
        result[part] = factor
    return result


def sum_in_blocks(
    tasks: TaskMatrices, shares: Shares, scales: Sequence[float], blocks: Sequence[Sequence[float]]
) -> Tensor:
    """sum_i scale_i sum_b m_ib C_ib, with C_ib the part of C_i in block b, in the checkpoint's orientation."""
    factors = [shares.share(i) for i in range(len(tasks))]
    scaled = [
        (left * (scale * spread(own, left.shape[1], left)), right)
        for (left, right), scale, own in zip(factors, scales, blocks, strict=True)
    ]
    tall = torch.empty(tasks.rows, tasks.columns, dtype=tasks.result_dtype, device=tasks.device)

    def fill(rows: slice) -> None:
        total = torch.zeros(rows.stop - rows.start, tasks.columns, dtype=torch.float64, device=tasks.device)
        for left, right in scaled:
            total.addmm_(left[rows], right)
        tall[rows] = total.to(tasks.result_dtype)

    run_all(tasks.device, [partial(fill, rows) for rows in tasks.row_spans()])
    return tall.T.contiguous() if tasks.is_wide else tall
