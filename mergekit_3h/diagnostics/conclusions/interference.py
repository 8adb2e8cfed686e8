"""Where do the experts get in each other's way?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from math import ceil
from statistics import fmean, median

from mergekit_3h.diagnostics.conclusions.inspection import Conclusion, Inspection, listed, pair_of
from mergekit_3h.diagnostics.rows import TensorMeasures

QUESTION = "Where do the experts interfere?"

SHARED = 0.5
"""Overlap of two experts' leading directions beyond chance, as a share of what is possible. A heuristic."""

FEW_MATRICES = 0.1
"""A share of the matrices, both of those looked at for concentration and of those that must share their directions."""

CONCENTRATED = 3 * FEW_MATRICES
"""Share of the interference in the tenth of the matrices that has most of it, from which it is called concentrated:
three times what an even spread gives."""

_BASIS = (
    "STI, overlaps and s_r are measured; from where on they harm a merge was not validated (the overlap of 0.5 and the "
    "concentration of three times an even spread are heuristics)"
)


def where_do_experts_interfere(inspection: Inspection) -> list[Conclusion]:
    if len(inspection.experts) < 2 or not inspection.matrices:
        return [Conclusion("no-pairs", QUESTION, "fine", "There are no two experts' matrices to compare.")]
    shared = list(_shared_directions(inspection))
    concentrated = _concentration(inspection)
    return shared + (concentrated or ([] if shared else [_spread_evenly(inspection)]))


def excess(overlap: float | None, chance: float) -> float:
    """What an overlap has beyond chance, as a share of what it could: 0 for unrelated subspaces, 1 for equal ones."""
    return max(0.0, ((overlap or 0.0) - chance) / (1 - chance)) if chance < 1 else 0.0


def _excess(row: TensorMeasures, i: int, j: int) -> float:
    """Of the side of the matrix that is shared less: directions that meet on one side only add up without harm."""
    pair, matrix = pair_of(row, i, j), row.matrix
    if matrix is None:
        return 0.0
    return min(excess(pair.overlap_output, matrix.chance_output), excess(pair.overlap_input, matrix.chance_input))


def _shared_directions(inspection: Inspection) -> Iterator[Conclusion]:
    for i, j in inspection.pairs():
        sharing = [row for row in inspection.matrices if _excess(row, i, j) > SHARED]
        if len(sharing) < FEW_MATRICES * len(inspection.matrices) or _same_everywhere(inspection, i, j):
            continue
        typical = median(_excess(row, i, j) for row in sharing)
        counted = fmean(_over_counting(row, e) for row in sharing for e in (i, j))
        rank = sharing[0].matrix.overlap_rank if sharing[0].matrix else 0
        yield Conclusion(
            "shared-directions",
            QUESTION,
            "warning",
            f"{inspection.named_pair(i, j)} share their {rank} leading directions in {len(sharing)} of "
            f"{len(inspection.matrices)} matrices (overlap {typical:.2f} beyond chance on both sides; most in "
            f"{listed(_types(sharing))}). A plain sum counts those directions {counted:.1f} times (SVC's s_r).",
            advice="Have they learnt the same (a chat format, for example)? Then a sum exaggerates it: use a method "
            "that decorrelates (tsvm, rtsvm), or lower both weights.",
            basis=_BASIS,
            numbers={"matrices": len(sharing), "overlap": typical, "s_r": counted},
        )


def _same_everywhere(inspection: Inspection, i: int, j: int) -> bool:
    """Copies, and experts of another base, have an answer of their own."""
    return inspection.typical_of_pair(i, j, lambda pair: pair.cosine) > 0.8


def _concentration(inspection: Inspection) -> list[Conclusion]:
    ordered = sorted(inspection.matrices, key=_interference, reverse=True)
    few = ordered[: ceil(FEW_MATRICES * len(ordered))]
    total = sum(map(_interference, ordered))
    share = sum(map(_interference, few)) / total if total > 0 else 0.0
    if share <= CONCENTRATED or len(ordered) < 2 / FEW_MATRICES:
        return []
    names = [row.tensor for row in few]
    return [
        Conclusion(
            "concentrated-interference",
            QUESTION,
            "note",
            f"{share:.0%} of the interference (STI) is in {len(few)} of {len(ordered)} matrices: {listed(names)}; "
            f"by type {listed(_types(few))}.",
            advice="If a merge loses what an expert can, look there first: try it without these matrices of one "
            "expert, or with a lower rank there (energy, by mergekit's filters).",
            basis=_BASIS,
            numbers={"share": share, "matrices": len(few)},
        )
    ]


def _spread_evenly(inspection: Inspection) -> Conclusion:
    relative = [row.matrix.relative_interference for row in inspection.matrices if row.matrix]
    conflicts = [pair.sign_conflicts for row in inspection.matrices for pair in row.pairs]
    cosines = [pair.cosine for row in inspection.matrices for pair in row.pairs]
    text = (
        f"Nowhere in particular. STI over the singular values' sum {median(relative):.2f} (median over the matrices; "
        f"{(len(inspection.experts) - 1) ** 2} for equal experts), updates' cosine {median(cosines):.3f}, "
        f"opposite signs in {median(conflicts):.0%} of the weights that two experts change."
    )
    numbers = {"relative_interference": median(relative), "cosine": median(cosines), "conflicts": median(conflicts)}
    return Conclusion("interference", QUESTION, "fine", text, basis=_BASIS, numbers=numbers)


def _interference(row: TensorMeasures) -> float:
    return row.matrix.interference if row.matrix else 0.0


def _over_counting(row: TensorMeasures, expert: int) -> float:
    spectrum = row.experts[expert].spectrum
    return spectrum.over_counting if spectrum else 0.0


def _types(rows: Sequence[TensorMeasures]) -> list[str]:
    """Types of tensors with their numbers, the most frequent first."""
    counts: dict[str, int] = defaultdict(int)
    for row in rows:
        counts[row.place[1]] += 1
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return [f"{kind} ({count})" for kind, count in ordered]
