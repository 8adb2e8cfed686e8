"""The dense decompositions that the kernels use."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

import torch
from torch import Tensor

from mergekit_3h.kernels.lapack import can_decompose, leading_vectors


def eigh_in_place(gram: Tensor, keep: Callable[[Tensor], int] | None = None) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors of a symmetric matrix given by its upper triangle.

    ``keep`` says of the values of how many of the largest the eigenvectors are wanted; without it all are. On a CPU
    these take the memory of ``gram``.
    """
    wanted = keep or torch.numel
    if can_decompose(gram):
        return leading_vectors(gram.contiguous(), wanted)
    values, vectors = _by_driver(gram)
    return values, vectors[:, vectors.shape[1] - wanted(values) :]


def _by_driver(gram: Tensor) -> tuple[Tensor, Tensor]:
    """On a CPU seen as columns, which is how LAPACK reads it: the transpose needs no copy at all."""
    if gram.device.type != "cpu":
        pair = torch.linalg.eigh(gram, UPLO="U")  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        return cast("tuple[Tensor, Tensor]", pair)
    columns = gram.contiguous().T
    values = gram.new_empty(gram.shape[0])
    torch.linalg.eigh(columns, UPLO="L", out=(values, columns))  # pyright: ignore[reportUnknownMemberType]
    return values, columns


def orthonormal_columns(matrix: Tensor) -> Tensor:
    """An orthonormal basis of the columns, by QR."""
    return orthonormal_basis(matrix)[0]


def orthonormal_basis(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal columns, no more than the matrix has, and the coordinates of its columns in them."""
    pair = torch.linalg.qr(matrix)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return cast("tuple[Tensor, Tensor]", pair)


def is_positive_definite(matrix: Tensor) -> bool:
    """Whether a symmetric matrix has a Cholesky factor."""
    pair = torch.linalg.cholesky_ex(matrix)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return int(cast("tuple[Tensor, Tensor]", pair)[1]) == 0


def triangle_of_columns(blocks: Iterable[Tensor]) -> Tensor:
    """R of the QR decomposition of a tall matrix, given some rows at a time."""
    triangle: Tensor | None = None
    for block in blocks:
        stacked = block if triangle is None else torch.cat([triangle, block])
        pair = torch.linalg.qr(stacked, mode="r")  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        triangle = cast("tuple[Tensor, Tensor]", pair)[1]
    if triangle is None:
        raise ValueError("a matrix of no rows has no triangle")
    return triangle


def singular_pairs(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values, descending, and the right singular vectors as columns."""
    _, values, right = singular_triplets(matrix)
    return values, right


def singular_triplets(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Left singular vectors as columns, singular values, descending, and right singular vectors as columns."""
    triple = torch.linalg.svd(matrix, full_matrices=False)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    left, values, right = cast("tuple[Tensor, Tensor, Tensor]", triple)
    return left, values, right.T
