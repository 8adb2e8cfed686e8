"""The dense decompositions that the kernels use."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor


def eigh_in_place(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors of a symmetric matrix given by its upper triangle.

    On a CPU the eigenvectors take the memory of ``gram``: seen as columns, which is how LAPACK reads it, its transpose
    needs no copy at all.
    """
    if gram.device.type != "cpu":
        pair = torch.linalg.eigh(gram, UPLO="U")  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        return cast("tuple[Tensor, Tensor]", pair)
    columns = gram.contiguous().T
    values = gram.new_empty(gram.shape[0])
    torch.linalg.eigh(columns, UPLO="L", out=(values, columns))  # pyright: ignore[reportUnknownMemberType]
    return values, columns


def orthonormal_columns(matrix: Tensor) -> Tensor:
    """An orthonormal basis of the columns, by QR."""
    pair = torch.linalg.qr(matrix)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return cast("tuple[Tensor, Tensor]", pair)[0]


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
    triple = torch.linalg.svd(matrix, full_matrices=False)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    _, values, right = cast("tuple[Tensor, Tensor, Tensor]", triple)
    return values, right.T
