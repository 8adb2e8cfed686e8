"""Values out of a tensor, with their type: torch's own stubs leave it open."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor


def floats(vector: Tensor) -> list[float]:
    """The values of a one-dimensional tensor."""
    untyped: Any = vector
    return cast("list[float]", untyped.tolist())
