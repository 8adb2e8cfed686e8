"""The task matrices of one layer, delta_i = W_i - W_0 (Eq. 1), read a block of rows at a time.

They are never stored: a block is subtracted in float64 when it is needed, so that neither the embedding of a large
model nor ten experts need more memory than the checkpoints' own tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mergekit_3h.kernels.workers import spans

BLOCK_ELEMENTS = 1 << 19
"""Elements of a float64 block (4 MB), small beside every matrix worth merging."""

BLOCK_ROWS = 256
"""Rows of a block: enough for GEMM speed, few enough that a square matrix has a block for every core."""


class TaskMatrices:
    """``n`` matrices of one shape. ``base=None`` says that ``experts`` are the updates themselves.

    The kernels see each matrix with at least as many rows as columns: a wide one is transposed as it is read.
    """

    def __init__(self, experts: Sequence[Tensor], base: Tensor | None = None) -> None:
        first = experts[0]
        if first.ndim != 2 or any(t.shape != first.shape for t in [*experts, *([] if base is None else [base])]):
            raise ValueError("task matrices must be two-dimensional and of one shape")
        self.experts = list(experts)
        self.base = base
        self.is_wide = first.shape[0] < first.shape[1]
        self.rows, self.columns = max(first.shape), min(first.shape)
        self.device = first.device
        is_double = any(t.dtype == torch.float64 for t in [*experts, *([] if base is None else [base])])
        self.result_dtype = torch.float64 if is_double else torch.float32

    def __len__(self) -> int:
        return len(self.experts)

    def block(self, i: int, rows: slice) -> Tensor:
        """Rows of delta_i, tall side up, in float64."""
        return self._difference(self.experts[i], self.base, rows, transpose=self.is_wide)

    def blocks(self, i: int) -> Iterator[Tensor]:
        """delta_i from top to bottom, tall side up."""
        for rows in self.row_spans():
            yield self.block(i, rows)

    def blocks_as_stored(self, i: int) -> Iterator[Tensor]:
        """delta_i from top to bottom in the checkpoint's own orientation, whose rows Eq. 6-8 speak of."""
        shape = self.experts[i].shape
        for rows in spans(shape[0], max(1, BLOCK_ELEMENTS // shape[1])):
            yield self._difference(self.experts[i], self.base, rows, transpose=False)

    def row_spans(self) -> list[slice]:
        return spans(self.rows, min(BLOCK_ROWS, max(64, BLOCK_ELEMENTS // self.columns)))

    @staticmethod
    def _difference(expert: Tensor, base: Tensor | None, rows: slice, *, transpose: bool) -> Tensor:
        part = (slice(None), rows) if transpose else (rows,)
        delta = expert[part].to(torch.float64, copy=True)
        if base is not None:
            delta -= base[part]
        return delta.T.contiguous() if transpose else delta
