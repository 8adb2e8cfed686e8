"""The dense decompositions that the kernels use."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor


def eigh(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors of a symmetric matrix given by its upper triangle."""
    pair = torch.linalg.eigh(gram, UPLO="U")  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return cast("tuple[Tensor, Tensor]", pair)


def orthonormal_columns(matrix: Tensor) -> Tensor:
    """An orthonormal basis of the columns, by QR."""
    pair = torch.linalg.qr(matrix)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return cast("tuple[Tensor, Tensor]", pair)[0]
