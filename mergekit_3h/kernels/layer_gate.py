"""Which experts' updates of a matrix leave the subspace in which alignment moved it (SafeMERGE, arXiv 2503.17239).

V = W_0 - W_u is what alignment made of the unaligned model's matrix W_u, C = V V^T / |V| its matrix on the output side
(the rows), and the update of expert i is measured by how far C turns it:

    c_i = cos(delta_i, C delta_i) = |V^T delta_i|^2 / (|delta_i| |V V^T delta_i|)

between 0 and 1, as C is positive semidefinite; its factor 1 / |V| cancels. Where c_i is below a threshold, delta_i is
replaced by (1 - share) delta_i + share delta_s with the update delta_s of a safety model, or by (1 - share) delta_i
where there is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mergekit_3h.kernels.spectra import tiles
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.kernels.values import floats
from mergekit_3h.kernels.workers import run_all, spans

PANEL_ROWS = 1024
"""Rows of V and delta_i that are multiplied at once."""


@torch.no_grad()
def alignment_cosines(unaligned: Tensor, experts: Sequence[Tensor], base: Tensor) -> tuple[list[float | None], bool]:
    """c_i of every expert, and whether alignment changed the matrix at all.

    0 where it did not, since C leaves nothing of an update; None for an update of nothing, which leaves no subspace.
    """
    tasks = TaskMatrices([unaligned, *experts], base)
    measure = _of_wide(tasks) if tasks.is_wide else partial(_of_tall, tasks)
    [square] = _sums(tasks, lambda rows: [tasks.block(0, rows).square_().sum()])
    return [measure(i) for i in range(1, len(tasks))], square > 0.0


def _of_tall(tasks: TaskMatrices, i: int) -> float | None:
    """By V^T delta_i, which is as large as the short side."""
    product = _gram(tasks, 0, i)

    def terms(rows: slice) -> list[Tensor]:
        return [tasks.block(i, rows).square_().sum(), (tasks.block(0, rows) @ product).square_().sum()]

    square, turned_square = _sums(tasks, terms)
    return _cosine(sum(floats(product.square().sum(0))), square, turned_square)


def _of_wide(tasks: TaskMatrices) -> Callable[[int], float | None]:
    """By V V^T, which all experts share; the kernels see the matrices transposed, so C stands to the right."""
    gram = _gram(tasks, 0, 0)

    def measure(i: int) -> float | None:
        def terms(rows: slice) -> list[Tensor]:
            delta = tasks.block(i, rows)
            image = delta @ gram
            return [(delta * image).sum(), delta.square().sum(), image.square().sum()]

        return _cosine(*_sums(tasks, terms))

    return measure


def _cosine(along: float, square: float, turned_square: float) -> float | None:
    if square == 0.0:
        return None
    return along / math.sqrt(square * turned_square) if turned_square else 0.0


def _gram(tasks: TaskMatrices, first: int, second: int) -> Tensor:
    """delta_first^T delta_second; the pieces of work are cut by shape alone, so its bits do not depend on the cores."""
    gram = torch.zeros(tasks.columns, tasks.columns, dtype=torch.float64, device=tasks.device)
    for rows in spans(tasks.rows, PANEL_ROWS):
        left = tasks.block(first, rows)
        right = left if first == second else tasks.block(second, rows)

        def add(tile: slice, left: Tensor = left, right: Tensor = right) -> None:
            gram[:, tile].addmm_(left.T, right[:, tile])

        run_all(tasks.device, [partial(add, tile) for tile in tiles(tasks.device, tasks.columns)])
    return gram


def _sums(tasks: TaskMatrices, terms: Callable[[slice], Sequence[Tensor]]) -> list[float]:
    """Sums over blocks of rows, each block a piece of work."""
    row_spans = tasks.row_spans()
    found: list[list[float]] = [[]] * len(row_spans)

    def measure(at: int, rows: slice) -> None:
        found[at] = floats(torch.stack(list(terms(rows))))

    run_all(tasks.device, [partial(measure, *each) for each in enumerate(row_spans)])
    return [sum(column) for column in zip(*found, strict=True)]


class MixedTasks(TaskMatrices):
    """Tasks of which some are (1 - share) delta_i + share delta_s, a block of rows at a time.

    Without a safety model they are (1 - share) delta_i. Nothing is rounded in between: the mixture is float64, of
    updates that are as exact as ever.
    """

    def __init__(
        self, experts: Sequence[Tensor], base: Tensor, mixed: Collection[int], share: float, safety: Tensor | None
    ) -> None:
        n = len(experts)
        super().__init__([*experts, *([] if safety is None else [safety])], base)
        self._safety = None if safety is None else n
        self._all, self._mixed, self._share = self.experts, frozenset(mixed), share
        self.experts = self._all[:n]

    def parts(self, i: int) -> list[tuple[float, Tensor]]:
        if i not in self._mixed:
            return super().parts(i)
        own = [(1.0 - self._share, self.experts[i])]
        return own if self._safety is None else [*own, (self._share, self._all[self._safety])]

    def _stored(self, i: int) -> Tensor:
        return self._all[i]

    def _difference(self, i: int, rows: slice, **how: Any) -> Tensor:
        delta = super()._difference(i, rows, **how)
        if i not in self._mixed:
            return delta
        delta.mul_(1.0 - self._share)
        if self._safety is not None:
            beside: dict[str, Any] = {**how, "memory": None}
            delta.add_(super()._difference(self._safety, rows, **beside), alpha=self._share)
        return delta
