"""The singular vectors of all tasks side by side: U = [U_1 .. U_n] (rows x K) and V = [V_1 .. V_n] (columns x K)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from mergekit_3h.kernels.inverse_roots import Factor
from mergekit_3h.kernels.memory import stores_left
from mergekit_3h.kernels.rounding import number_error
from mergekit_3h.kernels.spectra import Spectrum, tiles
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.kernels.workers import run_all, spans

PANEL_ROWS = 1024
"""Rows of U, at least, that go into its Gram matrix at once."""

GRAM_ERROR = 4 * float(torch.finfo(torch.float64).eps)
"""Relative error of a Gram matrix and its eigenvectors, which turns a singular vector by this over its s^2 / s_1^2."""


class SingularFactors:
    """V is held; U = delta_i V_i S_i^-1 is made a block of rows at a time, and held too unless the matrix is tall.

    The singular values that come with V are those of a Gram matrix, good to half of the digits. The columns of U are
    therefore not quite of length 1: their ``norms`` times ``values`` are the singular values to full accuracy.
    ``entry_errors`` are the root mean square errors of the entries of each task; by default those of their last digits.
    """

    def __init__(
        self, tasks: TaskMatrices, spectra: Sequence[Spectrum], entry_errors: Sequence[float] | None = None
    ) -> None:
        self.tasks = tasks
        self._entry_errors = entry_errors or [
            tasks.entry_share * number_error(expert, tasks.number_dtype) for expert in tasks.experts
        ]
        self.right = torch.cat([s.right for s in spectra], dim=1)
        self.values = torch.cat([s.values for s in spectra])
        ends = list(accumulate((s.rank for s in spectra), initial=0))
        self.parts = [slice(start, end) for start, end in pairwise(ends)]
        self._stored: Tensor | None = None

    @property
    def width(self) -> int:
        """K, the columns of U and of V."""
        return self.values.numel()

    @property
    def is_left_wide(self) -> bool:
        return self.width > self.tasks.rows

    @property
    def is_right_wide(self) -> bool:
        return self.width > self.tasks.columns

    def left_rows(self, rows: slice) -> Tensor:
        """Rows of U."""
        if self._stored is not None:
            return self._stored[rows]
        left = self.right.new_empty(rows.stop - rows.start, self.width)
        for i, part in enumerate(self.parts):
            torch.matmul(self.tasks.block(i, rows), self.right[:, part], out=left[:, part])
        return left.div_(self.values)

    def left_panel(self, rows: slice) -> Tensor:
        """Many rows of U, side by side."""
        panel = self.right.new_empty(rows.stop - rows.start, self.width)

        def fill(part: slice) -> None:
            panel[part] = self.left_rows(slice(rows.start + part.start, rows.start + part.stop))

        step = self.tasks.row_spans()[0].stop
        run_all(self.tasks.device, [partial(fill, part) for part in spans(panel.shape[0], step)])
        return panel

    def left_gram(self) -> tuple[Tensor, Tensor]:
        """U^T U of the normalised columns (or U U^T where that is smaller), upper triangle; and the norms."""
        tasks = self.tasks
        if stores_left(tasks.rows, tasks.columns, self.width):
            self._stored = self.left_panel(slice(0, tasks.rows))
        if self.is_left_wide:
            whole = self.left_panel(slice(0, tasks.rows))
            norms = whole.square().sum(0).sqrt()
            whole /= norms
            return self._outer_gram(whole), norms
        gram = self.right.new_zeros(self.width, self.width)
        for rows in spans(tasks.rows, max(tasks.columns, PANEL_ROWS)):
            panel = self._stored if self._stored is not None else self.left_panel(rows)

            def add(tile: slice, panel: Tensor = panel) -> None:
                gram[tile, tile.start :].addmm_(panel[:, tile].T, panel[:, tile.start :])

            run_all(tasks.device, [partial(add, tile) for tile in tiles(tasks.device, self.width)])
            if self._stored is not None:
                break
        norms = gram.diagonal().sqrt()
        return gram.div_(norms).div_(norms[:, None]), norms

    def right_gram(self) -> Tensor:
        """V^T V, upper triangle, or V V^T where that is smaller."""
        if self.is_right_wide:
            return self._outer_gram(self.right)
        gram = torch.eye(self.width, dtype=self.right.dtype, device=self.right.device)

        def fill(i: int, j: int) -> None:
            gram[self.parts[i], self.parts[j]] = self.right[:, self.parts[i]].T @ self.right[:, self.parts[j]]

        n = len(self.parts)
        run_all(self.tasks.device, [partial(fill, i, j) for i in range(n) for j in range(i + 1, n)])
        return gram

    def _outer_gram(self, wide: Tensor) -> Tensor:
        """X X^T of a matrix with more columns than rows."""
        gram = wide.new_empty(wide.shape[0], wide.shape[0])

        def fill(rows: slice) -> None:
            torch.matmul(wide[rows], wide.T, out=gram[rows])

        run_all(self.tasks.device, [partial(fill, rows) for rows in tiles(self.tasks.device, wide.shape[0])])
        return gram

    def left_side(self, norms: Tensor) -> Factor:
        """What ``left_gram`` is the Gram matrix of: the normalised columns of U, or U^T where U is wide."""

        def panels() -> Iterator[Tensor]:
            return (self.left_rows(rows) / norms for rows in self.tasks.row_spans())

        errors = self._errors(self.tasks.full_sides[0])
        if self.is_left_wide:
            return Factor(lambda: iter([torch.cat(list(panels())).T]), _spread(errors, self.tasks.rows))
        return Factor(panels, errors)

    def right_side(self) -> Factor:
        """What ``right_gram`` is the Gram matrix of: V, or V^T where V is wide."""
        errors = self._errors(self.tasks.full_sides[1])
        if self.is_right_wide:
            return Factor(lambda: iter([self.right.T]), _spread(errors, self.tasks.columns))
        return Factor(lambda: iter([self.right]), errors)

    def _errors(self, side: int) -> Tensor:
        """Root mean square errors of singular vectors with ``side`` entries: noise of size e in every entry of delta_i
        moves its j-th one by e sqrt(side) / s_j, beside what the decomposition itself leaves."""
        errors = torch.empty_like(self.values)
        for i, part in enumerate(self.parts):
            values = self.values[part]
            noise = self._entry_errors[i] * math.sqrt(side) / values
            errors[part] = torch.hypot(noise, GRAM_ERROR * (values[:1] / values).square())
        return errors


def _spread(errors: Tensor, side: int) -> Tensor:
    """The error of each of ``side`` rows, from those of the columns."""
    return (errors.square().sum() / side).sqrt().expand(side)
