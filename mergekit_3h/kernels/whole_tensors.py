"""Passes over whole tensors of any shape, a block at a time: means of updates, and the search for NaN."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mergekit_3h.kernels.tasks import BLOCK_ELEMENTS
from mergekit_3h.kernels.values import floats
from mergekit_3h.kernels.workers import spans


def mean_update(experts: Sequence[Tensor], base: Tensor, weights: Sequence[float]) -> Tensor:
    """1/n sum_i w_i (W_i - W_0): how biases, norms and excluded tensors of any shape are merged."""
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in [*experts, base]) else torch.float32
    update = torch.empty(base.shape, dtype=dtype, device=base.device)
    flat, flat_base = update.view(-1), base.reshape(-1)
    flat_experts = [expert.reshape(-1) for expert in experts]
    for part in spans(flat.numel(), BLOCK_ELEMENTS):
        total = torch.zeros(part.stop - part.start, dtype=torch.float64, device=base.device)
        for expert, weight in zip(flat_experts, weights, strict=True):
            total += weight * (expert[part].to(torch.float64) - flat_base[part])
        flat[part] = (total / len(experts)).to(dtype)
    return update


def mean_share(expert: Tensor, base: Tensor, n: int) -> Tensor:
    """(W_i - W_0) / n, what one of ``n`` experts of weight 1 adds to ``mean_update``, in float64."""
    return (expert.to(torch.float64) - base.to(torch.float64)) / n


def dot_products(experts: Sequence[Tensor], base: Tensor) -> list[list[float]]:
    """<W_i - W_0, W_j - W_0> for every pair of experts."""
    flat_base, flat = base.reshape(-1), [expert.reshape(-1) for expert in experts]
    gram = torch.zeros(len(experts), len(experts), dtype=torch.float64, device=base.device)
    for part in spans(flat_base.numel(), BLOCK_ELEMENTS):
        updates = torch.stack([expert[part].to(torch.float64) - flat_base[part] for expert in flat])
        gram.addmm_(updates, updates.T)
    return [floats(row) for row in gram]


def is_finite(tensor: Tensor) -> bool:
    """Whether every number is finite: their sum is, in one pass without copies. A sum may overflow, and then they are
    looked at in blocks, since ``torch.isfinite`` makes copies of its argument."""
    flat = tensor.reshape(-1)
    if bool(torch.isfinite(flat.sum())):
        return True
    finite = torch.ones((), dtype=torch.bool, device=tensor.device)
    for part in spans(flat.numel(), 4 * BLOCK_ELEMENTS):
        finite &= torch.isfinite(flat[part]).all()
    return bool(finite)
