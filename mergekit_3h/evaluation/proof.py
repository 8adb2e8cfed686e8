"""What a merge did, in sentences: which dimension its expert lost, and what to try."""

from __future__ import annotations

from collections.abc import Mapping

from mergekit_3h.evaluation.gains import forgetting, likelihood_metrics, score_difference, scored_metrics
from mergekit_3h.evaluation.result import EvaluationResult

_ADVICE = (
    "Try more weight for {expert}, a smaller lambda, another method (`mergekit-3h sweep`), or safety_merge, which "
    "searches weights by data."
)
_NEGLIGIBLE = 0.01
"""Share of the expert's gain: a difference below it may be certain, with thousands of items or by rounding alone, but
nobody minds it. A heuristic."""


def own_experts(
    results: Mapping[str, EvaluationResult], base: str | None, merge: str, given: Mapping[str, str]
) -> dict[str, str]:
    """The expert of each dimension: as given, else the model that is best in it, if it is better than the base."""
    candidates = [name for name in results if name not in (base, merge)]
    found: dict[str, str] = {}
    for dimension in results[merge].dimensions:
        if dimension in given:
            found[dimension] = given[dimension]
            continue
        names = _judged_by(results[merge], dimension)
        gains: dict[str, float] = {}
        for name in candidates:
            against = results[base] if base is not None else results[merge]
            difference = score_difference(results[name], against, names) if names else None
            if difference is not None:
                gains[name] = difference.difference
        best = max(gains, key=lambda name: gains[name], default=None)
        if best is not None and gains[best] > 0.0:
            found[dimension] = best
    return found


def verdicts(
    results: Mapping[str, EvaluationResult], base: str | None, merge: str, experts: Mapping[str, str]
) -> tuple[list[str], bool]:
    """Sentences on the merge, and whether one of them is bad: an expert's dimension lost by more than chance."""
    said: list[str] = []
    is_bad = False
    for dimension, expert in experts.items():
        sentence, is_lost = _on_a_dimension(results, base, merge, dimension, expert)
        said.append(sentence)
        is_bad = is_bad or is_lost
    for dimension in results[merge].dimensions:
        if dimension not in experts:
            said.append(f"{dimension}: no model is better in it than the base, so there was nothing to keep.")
    lost = forgetting(results[merge], results[base]) if base is not None else None
    if lost is not None and lost.too_few:
        said.append("Too few items to tell whether the merge has forgotten some of what nobody trained for.")
    elif lost is not None and lost.is_clear and lost.difference > 0.0:
        said.append(
            f"The merge has forgotten some of what nobody trained for: {lost.difference:.2f} points "
            f"({lost.interval.low:.2f} to {lost.interval.high:.2f}). Try a smaller lambda."
        )
    return said, is_bad


def _on_a_dimension(
    results: Mapping[str, EvaluationResult], base: str | None, merge: str, dimension: str, expert: str
) -> tuple[str, bool]:
    names = _judged_by(results[merge], dimension)
    found = score_difference(results[merge], results[expert], names)
    if found is None:
        return f"{dimension}: the merge and {expert} have no score in common.", False
    if found.too_few:
        return f"{dimension}: {found.too_few} to tell the merge from {expert}.", False
    gained = score_difference(results[expert], results[base], names) if base is not None else None
    if gained is not None and abs(found.difference) < _NEGLIGIBLE * gained.difference:
        return f"{dimension}: kept; the merge is where {expert} is.", False
    unit = "points" if scored_metrics(results[merge], dimension) else "nats of the answers' likelihood"
    low, high = found.interval.low, found.interval.high
    near, far = sorted((abs(low), abs(high)))
    shown = f"{abs(found.difference):.2f} {unit} (95 %: {near:.2f} to {far:.2f})"
    if not found.is_clear:
        return f"{dimension}: kept; the difference to {expert} may be chance.", False
    if found.difference > 0.0:
        return f"{dimension}: better than {expert} by {shown}.", False
    return f"{dimension}: lost against {expert} by {shown}. {_ADVICE.format(expert=expert)}", True


def _judged_by(result: EvaluationResult, dimension: str) -> dict[str, float]:
    """The metrics of the dimension's average; its likelihoods where it has no others."""
    return scored_metrics(result, dimension) or likelihood_metrics(result, dimension)
