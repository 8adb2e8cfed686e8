"""Does the rounding of the checkpoints hide the updates?"""

from __future__ import annotations

from collections.abc import Iterator

from mergekit_3h.diagnostics.conclusions.inspection import Conclusion, Inspection

QUESTION = "Can a merge still see the updates under the rounding?"

HIDDEN = 0.5
"""Share of the update's energy that must stand out of the noise, and of the weights that must have changed. A
heuristic."""

_BASIS = (
    "unchanged weights are counted; the edge is the largest singular value that rounding alone explains. What a merge "
    "loses by it depends on the experts: little was seen for LoRA experts with the noise floor on"
)


def does_rounding_hide_updates(inspection: Inspection) -> list[Conclusion]:
    rounded = {i: name for i, name in enumerate(inspection.experts) if _is_rounded(inspection, i)}
    if not rounded:
        text = "Yes: no expert was rounded to 16 bits."
        return [Conclusion("not-rounded", QUESTION, "fine", text, basis=_BASIS)]
    found = list(_hidden(inspection, rounded))
    if found:
        return found
    told = [
        f"{name} {energy_above_edge(inspection, i):.0%}, {unchanged_weights(inspection, i):.0%}"
        for i, name in rounded.items()
    ]
    text = f"Yes. Energy of the update above the rounding edge, and weights left unchanged: {'; '.join(told)}."
    return [Conclusion("visible", QUESTION, "fine", text, basis=_BASIS)]


def _hidden(inspection: Inspection, rounded: dict[int, str]) -> Iterator[Conclusion]:
    for i, name in rounded.items():
        above, unchanged = energy_above_edge(inspection, i), unchanged_weights(inspection, i)
        if (above >= HIDDEN and unchanged <= HIDDEN) or _is_empty(inspection, i):
            continue
        yield Conclusion(
            "rounding-hides-update",
            QUESTION,
            "warning",
            f"Only in part: {name} has {above:.0%} of its update's energy above the rounding edge, and "
            f"{unchanged:.0%} of its weights are the base's own.",
            advice=f"Merge {name} from float32 weights, or from its adapter, if you have them: what rounding took "
            "cannot be found in these files. noise_floor: auto keeps the noise out of the decorrelation.",
            basis=_BASIS,
            numbers={"above_edge": above, "unchanged": unchanged},
            options={"noise_floor": "auto"} if inspection.settings.noise_floor == "off" else {},
        )


def energy_above_edge(inspection: Inspection, i: int) -> float:
    """Of the squared size of all matrices' updates, the part in singular values above the edge."""
    spectra = [(row.experts[i].norm ** 2, row.experts[i].spectrum) for row in inspection.matrices]
    total = sum(square for square, _ in spectra)
    return sum(square * spectrum.above_edge for square, spectrum in spectra if spectrum) / total if total > 0 else 1.0


def unchanged_weights(inspection: Inspection, i: int) -> float:
    total = sum(row.entries for row in inspection.measured)
    return sum(row.entries * row.experts[i].unchanged for row in inspection.measured) / total if total else 0.0


def _is_rounded(inspection: Inspection, i: int) -> bool:
    """Whether an edge was found anywhere, whatever the files' dtype; with the floor off, by the dtype alone."""
    edges = (row.experts[i].spectrum for row in inspection.matrices)
    if inspection.settings.noise_floor == "auto":
        return any(spectrum is not None and spectrum.noise_edge > 0 for spectrum in edges)
    return any(row.dtypes[i + 1] in ("bfloat16", "float16") for row in inspection.matrices)


def _is_empty(inspection: Inspection, i: int) -> bool:
    return all(row.experts[i].norm == 0 for row in inspection.measured)
