"""What a merge is summed up from: the share C_i of every task in M = sum_i w_i alpha_i C_i."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class Shares(Protocol):
    """The decomposed tasks of one matrix, ready for any factors. It owns what it holds; the task matrices are read."""

    def weighted_sum(self, scales: Sequence[float]) -> Tensor:
        """sum_i scale_i C_i, in the checkpoint's orientation and the tasks' result dtype, accumulated in float64."""
        ...

    def share(self, i: int) -> tuple[Tensor, Tensor]:
        """C_i as a product (rows x k_i) (k_i x columns) in float64, tall side up."""
        ...
