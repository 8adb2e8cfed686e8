"""Do R-TSVM's outlier weights turn an expert down?"""

from __future__ import annotations

from statistics import median

from mergekit_3h.diagnostics.conclusions.inspection import Conclusion, Inspection
from mergekit_3h.diagnostics.rows import TensorMeasures

QUESTION = "Do R-TSVM's outlier weights turn an expert down?"

UNEQUAL = 4.0
"""Largest over smallest weight in the typical matrix. A heuristic: see the basis."""

MOST_UNEQUAL = 100.0
"""An expert without an outlier has weight 0; more than this is not told apart."""

_BASIS = (
    "measured; the threshold (four times) is a heuristic. Among the toy experts of docs/lab.md these weights cost the "
    "more, the more they differed; with the real model there rtsvm kept less than tsvm"
)


def do_outlier_weights_turn_an_expert_down(inspection: Inspection) -> list[Conclusion]:
    if inspection.method not in ("", "rtsvm") or inspection.settings.outlier_weighting == "none":
        text = "There are none: all experts weigh alike."
        return [Conclusion("no-outlier-weights", QUESTION, "fine", text, basis=_BASIS)]
    ratios = [_ratio(row) for row in inspection.matrices]
    ratio = median(ratios) if ratios else 1.0
    if ratio <= UNEQUAL:
        text = f"No: the largest is {ratio:.1f} times the smallest (median over the matrices)."
        return [Conclusion("even-outlier-weights", QUESTION, "fine", text, basis=_BASIS, numbers={"ratio": ratio})]
    at_least = "at least " if ratio >= MOST_UNEQUAL else ""
    return [
        Conclusion(
            "uneven-outlier-weights",
            QUESTION,
            "warning" if inspection.method else "note",
            f"Yes: in the typical matrix the largest is {at_least}{ratio:.1f} times the smallest.",
            advice="Set outlier_weighting: none, or a smaller outlier_strength, and compare both merges on data.",
            basis=_BASIS,
            numbers={"ratio": ratio},
            options={"outlier_weighting": "none"} if inspection.method else {},
        )
    ]


def _ratio(row: TensorMeasures) -> float:
    weights = [expert.spectrum.alpha for expert in row.experts if expert.spectrum is not None]
    most = max(weights, default=0.0)
    return most / max(min(weights), most / MOST_UNEQUAL) if most > 0 else 1.0
