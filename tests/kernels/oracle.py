"""The papers' algorithms in float64 by full SVDs, written as the papers write them and not as the kernels compute."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mergekit_3h.kernels.settings import Settings
from mergekit_3h.spectral.registry import parse_options
from mergekit_3h.testing import updates


def settings(method: str = "tsvm", **options: object) -> Settings:
    """Settings as the hosts make them."""
    return parse_options(method, options).settings()


def polar_factor(matrix: Tensor, *, cut: float = 1e-13) -> Tensor:
    """U V^T of the SVD without the directions under ``cut`` of the largest, which float64 cannot tell from none."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    kept = s > cut * s[0] if s.numel() else s > 0
    return u[:, kept] @ vh[kept]


def merge_truncated(deltas: Sequence[Tensor], ranks: Sequence[int], weights: Sequence[float]) -> Tensor:
    """Eq. 5: cut to rank, concatenate, orthogonalise, reassemble."""
    u, s, vh = [], [], []
    for delta, rank, weight in zip(deltas, ranks, weights, strict=True):
        left, values, right = torch.linalg.svd(delta.double(), full_matrices=False)
        u.append(left[:, :rank])
        s.append(weight * values[:rank])
        vh.append(right[:rank])
    return polar_factor(torch.cat(u, 1)) @ torch.diag(torch.cat(s)) @ polar_factor(torch.cat(vh, 0))


def merge_literally(deltas: Sequence[Tensor], rank: int, weights: Sequence[float]) -> Tensor:
    """Algorithm 1, step 4, to the letter: polar factors of the concatenated full factors, then the cut to ``rank``."""
    svds = [torch.linalg.svd(delta.double(), full_matrices=False) for delta in deltas]
    left = polar_factor(torch.cat([u for u, _, _ in svds], 1))
    right = polar_factor(torch.cat([vh for _, _, vh in svds], 0))
    width = svds[0][1].numel()
    merged = deltas[0].new_zeros(deltas[0].shape, dtype=torch.float64)
    for i, (weight, (_, s, _)) in enumerate(zip(weights, svds, strict=True)):
        columns = left[:, i * width : i * width + rank]
        rows = right[i * width : i * width + rank]
        merged += weight * columns @ torch.diag(s[:rank]) @ rows
    return merged


def outlier_alphas(deltas: Sequence[Tensor]) -> list[float]:
    """Eq. 6-8, entry by entry."""
    masses = []
    for delta in deltas:
        mass = 0.0
        for row in delta.double().tolist():
            sizes = [abs(x) for x in row]
            mu = sum(sizes) / len(sizes)
            sigma = math.sqrt(max(0.0, sum(x * x for x in sizes) / len(sizes) - mu * mu))
            mass += sum(x for x in sizes if x >= mu + 3 * sigma)
        masses.append(mass)
    return [mass / sum(masses) for mass in masses]


def relative(result: Tensor, expected: Tensor) -> float:
    """Relative Frobenius error."""
    return float((result.double() - expected.double()).norm() / expected.double().norm())


def random_delta(
    shape: tuple[int, int], spectrum: str, seed: int, *, shared: float = 0.0, scale: float = 1e-3
) -> Tensor:
    """A float32 update: ``flat`` (Gaussian), ``decaying`` (full rank, heavy tail) or ``steep`` (four decades).

    ``shared`` is the part of it that all tasks have in common, which makes their subspaces overlap.
    """
    generator = torch.Generator().manual_seed(seed)
    own = torch.randn(shape, generator=generator, dtype=torch.float64)
    if spectrum != "flat":
        u, s, vh = torch.linalg.svd(own, full_matrices=False)
        index = torch.arange(1, s.numel() + 1, dtype=torch.float64)
        s = index**-0.7 if spectrum == "decaying" else 10 ** (-4 * (index - 1) / max(1, s.numel() - 1))
        own = u @ torch.diag(s) @ vh
    own *= math.sqrt(own.numel()) / own.norm()
    if shared:
        common = torch.randn(shape, generator=torch.Generator().manual_seed(999), dtype=torch.float64)
        own = own + shared * common
    return (scale * own).float().to(updates.place)
