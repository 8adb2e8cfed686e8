"""Does the rank that R-TSVM chooses adapt to the layers?"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, sqrt

from mergekit_3h.diagnostics.conclusions.inspection import Conclusion, Inspection
from mergekit_3h.diagnostics.entries import LARGEST_EXPONENT, SMALLEST_EXPONENT
from mergekit_3h.diagnostics.rows import TensorMeasures

QUESTION = "Does R-TSVM's rank adapt to the layers?"

CONSTANT = 0.05
"""Difference of Omega between the 10th and the 90th percentile of the matrices, under which it is called constant: with
gamma 0.2 the rank then differs by a hundredth. A heuristic."""

WORTH_IT = 2 * CONSTANT
"""Difference that another epsilon must bring before it is proposed."""

_BASIS = "counted; whether a rank that adapts makes a better merge was not validated"


def does_the_rank_adapt(inspection: Inspection) -> list[Conclusion]:
    settings, rows = inspection.settings, [row for row in inspection.matrices if row.matrix]
    if inspection.method == "tsvm" or settings.rank_selection == "none" or settings.gamma == 0:
        text = "It is not meant to: every matrix gets the same share of its full rank."
        return [Conclusion("rank-fixed", QUESTION, "fine", text, basis=_BASIS)]
    if len(rows) < 2:
        return [Conclusion("rank-unknown", QUESTION, "unknown", "There are no two matrices to compare.", basis=_BASIS)]
    low, high = spread([row.matrix.omega or 0.0 for row in rows if row.matrix])
    floor = _limited_by_the_floor(rows)
    if high - low > CONSTANT:
        text = f"Yes: Omega is {low:.2f} to {high:.2f} (10th to 90th percentile of the matrices).{floor}"
        return [Conclusion("rank-adapts", QUESTION, "fine", text, basis=_BASIS)]
    return [_constant(inspection, rows, low, high, floor)]


def _constant(
    inspection: Inspection, rows: Sequence[TensorMeasures], low: float, high: float, floor: str
) -> Conclusion:
    text = (
        f"No: Omega is {low:.2f} to {high:.2f} in all matrices (10th to 90th percentile), so the rank is the same "
        f"share of the full one everywhere.{floor}"
    )
    exponent, (new_low, new_high) = best_epsilon(rows)
    if new_high - new_low < WORTH_IT:
        advice = "No threshold would change that: the updates of all matrices are of one size."
        return Conclusion("constant-rank", QUESTION, "note", text, advice, _BASIS, {"low": low, "high": high})
    epsilon = float(f"{sqrt(2.0**exponent):.4g}")
    return Conclusion(
        "constant-rank",
        QUESTION,
        "warning" if inspection.method == "rtsvm" else "note",
        text,
        advice=f"One epsilon for the whole model would adapt it: with {epsilon:g} Omega is {new_low:.2f} to "
        f"{new_high:.2f}. Or use tsvm, which promises no adaptation.",
        basis=_BASIS,
        numbers={"low": low, "high": high, "epsilon": epsilon, "new_low": new_low, "new_high": new_high},
        options={"epsilon_mode": "absolute", "epsilon": epsilon},
    )


def best_epsilon(rows: Sequence[TensorMeasures]) -> tuple[int, tuple[float, float]]:
    """The exponent e whose epsilon 2^(e/2) gives Omega the widest spread over the matrices, and that spread."""
    spreads = {
        exponent: spread([omega_below(row, exponent) for row in rows])
        for exponent in range(SMALLEST_EXPONENT, LARGEST_EXPONENT + 1)
    }
    return max(spreads.items(), key=lambda item: item[1][1] - item[1][0])


def omega_below(row: TensorMeasures, exponent: int) -> float:
    """Omega for the absolute epsilon 2^(e/2)."""
    return row.omegas[max((e for e in row.omegas if e <= exponent), default=SMALLEST_EXPONENT)]


def spread(values: Sequence[float]) -> tuple[float, float]:
    """The 10th and the 90th percentile, each the value of one of the matrices."""
    ordered = sorted(values)
    at = ceil(0.1 * len(ordered)) - 1
    return ordered[at], ordered[len(ordered) - 1 - at]


def _limited_by_the_floor(rows: Sequence[TensorMeasures]) -> str:
    limited = sum(
        row.matrix is not None and all(e.spectrum is None or e.spectrum.rank < row.matrix.budget for e in row.experts)
        for row in rows
    )
    if not limited:
        return ""
    return f" In {limited} of {len(rows)} matrices noise floor or energy keep every expert under that rank anyway."
