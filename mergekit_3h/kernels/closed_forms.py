"""The merge that disturbs every update least in its own input directions, in closed form (arXiv 2606.07289).

With D_i the updates as they are stored, v_i = 1 / |D_i|^2 and u_i the user's factors,

    C = sum_i v_i D_i^T D_i = Q diag(l) Q^T,   B = sum_i u_i v_i D_i (D_i^T D_i)
    M = T0 (I - Q diag(f) Q^T) + B Q diag(f / l) Q^T

with the K largest l: there f = 1, or 1 - exp(-t l), what t steps of gradient descent from T0 = a sum_i u_i D_i reach. M
is a sum of D_i E_i, E_i = u_i (a (I - Q f Q^T) + v_i D_i^T D_i Q (f / l) Q^T), so D_i is read twice and never stored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from mergekit_3h.kernels.dense import eigh_in_place
from mergekit_3h.kernels.noise_floors import task_edges
from mergekit_3h.kernels.ranks import significant
from mergekit_3h.kernels.spectra import add_gram
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.kernels.workers import run_all, spans

RankBy = Literal["participation", "gavish_donoho", "noise_edge"]

COLUMNS_AT_ONCE = 256
"""Of E_i, which takes its memory from D_i^T D_i."""


@dataclass(frozen=True)
class ClosedFormReport:
    """How the merge of one matrix came about."""

    ranks: list[int]
    """K."""
    noise_edges: list[float]
    """One a task; 0 where nothing was rounded, or K does not depend on it."""
    decompositions: list[str]


@dataclass(frozen=True)
class Pull:
    """How far the merge goes from its start to the closed form, and in which directions."""

    start: float
    """a: the factor of the sum of the updates that it starts at."""
    rank_by: RankBy
    steps: float
    """t; infinite for the closed form itself."""

    def filtered(self, squares: Tensor) -> Tensor:
        """f of the kept l."""
        return 1 - torch.exp(-self.steps * squares)


@torch.no_grad()
def merge_closed_form(tasks: TaskMatrices, weights: Sequence[float], pull: Pull) -> tuple[Tensor, ClosedFormReport]:
    """M and how it came about."""
    inner, report = _inner(tasks, pull)
    result = torch.empty(tasks.experts[0].shape, dtype=tasks.result_dtype, device=tasks.device)

    def fill(rows: slice) -> None:
        total = torch.zeros(rows.stop - rows.start, result.shape[1], dtype=torch.float64, device=tasks.device)
        for i, weight in enumerate(weights):
            total.addmm_(tasks.block_as_stored(i, rows), inner[i], alpha=weight)
        result[rows] = total.to(tasks.result_dtype)

    run_all(tasks.device, [partial(fill, rows) for rows in _row_spans(tasks)])
    return result, report


@torch.no_grad()
def closed_form_components(tasks: TaskMatrices, pull: Pull) -> list[tuple[Tensor, Tensor]]:
    """D_i and E_i / u_i of every task: M is linear in the user's factors."""
    inner, _ = _inner(tasks, pull)
    return [(tasks.block_as_stored(i, slice(0, tasks.experts[i].shape[0])), each) for i, each in enumerate(inner)]


def gavish_donoho(values: Tensor, longer: int, shorter: int) -> float:
    """The hard threshold for singular values of a ``longer`` x ``shorter`` matrix with noise of unknown size (arXiv
    1305.5870, Eq. 5): their median times a polynomial in the aspect. Those that ``values`` lack are 0."""
    aspect = shorter / longer
    factor = 0.56 * aspect**3 - 0.95 * aspect**2 + 1.82 * aspect + 1.43
    zeros = values.new_zeros(max(0, shorter - values.numel()))
    return factor * float(torch.cat([values[:shorter], zeros]).median())


def _inner(tasks: TaskMatrices, pull: Pull) -> tuple[list[Tensor], ClosedFormReport]:
    """E_i / u_i of every task."""
    grams, shares = _grams(tasks)
    columns = grams[0].shape[0]
    edges = task_edges(tasks, "on") if pull.rank_by == "noise_edge" else [0.0] * len(tasks)
    found: list[tuple[Tensor, Tensor]] = []

    def decompose() -> None:
        whole = torch.zeros_like(grams[0])
        for gram, share in zip(grams, shares, strict=True):
            whole.add_(gram, alpha=share)
        squares, vectors = eigh_in_place(whole)
        found.append((squares.clamp_min_(0).flip(0), vectors.flip(1)))

    run_all(tasks.device, [decompose])
    squares, vectors = found[0]
    values = squares.sqrt()
    rank = min(_rank(tasks, values, shares, edges, pull.rank_by), significant(values, tasks.full_shape[1]))
    kept, squares = vectors[:, :rank], squares[:rank]
    pulled = pull.filtered(squares)
    kept_pulled, kept_divided = kept * pulled, kept * (pulled / squares)

    def turn(i: int) -> None:
        # D_i^T D_i Q (f / l) is small beside D_i^T D_i, whose memory then takes E_i.
        image = (grams[i] @ kept_divided).mul_(shares[i]).sub_(kept_pulled, alpha=pull.start)
        for part in spans(columns, COLUMNS_AT_ONCE):
            torch.matmul(image, kept[part].T, out=grams[i][:, part])
        grams[i].diagonal().add_(pull.start)

    run_all(tasks.device, [partial(turn, i) for i in range(len(tasks))])
    return grams, ClosedFormReport([rank], edges, ["exact"])


def _grams(tasks: TaskMatrices) -> tuple[list[Tensor], list[float]]:
    """D_i^T D_i of the updates as they are stored, and v_i; 0 for an update of nothing, which then adds nothing."""
    columns = tasks.experts[0].shape[1]
    grams = [torch.zeros(columns, columns, dtype=torch.float64, device=tasks.device) for _ in range(len(tasks))]
    shares = [0.0] * len(tasks)

    def measure(i: int) -> None:
        for block in tasks.blocks_as_stored(i):
            add_gram(grams[i], block)
        upper = torch.triu(grams[i], 1)
        grams[i].triu_().add_(upper.T)
        square = float(grams[i].diagonal().sum())
        shares[i] = 1 / square if square else 0.0

    run_all(tasks.device, [partial(measure, i) for i in range(len(tasks))])
    return grams, shares


def _rank(tasks: TaskMatrices, values: Tensor, shares: Sequence[float], edges: Sequence[float], rank_by: RankBy) -> int:
    """K, of the descending square roots of l."""
    if rank_by == "participation":
        total = float(values.square().sum())
        return math.ceil(float(values.sum()) ** 2 / total) if total else 0
    if rank_by == "gavish_donoho":
        rows, columns = tasks.full_shape
        stacked = sum(share > 0 for share in shares) * rows
        longer, shorter = max(stacked, columns), min(stacked, columns)
        # One direction at least: a merge must not vanish.
        return max(1, int((values > gavish_donoho(values, longer, shorter)).sum())) if shorter else 0
    # sqrt(l) is a singular value of all sqrt(v_i) D_i above one another, whose noise reaches no further than this.
    edge = math.sqrt(sum(share * each * each for share, each in zip(shares, edges, strict=True)))
    above = int((values > edge).sum())
    return above if above else values.numel()


def _row_spans(tasks: TaskMatrices) -> list[slice]:
    shape = tasks.experts[0].shape
    return spans(shape[0], min(shape[0], max(64, 256 * 2048 // shape[1])))
