"""The task matrices of one layer, delta_i = W_i - W_0 (Eq. 1), read a block of rows at a time.

They are never stored: a block is subtracted when it is needed, so that neither the embedding of a large
model nor ten experts need more memory than the checkpoints' own tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from copy import copy

import torch
from torch import Tensor
from typing_extensions import Self

from mergekit_3h.kernels.workers import spans

BLOCK_ELEMENTS = 1 << 19
"""Elements of a float64 block (4 MB), small beside every matrix worth merging."""

BLOCK_ELEMENTS_ON_DEVICE = 1 << 24
"""The same on a GPU (128 MB), which needs larger products to be busy."""

BLOCK_ROWS = 256
"""Rows of a block: enough for GEMM speed, few enough that a square matrix has a block for every core."""


CACHE_ELEMENTS = 1 << 16
"""Elements subtracted at a time on a CPU: their float32 copies stay in its cache, up to four times faster."""


class TaskMatrices:
    """``n`` matrices of one shape. ``base=None`` says that ``experts`` are the updates themselves.

    Results are as precise as the numbers that go in, float64 among them or not, unless ``with_exact_result``
    asks for float64: what is still to be decomposed should not be rounded in between.

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
        self.number_dtype = torch.float64 if is_double else torch.float32
        self.result_dtype = self.number_dtype

    def __len__(self) -> int:
        return len(self.experts)

    @property
    def full_shape(self) -> tuple[int, int]:
        """Of the checkpoint's matrix, as it is oriented: ranks are budgeted by it. The matrices themselves may be
        smaller, where they stand for updates of low rank (``core_space.py``)."""
        rows, columns = self.experts[0].shape
        return rows, columns

    @property
    def full_rank(self) -> int:
        return min(self.full_shape)

    @property
    def full_sides(self) -> tuple[int, int]:
        """``full_shape``, tall side up where the matrices are."""
        rows, columns = self.full_shape
        return (columns, rows) if self.is_wide else (rows, columns)

    @property
    def entry_share(self) -> float:
        """Root mean square entry of a checkpoint's update, relative to that of the matrix that stands for it."""
        return math.sqrt(self.rows * self.columns / math.prod(self.full_shape))

    def parts(self, i: int) -> list[tuple[float, Tensor]]:
        """The checkpoints' matrices whose updates make up delta_i, with their factors: what was rounded, and how."""
        return [(1.0, self.experts[i])]

    def with_exact_result(self) -> Self:
        """The same with results in float64."""
        other = copy(self)
        other.result_dtype = torch.float64
        return other

    def block(self, i: int, rows: slice) -> Tensor:
        """Rows of delta_i, tall side up, in float64."""
        return self._difference(i, rows, transpose=self.is_wide)

    def block_as_stored(self, i: int, rows: slice) -> Tensor:
        """Rows of delta_i in the checkpoint's own orientation, in float64."""
        return self._difference(i, rows, transpose=False)

    def blocks(self, i: int, dtype: torch.dtype = torch.float64) -> Iterator[Tensor]:
        """delta_i from top to bottom, tall side up. A block is overwritten by the next one."""
        return self._each(i, self.row_spans(), transpose=self.is_wide, dtype=dtype)

    def blocks_as_stored(self, i: int) -> Iterator[Tensor]:
        """delta_i from top to bottom in the checkpoint's own orientation, whose rows Eq. 6-8 speak of.

        A block is overwritten by the next one.
        """
        shape = self.experts[i].shape
        return self._each(i, spans(shape[0], max(1, self._block_elements // shape[1])), transpose=False)

    def entry_blocks(self, i: int) -> Iterator[Tensor]:
        """The entries that delta_i has in the checkpoint, from top to bottom, for what depends on single entries."""
        return self.blocks_as_stored(i)

    def row_spans(self) -> list[slice]:
        step = max(64, self._block_elements // self.columns)
        return spans(self.rows, min(BLOCK_ROWS, step) if self.device.type == "cpu" else step)

    @property
    def _block_elements(self) -> int:
        return BLOCK_ELEMENTS if self.device.type == "cpu" else BLOCK_ELEMENTS_ON_DEVICE

    def _each(
        self, i: int, row_spans: list[slice], *, transpose: bool, dtype: torch.dtype = torch.float64
    ) -> Iterator[Tensor]:
        memory: Tensor | None = None
        for rows in row_spans:
            block = self._difference(i, rows, transpose=transpose, memory=memory, dtype=dtype)
            if memory is None:
                memory = (block.T if transpose else block).view(-1)
            yield block

    def _difference(
        self,
        i: int,
        rows: slice,
        *,
        transpose: bool,
        memory: Tensor | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> Tensor:
        part = (slice(None), rows) if transpose else (rows,)
        expert = self._stored(i)[part]
        if memory is None:
            delta = torch.empty(expert.shape, dtype=dtype, device=self.device)
        else:
            delta = memory[: expert.numel()].view(expert.shape)
        if self.base is None:
            delta.copy_(expert)
        else:
            self._subtract(expert, self.base[part], delta)
        return delta.T if transpose else delta

    def _stored(self, i: int) -> Tensor:
        return self.experts[i]

    def _subtract(self, expert: Tensor, base: Tensor, delta: Tensor) -> None:
        """In float32, unless a checkpoint is float64: a third of the time.

        The difference of two numbers within a factor of two is exact in float32, and that of 16-bit numbers unless
        their exponents are 13 apart or more. Any other is rounded by 6e-8 of itself.
        """
        dtype = self.number_dtype
        step = max(1, CACHE_ELEMENTS // expert.shape[1]) if self.device.type == "cpu" else expert.shape[0]
        for part in spans(expert.shape[0], step):
            delta[part] = torch.sub(expert[part].to(dtype), base[part].to(dtype))
