"""Orthonormal polar factors: the nearest matrix with orthonormal columns (Eq. 3-4), by inverse square roots in float64.

The polar factor of X is X (X^T X)^(-1/2); of a matrix with more columns than rows it is (X X^T)^(-1/2) X, the nearest
one with orthonormal rows. Directions in which X has no extent are dropped (pseudo-inverse), so that linearly
dependent tasks, identical experts for one, have a polar factor too. Gram matrices come as upper triangles.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mergekit_3h.kernels.dense import eigh_in_place

RELATIVE_CUT = 1e-10
"""Eigenvalues of a Gram matrix below this share of the largest count as zero. float64 leaves noise of about 1e-15 of
it there; a cut of 1e-14 was seen to let that noise through."""


def inverse_sqrt(gram: Tensor) -> Tensor:
    """Pseudo-inverse square root of a symmetric positive semidefinite matrix, whose memory is used up."""
    if gram.shape[0] == 0:
        return gram
    w, q = eigh_in_place(gram)
    kept = w > RELATIVE_CUT * w[-1]
    # B B^T with B = Q w^(-1/4) is symmetric to the last bit, which Q w^(-1/2) Q^T is not.
    b = q.mul_(torch.where(kept, w, torch.inf).pow(-0.25))
    return b @ b.T


def inverse_sqrt_of_two_blocks(cross: Tensor) -> Tensor:
    """``inverse_sqrt([[I, B], [B^T, I]])`` for B = U_1^T U_2, by one eigendecomposition of the size of a block.

    The eigenvalues are 1 +- sigma with sigma the singular values of B, so every block of the result is an even function
    of sigma and can be written in B^T B = Y sigma^2 Y^T alone.
    """
    k = cross.shape[0]
    if k < cross.shape[1]:
        swapped = inverse_sqrt_of_two_blocks(cross.T)
        return swapped.roll((k, k), (0, 1))
    if cross.shape[1] == 0:
        return torch.eye(k, dtype=cross.dtype, device=cross.device)
    square, y = eigh_in_place(cross.T @ cross)
    square = square.clamp_(0.0, 1.0)
    plus = 1 + square.sqrt()
    minus = (1 - square) / plus
    plus_root = plus.rsqrt()
    minus_root = torch.where(minus > RELATIVE_CUT * plus[-1], minus, torch.inf).rsqrt()
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
    return torch.cat([torch.cat([upper_left, upper_right], 1), torch.cat([upper_right.T, lower_right], 1)])
