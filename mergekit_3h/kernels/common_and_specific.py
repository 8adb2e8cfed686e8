"""The isotropic merge in common and task-specific subspaces (arXiv 2502.04959, section 4.3).

The common directions are the leading ones of the sum D. What is left of every update outside of their output side,
R_i = w_i (delta_i - U_c U_c^T delta_i), gives its own leading ones. All of them side by side are decorrelated as in
TSVM, and get the mean of their singular values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mergekit_3h.kernels.factors import SingularFactors
from mergekit_3h.kernels.memory import STORED_ASPECT
from mergekit_3h.kernels.noise_floors import NoiseFloor, floor_of, task_edges
from mergekit_3h.kernels.polar import PolarFactors
from mergekit_3h.kernels.spectra import RESOLVED, Spectrum, exact_spectrum
from mergekit_3h.kernels.sums import SumSpectrum, UpdateSum
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.kernels.workers import run_all


@dataclass(frozen=True)
class CommonSpecificReport:
    """How the merge of one matrix came about."""

    ranks: list[int]
    """Directions of each task's own, and last the common ones."""
    noise_edges: list[float]
    under_edge: float | None
    """T of the first expert with more than rounding there, or else of the one with the most; None where there is no
    edge, or it was not asked for."""
    decompositions: list[str]
    conditions: tuple[float, float]
    """Of all directions side by side, on the output and on the input side: noise is magnified by as much."""


