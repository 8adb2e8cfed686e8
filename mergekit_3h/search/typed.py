"""The few torch calls that have no complete type, with their types."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
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


@contextmanager
def drawing_from(seed: int, device: torch.device) -> Generator[None]:
    """Within, torch draws from this seed; afterwards it goes on as if nothing had been drawn."""
    untyped: Any = torch
    with untyped.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        untyped.manual_seed(seed)
        yield
