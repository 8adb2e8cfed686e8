"""The singular factors of all tasks side by side, U = [U_1 .. U_n] and V = [V_1 .. V_n], and their polar factors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from mergekit_3h.kernels.memory import STORED_ASPECT
from mergekit_3h.kernels.polar import Extent, Factor, inverse_sqrt, inverse_sqrt_of_two_blocks
from mergekit_3h.kernels.rounding import number_error
from mergekit_3h.kernels.spectra import Spectrum, tiles
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.kernels.workers import run_all, spans

PANEL_ROWS = 1024
"""Rows of U, at least, that go into its Gram matrix at once."""

EPSILON_FLOAT64 = float(torch.finfo(torch.float64).eps)

GRAM_ERROR = 4 * EPSILON_FLOAT64
"""Relative error of a Gram matrix and its eigenvectors, which turns a singular vector by this over its s^2 / s_1^2."""


class PolarFactors:
    """U_perp and V_perp, the polar factors of U (rows x K) and V (columns x K).

    U = delta_i V_i S_i^-1 is made a block of rows at a time. Task i's share of the merge keeps its first ``ranks[i]``
    columns, or all of them. ``right_is_orthogonal`` says that every V_i is a whole orthogonal matrix, so that
    V V^T = n I and V_perp = V / sqrt(n). The list of ``spectra`` is emptied: their vectors live on in V.
    """

    def __init__(
        self,
        tasks: TaskMatrices,
        spectra: list[Spectrum],
        ranks: Sequence[int] | None = None,
        *,
        right_is_orthogonal: bool = False,
    ) -> None:
        self.tasks = tasks
        self.right = torch.cat([s.right for s in spectra], dim=1)
        self.values = torch.cat([s.values for s in spectra])
        ends = list(accumulate((s.rank for s in spectra), initial=0))
        self.parts = [slice(start, end) for start, end in pairwise(ends)]
        kept = ranks if ranks is not None else [s.rank for s in spectra]
        self.kept = [slice(part.start, part.start + rank) for part, rank in zip(self.parts, kept, strict=True)]
        spectra.clear()
        self.right_is_orthogonal = right_is_orthogonal
        self._stored: Tensor | None = None
        if tasks.rows <= STORED_ASPECT * tasks.columns:
            self._stored = self._left_panel(slice(0, tasks.rows))
        self._norms = torch.ones_like(self.values)
        self._left_whitener = self._right_whitener = self.values
        self.left_extent = self.right_extent = Extent()
        self._orthogonalize()

    @property
    def width(self) -> int:
        """K, the columns of U and of V."""
        return self.values.numel()

    def weighted_sum(self, scales: Sequence[float]) -> Tensor:
        """sum_i U_perp_i (scale_i S_i) V_perp_i^T in the checkpoint's orientation, accumulated in float64.

        Uses the factors up: what the product no longer needs is freed before its result is allocated.
        """
        tasks, inner = self.tasks, self._inner(scales)
        self._right_whitener = self.values
        if not self._is_left_wide:
            self._left_whitener = self.values
        shape = (tasks.columns, tasks.rows) if tasks.is_wide else (tasks.rows, tasks.columns)
        result = torch.empty(shape, dtype=tasks.result_dtype, device=tasks.device)
        tall = result.T if tasks.is_wide else result
        if self._is_left_wide:
            panel = self._left_panel(slice(0, tasks.rows))

            def fill_columns(columns: slice) -> None:
                tall[:, columns] = (self._left_whitener @ (panel @ inner[:, columns])).to(tasks.result_dtype)

            self._run([partial(fill_columns, columns) for columns in self._tiles(tasks.columns)])
            return result

        def fill(rows: slice) -> None:
            tall[rows] = (self.left_rows(rows) @ inner).to(tasks.result_dtype)

        self._run([partial(fill, rows) for rows in tasks.row_spans()])
        return result

    def _inner(self, scales: Sequence[float]) -> Tensor:
        """Y (K x columns) with U_perp diag(scale_i S_i) V_perp^T = U Y, or (U U^T)^(-1/2) U Y where U is wide."""
        diagonal = torch.zeros_like(self.values)
        for kept, scale in zip(self.kept, scales, strict=True):
            diagonal[kept] = scale * self._exact_values[kept]
        result = self.right.new_empty(self.width, self.tasks.columns)

        def fill(columns: slice) -> None:
            part = self._v_perp_t(columns).mul_(diagonal[:, None])
            if not self._is_left_wide:
                part = self._left_whitener @ part
            result[:, columns] = part.div_(self._norms[:, None])

        self._run([partial(fill, columns) for columns in self._tiles(self.tasks.columns)])
        return result

    def share(self, i: int) -> tuple[Tensor, Tensor]:
        """U_perp_i (rows x k_i) and S_i V_perp_i^T (k_i x columns), tall side up."""
        kept = self.kept[i]
        right = self._v_perp_t(slice(0, self.tasks.columns))[kept] * self._exact_values[kept, None]
        if self._is_left_wide:
            whole = self._left_panel(slice(0, self.tasks.rows)).div_(self._norms)
            return (self._left_whitener @ whole)[:, kept], right
        whitener = self._left_whitener[:, kept] / self._norms[:, None]
        left = self.right.new_empty(self.tasks.rows, kept.stop - kept.start)

        def fill(rows: slice) -> None:
            left[rows] = self.left_rows(rows) @ whitener

        self._run([partial(fill, rows) for rows in self.tasks.row_spans()])
        return left, right

    @property
    def _exact_values(self) -> Tensor:
        """|delta_i v| is the singular value to full accuracy, where the Gram matrix gives it to half."""
        return self.values * self._norms

    def left_rows(self, rows: slice) -> Tensor:
        """Rows of U."""
        if self._stored is not None:
            return self._stored[rows]
        left = self.right.new_empty(rows.stop - rows.start, self.width)
        for i, part in enumerate(self.parts):
            torch.matmul(self.tasks.block(i, rows), self.right[:, part], out=left[:, part])
        return left.div_(self.values)

    def _left_panel(self, rows: slice) -> Tensor:
        panel = self.right.new_empty(rows.stop - rows.start, self.width)

        def fill(part: slice) -> None:
            panel[part] = self.left_rows(slice(rows.start + part.start, rows.start + part.stop))

        step = self.tasks.row_spans()[0].stop
        self._run([partial(fill, part) for part in spans(panel.shape[0], step)])
        return panel

    def _v_perp_t(self, columns: slice) -> Tensor:
        """Columns of V_perp^T."""
        v_t = self.right[columns].T
        if self.right_is_orthogonal:
            return v_t / math.sqrt(len(self.parts))
        if self._is_right_wide:
            return self.right.T @ self._right_whitener[:, columns]
        return self._right_whitener @ v_t

    def _orthogonalize(self) -> None:
        """The inverse square roots that turn U and V into their polar factors, on the smaller side of each."""
        self._is_left_wide = self.width > self.tasks.rows
        self._is_right_wide = self.width > self.tasks.columns
        left_gram, right_gram = self._left_gram(), self._right_gram()

        def whiten_left() -> None:
            self._left_whitener, self.left_extent = self._whitener(left_gram, self._left_factor())

        def whiten_right() -> None:
            self._right_whitener, self.right_extent = self._whitener(right_gram, self._right_factor())

        self._run([whiten_left, whiten_right])

    def _whitener(self, gram: Tensor, factor: Factor) -> tuple[Tensor, Extent]:
        if len(self.parts) == 2 and gram.shape[0] == self.width:
            first, second = self.parts
            return inverse_sqrt_of_two_blocks(gram[first, second], factor)
        return inverse_sqrt(gram, factor)

    def _left_factor(self) -> Factor:
        """The normalised columns of U, or U^T where U is wide."""

        def panels() -> Iterator[Tensor]:
            return (self.left_rows(rows) / self._norms for rows in self.tasks.row_spans())

        errors = self._errors(self.tasks.rows)
        if self._is_left_wide:
            return Factor(lambda: iter([torch.cat(list(panels())).T]), _spread(errors, self.tasks.rows))
        return Factor(panels, errors)

    def _right_factor(self) -> Factor:
        """V, or V^T where V is wide."""
        errors = self._errors(self.tasks.columns)
        if self._is_right_wide:
            return Factor(lambda: iter([self.right.T]), _spread(errors, self.tasks.columns))
        return Factor(lambda: iter([self.right]), errors)

    def _errors(self, side: int) -> Tensor:
        """Root mean square errors of singular vectors with ``side`` entries: noise of size e in every entry of delta_i
        moves its j-th one by e sqrt(side) / s_j, beside what the decomposition itself leaves."""
        errors = torch.empty_like(self.values)
        for expert, part in zip(self.tasks.experts, self.parts, strict=True):
            values = self.values[part]
            noise = number_error(expert, self.tasks.result_dtype) * math.sqrt(side) / values
            errors[part] = torch.hypot(noise, GRAM_ERROR * (values[:1] / values).square())
        return errors

    def _left_gram(self) -> Tensor:
        """U^T U of the normalised columns (or U U^T where that is smaller), upper triangle; sets the norms."""
        if self._is_left_wide:
            whole = self._left_panel(slice(0, self.tasks.rows))
            self._norms = whole.square().sum(0).sqrt()
            whole /= self._norms
            return self._outer_gram(whole)
        gram = self.right.new_zeros(self.width, self.width)
        for rows in spans(self.tasks.rows, max(self.tasks.columns, PANEL_ROWS)):
            panel = self._stored if self._stored is not None else self._left_panel(rows)

            def add(tile: slice, panel: Tensor = panel) -> None:
                gram[tile, tile.start :].addmm_(panel[:, tile].T, panel[:, tile.start :])

            self._run([partial(add, tile) for tile in self._tiles(self.width)])
            if self._stored is not None:
                break
        self._norms = gram.diagonal().sqrt()
        return gram.div_(self._norms).div_(self._norms[:, None])

    def _right_gram(self) -> Tensor:
        """V^T V, upper triangle, or V V^T where that is smaller."""
        if self.right_is_orthogonal:
            return self.right.new_empty(0, 0)
        if self._is_right_wide:
            return self._outer_gram(self.right)
        gram = torch.eye(self.width, dtype=self.right.dtype, device=self.right.device)

        def fill(i: int, j: int) -> None:
            gram[self.parts[i], self.parts[j]] = self.right[:, self.parts[i]].T @ self.right[:, self.parts[j]]

        n = len(self.parts)
        self._run([partial(fill, i, j) for i in range(n) for j in range(i + 1, n)])
        return gram

    def _outer_gram(self, wide: Tensor) -> Tensor:
        """X X^T of a matrix with more columns than rows."""
        gram = wide.new_empty(wide.shape[0], wide.shape[0])

        def fill(rows: slice) -> None:
            torch.matmul(wide[rows], wide.T, out=gram[rows])

        self._run([partial(fill, rows) for rows in self._tiles(wide.shape[0])])
        return gram

    def _tiles(self, length: int) -> list[slice]:
        return tiles(self.tasks.device, length)

    def _run(self, pieces: Sequence[Callable[[], None]]) -> None:
        run_all(self.tasks.device, pieces)


def _spread(errors: Tensor, side: int) -> Tensor:
    """The error of each of ``side`` rows, from those of the columns."""
    return (errors.square().sum() / side).sqrt().expand(side)
