"""Does one expert dominate the others?"""

from __future__ import annotations

from statistics import median

from mergekit_3h.diagnostics.conclusions.inspection import Conclusion, Inspection

QUESTION = "Does an expert dominate?"

DOMINATING = 3.0
"""How many times the others' median size. A heuristic."""

_BASIS = (
    "measured; the threshold (three times the others) is a heuristic. That equal sizes make a better merge was not "
    "validated"
)


def does_an_expert_dominate(inspection: Inspection) -> list[Conclusion]:
    if len(inspection.experts) < 2:
        return [Conclusion("one-expert", QUESTION, "fine", "There is only one.", basis=_BASIS)]
    ratios = {i: _ratio(inspection, i) for i in range(len(inspection.experts))}
    found = [_dominating(inspection, i, ratio) for i, ratio in ratios.items() if ratio > DOMINATING]
    if found:
        return found
    told = ", ".join(f"{name} {ratios[i]:.2f}" for i, name in enumerate(inspection.experts))
    text = f"No. Size of the update over the others' median, median over the matrices: {told}."
    return [Conclusion("balance", QUESTION, "fine", text, basis=_BASIS, numbers=_named(inspection, ratios))]


def _dominating(inspection: Inspection, i: int, ratio: float) -> Conclusion:
    name, alpha = inspection.experts[i], _alpha(inspection, i)
    weighting = f" rtsvm's outlier weights add to it: alpha is {alpha:.2f} times its mean." if alpha > 1.1 else ""
    return Conclusion(
        "dominating-expert",
        QUESTION,
        "warning",
        f"{name} does: its updates are {ratio:.1f} times as large as the others' (median over matrices).{weighting}",
        advice=f"Lower its weight to about {1 / ratio:.2f}, which makes the sizes equal, or look whether it was "
        "trained too long; then compare both merges on data.",
        basis=_BASIS,
        numbers={"ratio": ratio, "alpha": alpha},
        options={"weights": {name: round(1 / ratio, 2)}},
    )


def _ratio(inspection: Inspection, i: int) -> float:
    """The expert's size over the median of the others that have one, in the typical matrix."""
    ratios: list[float] = []
    for row in inspection.matrices or inspection.measured:
        others = [expert.norm for j, expert in enumerate(row.experts) if j != i and expert.norm > 0]
        if others:
            ratios.append(row.experts[i].norm / median(others))
    return median(ratios) if ratios else 1.0


def _alpha(inspection: Inspection, i: int) -> float:
    """The outlier weight in the typical matrix, over the mean of all experts' there."""
    found: list[float] = []
    for row in inspection.matrices:
        alphas = [expert.spectrum.alpha for expert in row.experts if expert.spectrum is not None]
        if sum(alphas) > 0:
            found.append(alphas[i] * len(alphas) / sum(alphas))
    return median(found) if found else 1.0


def _named(inspection: Inspection, ratios: dict[int, float]) -> dict[str, float]:
    return {inspection.experts[i]: ratio for i, ratio in ratios.items()}
