"""The weighted sum of the updates, D = sum_i w_i delta_i, and its singular values and right singular vectors.

D is never stored: its rows are summed when they are needed, as those of the updates are. Its Gram matrix loses half of
the digits, so directions in which D reaches less than a thousandth of the farthest are measured again on D itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mergekit_3h.kernels.dense import eigh_in_place, singular_pairs, triangle_of_columns
from mergekit_3h.kernels.inverse_roots import MEASURED_BELOW
from mergekit_3h.kernels.rounding import number_error
from mergekit_3h.kernels.spectra import tiles
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.kernels.workers import run_all, spans

PANEL_ROWS = 1024
"""Rows of D, at least, that go into its Gram matrix at once."""

RANDOM_REACH = 3.0
"""A random matrix of r columns and m rows reaches 1 + sqrt(r / m), at most 2, times the length of a column, where all
entries are of one size; those of rounding are as unequal as the weights' rows, and reached a little further."""


MADE_OF_NOTHING = 1e-12
"""Of the largest singular value: what errors of a float64 Gram matrix, which turn its vectors, make of directions in
which D is nothing. Up to 9e-14 was seen, with D of rank 15 in 40 to 600 columns and values down to a millionth."""


class UpdateSum:
    """D, with at least as many rows as columns: the updates of ``tasks`` as the kernels see them."""

    def __init__(self, tasks: TaskMatrices, weights: Sequence[float]) -> None:
        self.tasks = tasks
        self.weights = list(weights)
        self.reach = self.weights
        """By how much the roundings of each task are multiplied at most."""

    def rows(self, rows: slice) -> Tensor:
        """Rows of D in float64."""
        total: Tensor | None = None
        for i, weight in enumerate(self.weights):
            if weight == 0.0:
                continue
            part = self.part(i, rows)
            total = part.mul_(weight) if total is None else total.add_(part, alpha=weight)
        if total is None:
            shape = rows.stop - rows.start, self.tasks.columns
            total = torch.zeros(shape, dtype=torch.float64, device=self.tasks.device)
        return total

    def part(self, i: int, rows: slice) -> Tensor:
        """Rows of what task i adds, before its weight, in memory of their own."""
        return self.tasks.block(i, rows)

    def blocks(self) -> Iterator[Tensor]:
        """D from top to bottom."""
        return (self.rows(rows) for rows in self.tasks.row_spans())

    def gram(self) -> Tensor:
        """D^T D, upper triangle; the piece of work is cut by shape alone, so its bits do not depend on the workers."""
        tasks = self.tasks
        gram = torch.zeros(tasks.columns, tasks.columns, dtype=torch.float64, device=tasks.device)
        for rows in spans(tasks.rows, max(tasks.columns, PANEL_ROWS)):
            panel = self._panel(rows)

            def add(tile: slice, panel: Tensor = panel) -> None:
                gram[tile, tile.start :].addmm_(panel[:, tile].T, panel[:, tile.start :])

            run_all(tasks.device, [partial(add, tile) for tile in tiles(tasks.device, tasks.columns)])
        return gram

    def _panel(self, rows: slice) -> Tensor:
        tasks = self.tasks
        shape = rows.stop - rows.start, tasks.columns
        memory = torch.empty(shape[::-1] if tasks.is_wide else shape, dtype=torch.float64, device=tasks.device)
        panel = memory.T if tasks.is_wide else memory

        def fill(part: slice) -> None:
            panel[part] = self.rows(slice(rows.start + part.start, rows.start + part.stop))

        run_all(tasks.device, [partial(fill, part) for part in spans(panel.shape[0], tasks.row_spans()[0].stop)])
        return panel

    def number_error(self) -> float:
        """Singular values up to here are explained by the last digits of the inputs and of the updates."""
        tasks = self.tasks
        each = [number_error(expert, tasks.number_dtype) for expert in tasks.experts]
        entry = math.hypot(*(weight * error for weight, error in zip(self.reach, each, strict=True)))
        return RANDOM_REACH * entry * tasks.entry_share * math.sqrt(max(tasks.full_shape))


@dataclass(frozen=True)
class SumSpectrum:
    """Singular values of D, descending, and its right singular vectors as columns; those of no size left out."""

    values: Tensor
    right: Tensor

    @property
    def rank(self) -> int:
        return self.values.numel()


def sum_spectrum(total: UpdateSum, edge: float = 0.0) -> SumSpectrum:
    """Without directions that the rounding of the inputs explains, nor, unless they are all there is, those in which D
    does not reach beyond ``edge``.

    Rounding every entry of D moves a singular value by at most eps |D|_F, and the vectors of those no larger are
    arbitrary: a power of 0 would blow them up to full size.
    """
    gram = total.gram()
    found: list[_Measured] = []
    run_all(total.tasks.device, [lambda: found.append(_measured_spectrum(total, gram, edge))])
    values, right, total_square = found[0]
    eps = torch.finfo(total.tasks.number_dtype).eps
    size = max(2 * eps * math.sqrt(total_square), MADE_OF_NOTHING * float(values[0]))
    nothing = max(size, total.number_error())
    above = int((values > edge).sum()) if edge else 0
    count = int((values[: above or None] > nothing).sum())
    return SumSpectrum(values[:count], right[:, :count])


_Measured = tuple[Tensor, Tensor, float]
"""Singular values, right vectors, and the sum of the squares of all values."""


def _measured_spectrum(total: UpdateSum, gram: Tensor, edge: float) -> _Measured:
    """The Gram matrix is used up. Only what reaches beyond ``edge`` where the Gram matrix knows all of that."""

    def wanted(squares: Tensor) -> int:
        above = int((squares > edge**2).sum()) if edge else 0
        return above if 0 < above <= int((squares > MEASURED_BELOW * squares[-1]).sum()) else squares.numel()

    squares, vectors = eigh_in_place(gram, wanted)
    squares, vectors = squares.clamp_min_(0).flip(0), vectors.flip(1)
    total_square, count = float(squares.sum()), vectors.shape[1]
    known = min(count, int((squares > MEASURED_BELOW * squares[0]).sum()))
    values, small = squares[:count].sqrt(), vectors[:, known:]
    if small.shape[1] == 0:
        return values, vectors, total_square
    reaches, turned = singular_pairs(triangle_of_columns(block @ small for block in total.blocks()))
    vectors[:, known:] = small @ turned
    values[known:] = reaches
    order = values.argsort(descending=True, stable=True)
    return values[order], vectors[:, order], total_square
