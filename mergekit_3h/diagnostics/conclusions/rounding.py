"""Does the rounding of the checkpoints hide the updates?"""

from __future__ import annotations

from collections.abc import Iterator
from math import hypot, isfinite

from mergekit_3h.diagnostics.conclusions.inspection import Conclusion, Inspection
from mergekit_3h.kernels.remainders import Remainder

QUESTION = "Can a merge still see the updates under the rounding?"

HIDDEN = 0.5
"""Share of the update's energy that must stand out of the noise, and of its size that rounding may move it by. A
heuristic."""

_BASIS = (
    "unchanged weights are counted; the distance is estimated from weights small enough to show the update, the edge "
    "is the largest singular value that rounding alone explains. What a merge loses by it depends on the experts, and "
    "was not validated"
)


def does_rounding_hide_updates(inspection: Inspection) -> list[Conclusion]:
    rounded = {i: name for i, name in enumerate(inspection.experts) if rounding_distance(inspection, i) > 0}
    if not rounded:
        text = "Yes: no expert was rounded to 16 bits."
        return [Conclusion("not-rounded", QUESTION, "fine", text, basis=_BASIS)]
    return list(_hidden(inspection, rounded)) or [_visible(inspection, rounded)]


def _visible(inspection: Inspection, rounded: dict[int, str]) -> Conclusion:
    told = [
        f"{name} {rounding_distance(inspection, i):.0%}, {energy_above_edge(inspection, i):.0%}, "
        f"{unchanged_weights(inspection, i):.0%}"
        for i, name in rounded.items()
    ]
    text = (
        "Yes. How far rounding moved the update, relative to its size; its energy above the rounding edge; weights "
        f"left unchanged: {'; '.join(told)}."
    )
    return Conclusion("visible", QUESTION, "fine", text, basis=_BASIS)


def _hidden(inspection: Inspection, rounded: dict[int, str]) -> Iterator[Conclusion]:
    for i, name in rounded.items():
        distance, above = rounding_distance(inspection, i), energy_above_edge(inspection, i)
        if distance <= HIDDEN and above >= HIDDEN:
            continue
        unchanged, left = unchanged_weights(inspection, i), remainder_of(inspection, i)
        yield Conclusion(
            "rounding-hides-update",
            QUESTION,
            "warning",
            f"Only in part: rounding moved the update of {name} by {distance:.0%} of its size, {above:.0%} of its "
            f"energy is above the rounding edge, and {unchanged:.0%} of the weights are the base's own."
            + _under_the_edge(left),
            advice=f"Merge {name} from float32 weights, or from its adapter, if you have them: what rounding took "
            f"cannot be found in these files. {_about_the_floor(left)}",
            basis=_BASIS,
            numbers={"distance": distance, "above_edge": above, "unchanged": unchanged, **_finite("T", left.ratio)},
        )


def _finite(name: str, value: float) -> dict[str, float]:
    return {name: value} if isfinite(value) else {}


def _about_the_floor(left: Remainder) -> str:
    if left.left_square > 0 and not left.is_rounding_alone:
        return "Compare merges with noise_floor: auto and off: either has a price here."
    return "noise_floor: auto keeps the noise out of the decorrelation."


def rounding_distance(inspection: Inspection, i: int) -> float:
    """How far rounding moved the update of all matrices together, relative to its size before."""
    spectra = [row.experts[i].spectrum for row in inspection.matrices]
    size = hypot(*(spectrum.unrounded_norm for spectrum in spectra if spectrum))
    moved = hypot(*(spectrum.rounding_distance * spectrum.unrounded_norm for spectrum in spectra if spectrum))
    return moved / size if size > 0 else 0.0


def energy_above_edge(inspection: Inspection, i: int) -> float:
    """Of the squared size of all matrices' updates, the part in singular values above the edge."""
    spectra = [(row.experts[i].norm ** 2, row.experts[i].spectrum) for row in inspection.matrices]
    total = sum(square for square, _ in spectra)
    return sum(square * spectrum.above_edge for square, spectrum in spectra if spectrum) / total if total > 0 else 1.0


def unchanged_weights(inspection: Inspection, i: int) -> float:
    total = sum(row.entries for row in inspection.measured)
    return sum(row.entries * row.experts[i].unchanged for row in inspection.measured) / total if total else 0.0


def remainder_of(inspection: Inspection, i: int) -> Remainder:
    """What lies under the edges of all matrices of an expert, and what rounding alone would leave there."""
    spectra = [row.experts[i].spectrum for row in inspection.matrices]
    return sum((Remainder(s.left_square, s.rounding_square) for s in spectra if s), start=Remainder())


def _under_the_edge(left: Remainder) -> str:
    if left.left_square == 0:
        return ""
    what = (
        "that is rounding alone, as of an update of low rank"
        if left.is_rounding_alone
        else "so a part of the update is there too, as of a full fine-tuning; noise_floor: auto cuts it away"
    )
    return f" Under the edge lies {left.ratio:.2f} times what rounding alone would leave: {what}."
