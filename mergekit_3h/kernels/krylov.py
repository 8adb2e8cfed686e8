"""Leading singular triplets by a block Krylov method: matrix products only, for ranks far below the matrix size.

A subspace grows from a random block Q by G Q, G^2 Q, .. with G = delta^T delta; the eigenpairs of G restricted to it
(Ritz pairs) approach the largest of G. Their residuals bound how far the found subspace is from the true one
(Davis-Kahan): sin(angle) <= ||G V - V theta|| / (theta_k - theta_{k+1}). Where the spectrum has no gap at the wanted
rank the bound stays large, and so does the error: that is what the certificate is for. It cannot see more than BLOCK
copies of one singular value, so where that many are found there is none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mergekit_3h.kernels.dense import eigh_in_place, orthonormal_columns
from mergekit_3h.kernels.ranks import KRYLOV_SHARE
from mergekit_3h.kernels.spectra import RankFunction, Spectrum
from mergekit_3h.kernels.tasks import TaskMatrices

BLOCK = 32
"""Columns of a Krylov block: enough for GEMM speed and for clusters of equal singular values."""

HOPELESS_RESIDUAL = 1e-2
"""Relative residual of the largest Ritz pair after four blocks that gives a flat spectrum away; on spectra with a gap
it was seen at 1e-6 and less."""

CLUSTER_SPREAD = 1e-5
"""Ritz values this close, relative to their size, count as copies of one. Of 40 values that differ by 2e-7, 32
were found and seemed to be all; at 2e-6 and more all 40 were found."""


def krylov_spectrum(
    tasks: TaskMatrices, i: int, rank_rule: RankFunction, tolerance: float, *, must_certify: bool
) -> Spectrum | None:
    """The kept singular triplets of delta_i, or ``None`` where ``must_certify`` is asked for and cannot be met.

    Without ``must_certify`` the best pairs of the largest subspace are returned, with the bound they reached.
    """
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(tasks.columns, BLOCK, generator=generator, dtype=torch.float64).to(tasks.device)
    limit = max(2, tasks.columns // (KRYLOV_SHARE * BLOCK) if must_certify else tasks.columns // (2 * BLOCK))
    basis = block.new_empty(tasks.columns, 0)
    images = basis
    squares = [part.square_().sum() for part in tasks.blocks(i)]
    total_square = float(torch.stack(squares).sum())
    best: Spectrum | None = None
    for step in range(limit):
        basis = torch.cat([basis, _orthonormal_part(block, basis)], dim=1)
        image = _gram_times(tasks, i, basis[:, images.shape[1] :])
        images = torch.cat([images, image], dim=1)
        block = image
        if step == 0:
            continue
        theta, y = eigh_in_place(basis.T @ images)
        theta, y = theta.flip(0).clamp_min_(0), y.flip(1)
        rank = rank_rule(theta.sqrt(), total_square)
        vectors = basis @ y[:, :rank]
        residuals = (images @ y[:, :rank] - vectors * theta[:rank]).square().sum(0).sqrt()
        bound = _sine_bound(theta, residuals, rank)
        best = Spectrum(theta[:rank].sqrt(), vectors, total_square, "krylov", bound)
        if bound <= tolerance:
            return best
        if must_certify and step == 3 and rank and float(residuals[0]) > HOPELESS_RESIDUAL * float(theta[0]):
            break
    return None if must_certify else best


def _sine_bound(theta: Tensor, residuals: Tensor, rank: int) -> float:
    """Bound on the sine of the largest angle between the found and the true leading subspace of this rank."""
    if rank == 0:
        return 0.0
    if rank == theta.numel():
        return float("inf")  # every pair found is wanted: the gap below them is unknown
    if _may_hide_copies(theta[:rank]):
        return float("inf")
    gap = float(theta[rank - 1] - theta[rank])
    return float(residuals.square().sum().sqrt()) / gap if gap > 0 else float("inf")


def _may_hide_copies(kept: Tensor) -> bool:
    """Whether as many values agree as a block has columns: the subspace holds no further copy, should there be one."""
    if kept.numel() < BLOCK:
        return False
    first, last = kept[: kept.numel() - BLOCK + 1], kept[BLOCK - 1 :]
    return bool((first - last <= CLUSTER_SPREAD * first).any())


def _orthonormal_part(block: Tensor, basis: Tensor) -> Tensor:
    """An orthonormal basis of what ``block`` adds to ``basis``; projected twice, which is enough in float64."""
    for _ in range(2):
        block = block - basis @ (basis.T @ block)
        block = orthonormal_columns(block)
    return block


def _gram_times(tasks: TaskMatrices, i: int, vectors: Tensor) -> Tensor:
    """delta_i^T (delta_i vectors), in one pass over delta_i."""
    image = torch.zeros_like(vectors)
    for block in tasks.blocks(i):
        image.addmm_(block.T, block @ vectors)
    return image
