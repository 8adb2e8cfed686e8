"""Between the sum of the updates and the isotropic merge: a power of the sum's singular values.

Of D = sum_i w_i delta_i = U S V^T (arXiv 2502.04959, section 4) the merged update is M = c U S^p V^T, computed as
D V (c S^(p-1)) V^T: p = 1 is the sum itself, p = 0 has all singular values alike. One decomposition, whatever n.

In the weights M is not linear, but with R = V (c S^(p-1)) V^T held fixed it is: M = sum_i w_i delta_i R.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from mergekit_3h.kernels.masks import MaskedSum, components_of
from mergekit_3h.kernels.noise_floors import NoiseFloor, floor_of, task_edges
from mergekit_3h.kernels.spectra import symmetric_product
from mergekit_3h.kernels.sums import SumSpectrum, UpdateSum
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.kernels.workers import run_all

Scale = Literal["norm", "mean"]


@dataclass(frozen=True)
class Isotropy:
    """Which M is made of D."""

    power: float
    scale: Scale
    noise_floor: NoiseFloor
    blocks: Sequence[Sequence[float]] | None = None
    """Factors on blocks of every task's singular components."""

    def leaves_the_sum(self, edges: Sequence[float]) -> bool:
        """Whether M is D itself, so that nothing is decomposed."""
        return self.power == 1.0 and not any(edges)


@dataclass(frozen=True)
class IsotropicReport:
    """How the merge of one matrix came about. There is one decomposition, that of the sum."""

    ranks: list[int]
    """Directions of the sum that are kept."""
    noise_edges: list[float]
    """One a task; 0 where nothing was rounded, or the floor is off."""
    under_edge: float | None
    """T of the first expert with more than rounding there, or else of the one with the most; None where there is no
    edge, or it was not asked for."""
    decompositions: list[str]
    amplification: float
    """(s_1 / s_k)^(1 - p): by how much more than the largest direction the smallest kept one is magnified, and with it
    the noise in it."""


@torch.no_grad()
def merge_isotropic(tasks: TaskMatrices, weights: Sequence[float], how: Isotropy) -> tuple[Tensor, IsotropicReport]:
    """M and how it came about."""
    edges, total = task_edges(tasks, how.noise_floor), _total(tasks, weights, how)
    if how.leaves_the_sum(edges):
        return plain_sum(total), IsotropicReport([tasks.columns], edges, None, ["none"], 1.0)
    floor = floor_of(total, edges, how.noise_floor)
    kept = floor.kept
    amplification = float((kept.values[0] / kept.values[-1]) ** (1 - how.power)) if kept.rank else 1.0
    report = IsotropicReport([kept.rank], edges, floor.under_edge, ["exact"], amplification)
    return with_values(total, kept, power_values(kept, how)), report


@dataclass(frozen=True)
class Preconditioner:
    """R as it is at some weights: V diag(c S^(p-1)) V^T, as ``gains`` ``right``^T."""

    total: UpdateSum
    right: Tensor
    gains: Tensor

    def components(self) -> list[tuple[Tensor, Tensor]]:
        """Factors of delta_i R, in the checkpoint's orientation, with the blocks of the sum."""
        lefts = self._products([(i, self.gains) for i in range(len(self.total.tasks))])
        return [self._oriented(left, self.right.T) for left in lefts]

    def block_components(self, blocks: int) -> list[list[tuple[Tensor, Tensor]]]:
        """Factors of D_ib R for every block b of every task i."""
        count = len(self.total.tasks)
        found = components_of(self.total.tasks, range(count))
        inner = [found[i].projected(b, blocks, self.gains) for i in range(count) for b in range(blocks)]
        lefts = self._products([(at // blocks, each) for at, each in enumerate(inner)])
        shares = [self._oriented(left, self.right.T) for left in lefts]
        return [shares[i * blocks : (i + 1) * blocks] for i in range(count)]

    def _products(self, wanted: Sequence[tuple[int, Tensor]]) -> list[Tensor]:
        """delta_i with some matrix on its right."""
        tasks = self.total.tasks
        lefts = [inner.new_empty(tasks.rows, inner.shape[1]) for _, inner in wanted]

        def fill(at: int, rows: slice) -> None:
            i, inner = wanted[at]
            lefts[at][rows] = self.total.part(i, rows) @ inner

        run_all(tasks.device, [partial(fill, at, rows) for at in range(len(wanted)) for rows in tasks.row_spans()])
        return lefts

    def _oriented(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        return (right.T, left.T) if self.total.tasks.is_wide else (left, right)


@torch.no_grad()
def preconditioner(tasks: TaskMatrices, weights: Sequence[float], how: Isotropy) -> Preconditioner:
    """R of these weights."""
    edges, total = task_edges(tasks, how.noise_floor), _total(tasks, weights, how)
    if how.leaves_the_sum(edges):
        same = torch.eye(tasks.columns, dtype=torch.float64, device=tasks.device)
        return Preconditioner(total, same, same)
    kept = floor_of(total, edges, how.noise_floor).kept
    return Preconditioner(total, kept.right, kept.right * (power_values(kept, how) / kept.values))


def _total(tasks: TaskMatrices, weights: Sequence[float], how: Isotropy) -> UpdateSum:
    return UpdateSum(tasks, weights) if how.blocks is None else MaskedSum(tasks, weights, how.blocks)


def power_values(spectrum: SumSpectrum, how: Isotropy) -> Tensor:
    """c S^p. ``norm``: c such that the sum of the squares is that of S; ``mean``: that the sum is, as in Iso-C."""
    values = spectrum.values
    if spectrum.rank == 0:
        return values
    powered = (values / values[0]).pow(how.power)
    if how.scale == "mean":
        return powered * (values.sum() / powered.sum())
    return powered * (values.square().sum() / powered.square().sum()).sqrt()


def plain_sum(total: UpdateSum) -> Tensor:
    """D itself, in the checkpoint's orientation."""
    tasks = total.tasks
    result = torch.empty(tasks.experts[0].shape, dtype=tasks.result_dtype, device=tasks.device)
    tall = result.T if tasks.is_wide else result

    def fill(rows: slice) -> None:
        tall[rows] = total.rows(rows).to(tasks.result_dtype)

    run_all(tasks.device, [partial(fill, rows) for rows in tasks.row_spans()])
    return result


def with_values(total: UpdateSum, spectrum: SumSpectrum, values: Tensor) -> Tensor:
    """U diag(values) V^T, U being D V S^-1, in the checkpoint's orientation."""
    tasks, right = total.tasks, spectrum.right
    shape = (tasks.columns, tasks.rows) if tasks.is_wide else (tasks.rows, tasks.columns)
    result = torch.empty(shape, dtype=tasks.result_dtype, device=tasks.device)
    tall = result.T if tasks.is_wide else result
    scaled = right * (values / spectrum.values)
    # Through a matrix of all columns, unless the rank is so small that two products cost less than one.
    inner = symmetric_product(scaled, right) if 2 * spectrum.rank > tasks.columns else None

    def fill(rows: slice) -> None:
        block = total.rows(rows)
        part = block @ inner if inner is not None else (block @ scaled) @ right.T
        tall[rows] = part.to(tasks.result_dtype)

    run_all(tasks.device, [partial(fill, rows) for rows in tasks.row_spans()])
    return result
