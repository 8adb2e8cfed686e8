"""The experts' updates without their leading directions, merged by how much they agree (arXiv 2606.02252).

Every update is a head H_i, its K leading directions, and the residual R_i. With q_i = R_i / |R_i| in the Frobenius norm

    q = sum_i q_i / |sum_i q_i|,   c = mean_i <q_i, q>,   s = mean_{i<j} <q_i, q_j>
    beta = 1 - (1 - beta_0) ((s + 1) / 2 + (c + 1) / 2) / 2
    A = mean_i R_i where c <= 1 / sqrt(n), as of experts that have nothing in common; else c^beta mean_i |R_i| q
    M = A + rho S_H |A| Hbar / |Hbar|,   Hbar = mean_i H_i,   S_H = mean_{i<j} max(0, cos(H_i, H_j))

M is a sum of D_i (a_i (I - V_i V_i^T) + b_i V_i V_i^T), and a_i and b_i follow from the inner products of the R_i and
of the H_i alone. The user's factors w_i multiply the updates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mergekit_3h.kernels.krylov import certified_krylov
from mergekit_3h.kernels.noise_floors import NoiseFloor, task_edges
from mergekit_3h.kernels.ranks import KRYLOV_SHARE, SMALLEST_KRYLOV_SIDE, significant
from mergekit_3h.kernels.rounding import number_error
from mergekit_3h.kernels.spectra import Spectrum, exact_spectrum
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.kernels.workers import run_all

TOLERANCE = 1e-7
"""Largest sine of the angle between a head found by the Krylov method and the true one."""

CLOSE = 1e-6
"""By so much c may exceed 1 / sqrt(n) where only rounding tells that the experts have something in common."""

OPPOSED = 1e-8
"""|Hbar| up to this share of the heads' mean size: they cancel out, and their sum has no direction."""


@dataclass(frozen=True)
class Consensus:
    """How much of the residuals and of the heads is kept."""

    head_rank: int
    head_share: float
    """rho."""
    least_exponent: float
    """beta_0, the exponent where all residuals are alike."""


@dataclass(frozen=True)
class ConsensusReport:
    """How the merge of one matrix came about."""

    ranks: list[int]
    """Directions of each task's head."""
    noise_edges: list[float]
    decompositions: list[str]
    coherence: float
    """c."""
    similarity: float
    """s."""
    exponent: float
    """beta; 1 where the residuals are averaged."""
    head_agreement: float
    """S_H."""


@torch.no_grad()
def merge_by_consensus(
    tasks: TaskMatrices, weights: Sequence[float], consensus: Consensus, noise_floor: NoiseFloor
) -> tuple[Tensor, ConsensusReport]:
    """M and how it came about."""
    edges = task_edges(tasks, noise_floor)
    heads = _heads(tasks, consensus.head_rank, edges)
    residual_gram, head_gram = _grams(tasks, heads)
    signs = torch.tensor(weights, dtype=torch.float64)
    pairs = signs[:, None] * signs
    balance = Balance(residual_gram * pairs, head_gram * pairs, consensus)
    report = ConsensusReport(
        [head.rank for head in heads],
        edges,
        [head.method for head in heads],
        balance.coherence,
        balance.similarity,
        balance.exponent,
        balance.head_agreement,
    )
    residual_factors = [float(a * w) for a, w in zip(balance.residual_factors(), weights, strict=True)]
    head_factors = [float(b * w) for b, w in zip(balance.head_factors(), weights, strict=True)]
    return _weighted_sum(tasks, heads, residual_factors, head_factors), report


class Balance:
    """The factors a_i and b_i, from the inner products <R_i, R_j> and <H_i, H_j> of the weighted updates."""

    def __init__(self, residuals: Tensor, heads: Tensor, consensus: Consensus) -> None:
        self.n = residuals.shape[0]
        self.residuals, self.heads, self.consensus = residuals, heads, consensus
        self.sizes = residuals.diagonal().clamp_min(0).sqrt()
        cosines = _cosines(residuals)
        self.length = math.sqrt(max(0.0, float(cosines.sum())))
        """|sum_i q_i|."""
        self.coherence = self.length / self.n
        self.similarity = _mean_of_pairs(cosines, range(self.n))
        there = [i for i in range(self.n) if float(heads[i, i]) > 0]
        self.head_agreement = _mean_of_pairs(_cosines(heads).clamp_min(0), there) if there else 0.0
        self.is_mean = self.coherence <= (1 + CLOSE) / math.sqrt(self.n)
        alike = ((self.similarity + 1) / 2 + (self.coherence + 1) / 2) / 2
        self.exponent = 1.0 if self.is_mean else 1 - (1 - consensus.least_exponent) * alike

    def residual_factors(self) -> Tensor:
        """a_i."""
        if self.is_mean:
            return torch.full_like(self.sizes, 1 / self.n)
        size = self.coherence**self.exponent * float(self.sizes.mean())
        return torch.where(self.sizes > 0, size / (self.sizes * self.length), 0.0)

    def head_factors(self) -> Tensor:
        """b_i."""
        if not bool((self.sizes > 0).any()):
            # |A| is nothing, and with it the heads would go: updates of no more than the heads are averaged.
            return torch.full_like(self.sizes, 1 / self.n)
        a = self.residual_factors()
        size = math.sqrt(max(0.0, float(a @ self.residuals @ a)))
        mean_head = math.sqrt(max(0.0, float(self.heads.sum()))) / self.n
        if mean_head <= OPPOSED * float(self.heads.diagonal().sqrt().mean()):
            return torch.zeros_like(a)
        return torch.full_like(a, self.consensus.head_share * self.head_agreement * size / (mean_head * self.n))


