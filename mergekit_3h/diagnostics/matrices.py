"""All measures of one tensor. What R-TSVM uses (alpha, Omega, edges, ranks) comes from the kernel's own functions."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mergekit_3h.diagnostics.entries import LARGEST_EXPONENT, SMALLEST_EXPONENT, EntrySums, sum_entries
from mergekit_3h.diagnostics.rows import (
    ExpertMeasures,
    MatrixMeasures,
    PairMeasures,
    SpectrumMeasures,
    TensorMeasures,
    all_pairs,
    sampled_places,
)
from mergekit_3h.diagnostics.subspaces import (
    directions_of_sum,
    effective_rank,
    energy_above,
    energy_share,
    interference,
    left_gram,
    left_vectors,
    over_counting,
    relative_interference,
    rows_in_directions,
    subspace_overlap,
)
from mergekit_3h.kernels.assembly import Plan, decompose, plan_layer
from mergekit_3h.kernels.outliers import outlier_mass
from mergekit_3h.kernels.ranks import RankRule
from mergekit_3h.kernels.remainders import Remainder, remainder
from mergekit_3h.kernels.rounding import SIGNIFICAND_BITS, significand_bits
from mergekit_3h.kernels.settings import Settings
from mergekit_3h.kernels.spectra import Spectrum
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.kernels.values import floats

LEADING = 8
"""Directions of each expert whose overlap is looked at. A LoRA update has 8 or more; of a full one the first 8 hold the
part that stands out. A heuristic."""

ENERGIES = (1, 8, 64)

_TYPES = {bits: str(dtype).removeprefix("torch.") for dtype, bits in SIGNIFICAND_BITS.items()}


def measure_tensor(
    name: str, base: Tensor, experts: Sequence[Tensor], settings: Settings, *, is_matrix: bool
) -> TensorMeasures:
    """Measure a tensor of any shape, as a matrix where it is merged as one."""
    began = time.perf_counter()
    flat = base if base.ndim == 2 else base.reshape(1, -1)
    tasks = TaskMatrices([expert.reshape(flat.shape) for expert in experts], flat)
    sums = sum_entries(tasks)
    entries = [_expert(sums, i) for i in range(len(experts))]
    pairs = [_pair(sums, i, j) for i, j in all_pairs(len(experts))]
    matrix = None
    if is_matrix:
        entries, pairs, matrix = _with_spectra(tasks, entries, pairs, settings)
    return TensorMeasures(
        tensor=name,
        shape=tuple(base.shape),
        dtypes=[str(tensor.dtype).removeprefix("torch.") for tensor in (base, *experts)],
        rms=sums.rms(),
        omegas=_omegas(sums),
        experts=entries,
        pairs=pairs,
        matrix=matrix,
        seconds=time.perf_counter() - began,
    )


def _expert(sums: EntrySums, i: int) -> ExpertMeasures:
    return ExpertMeasures(
        norm=sums.norm(i),
        relative_size=sums.relative_size(i),
        weight_cosine=sums.weight_cosine(i),
        unchanged=sums.unchanged(i),
        kurtosis=sums.kurtosis(i),
        largest=float(sums.largest[i]),
    )


def _pair(sums: EntrySums, i: int, j: int) -> PairMeasures:
    return PairMeasures(
        first=i,
        second=j,
        cosine=sums.cosine(i, j),
        distance=sums.distance(i, j),
        sign_conflicts=sums.sign_conflicts(i, j),
    )


def _omegas(sums: EntrySums) -> dict[int, float]:
    shares = {e: round(sums.sparsity_below(e), 7) for e in range(SMALLEST_EXPONENT, LARGEST_EXPONENT + 1)}
    return {e: share for e, share in shares.items() if share != shares.get(e - 1)}


def _with_spectra(
    tasks: TaskMatrices, experts: list[ExpertMeasures], pairs: list[PairMeasures], settings: Settings
) -> tuple[list[ExpertMeasures], list[PairMeasures], MatrixMeasures]:
    plan = plan_layer(tasks, settings)
    spectra = whole_spectra(tasks, settings)
    ranks = ranks_used(tasks, plan, spectra, settings)
    counted = _over_counting(tasks)
    measured = [
        expert.model_copy(update={"spectrum": _spectrum(tasks, i, plan, spectra[i], ranks[i], counted[i])})
        for i, expert in enumerate(experts)
    ]
    kept = [spectrum.right[:, :rank] for spectrum, rank in zip(spectra, ranks, strict=True)]
    values = torch.cat([spectrum.values[:rank] for spectrum, rank in zip(spectra, ranks, strict=True)])
    right = torch.cat(kept, dim=1)
    grams = left_gram(tasks, kept), values, right.T @ right
    few = min(LEADING, tasks.columns)
    rows, columns = tasks.experts[0].shape
    matrix = MatrixMeasures(
        smaller_side=tasks.columns,
        budget=plan.rules[0].budget,
        omega=plan.omega,
        interference=interference(*grams),
        relative_interference=relative_interference(*grams),
        overlap_rank=few,
        chance_output=few / rows,
        chance_input=few / columns,
    )
    return measured, _with_overlaps(tasks, pairs, [spectrum.right[:, :few] for spectrum in spectra]), matrix


def whole_spectra(tasks: TaskMatrices, settings: Settings) -> list[Spectrum]:
    """Every singular value and right vector of every task, whatever the merge would keep."""
    everything = RankRule(tasks.columns, tasks.columns, noise_edge=0.0, energy=1.0)
    found = decompose(tasks, [everything] * len(tasks), replace(settings, decomposition="exact"))
    return [spectrum for spectrum in found if spectrum is not None]


def ranks_used(tasks: TaskMatrices, plan: Plan, spectra: Sequence[Spectrum], settings: Settings) -> list[int]:
    """The ranks of the kernel's own rules; all, where it cuts nothing and so decomposes nothing."""
    is_plain_sum = len(tasks) == 1 or (settings.order == "orthogonalize_first" and tasks.rows == tasks.columns)
    return [
        tasks.columns if is_plain_sum and rule.keeps_everything else rule(spectrum.values, spectrum.total_square)
        for rule, spectrum in zip(plan.rules, spectra, strict=True)
    ]


