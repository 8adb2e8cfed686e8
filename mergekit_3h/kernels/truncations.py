"""The merge where no polar factors are needed: every task's share is its own truncation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from mergekit_3h.kernels.spectra import Spectrum
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.kernels.workers import run_all


class Truncations:
    """``Shares`` D_i / divisor; D_i is delta_i truncated to its spectrum, or all of delta_i where that is ``None``."""

    def __init__(self, tasks: TaskMatrices, spectra: Sequence[Spectrum | None], divisor: float = 1) -> None:
        self.tasks = tasks
        self.spectra = spectra
        self.divisor = divisor

    def weighted_sum(self, scales: Sequence[float]) -> Tensor:
        """sum_i scale_i D_i / divisor."""
        tasks = self.tasks
        shape = (tasks.columns, tasks.rows) if tasks.is_wide else (tasks.rows, tasks.columns)
        result = torch.empty(shape, dtype=tasks.result_dtype, device=tasks.device)
        tall = result.T if tasks.is_wide else result

        def fill(rows: slice) -> None:
            total = torch.zeros(rows.stop - rows.start, tasks.columns, dtype=torch.float64, device=tasks.device)
            for i, (spectrum, scale) in enumerate(zip(self.spectra, scales, strict=True)):
                block = tasks.block(i, rows)
                if spectrum is not None:
                    block = (block @ spectrum.right) @ spectrum.right.T
                total += block.mul_(scale / self.divisor)
            tall[rows] = total.to(tasks.result_dtype)

        run_all(tasks.device, [partial(fill, rows) for rows in tasks.row_spans()])
        return result

    def share(self, i: int) -> tuple[Tensor, Tensor]:
        """D_i / divisor; k_i is all columns for a whole delta_i."""
        whole = self.tasks.block(i, slice(0, self.tasks.rows)) / self.divisor
        spectrum = self.spectra[i]
        if spectrum is None:
            return whole, torch.eye(self.tasks.columns, dtype=whole.dtype, device=whole.device)
        return whole @ spectrum.right, spectrum.right.T
