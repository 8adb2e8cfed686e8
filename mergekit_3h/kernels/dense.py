"""The dense decompositions that the kernels use."""

from __future__ import annotations

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
