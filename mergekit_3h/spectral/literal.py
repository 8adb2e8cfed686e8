"""TSVM as the paper writes it, by full SVDs in a few lines of torch: slow, and the oracle in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def merge_literally(
    updates: Sequence[Tensor],
    ranks: Sequence[int],
    scales: Sequence[float],
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
