"""Are all numbers finite?"""

from __future__ import annotations

from mergekit_3h.diagnostics.conclusions.inspection import Conclusion, Inspection, listed

QUESTION = "Are all weights finite?"
_BASIS = "counted"


def are_all_numbers_finite(inspection: Inspection) -> list[Conclusion]:
    models = ["the base", *inspection.experts]
    found = [_broken(inspection, number, model) for number, model in enumerate(models)]
    broken = [conclusion for conclusion in found if conclusion is not None]
    if broken:
        return broken
    entries = sum(row.entries for row in inspection.measured)
    text = f"Yes: {entries:,} weights of each model in {len(inspection.measured)} tensors."
    return [Conclusion("finite", QUESTION, "fine", text, basis=_BASIS)]


def _broken(inspection: Inspection, number: int, model: str) -> Conclusion | None:
    counts = {row.tensor: row.broken[number] for row in inspection.rows if number in row.broken}
    if not counts:
        return None
    total = sum(counts.values())
    return Conclusion(
        "non-finite",
        QUESTION,
        "error",
        f"No: {total:,} weights of {model} are NaN or infinite, in {listed(list(counts))}.",
        advice=f"No merge can repair them. Get {model} anew, and check that it was saved whole.",
        basis=_BASIS,
        numbers={"weights": total, "tensors": len(counts)},
    )
