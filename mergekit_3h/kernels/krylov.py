"""Leading singular triplets by a block Krylov method: matrix products only, for ranks far below the matrix size.

A subspace grows from a random block Q by G Q, G^2 Q, .. with G = delta^T delta; the eigenpairs of G restricted to it
(Ritz pairs) approach the largest of G. Their residuals bound how far the found subspace is from the true one
(Davis-Kahan): sin(angle) <= ||G V - V theta|| / (theta_k - theta_{k+1}). Where the spectrum has no gap at the wanted
rank the bound stays large, and so does the error: that is what the certificate is for. It cannot see more than BLOCK
copies of one singular value, so where that many are found there is none.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mergekit_3h.kernels.dense import eigh_in_place, orthonormal_columns
from mergekit_3h.kernels.ranks import KRYLOV_SHARE
from mergekit_3h.kernels.spectra import RankFunction, Spectrum, likely_values, random_vectors, total_square
from mergekit_3h.kernels.tasks import TaskMatrices

BLOCK = 32
"""Columns of a Krylov block: enough for GEMM speed and for clusters of equal singular values."""

MARGIN = 2 * BLOCK
"""Columns beyond the likely rank in which a certificate is expected to begin: of low-rank updates with noise the bound
was seen at 1e-2 and less there, of spectra without a gap at 1 and more."""

HOPELESS = 0.1
"""Bound on the sine that gives a spectrum without a gap away."""

CLUSTER_SPREAD = 1e-5
"""Ritz values this close, relative to their size, count as copies of one. Of 40 values that differ by 2e-7, 32
were found and seemed to be all; at 2e-6 and more all 40 were found."""


def krylov_spectrum(tasks: TaskMatrices, i: int, rank_rule: RankFunction, tolerance: float) -> Spectrum:
    """The kept singular triplets of delta_i as soon as their bound is under ``tolerance``, or the best of half of the
    columns, with the bound they reached."""
    found = None
    for found, _ in _growing(tasks, i, rank_rule, max(2, tasks.columns // (2 * BLOCK))):
        if found.residual <= tolerance:
            break
    if found is None:
        raise AssertionError("two blocks at least")
    return found


def certified_krylov(
    tasks: TaskMatrices, i: int, rank_rule: RankFunction, tolerance: float
) -> tuple[Spectrum | None, int]:
    """The kept singular triplets of delta_i if they can be certified, and how many these may be.

    Where they likely cannot, it ends early: after two blocks if their number is too large, later if there is no gap.
    """
    limit = _most_blocks(tasks.columns)
    likely_rank = tasks.columns
    for step, (found, likely_rank) in enumerate(_growing(tasks, i, rank_rule, limit), start=2):
        if found.residual <= tolerance:
            return found, found.rank
        if not fits_subspace(likely_rank, tasks.columns):
            break
        if step * BLOCK >= likely_rank + MARGIN and found.residual > HOPELESS:
            break
    return None, likely_rank


def fits_subspace(rank: int, columns: int) -> bool:
    """Whether so many triplets may be certified in a subspace that is small beside the matrix."""
    return rank + MARGIN <= _most_blocks(columns) * BLOCK


def _most_blocks(columns: int) -> int:
    return max(2, columns // (KRYLOV_SHARE * BLOCK))


def _growing(tasks: TaskMatrices, i: int, rank_rule: RankFunction, limit: int) -> Iterator[tuple[Spectrum, int]]:
    """What subspaces of two and more blocks hold of the wanted triplets, and about how many of these there are."""
    like = torch.empty(0, dtype=torch.float64, device=tasks.device)
    block = random_vectors(BLOCK, tasks.columns, like).T
    basis = images = block.new_empty(tasks.columns, 0)
    square = total_square(tasks, i)
    for step in range(limit):
        basis = torch.cat([basis, _orthonormal_part(block, basis)], dim=1)
        block = _gram_times(tasks, i, basis[:, images.shape[1] :])
        images = torch.cat([images, block], dim=1)
        if step == 0:
            continue
        theta, y = eigh_in_place(basis.T @ images)
        theta, y = theta.flip(0).clamp_min_(0), y.flip(1)
        rank = rank_rule(theta.sqrt(), square)
        vectors = basis @ y[:, :rank]
        residuals = (images @ y[:, :rank] - vectors * theta[:rank]).square().sum(0).sqrt()
        bound = _sine_bound(theta, residuals, rank)
        likely = likely_values(theta, y[:BLOCK].T, tasks.columns)
        yield (
            Spectrum(theta[:rank].sqrt(), vectors, square, "krylov", bound),
            rank_rule(likely.sqrt(), float(likely.sum())),
        )


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
