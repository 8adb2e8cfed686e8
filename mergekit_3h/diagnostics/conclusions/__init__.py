"""Questions that somebody about to merge has, each answered from an inspection: one question a file.

A question is a function of an ``Inspection``; what it says comes with the numbers behind it, what to do, and how well
founded it is. No score sums them up: no single number was found that tells whether a merge will work (arXiv
2601.22285).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mergekit_3h.diagnostics.conclusions.balance import does_an_expert_dominate
from mergekit_3h.diagnostics.conclusions.copies import is_an_expert_a_copy
from mergekit_3h.diagnostics.conclusions.finite import are_all_numbers_finite
from mergekit_3h.diagnostics.conclusions.fit import do_the_models_fit_together
from mergekit_3h.diagnostics.conclusions.gradients import do_the_gradients_agree
from mergekit_3h.diagnostics.conclusions.inspection import Conclusion, Inspection
from mergekit_3h.diagnostics.conclusions.interference import where_do_experts_interfere
from mergekit_3h.diagnostics.conclusions.origin import do_the_experts_come_from_the_base
from mergekit_3h.diagnostics.conclusions.outcome import what_did_the_merge_keep
from mergekit_3h.diagnostics.conclusions.rank import does_the_rank_adapt
from mergekit_3h.diagnostics.conclusions.rounding import does_rounding_hide_updates
from mergekit_3h.diagnostics.conclusions.training import were_the_experts_adapters
from mergekit_3h.diagnostics.conclusions.weighting import do_outlier_weights_turn_an_expert_down

QUESTIONS: tuple[Callable[[Inspection], Sequence[Conclusion]], ...] = (
    are_all_numbers_finite,
    do_the_models_fit_together,
    do_the_experts_come_from_the_base,
    is_an_expert_a_copy,
    does_an_expert_dominate,
    where_do_experts_interfere,
    does_rounding_hide_updates,
    were_the_experts_adapters,
    does_the_rank_adapt,
    do_outlier_weights_turn_an_expert_down,
    do_the_gradients_agree,
    what_did_the_merge_keep,
)


def conclusions(inspection: Inspection) -> list[Conclusion]:
    """What every question has to say, in the order of ``QUESTIONS``."""
    return [conclusion for question in QUESTIONS for conclusion in question(inspection)]


__all__ = ["QUESTIONS", "Conclusion", "Inspection", "conclusions"]
