"""What can be known of the experts before anything is merged: means over matrices and experts."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

import torch
from measures import PLAIN, Quality
from merging import State

from mergekit_3h.diagnostics.matrices import measure_tensor
from mergekit_3h.diagnostics.measures import lesser_overlap, mean_of
from mergekit_3h.diagnostics.rows import SpectrumMeasures, TensorMeasures
from mergekit_3h.spectral.rtsvm import RTSVM

OBSERVABLES = {
    "size": "size of the updates over the base's",
    "imbalance": "largest expert's norm over the smallest's",
    "cosine": "cosine of two experts' updates",
    "overlap": "overlap of two experts' eight leading directions",
    "interference": "STI over the sum of singular values",
    "over_counting": "how often a sum counts an expert's directions, s_r",
    "effective_rank": "effective rank over the smaller side",
    "kurtosis": "kurtosis of an update's entries",
    "alpha": "largest outlier weight of Eq. 8 over the smallest",
    "omega": "sparsity of Eq. 9, under 0.3 times the root mean square",
    "above_edge": "directions above the rounding edge, over the smaller side",
    "rounding": "distance that rounding moved an expert, over its update",
    "worsening": "loss that an expert adds to the others' dimensions, over their own gain",
    "forgetting": "loss that an expert adds to plain questions, nats",
}
"""The last two need questions; the others only weights."""


def observed(base: State, experts: Mapping[str, State]) -> dict[str, float]:
    """Of the weights alone."""
    settings = RTSVM.model_validate({}).settings()
    every = [
        measure_tensor(name, own, [expert[name] for expert in experts.values()], settings, is_matrix=True)
        for name, own in base.items()
        if own.ndim == 2 and not all(torch.equal(own, expert[name]) for expert in experts.values())
    ]
    spectra = [(row, expert.spectrum) for row in every for expert in row.experts if expert.spectrum]
    norms = [sum(row.experts[i].norm ** 2 for row in every) ** 0.5 for i in range(len(experts))]
    return {
        "size": fmean(expert.relative_size or 0.0 for row in every for expert in row.experts),
        "imbalance": max(norms) / min(norms),
        "cosine": _of_pairs(every, "cosine"),
        "overlap": fmean(lesser_overlap(pair) or 0.0 for row in every for pair in row.pairs),
        "interference": fmean(row.matrix.relative_interference or 0.0 for row in every if row.matrix),
        "over_counting": fmean(spectrum.over_counting or 0.0 for _, spectrum in spectra),
        "effective_rank": fmean(spectrum.effective_rank / spectrum.count for _, spectrum in spectra),
        "kurtosis": mean_of([expert.kurtosis for row in every for expert in row.experts]) or 0.0,
        "alpha": fmean(_alpha(row) for row in every),
        "omega": fmean(row.matrix.omega or 0.0 for row in every if row.matrix),
        "above_edge": fmean(_above(spectrum) for _, spectrum in spectra),
        "rounding": fmean(spectrum.rounding_distance or 0.0 for _, spectrum in spectra),
    }


def interfered(base: Quality, experts: Mapping[str, tuple[str, Quality]], gains: Mapping[str, float]) -> dict[str, Any]:
    """Of answers to validation questions. ``experts`` come with the dimension that each learnt."""
    worse = [
        (quality.loss[other] - base.loss[other]) / gain
        for dimension, quality in experts.values()
        for other, gain in gains.items()
        if other != dimension
    ]
    forgotten = [quality.loss[PLAIN] - base.loss[PLAIN] for _, quality in experts.values()]
    return {"worsening": fmean(worse), "forgetting": fmean(forgotten)}


def _of_pairs(rows: list[TensorMeasures], name: str) -> float:
    return fmean(getattr(pair, name) or 0.0 for row in rows for pair in row.pairs)


def _alpha(row: TensorMeasures) -> float:
    """An expert without any outlier would make it infinite: its weight counts as a hundredth of the largest."""
    weights = [expert.spectrum.alpha for expert in row.experts if expert.spectrum]
    return max(weights) / max(min(weights), max(weights) / 100)


def _above(spectrum: SpectrumMeasures) -> float:
    """By the places of the spectrum that are kept; all of them for matrices this small."""
    values = spectrum.values
    return sum(value > spectrum.noise_edge for value in values) / len(values)