def divided_rank(rank: int, n: int, common_fraction: float) -> tuple[int, int]:
    """Directions in common, and of each task's own: their number over all tasks is a multiple of n."""
    specific = round((rank - int(rank * common_fraction)) / n)
    return max(0, rank - n * specific), min(specific, rank // n)


@torch.no_grad()
def merge_common_and_specific(
    tasks: TaskMatrices, weights: Sequence[float], common_fraction: float, noise_floor: NoiseFloor
) -> tuple[Tensor, CommonSpecificReport]:
    """mean(S) polar(U) polar(V)^T, and how it came about."""
    n = len(tasks)
    common_budget, own_budget = divided_rank(tasks.full_rank, n, common_fraction)
    edges = task_edges(tasks, noise_floor)
    total = UpdateSum(tasks, weights)
    floor = floor_of(total, edges, noise_floor)
    common = SumSpectrum(floor.kept.values[:common_budget], floor.kept.right[:, :common_budget])
    residuals = Residuals(total, common)
    spectra = [Spectrum(common.values, common.right, 0.0)] * (n + 1)

    def find(i: int) -> None:
        digits = UpdateSum(tasks, [weights[i] * (i == j) for j in range(n)]).number_error()
        edge = max(residuals.rounding(i), digits, abs(weights[i]) * edges[i] if floor.is_cut else 0.0)

        def own_rank(values: Tensor, _: float) -> int:
            # No fallback where nothing stands out of the noise: the common directions are there.
            nothing = max(edge, RESOLVED * float(values[0]))
            return min(own_budget, int((values > nothing).sum()))

        spectra[i] = exact_spectrum(residuals, i, own_rank)

    run_all(tasks.device, [partial(find, i) for i in range(n)] if own_budget else [])
    if not own_budget:
        spectra[:n] = [Spectrum(common.values[:0], common.right[:, :0], 0.0)] * n
    ranks = [spectrum.rank for spectrum in spectra]
    polar = EqualFactors(SingularFactors(residuals, spectra, residuals.entry_errors()), ranks)
    sides = polar.left_extent.condition, polar.right_extent.condition
    conditions = (sides[1], sides[0]) if tasks.is_wide else sides
    report = CommonSpecificReport(ranks, edges, floor.under_edge, ["exact"] * (n + 1), conditions)
    return polar.weighted_sum([1.0] * (n + 1)), report


class EqualFactors(PolarFactors):
    """All singular values are their mean."""

    @property
    def _exact_values(self) -> Tensor:
        exact = super()._exact_values
        return exact if exact.numel() == 0 else exact.mean().expand_as(exact)


class Residuals(TaskMatrices):
    """R_1 .. R_n and D as tasks, a block of rows at a time; of a wide matrix the output side is the right one."""

    def __init__(self, total: UpdateSum, common: SumSpectrum) -> None:
        super().__init__(total.tasks.experts, total.tasks.base)
        self.number_dtype, self.result_dtype = total.tasks.number_dtype, total.tasks.result_dtype
        self.total = total
        self.common = common.right
        self._scaled = common.right / common.values
        self._left: Tensor | None = None
        if not self.is_wide and self.rows <= STORED_ASPECT * self.columns:
            self._left = self._common_left()
        self._shares = [] if self.is_wide else self._common_shares()
        self._lengths = self._update_lengths()
        self._smallest = float(common.values[-1]) if common.rank else math.inf

    def _common_left(self) -> Tensor:
        """U_c, of a matrix that is not so tall that making its rows again is better."""
        left = self.common.new_empty(self.rows, self.common.shape[1])

        def fill(rows: slice) -> None:
            left[rows] = self.total.rows(rows) @ self._scaled

        run_all(self.device, [partial(fill, rows) for rows in self.row_spans()])
        return left

    def _left_rows(self, rows: slice) -> Tensor:
        return self.total.rows(rows) @ self._scaled if self._left is None else self._left[rows]

    def _common_shares(self) -> list[Tensor]:
        """U_c^T delta_i of every task."""
        tasks = self.total.tasks
        shares = [self.common.new_zeros(self.common.shape[1], tasks.columns) for _ in range(len(tasks))]

        def measure(i: int) -> None:
            for rows in tasks.row_spans():
                shares[i].addmm_(self._left_rows(rows).T, tasks.block(i, rows))

        run_all(tasks.device, [partial(measure, i) for i in range(len(tasks))])
        return shares

    def _update_lengths(self) -> list[float]:
        """|w_i delta_i|, in the Frobenius norm."""
        tasks, squares = self.total.tasks, [0.0] * len(self.total.tasks)

        def measure(i: int) -> None:
            squares[i] = float(torch.stack([block.square_().sum() for block in tasks.blocks(i)]).sum())

        run_all(tasks.device, [partial(measure, i) for i in range(len(tasks))])
        return [abs(weight) * math.sqrt(square) for weight, square in zip(self.total.weights, squares, strict=True)]

    def rounding(self, i: int) -> float:
        """What of R_i, or of D, rounding explains: of task i, and of the common directions, which it turns."""
        turned = max(1.0, sum(self._lengths) / self._smallest)
        if i == len(self.total.tasks):
            return 2 * torch.finfo(self.number_dtype).eps * sum(self._lengths)
        return 2 * torch.finfo(self.number_dtype).eps * self._lengths[i] * turned

    def entry_errors(self) -> list[float]:
        """``rounding`` as root mean squares of the entries of R_1 .. R_n and D."""
        entries = math.prod(self.full_shape)
        return [self.rounding(i) / math.sqrt(entries) for i in range(len(self.total.tasks) + 1)]

    @property
    def full_shape(self) -> tuple[int, int]:
        return self.total.tasks.full_shape

    def block(self, i: int, rows: slice) -> Tensor:
        """Rows of R_i, or of D, in float64."""
        if i == len(self.total.tasks):
            return self.total.rows(rows)
        delta, weight = self.total.tasks.block(i, rows), self.total.weights[i]
        if self.is_wide:
            return delta.addmm_(delta @ self.common, self.common.T, alpha=-1).mul_(weight)
        return delta.addmm_(self._left_rows(rows), self._shares[i], alpha=-1).mul_(weight)

    def blocks(self, i: int, dtype: torch.dtype = torch.float64) -> Iterator[Tensor]:
        return (self.block(i, rows).to(dtype) for rows in self.row_spans())
