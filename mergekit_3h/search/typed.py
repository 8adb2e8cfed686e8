"""The few torch calls that have no complete type, with their types."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor


def floats(vector: Tensor) -> list[float]:
    """The values of a one-dimensional tensor."""
    untyped: Any = vector
    return cast("list[float]", untyped.tolist())


def solved(matrix: Tensor, right: Tensor) -> Tensor:
    """x with matrix @ x = right."""
    untyped: Any = torch.linalg
    return cast(Tensor, untyped.solve(matrix, right))