def _cosines(gram: Tensor) -> Tensor:
    """Those of a zero with anything are 0."""
    sizes = gram.diagonal().clamp_min(0).sqrt()
    inverse = torch.where(sizes > 0, 1 / sizes, 0.0)
    return gram * inverse * inverse[:, None]


def _mean_of_pairs(cosines: Tensor, chosen: Sequence[int]) -> float:
    """1 for one alone, as the authors' code has it."""
    pairs = [float(cosines[i, j]) for i in chosen for j in chosen if i < j]
    return sum(pairs) / len(pairs) if pairs else 1.0


def _heads(tasks: TaskMatrices, head_rank: int, edges: Sequence[float]) -> list[Spectrum]:
    """The leading directions of every task; none of them where rounding explains them."""
    found: list[Spectrum | None] = [None] * len(tasks)
    is_small = tasks.columns >= SMALLEST_KRYLOV_SIDE and head_rank <= tasks.columns // KRYLOV_SHARE

    def find(i: int) -> None:
        def rank(values: Tensor, _: float) -> int:
            return min(head_rank, significant(values, tasks.full_rank), int((values > edges[i]).sum()))

        quick = certified_krylov(tasks, i, rank, TOLERANCE)[0] if is_small else None
        found[i] = quick or exact_spectrum(tasks, i, rank)

    run_all(tasks.device, [partial(find, i) for i in range(len(tasks))])
    return [spectrum for spectrum in found if spectrum is not None]


def _grams(tasks: TaskMatrices, heads: Sequence[Spectrum]) -> tuple[Tensor, Tensor]:
    """<R_i, R_j> and <H_i, H_j>; a residual that rounding explains is none."""
    n, row_spans = len(tasks), tasks.row_spans()
    parts = [torch.zeros(2, n, n, dtype=torch.float64)] * len(row_spans)

    def measure(at: int) -> None:
        head_parts = heads[0].right.new_empty(n, row_spans[at].stop - row_spans[at].start, tasks.columns)
        residual_parts = torch.empty_like(head_parts)
        for i, head in enumerate(heads):
            block = tasks.block(i, row_spans[at])
            torch.matmul(block @ head.right, head.right.T, out=head_parts[i])
            torch.sub(block, head_parts[i], out=residual_parts[i])
        flat = [residual_parts.flatten(1), head_parts.flatten(1)]
        parts[at] = torch.stack([each @ each.T for each in flat]).cpu()

    run_all(tasks.device, [partial(measure, at) for at in range(len(row_spans))])
    residual_gram, head_gram = torch.stack(parts).sum(0)
    for i, expert in enumerate(tasks.experts):
        size = math.sqrt(float(residual_gram[i, i] + head_gram[i, i]))
        rounding = 2 * number_error(expert, tasks.number_dtype) * math.sqrt(tasks.rows * tasks.columns)
        nothing = max(2 * torch.finfo(tasks.number_dtype).eps * size, rounding)
        if float(residual_gram[i, i]) <= nothing**2:
            residual_gram[i], residual_gram[:, i] = 0, 0
    return residual_gram, head_gram


def _weighted_sum(
    tasks: TaskMatrices, heads: Sequence[Spectrum], residual_factors: Sequence[float], head_factors: Sequence[float]
) -> Tensor:
    """sum_i a_i R_i + b_i H_i, in the checkpoint's orientation."""
    shape = (tasks.columns, tasks.rows) if tasks.is_wide else (tasks.rows, tasks.columns)
    result = torch.empty(shape, dtype=tasks.result_dtype, device=tasks.device)
    tall = result.T if tasks.is_wide else result

    def fill(rows: slice) -> None:
        total = torch.zeros(rows.stop - rows.start, tasks.columns, dtype=torch.float64, device=tasks.device)
        for i, (head, a, b) in enumerate(zip(heads, residual_factors, head_factors, strict=True)):
            block = tasks.block(i, rows)
            total.addmm_(block @ head.right, head.right.T, alpha=b - a).add_(block, alpha=a)
        tall[rows] = total.to(tasks.result_dtype)

    run_all(tasks.device, [partial(fill, rows) for rows in tasks.row_spans()])
    return result
