"""Inverse square roots of Gram matrices, in float64: what turns a matrix X into its polar factor.

Gram matrices come as upper triangles. They cost half of the digits: an eigenvalue is known to about 1e-15 of the
largest, so the directions b with the smallest ones are measured again on X itself, where |X b| is known to 1e-15. What
the b themselves have of the other directions leaves it resolved to about 2e-12.

Directions in which X reaches no further than its own error are dropped (pseudo-inverse), so that linearly dependent
tasks, identical experts for one, have a polar factor too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mergekit_3h.kernels.dense import eigh_in_place, singular_pairs, triangle_of_columns
from mergekit_3h.kernels.spectra import symmetric_product

MEASURED_BELOW = 1e-6
"""Eigenvalues of a Gram matrix below this share of the largest are measured again. Above it the Gram matrix was seen to
leave errors of at most 1e-13 times the condition number of X."""

CUT = 2.0
"""Directions that reach less far than this many times the error of X count as dependent. Of an error that is alike in
all directions, r of them in m rows, the largest is at most 1 + sqrt(r / m) times the root mean square."""

MIXED = 8 * float(torch.finfo(torch.float64).eps)
"""A Gram matrix mixes its small directions with the others, by about this over an eigenvalue of theirs, relative to the
largest: X reaches so far into what they have nothing of, times the root of that eigenvalue. Up to 2.5 eps was seen, of
60 to 4000 rows, 8 to 40 directions that 2 to 5 experts share."""


@dataclass(frozen=True)
class Factor:
    """X, as its Gram matrix X^T X sees it."""

    blocks: Callable[[], Iterator[Tensor]]
    """X from top to bottom, some rows at a time."""
    errors: Tensor
    """Root mean square error of each column of X."""


@dataclass(frozen=True)
class Extent:
    """How far a factor reaches in the directions that its columns span."""

    condition: float = 1.0
    """Largest over smallest singular value, of the directions that are kept."""
    dependent: int = 0
    """Directions that were dropped."""


def softened(gram: Tensor, factor: Factor, tau: float) -> tuple[Tensor, Factor]:
    """(X^T X + tau I) / (1 + tau), in the memory of ``gram``, and X with sqrt(tau) I below it, which has it.

    Where X has columns of length 1, so has that one: decorrelating softly is decorrelating it.
    """
    gram.div_(1 + tau).diagonal().add_(tau / (1 + tau))
    unit = torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)

    def blocks() -> Iterator[Tensor]:
        yield from (block / math.sqrt(1 + tau) for block in factor.blocks())
        yield unit * math.sqrt(tau / (1 + tau))

    return gram, Factor(blocks, factor.errors / math.sqrt(1 + tau))


def inverse_sqrt(gram: Tensor, factor: Factor) -> tuple[Tensor, Extent]:
    """Pseudo-inverse square root of the Gram matrix of ``factor``, whose memory is used up."""
    if gram.shape[0] == 0:
        return gram, Extent()
    w, q = eigh_in_place(gram)
    small = int((w <= MEASURED_BELOW * w[-1]).sum())
    roots, extent = _measured(factor, q[:, :small], smallest=w[small], largest=w[-1])
    b = q[:, small:].mul_(w[small:].pow(-0.25))
    large = symmetric_product(b, b)
    return large.addmm_(roots, roots.T) if small else large, extent


def inverse_sqrt_of_two_blocks(cross: Tensor, factor: Factor) -> tuple[Tensor, Extent]:
    """``inverse_sqrt([[I, B], [B^T, I]])`` for B = U_1^T U_2, by one eigendecomposition of the size of a block.

    The eigenvalues are 1 +- sigma with sigma the singular values of B, so every block of the result is an even function
    of sigma and can be written in B^T B = Y sigma^2 Y^T alone.
    """
    k = cross.shape[0]
    if k < cross.shape[1]:
        swapped, extent = inverse_sqrt_of_two_blocks(cross.T, _swapped(factor, k))
        return swapped.roll((k, k), (0, 1)), extent
    if cross.shape[1] == 0:
        return torch.eye(k, dtype=cross.dtype, device=cross.device), Extent()
    square, y = eigh_in_place(cross.T @ cross)
    square = square.clamp_(0.0, 1.0)
    plus = 1 + square.sqrt()
    minus = (1 - square) / plus
    plus_root = plus.rsqrt()
    is_measured = minus <= MEASURED_BELOW * plus[-1]
    minus_root = torch.where(is_measured, torch.inf, minus).rsqrt()
    even, odd = (plus_root + minus_root) / 2, (plus_root - minus_root) / 2
    # (even - 1) / sigma^2 and odd / sigma cancel near sigma = 0; below 1e-3 their series are exact to 1e-12.
    is_small = square < 1e-6
    divisor = torch.where(is_small, 1.0, square)
    even_slope = torch.where(is_small, 3 / 8 + 35 / 128 * square, (even - 1) / divisor)
    odd_slope = torch.where(is_small, -1 / 2 - 5 / 16 * square, odd / divisor.sqrt())
    b_y = cross @ y
    upper_left = (b_y * even_slope) @ b_y.T
    upper_left.diagonal().add_(1)
    upper_right = (b_y * odd_slope) @ y.T
    lower_right = (y * even) @ y.T
    result = torch.cat([torch.cat([upper_left, upper_right], 1), torch.cat([upper_right.T, lower_right], 1)])
    # The eigenvectors of 1 - sigma are those of sigma in both blocks, with opposite signs.
    opposite = torch.cat([b_y[:, is_measured] / square[is_measured].sqrt(), -y[:, is_measured]]) / 2**0.5
    others = minus[~is_measured]
    roots, extent = _measured(factor, opposite, smallest=others[-1] if others.numel() else plus[0], largest=plus[-1])
    return result.addmm_(roots, roots.T) if opposite.shape[1] else result, extent


def _measured(factor: Factor, directions: Tensor, *, smallest: Tensor, largest: Tensor) -> tuple[Tensor, Extent]:
    """R with R R^T the part of (X^T X)^(-1/2) in the ``directions`` (orthonormal columns), and the extent of X.

    ``smallest`` and ``largest`` are the eigenvalues of X^T X at the ends of all other directions.
    """
    if directions.shape[1] == 0:
        return directions, Extent(float((largest / smallest).sqrt()))
    triangle = triangle_of_columns(block @ directions for block in factor.blocks())
    reaches, turned = singular_pairs(triangle)
    vectors = directions @ turned
    errors = (vectors.square().T @ factor.errors.square()).sqrt()
    kept = reaches > CUT * errors + MIXED * float(largest / smallest.sqrt())
    vectors, reaches = vectors[:, kept], reaches[kept]
    condition = float(largest.sqrt() / reaches.min()) if reaches.numel() else float((largest / smallest).sqrt())
    return vectors * reaches.rsqrt(), Extent(condition, int((~kept).sum()))


def _swapped(factor: Factor, k: int) -> Factor:
    """The factor with its first ``k`` columns behind the others."""
    return Factor(lambda: (block.roll(-k, 1) for block in factor.blocks()), factor.errors.roll(-k))
