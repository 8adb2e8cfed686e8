"""TSVM and R-TSVM: the task matrices of one layer in, the merged update and a report out.

Notation of arXiv 2502.06876: delta_i = U_i S_i V_i^T (Eq. 2) is the update of task i, alpha_i its outlier weight
(Eq. 8), k_l the rank of the layer (Eq. 10), and U_perp, V_perp the orthonormal polar factors of the concatenated
[U_1 .. U_n] and [V_1 .. V_n] (Eq. 3-4). With the user's factors w_i the merged update is

    M = sum_i U_perp_i (w_i alpha_i S_i) V_perp_i^T                                        (Eq. 5 and 11)

TSVM (arXiv 2412.00081) is the case alpha_i = 1 and k = floor(r / n). U is never stored for tall matrices: it is made
from delta_i V_i S_i^-1 a row block at a time, once for its Gram matrix and once for the result (``factors.py``). What
may stand between the sides in place of the S_i is in ``cores.py``.

Algorithm 1 to the letter (``orthogonalize_first``, appendix A.3) takes the polar factors of the full-rank
concatenations and cuts to rank k_l afterwards. Every V_i, and for square matrices every U_i, is then an orthogonal
matrix, so that V V^T = n I and V_perp = V / sqrt(n). With D_i the rank-k_l truncation of delta_i, what is left is

    square: M = 1/n sum_i w_i alpha_i D_i
    tall:   M = 1/sqrt(n) (sum_j P_j)^(-1/2) sum_i w_i alpha_i D_i,  P_j the projector on the columns of delta_j
    wide:   the transpose of that
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from mergekit_3h.kernels.blocks import sum_in_blocks
from mergekit_3h.kernels.cores import Core, CoredFactors
from mergekit_3h.kernels.decompositions import spectrum_of
from mergekit_3h.kernels.factors import SingularFactors
from mergekit_3h.kernels.noise import task_edge
from mergekit_3h.kernels.outliers import outlier_mass, outlier_weights
from mergekit_3h.kernels.polar import PolarFactors, overlap_of
from mergekit_3h.kernels.ranks import RankRule, rank_budget, sparsity
from mergekit_3h.kernels.rounding import RoundingToll, rounding_toll
from mergekit_3h.kernels.settings import Settings
from mergekit_3h.kernels.shares import Shares
from mergekit_3h.kernels.spectra import Spectrum
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.kernels.truncations import Truncations
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
    tolls: list[RoundingToll]
    """What saving each expert in 16 bits did to its update; without weights where no base is known."""
    decompositions: list[str]
    residuals: list[float]
    """Bounds on the sine of the angle by which the singular vectors may be off; infinite where none is known."""
    perturbations: list[float]
    """How far from each update that is for which they are exact, as a share of its noise edge, where that is what was
    measured; else 0."""
    conditions: tuple[float, float] = (1.0, 1.0)
    """How unequally the experts' singular vectors fill the output side (the checkpoint's rows) and the input side:
    largest over smallest singular value of [U_1 .. U_n] and [V_1 .. V_n]. Noise is magnified by as much."""
    dependent: tuple[int, int] = (0, 0)
    """Directions of the output and of the input side that were dropped, since the experts have them in common."""


@dataclass(frozen=True)
class Plan:
    """The reweighting of Eq. 6-10 for one layer: a factor for each task's singular values, and its rank; and what
    rounding did to each task."""

    alphas: list[float]
    omega: float | None
    rules: list[RankRule]
    tolls: list[RoundingToll]


@torch.no_grad()
def merge(
    tasks: TaskMatrices,
    weights: Sequence[float],
    settings: Settings,
    blocks: Sequence[Sequence[float]] | None = None,
) -> tuple[Tensor, Report]:
    """The merged update M, and how it came about. ``weights`` are the user's factors w_i, ``blocks`` those on blocks of
    every task's singular components, the largest first."""
    plan = plan_layer(tasks, settings)
    shares, report = _shares(tasks, plan, settings, is_decomposed=blocks is not None)
    scales = [w * alpha for w, alpha in zip(weights, plan.alphas, strict=True)]
    if blocks is not None:
        return sum_in_blocks(tasks, shares, scales, blocks), report
    return shares.weighted_sum(scales), report


@torch.no_grad()
def components(tasks: TaskMatrices, settings: Settings, *, is_decomposed: bool = False) -> list[tuple[Tensor, Tensor]]:
    """Factors (rows x k_i) (k_i x columns) of each C_i in M = sum_i w_i C_i, as the checkpoint is oriented.

    M is linear in the user's factors w_i, so a search over them needs the decompositions once. ``is_decomposed``: the
    inner dimension is that of singular components also where no decomposition is needed.
    """
    plan = plan_layer(tasks, settings)
    shares, _ = _shares(tasks, plan, settings, is_decomposed=is_decomposed)
    found = [
        (left * alpha, right)
        for alpha, (left, right) in zip(plan.alphas, map(shares.share, range(len(tasks))), strict=True)
    ]
    return [(right.T, left.T) for left, right in found] if tasks.is_wide else found


