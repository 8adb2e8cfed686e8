"""The one list of measures that table, heat maps and page show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from mergekit_3h.diagnostics.rows import (
    ExpertMeasures,
    MatrixMeasures,
    PairMeasures,
    SpectrumMeasures,
    TensorMeasures,
)

Values = list[float | None]


@dataclass(frozen=True)
class Measure:
    """One number of a tensor, or one for each expert or for each pair of experts."""

    name: str
    title: str
    """Short, over a column."""
    meaning: str
    of: Literal["expert", "pair", "tensor"]
    values: Callable[[TensorMeasures], Values]
    form: str
    is_log: bool = False
    """Whether it spans orders of magnitude."""
    in_table: bool = True

    def mean(self, row: TensorMeasures) -> float | None:
        return mean_of(self.values(row))

    def text(self, value: float | None) -> str:
        return "-" if value is None else format(value, self.form)


def mean_of(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return fmean(present) if present else None


def _experts(of: Callable[[ExpertMeasures], float | None]) -> Callable[[TensorMeasures], Values]:
    return lambda row: [of(expert) for expert in row.experts]


def _spectra(of: Callable[[SpectrumMeasures], float]) -> Callable[[TensorMeasures], Values]:
    return lambda row: [of(expert.spectrum) if expert.spectrum else None for expert in row.experts]


def _pairs(of: Callable[[PairMeasures], float | None]) -> Callable[[TensorMeasures], Values]:
    return lambda row: [of(pair) for pair in row.pairs]


def _matrix(of: Callable[[MatrixMeasures], float | None]) -> Callable[[TensorMeasures], Values]:
    return lambda row: [of(row.matrix) if row.matrix else None]


def lesser_overlap(pair: PairMeasures) -> float | None:
    """Of the two sides of the matrix, the one whose leading directions overlap less."""
    if pair.overlap_output is None or pair.overlap_input is None:
        return None
    return min(pair.overlap_output, pair.overlap_input)


MEASURES = (
    Measure(
        "relative_size",
        "update",
        "size of the update over the base's",
        "expert",
        _experts(lambda e: e.relative_size),
        ".2%",
        is_log=True,
    ),
    Measure(
        "unchanged",
        "unchanged",
        "share of weights that are the base's own",
        "expert",
        _experts(lambda e: e.unchanged),
        ".0%",
    ),
    Measure(
        "kurtosis",
        "kurtosis",
        "tails of the update: 3 for a Gaussian, more for heavy ones",
        "expert",
        _experts(lambda e: e.kurtosis),
        ".1f",
        is_log=True,
    ),
    Measure(
        "effective_rank",
        "eff. rank",
        "effective rank of the update",
        "expert",
        _spectra(lambda s: s.effective_rank),
        ".0f",
    ),
    Measure("rank", "kept", "singular values that R-TSVM keeps", "expert", _spectra(lambda s: s.rank), ".0f"),
    Measure(
        "above_edge",
        "visible",
        "share of the update's energy above the rounding edge",
        "expert",
        _spectra(lambda s: s.above_edge),
        ".0%",
    ),
    Measure(
        "rounding_distance",
        "rounded",
        "how far rounding moved the update, over its size before",
        "expert",
        _spectra(lambda s: s.rounding_distance),
        ".0%",
    ),
    Measure(
        "alpha", "alpha", "R-TSVM's outlier weight, Eq. 8", "expert", _spectra(lambda s: s.alpha), ".2f", in_table=False
    ),
    Measure("omega", "Omega", "sparsity of the updates, Eq. 9", "tensor", _matrix(lambda m: m.omega), ".2f"),
    Measure("cosine", "cosine", "cosine of two experts' updates", "pair", _pairs(lambda p: p.cosine), ".3f"),
    Measure(
        "sign_conflicts",
        "conflicts",
        "opposite signs, of the weights that both experts change",
        "pair",
        _pairs(lambda p: p.sign_conflicts),
        ".0%",
    ),
    Measure(
        "overlap",
        "overlap",
        "overlap of two experts' leading directions, on the side of the matrix where it is less",
        "pair",
        _pairs(lesser_overlap),
        ".2f",
    ),
    Measure(
        "interference",
        "STI",
        "interference of the experts' singular vectors",
        "tensor",
        _matrix(lambda m: m.interference),
        ".3g",
        is_log=True,
        in_table=False,
    ),
    Measure(
        "relative_interference",
        "STI/S",
        "interference over the sum of the singular values",
        "tensor",
        _matrix(lambda m: m.relative_interference),
        ".2f",
    ),
    Measure(
        "over_counting",
        "s_r",
        "how often a plain sum counts an expert's directions",
        "expert",
        _spectra(lambda s: s.over_counting),
        ".2f",
    ),
)