def _spectrum(
    tasks: TaskMatrices, i: int, plan: Plan, spectrum: Spectrum, rank: int, over_counted: float
) -> SpectrumMeasures:
    edge, values, toll = plan.rules[i].noise_edge, spectrum.values, plan.tolls[i]
    above = int((values > edge).sum())
    left = remainder(tasks, i, spectrum.right[:, :above]) if edge > 0 else Remainder()
    bits = significand_bits(tasks.experts[i])
    return SpectrumMeasures(
        rank=rank,
        alpha=plan.alphas[i],
        outlier_mass=outlier_mass(tasks, i),
        noise_edge=edge,
        above_edge=energy_above(values, edge),
        unrounded_norm=math.sqrt(toll.update_square),
        rounding_distance=toll.distance,
        left_square=left.left_square,
        rounding_square=left.rounding_square,
        above_count=above,
        rounded_to="" if bits is None else _TYPES[bits],
        effective_rank=effective_rank(values),
        energy={k: energy_share(values, k) for k in ENERGIES if k <= tasks.columns},
        over_counting=over_counted,
        count=len(values),
        values=[float(f"{value:.5g}") for value in floats(values[sampled_places(len(values))])],
    )


def _over_counting(tasks: TaskMatrices) -> list[float]:
    """s_r of each task, a mean over the leading directions of the sum, weighted by their squared singular values."""
    left, values = directions_of_sum(tasks, min(LEADING, tasks.columns))
    counted = over_counting(rows_in_directions(tasks, left))
    weights = values.square()
    total = float(weights.sum())
    return floats(counted @ weights / total) if total > 0 else [0.0] * len(tasks)


def _with_overlaps(tasks: TaskMatrices, pairs: list[PairMeasures], leading: list[Tensor]) -> list[PairMeasures]:
    lefts = [left_vectors(tasks, i, right) for i, right in enumerate(leading)]
    outputs, inputs = (leading, lefts) if tasks.is_wide else (lefts, leading)
    return [
        pair.model_copy(
            update={
                "overlap_output": subspace_overlap(outputs[pair.first], outputs[pair.second]),
                "overlap_input": subspace_overlap(inputs[pair.first], inputs[pair.second]),
            }
        )
        for pair in pairs
    ]
