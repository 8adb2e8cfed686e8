"""Do the experts come from the base they are merged into?"""

from __future__ import annotations

from collections.abc import Iterator

from mergekit_3h.diagnostics.conclusions.inspection import Conclusion, Inspection

QUESTION = "Do the experts come from this base?"

SMALLEST_COSINE = 0.9
"""Between the weights of an expert and its base. A heuristic: fine-tunes seen had 0.99 and more, two models trained
from different starts have 0.0."""

COMMON_UPDATE = 0.8
"""Cosine of two experts' updates from which most of both is one and the same. A heuristic: experts trained apart, for
different tasks, were seen at 0.0 to 0.5."""

_BASIS = "measured; the thresholds (weights' cosine 0.9, updates' cosine 0.8) are heuristics"


def do_the_experts_come_from_the_base(inspection: Inspection) -> list[Conclusion]:
    found = [*_strangers(inspection), *_common_origin(inspection)]
    return found or [Conclusion("origin", QUESTION, "fine", _usual(inspection), basis=_BASIS)]


def _usual(inspection: Inspection) -> str:
    told = [
        f"{name} {_relative_size(inspection, i):.2%}, {_weight_cosine(inspection, i):.5f}"
        for i, name in enumerate(inspection.experts)
    ]
    return (
        "It looks like it. Size of the update over the base's, and cosine of the weights with the base's (medians over "
        f"the matrices): {'; '.join(told)}."
    )


def _strangers(inspection: Inspection) -> Iterator[Conclusion]:
    for i, name in enumerate(inspection.experts):
        cosine, size = _weight_cosine(inspection, i), _relative_size(inspection, i)
        if cosine < SMALLEST_COSINE and size > 0:
            yield Conclusion(
                "wrong-base",
                QUESTION,
                "error",
                f"{name} hardly does: the cosine of its weights with the base's is {cosine:.3f} (median over the "
                f"matrices; fine-tunes have 0.99 and more), and its update is {size:.0%} of the base's norm.",
                advice=f"Name the model that {name} was trained from as the base, or leave {name} out: the difference "
                "of two unrelated models is no task.",
                basis=_BASIS,
                numbers={"weight_cosine": cosine, "relative_size": size},
            )


def _common_origin(inspection: Inspection) -> Iterator[Conclusion]:
    """Every pair of experts shares most of its update: they lie closer to each other than to the base."""
    cosines = {
        (i, j): inspection.typical_of_pair(i, j, lambda pair: pair.cosine)
        for i, j in inspection.pairs()
        if not _are_copies(inspection, i, j)
    }
    if not cosines or min(cosines.values()) <= COMMON_UPDATE:
        return
    (i, j), least = min(cosines.items(), key=lambda item: item[1])
    yield Conclusion(
        "common-origin",
        QUESTION,
        "warning",
        f"Probably from another one: the updates of all experts point the same way (cosine {least:.2f} for "
        f"{inspection.named_pair(i, j)}, more for the others), as if they came from one model that is not this base.",
        advice="If they were trained from a later model (an instruct version of the base, for example), name that one "
        "as the base: its whole update would be counted once for every expert. Versions of one training look the same.",
        basis=_BASIS,
        numbers={"least_cosine": least},
    )


def _are_copies(inspection: Inspection, i: int, j: int) -> bool:
    return inspection.typical_of_pair(i, j, lambda pair: pair.cosine) > 1 - 1e-6


def _weight_cosine(inspection: Inspection, i: int) -> float:
    return inspection.typical(i, lambda expert: expert.weight_cosine)


def _relative_size(inspection: Inspection, i: int) -> float:
    return inspection.typical(i, lambda expert: expert.relative_size)
