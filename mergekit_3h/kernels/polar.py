"""The merge with the tasks decorrelated: their singular vectors replaced by orthonormal polar factors (Eq. 3-4).

The polar factor of X, the nearest matrix with orthonormal columns, is X (X^T X)^(-1/2); of a matrix with more columns
than rows it is (X X^T)^(-1/2) X, the nearest one with orthonormal rows. Softer, with tau > 0, the columns come only
part of the way: X (X^T X + tau I)^(-1/2) (1 + tau)^(1/2), which is X itself for an infinite tau.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from mergekit_3h.kernels.factors import SingularFactors
from mergekit_3h.kernels.inverse_roots import Extent, Factor, inverse_sqrt, inverse_sqrt_of_two_blocks, softened
from mergekit_3h.kernels.spectra import tiles
from mergekit_3h.kernels.workers import run_all


def overlap_of(n: int, tau: float) -> float:
    """(n + tau) / (1 + tau): what the square of ``n`` equal singular vectors, decorrelated softly, is divided by."""
    return 1.0 if math.isinf(tau) else (n + tau) / (1 + tau)


class PolarFactors:
    """``Shares`` U_perp_i S_i V_perp_i^T, of which task i keeps its first ``ranks[i]`` columns.

    ``right_is_orthogonal`` says that every V_i is a whole orthogonal matrix, so that V V^T = n I and
    V_perp = V / sqrt(n). ``softness`` is tau of the left and of the right side.
    """

    def __init__(
        self,
        factors: SingularFactors,
        ranks: Sequence[int],
        *,
        right_is_orthogonal: bool = False,
        softness: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        self.factors = factors
        self.tasks = factors.tasks
        self.kept = [slice(part.start, part.start + rank) for part, rank in zip(factors.parts, ranks, strict=True)]
        self.right_is_orthogonal = right_is_orthogonal
        self.softness = softness
        left_gram, self._norms = factors.left_gram()
        self._left_whitener = self._right_whitener = factors.right.new_empty(0, 0)
        self.left_extent = self.right_extent = Extent()

        def whiten_left() -> None:
            self._left_whitener, self.left_extent = self._whitener(
                left_gram, factors.left_side(self._norms), softness[0]
            )

        def whiten_right(gram: Tensor) -> None:
            self._right_whitener, self.right_extent = self._whitener(gram, factors.right_side(), softness[1])

        both = [whiten_left] if right_is_orthogonal else [whiten_left, partial(whiten_right, factors.right_gram())]
        run_all(self.tasks.device, both)

    def _whitener(self, gram: Tensor, factor: Factor, tau: float) -> tuple[Tensor, Extent]:
        """The inverse square root that turns a side into its polar factor, or softly."""
        if math.isinf(tau):
            return torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device), Extent()
        if tau > 0:
            gram, factor = softened(gram, factor, tau)
        if len(self.factors.parts) == 2 and gram.shape[0] == self.factors.width:
            first, second = self.factors.parts
            return inverse_sqrt_of_two_blocks(gram[first, second], factor)
        return inverse_sqrt(gram, factor)

    def weighted_sum(self, scales: Sequence[float]) -> Tensor:
        """sum_i U_perp_i (scale_i S_i) V_perp_i^T."""
        tasks, inner = self.tasks, self._inner(scales)
        shape = (tasks.columns, tasks.rows) if tasks.is_wide else (tasks.rows, tasks.columns)
        result = torch.empty(shape, dtype=tasks.result_dtype, device=tasks.device)
        tall = result.T if tasks.is_wide else result
        if self.factors.is_left_wide:
            panel = self.factors.left_panel(slice(0, tasks.rows))

            def fill_columns(columns: slice) -> None:
                tall[:, columns] = (self._left_whitener @ (panel @ inner[:, columns])).to(tasks.result_dtype)

            run_all(tasks.device, [partial(fill_columns, part) for part in tiles(tasks.device, tasks.columns)])
            return result

        def fill(rows: slice) -> None:
            tall[rows] = (self.factors.left_rows(rows) @ inner).to(tasks.result_dtype)

        run_all(tasks.device, [partial(fill, rows) for rows in tasks.row_spans()])
        return result

    def _inner(self, scales: Sequence[float]) -> Tensor:
        """Y (K x columns) with U_perp diag(scale_i S_i) V_perp^T = U Y, or (U U^T)^(-1/2) U Y where U is wide."""
        times_core = self._times_core(scales)
        result = self.factors.right.new_empty(self.factors.width, self.tasks.columns)

        def fill(columns: slice) -> None:
            part = times_core(self._v_perp_t(columns))
            if not self.factors.is_left_wide:
                part = self._left_whitener @ part
            result[:, columns] = part.div_(self._norms[:, None])

        run_all(self.tasks.device, [partial(fill, part) for part in tiles(self.tasks.device, self.tasks.columns)])
        return result

    def _times_core(self, scales: Sequence[float]) -> Callable[[Tensor], Tensor]:
        """The product of the core diag(scale_i S_i) with columns of V_perp^T, whose memory may be used."""
        diagonal = torch.zeros_like(self.factors.values)
        for kept, scale in zip(self.kept, scales, strict=True):
            diagonal[kept] = scale * self._exact_values[kept]
        return lambda part: part.mul_(diagonal[:, None])

    def share(self, i: int) -> tuple[Tensor, Tensor]:
        """U_perp_i and S_i V_perp_i^T."""
        kept = self.kept[i]
        right = self._v_perp_t(slice(0, self.tasks.columns))[kept] * self._exact_values[kept, None]
        return self._left_columns(kept), right

    def _left_columns(self, columns: slice) -> Tensor:
        """Columns of U_perp."""
        if self.factors.is_left_wide:
            whole = self.factors.left_panel(slice(0, self.tasks.rows)).div_(self._norms)
            return (self._left_whitener @ whole)[:, columns]
        whitener = self._left_whitener[:, columns] / self._norms[:, None]
        left = self.factors.right.new_empty(self.tasks.rows, columns.stop - columns.start)

        def fill(rows: slice) -> None:
            left[rows] = self.factors.left_rows(rows) @ whitener

        run_all(self.tasks.device, [partial(fill, rows) for rows in self.tasks.row_spans()])
        return left

    @property
    def _exact_values(self) -> Tensor:
        return self.factors.values * self._norms

    def _v_perp_t(self, columns: slice) -> Tensor:
        """Columns of V_perp^T."""
        v_t = self.factors.right[columns].T
        if self.right_is_orthogonal:
            return v_t / math.sqrt(overlap_of(len(self.factors.parts), self.softness[1]))
        if self.factors.is_right_wide:
            return self.factors.right.T @ self._right_whitener[:, columns]
        return self._right_whitener @ v_t
