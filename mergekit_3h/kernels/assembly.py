"""TSVM and R-TSVM: the task matrices of one layer in, the merged update and a report out.

Notation of arXiv 2502.06876: delta_i = U_i S_i V_i^T (Eq. 2) is the update of task i, alpha_i its outlier weight (Eq. 8),
k_l the rank of the layer (Eq. 10), and U_perp, V_perp the orthonormal polar factors of the concatenated [U_1 .. U_n] and
[V_1 .. V_n] (Eq. 3-4). The merged update is

    M = sum_i U_perp_i (w_i alpha_i S_i) V_perp_i^T                                        (Eq. 5 and 11)

TSVM (arXiv 2412.00081) is the case alpha_i = 1 and k = floor(r / n). Two things are computed without being formed:

* U_i = delta_i V_i S_i^-1 is made a row block at a time, twice: once for the Gram matrix of U, once for the result.
  Nothing of the height of an embedding is stored but the result itself.
* With ``orthogonalize_first`` (Algorithm 1 to the letter, appendix A.3) V_i are full orthogonal matrices, their
  concatenation is wide, and V_perp = V / sqrt(n); for square matrices also U_perp = U / sqrt(n). See ``_literal``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mergekit_3h.kernels.factors import PolarFactors, weighted_truncations
from mergekit_3h.kernels.noise import rounding_edge
from mergekit_3h.kernels.outliers import outlier_mass, outlier_weights
from mergekit_3h.kernels.ranks import rank_budget, rank_for_energy, significant, sparsity
from mergekit_3h.kernels.settings import Settings
from mergekit_3h.kernels.spectra import RankRule, Spectrum, exact_spectrum
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.kernels.workers import run_all


@dataclass(frozen=True)
class Report:
    """What the kernel found and did, one entry a task where there is a list."""

    budget: int
    ranks: list[int]
    outlier_weights: list[float]
    omega: float | None
    """Sparsity of Eq. 9, where the rank depends on it."""
    noise_edges: list[float]
    decompositions: list[str]
    residuals: list[float]


@dataclass(frozen=True)
class Plan:
    """The reweighting of Eq. 6-10 for one layer: a factor for each task's singular values, and its rank."""

    weights: list[float]
    omega: float | None
    budget: int
    noise_edges: list[float]
    energy: float

    def rank_rule(self, tasks: TaskMatrices, i: int) -> RankRule:
        def rank(values: Tensor, total_square: float) -> int:
            above_noise = int((values > self.noise_edges[i]).sum())
            for_energy = rank_for_energy(values, total_square, self.energy)
            return min(self.budget, significant(values, tasks), above_noise, for_energy)

        return rank


@torch.no_grad()
def merge(tasks: TaskMatrices, weights: Sequence[float], settings: Settings) -> tuple[Tensor, Report]:
    """The merged update M, and how it came about. ``weights`` are the user's factors w_i."""
    plan = plan_layer(tasks, settings)
    scales = [w * alpha for w, alpha in zip(weights, plan.weights, strict=True)]
    if settings.order == "orthogonalize_first":
        return _literal(tasks, scales, plan, settings)
    spectra = decompose(tasks, [plan.rank_rule(tasks, i) for i in range(len(tasks))], settings)
    report = _report(plan, spectra)
    factors = PolarFactors(tasks, spectra)
    del spectra  # their vectors now live in the factors
    return factors.times_left(factors.inner(scales), tasks.result_dtype), report


def plan_layer(tasks: TaskMatrices, settings: Settings) -> Plan:
    """Steps 2 and 3 of Algorithm 1, and the limits on the rank that go beyond the paper."""
    n = len(tasks)
    masses = [0.0] * n
    edges = [0.0] * n

    def survey(i: int) -> None:
        if settings.outlier_weighting != "none":
            masses[i] = outlier_mass(tasks, i)
        if settings.noise_floor == "auto" and tasks.base is not None:
            edges[i] = rounding_edge(tasks.experts[i])

    run_all(tasks.device, [partial(survey, i) for i in range(n)])
    needs_omega = settings.rank_selection == "sparsity" and settings.gamma > 0
    omega = sparsity(tasks, settings) if needs_omega else None
    budget = rank_budget(tasks, settings, omega or 0.0)
    return Plan(outlier_weights(masses, settings), omega, budget, edges, settings.energy)


def decompose(tasks: TaskMatrices, rank_rules: Sequence[RankRule], settings: Settings) -> list[Spectrum]:
    """Step 4, first line: the leading singular triplets of every task, cut to the rank its rule allows."""
    found: list[Spectrum | None] = [None] * len(tasks)

    def find(i: int) -> None:
        found[i] = exact_spectrum(tasks, i, rank_rules[i])

    run_all(tasks.device, [partial(find, i) for i in range(len(tasks))])
    return [spectrum for spectrum in found if spectrum is not None]


def _literal(tasks: TaskMatrices, scales: list[float], plan: Plan, settings: Settings) -> tuple[Tensor, Report]:
    """Algorithm 1 in its own order: polar factors of the full-rank concatenations, then the cut to rank k_l.

    [V_1 .. V_n] (and, of a square matrix, [U_1 .. U_n]) consists of orthogonal matrices, so V V^T = n I and its polar
    factor is V / sqrt(n). With D_i the rank-k_l truncation of delta_i that leaves

        square: M = 1/n sum_i alpha_i D_i
        tall:   M = 1/sqrt(n) (sum_j P_j)^(-1/2) sum_i alpha_i D_i,  P_j the projector on the columns of delta_j
    """
    n = len(tasks)
    rules = [plan.rank_rule(tasks, i) for i in range(n)]
    if tasks.rows == tasks.columns:
        spectra = decompose(tasks, rules, settings)
        scales = [scale / n for scale in scales]
        return weighted_truncations(tasks, spectra, scales, tasks.result_dtype), _report(plan, spectra)
    spectra = decompose(tasks, [partial(_all_significant, tasks)] * n, settings)
    ranks = [rule(s.values, s.total_square) for rule, s in zip(rules, spectra, strict=True)]
    factors = PolarFactors(tasks, spectra, right_is_orthogonal=True)
    return factors.times_left(factors.inner(scales, ranks), tasks.result_dtype), _report(plan, spectra, ranks)


def _all_significant(tasks: TaskMatrices, values: Tensor, _total_square: float) -> int:
    return significant(values, tasks)


def _report(plan: Plan, spectra: Sequence[Spectrum], ranks: Sequence[int] | None = None) -> Report:
    return Report(
        budget=plan.budget,
        ranks=list(ranks) if ranks is not None else [spectrum.rank for spectrum in spectra],
        outlier_weights=plan.weights,
        omega=plan.omega,
        noise_edges=plan.noise_edges,
        decompositions=[spectrum.method for spectrum in spectra],
        residuals=[spectrum.residual for spectrum in spectra],
    )
