"""TSVM as the paper writes it, by full SVDs in a few lines of torch: slow, and the oracle in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mergekit_3h.kernels.cores import TIE, Core


def merge_literally(
    updates: Sequence[Tensor],
    ranks: Sequence[int],
    scales: Sequence[float | Tensor],
    *,
    orthogonalize_first: bool = False,
    softness: tuple[float, float] = (0.0, 0.0),
) -> Tensor:
    """sum_i U_perp_i (scale_i S_i) V_perp_i^T: cut to rank, concatenate, orthogonalise, multiply.

    ``orthogonalize_first`` concatenates the full factors and cuts afterwards (Algorithm 1 of arXiv 2502.06876).
    ``softness`` is tau of the output and of the input side.
    """
    u: list[Tensor] = []
    s: list[Tensor] = []
    vh: list[Tensor] = []
    for update, rank, scale in zip(updates, ranks, scales, strict=True):
        left, values, right = torch.linalg.svd(update, full_matrices=False)
        kept = values.numel() if orthogonalize_first else rank
        values[rank:] = 0
        u.append(left[:, :kept])
        s.append(scale * values[:kept])
        vh.append(right[:kept])
    return (polar_factor(torch.cat(u, 1), softness[0]) * torch.cat(s)) @ polar_factor(torch.cat(vh, 0), softness[1])


def merge_literally_with(
    core: Core, updates: Sequence[Tensor], ranks: Sequence[int], scales: Sequence[float | Tensor]
) -> Tensor:
    """sum_i scale_i U_perp X_i V_perp^T with the X_i of DC-Merge or SCORE."""
    u: list[Tensor] = []
    vh: list[Tensor] = []
    seen: list[Tensor] = []
    for update, rank in zip(updates, ranks, strict=True):
        left, s, right = torch.linalg.svd(update, full_matrices=False)
        u.append(left[:, :rank])
        vh.append(right[:rank])
        seen.append(u[-1] @ torch.diag(s[:rank]) @ vh[-1] if core.kind == "dc" else update)
    output, input_ = polar_factor(torch.cat(u, 1)), polar_factor(torch.cat(vh, 0))
    stacked = torch.stack([output.T @ each @ input_.T for each in seen])
    kept = _elected(stacked, core.keep, ranks) if core.kind == "dc" else _pruned(stacked, core.deviations)
    return output @ torch.stack([scale * each for scale, each in zip(scales, kept, strict=True)]).sum(0) @ input_


def _elected(cores: Tensor, keep: float, ranks: Sequence[int]) -> Tensor:
    flat = cores.flatten(1).abs()
    smallest = flat.sort(1, descending=True).values[:, max(1, int(keep * flat.shape[1])) - 1]
    trimmed = cores * (cores.abs() >= smallest[:, None, None] * (1 - TIE))
    agrees = (trimmed * trimmed.sum(0)) > 0
    blocks = torch.block_diag(*[cores.new_ones(rank, rank) for rank in ranks])
    return trimmed * agrees / agrees.sum(0).clamp(min=1) * blocks


def _pruned(cores: Tensor, deviations: float) -> Tensor:
    is_off = ~torch.eye(cores.shape[1], dtype=torch.bool, device=cores.device)
    off = cores[:, is_off]
    limits = deviations * off.square().mean(1).sqrt()
    return torch.where(is_off & (cores.abs() > limits[:, None, None]), 0.0, cores)


def polar_factor(matrix: Tensor, tau: float = 0.0) -> Tensor:
    """By an SVD; softly for a tau above 0."""
    if math.isinf(tau):
        return matrix
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return (u * (s * math.sqrt(1 + tau) / (s.square() + tau).sqrt() if tau else 1.0)) @ vh


def relative_error(result: Tensor, expected: Tensor) -> float:
    """In the Frobenius norm."""
    difference = result.to(expected.dtype) - expected
    return float(torch.linalg.vector_norm(difference) / torch.linalg.vector_norm(expected))
