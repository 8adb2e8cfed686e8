"""Do the experts pull the losses the same way? Asked only where data were given."""

from __future__ import annotations

from mergekit_3h.diagnostics.conclusions.inspection import Conclusion, Inspection

QUESTION = "Do the experts pull the losses the same way?"

_BASIS = (
    "measured on your records, at each expert's own weights. Of what was compared with the quality of merges this kind "
    "of measure is among the best supported (arXiv 2601.22285); no threshold was validated"
)


def do_the_gradients_agree(inspection: Inspection) -> list[Conclusion]:
    found = [_of_a_set(inspection, name) for name in dict.fromkeys(each.set_name for each in inspection.gradients)]
    if inspection.asked_for_gradients and not found:
        return [Conclusion("gradients", QUESTION, "fine", "There is only one expert.", basis=_BASIS)]
    return found


def _of_a_set(inspection: Inspection, name: str) -> Conclusion:
    own = [each for each in inspection.gradients if each.set_name == name]
    told = ", ".join(f"{inspection.named_pair(each.first, each.second)} {each.cosine:.2f}" for each in own)
    least = min(own, key=lambda each: each.cosine)
    numbers = {inspection.named_pair(each.first, each.second): each.cosine for each in own}
    if least.cosine >= 0:
        text = f"On the set {name} yes. Cosine of the gradients: {told}."
        return Conclusion("gradients", QUESTION, "fine", text, basis=_BASIS, numbers=numbers)
    return Conclusion(
        "opposed-gradients",
        QUESTION,
        "note",
        f"On the set {name} not all. Cosine of the gradients: {told}.",
        advice=f"What lowers this loss for one of {inspection.named_pair(least.first, least.second)} raises it for the "
        "other: look at this set first when you compare merges.",
        basis=_BASIS,
        numbers=numbers,
    )
