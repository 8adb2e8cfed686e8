"""What did the merge keep of each expert? Asked only where a merge left a record."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from mergekit_3h.diagnostics.conclusions.inspection import Conclusion, Inspection

QUESTION = "What did the merge keep?"

MAGNIFIED = 1000.0
"""Condition of the experts' vectors from which noise of a tenth of a percent can become as large as the merge. A
heuristic."""

_BASIS = "as the merge recorded it; which share makes a good merge is not known"


def what_did_the_merge_keep(inspection: Inspection) -> list[Conclusion]:
    matrices = [line for line in inspection.record.values() if "ranks" in line]
    if not inspection.record:
        return []
    return [_kept(inspection), *_magnified(matrices)]


def _kept(inspection: Inspection) -> Conclusion:
    lines = list(inspection.record.values())
    shares = {name: _median(line["surviving"][i] for line in lines) for i, name in enumerate(inspection.experts)}
    told = ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
    changed, away = (_median(line[key] for line in lines) for key in ("changed", "rounded_away"))
    distance = _median(line["rounding_distance"] for line in lines)
    text = (
        f"Of each expert's update (1 is all of it, median over {len(lines)} tensors): {told}. {changed:.0%} of the "
        f"weights changed; rounding the result gave {away:.0%} back to the base and moved the merged update by "
        f"{distance:.0%} of its size."
    )
    return Conclusion("merge-kept", QUESTION, "fine", text, basis=_BASIS, numbers=shares)


def _magnified(matrices: Sequence[Any]) -> list[Conclusion]:
    conditions = [max(known) for line in matrices if (known := _numbers(line.get("conditions")))]
    high = [condition for condition in conditions if condition > MAGNIFIED]
    if not high:
        return []
    return [
        Conclusion(
            "ill-conditioned",
            QUESTION,
            "note",
            f"In {len(high)} of {len(conditions)} matrices the experts' directions nearly coincide: the condition of "
            f"[U_1 .. U_n] or [V_1 .. V_n] is {median(high):,.0f} (median of those, the largest {max(high):,.0f}), and "
            "noise is magnified by as much.",
            advice="A lower rank lowers it (gamma, energy): compare such a merge.",
            basis="measured by the kernel; the threshold of 1000 is a heuristic",
            numbers={"matrices": len(high), "largest": max(high)},
        )
    ]


def _numbers(values: Sequence[float | None] | None) -> list[float]:
    return [value for value in values or () if value is not None]


def _median(values: Any) -> float:
    present = list(values)
    return median(present) if present else 0.0
