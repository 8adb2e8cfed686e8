"""What a merge did to the updates, by its own reports, and what is known of the experts before: means of matrices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, isfinite, log
from statistics import fmean, median
from typing import Any

from mergekit_3h.diagnostics.matrices import measure_tensor
from mergekit_3h.diagnostics.measures import lesser_overlap
from mergekit_3h.kernels.remainders import ROUNDING_ALONE
from mergekit_3h.spectral.rtsvm import RTSVM

DIGITS = 4
LARGEST_SPREAD = 100.0
"""Of outlier weights: that of an expert without any outlier would make it infinite."""


@dataclass(frozen=True)
class Matrix:
    """The method's report of one matrix, and its smaller side."""

    report: Any
    side: int


def of_merge(matrices: Sequence[Matrix]) -> dict[str, float]:
    """What the reports of this method tell; every number is of the matrices that have it.

    *rank*: directions kept, of all experts together, over the smaller side. *cut*: share in which the noise floor cut
    something, of matrices, or of every expert's matrices where each has a floor of its own. *under_edge*: T, by which
    the floor of a sum decides. *condition*: how unequally the experts' vectors fill the two sides, the worse one.
    *amplification*: how much more than the largest direction of a sum the smallest is magnified. *alpha*: the largest
    outlier weight over the smallest, where a method has any. *omega*: the sparsity that lowers the rank.
    """
    reports = [each.report for each in matrices]
    ratios = _finite(_present(reports, "under_edge"))
    conditions = [max(pair) for pair in _present(reports, "conditions")]
    weights = _present(reports, "outlier_weights")
    found = {
        "rank": _mean(sum(each.report.ranks) / each.side for each in matrices if hasattr(each.report, "ranks")),
        "cut": _mean(_cuts(reports)),
        "under_edge": median(ratios) if ratios else None,
        "condition": _geometric_mean(conditions),
        "amplification": _geometric_mean(_present(reports, "amplification")),
        "alpha": _mean(spread(own) for own in weights) if any(set(own) != {1.0} for own in weights) else None,
        "omega": _mean(_present(reports, "omega")),
    }
    return _short(found)


def _cuts(reports: Sequence[Any]) -> Iterable[float]:
    for report in reports:
        if not any(getattr(report, "noise_edges", ())):
            continue
        if hasattr(report, "under_edge"):
            yield report.under_edge is not None and report.under_edge < ROUNDING_ALONE
        elif hasattr(report, "budget"):
            yield from (rank < report.budget for rank in report.ranks)


def observed(base: Mapping[str, Any], experts: Mapping[str, Any]) -> dict[str, float]:
    """Of the weights alone, by the measures of ``inspect``, in the layers.

    Of two experts: *cosine* of their updates, *overlap* of their eight leading directions. Of one: *effective_rank*
    over the smaller side, *kurtosis*, and how far *rounding* moved the update over its size. Where they were rounded:
    *above_edge*, directions beyond the rounding edge, of all experts together over the smaller side; *under_edge*, T.
    *alpha* and *omega* as R-TSVM would have them.

    The embeddings are left out: one matrix of two hundred, which takes as long as all others.
    """
    settings = RTSVM.model_validate({}).settings()
    rows = [
        measure_tensor(name, own, [expert[name] for expert in experts.values()], settings, is_matrix=True)
        for name, own in base.items()
        if own.ndim == 2 and ".layers." in name
    ]
    spectra = [[expert.spectrum for expert in row.experts if expert.spectrum] for row in rows]
    every = [spectrum for own in spectra for spectrum in own]
    sides = [row.matrix.smaller_side for row in rows if row.matrix]
    left, rounding = sum(one.left_square for one in every), sum(one.rounding_square for one in every)
    found = {
        "cosine": _mean(pair.cosine for row in rows for pair in row.pairs),
        "overlap": _mean(lesser_overlap(pair) or 0.0 for row in rows for pair in row.pairs),
        "effective_rank": _mean(
            one.effective_rank / side for own, side in zip(spectra, sides, strict=True) for one in own
        ),
        "kurtosis": _mean(expert.kurtosis for row in rows for expert in row.experts),
        "rounding": _mean(one.rounding_distance for one in every),
        "above_edge": _mean(
            sum(one.above_count for one in own) / side
            for own, side in zip(spectra, sides, strict=True)
            if all(one.noise_edge > 0 for one in own)
        ),
        "under_edge": left / rounding if rounding else None,
        "alpha": _mean(spread([one.alpha for one in own]) for own in spectra),
        "omega": _mean(row.matrix.omega for row in rows if row.matrix and row.matrix.omega is not None),
    }
    return _short(found)


def spread(weights: Sequence[float]) -> float:
    """The largest over the smallest."""
    return max(weights) / max(min(weights), max(weights) / LARGEST_SPREAD)


def _present(reports: Sequence[Any], name: str) -> list[Any]:
    return [value for report in reports if (value := getattr(report, name, None)) is not None]


def _finite(values: Iterable[float]) -> list[float]:
    return [value for value in values if isfinite(value)]


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return fmean(found) if found else None


def _geometric_mean(values: Iterable[float]) -> float | None:
    """Of what spans orders of magnitude."""
    logs = _mean(log(value) for value in _finite(values))
    return None if logs is None else exp(logs)


def _short(values: Mapping[str, float | None]) -> dict[str, float]:
    """Without what is not there."""
    return {name: float(f"{value:.{DIGITS}g}") for name, value in values.items() if value is not None}
