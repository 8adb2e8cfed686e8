"""Is an expert the base itself, or another expert?"""

from __future__ import annotations

from collections.abc import Iterator
from math import hypot

from mergekit_3h.diagnostics.conclusions.inspection import Conclusion, Inspection, pair_of

QUESTION = "Is an expert a copy?"

SAME = 1e-6
"""Distance of two updates, relative to their size, under which they are one: ten times what cancellation leaves."""

NEARLY_SAME = 0.98
"""Cosine of two updates over all weights. A heuristic: two checkpoints of one training look like this."""

_BASIS = "counted over all weights"


def is_an_expert_a_copy(inspection: Inspection) -> list[Conclusion]:
    found = [*_of_the_base(inspection), *_of_each_other(inspection)]
    text = "No: every expert changes weights of its own."
    return found or [Conclusion("no-copies", QUESTION, "fine", text, basis=_BASIS)]


def _of_the_base(inspection: Inspection) -> Iterator[Conclusion]:
    for i, name in enumerate(inspection.experts):
        if inspection.measured and all(row.experts[i].norm == 0 for row in inspection.measured):
            yield Conclusion(
                "expert-equals-base",
                QUESTION,
                "warning",
                f"{name} equals the base in every weight looked at: it adds nothing.",
                advice=f"Leave {name} out, or name the right folder: with it a mean becomes smaller, and the rank that "
                "the others share too.",
                basis=_BASIS,
                numbers={"norm": 0.0},
            )


def _of_each_other(inspection: Inspection) -> Iterator[Conclusion]:
    for i, j in inspection.pairs():
        size, distance, cosine = _whole_model(inspection, i, j)
        if size == 0 or cosine < NEARLY_SAME:
            continue
        same = distance <= SAME * size
        yield Conclusion(
            "equal-experts" if same else "similar-experts",
            QUESTION,
            "warning",
            f"{inspection.named_pair(i, j)} {'are the same' if same else 'are nearly the same'}: "
            f"their updates have the cosine {cosine:.4f}, and differ by {distance / size:.1e} of their size.",
            advice="Leave one of them out, or halve their weights: what they share counts twice.",
            basis=_BASIS,
            numbers={"cosine": cosine, "relative_distance": distance / size},
            options={"weights": {inspection.experts[i]: 0.5, inspection.experts[j]: 0.5}},
        )


def _whole_model(inspection: Inspection, i: int, j: int) -> tuple[float, float, float]:
    """The larger update's norm, the distance of the two, and their cosine, over all tensors."""
    norms = [hypot(*(row.experts[e].norm for row in inspection.measured)) for e in (i, j)]
    pairs = [(row, pair_of(row, i, j)) for row in inspection.measured]
    distance = hypot(*(pair.distance for _, pair in pairs))
    dot = sum(pair.cosine * row.experts[i].norm * row.experts[j].norm for row, pair in pairs)
    return max(norms), distance, dot / (norms[0] * norms[1]) if min(norms) > 0 else 0.0