def plan_layer(tasks: TaskMatrices, settings: Settings) -> Plan:
    """Steps 2 and 3 of Algorithm 1, and the limits on the rank that go beyond the paper."""
    masses, edges = [0.0] * len(tasks), [0.0] * len(tasks)
    tolls = [RoundingToll()] * len(tasks)

    def survey(i: int) -> None:
        if settings.outlier_weighting != "none":
            masses[i] = outlier_mass(tasks, i)
        if tasks.base is not None:
            tolls[i] = rounding_toll(tasks.experts[i], tasks.base)
            if settings.noise_floor == "auto":
                edges[i] = task_edge(tasks.parts(i), tasks.base, tolls[i])

    run_all(tasks.device, [partial(survey, i) for i in range(len(tasks))])
    needs_omega = settings.rank_selection == "sparsity" and settings.gamma > 0
    omega = sparsity(tasks, settings) if needs_omega else None
    budget = rank_budget(tasks, settings, omega or 0.0)
    rules = [RankRule(tasks.full_rank, budget, edge, settings.energy) for edge in edges]
    return Plan(outlier_weights(masses, settings), omega, rules, tolls)


def _shares(
    tasks: TaskMatrices, plan: Plan, settings: Settings, *, is_decomposed: bool = False
) -> tuple[Shares, Report]:
    """Step 4: what each task adds to the merge, before its factor w_i alpha_i."""
    n = len(tasks)
    is_literal = settings.order == "orthogonalize_first"
    output, input_ = settings.softness
    softness = (input_, output) if tasks.is_wide else (output, input_)
    if settings.core == "block_diagonal" and (n == 1 or (is_literal and tasks.rows == tasks.columns)):
        rules = [None if rule.keeps_everything and not is_decomposed else rule for rule in plan.rules]
        cut = decompose(tasks, rules, settings)
        ranks = [tasks.columns if spectrum is None else spectrum.rank for spectrum in cut]
        both = math.sqrt(overlap_of(n, softness[0]) * overlap_of(n, softness[1]))
        return Truncations(tasks, cut, divisor=both if is_literal else 1), _report(plan, cut, ranks)
    everything = RankRule(tasks.full_rank, tasks.full_rank, noise_edge=0.0, energy=1.0)
    spectra = _present(decompose(tasks, [everything] * n if is_literal else plan.rules, settings))
    ranks = [
        rule(s.values, s.total_square) if is_literal else s.rank for rule, s in zip(plan.rules, spectra, strict=True)
    ]
    report = _report(plan, spectra, ranks)
    factors = SingularFactors(tasks, spectra)
    del spectra  # their vectors live on in the factors; twice they would be half of the memory from here on
    if settings.core == "block_diagonal":
        polar = PolarFactors(factors, ranks, right_is_orthogonal=is_literal, softness=softness)
    else:
        polar = CoredFactors(factors, ranks, Core(settings.core, settings.core_keep, settings.core_deviations))
    return polar, _with_extents(report, tasks, polar)


def decompose(tasks: TaskMatrices, rules: Sequence[RankRule | None], settings: Settings) -> list[Spectrum | None]:
    """The leading singular triplets of every task, cut to the rank its rule allows; ``None`` where there is no rule."""
    found: list[Spectrum | None] = [None] * len(tasks)

    def find(i: int, rule: RankRule) -> None:
        found[i] = spectrum_of(tasks, i, rule, settings)

    run_all(tasks.device, [partial(find, i, rule) for i, rule in enumerate(rules) if rule is not None])
    return found


def _present(spectra: Sequence[Spectrum | None]) -> list[Spectrum]:
    return [spectrum for spectrum in spectra if spectrum is not None]


def _with_extents(report: Report, tasks: TaskMatrices, polar: PolarFactors) -> Report:
    sides = polar.left_extent, polar.right_extent
    output, input_ = reversed(sides) if tasks.is_wide else sides
    return replace(
        report,
        conditions=(output.condition, input_.condition),
        dependent=(output.dependent, input_.dependent),
    )


def _report(plan: Plan, spectra: Sequence[Spectrum | None], ranks: list[int]) -> Report:
    return Report(
        budget=plan.rules[0].budget,
        ranks=ranks,
        outlier_weights=plan.alphas,
        omega=plan.omega,
        noise_edges=[rule.noise_edge for rule in plan.rules],
        tolls=plan.tolls,
        decompositions=["none" if s is None else s.method for s in spectra],
        residuals=[0.0 if s is None else s.residual for s in spectra],
        perturbations=[0.0 if s is None else s.perturbation for s in spectra],
    )
