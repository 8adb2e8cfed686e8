"""Do vocabularies, embeddings and architectures fit together?"""

from __future__ import annotations

from collections.abc import Iterator

from mergekit_3h.diagnostics.conclusions.inspection import Conclusion, Inspection, listed

QUESTION = "Do the models fit together?"
_BASIS = "read from config.json, the tokenizers and the headers of the weights"


def do_the_models_fit_together(inspection: Inspection) -> list[Conclusion]:
    found = [*_from_check(inspection), *_tied_embeddings(inspection), *_left_out(inspection)]
    text = "Yes: architecture, tokenizers and the shapes of all tensors agree."
    return found or [Conclusion("fit", QUESTION, "fine", text, basis=_BASIS)]


def _from_check(inspection: Inspection) -> Iterator[Conclusion]:
    """What ``mergekit-3h check`` says about the models, a rule each, with the first of its findings."""
    by_rule: dict[str, list[str]] = {}
    for finding in inspection.findings:
        by_rule.setdefault(finding.rule, []).append(finding.message)
    for rule, messages in by_rule.items():
        first = next(finding for finding in inspection.findings if finding.rule == rule)
        more = f" ({len(messages) - 1} more like this)" if len(messages) > 1 else ""
        text = f"{messages[0]}{more}."
        yield Conclusion(rule, QUESTION, first.severity, text, _sentence(first.advice), _BASIS)


def _tied_embeddings(inspection: Inspection) -> Iterator[Conclusion]:
    base, *experts = inspection.tied or (None,)
    for name, tied in zip(inspection.experts, experts, strict=False):
        if None not in (base, tied) and base != tied:
            text = (
                f"{name} {'ties' if tied else 'does not tie'} its head to its embedding, the base "
                f"{'does' if base else 'does not'}: one of them has a head that the other lacks."
            )
            advice = "Save both in the same way. The result takes the base's, and the other's head would be lost."
            yield Conclusion("tied-embedding", QUESTION, "warning", text, advice, _BASIS)


def _left_out(inspection: Inspection) -> Iterator[Conclusion]:
    rows = [row for row in inspection.rows if row.problem and not row.broken and row.problem != "no elements"]
    if rows:
        names = listed([row.tensor for row in rows])
        text = f"{len(rows)} of {len(inspection.rows)} tensors could not be compared: {names} ({rows[0].problem})."
        advice = "What stands here about the models leaves these tensors out."
        yield Conclusion("not-compared", QUESTION, "warning", text, advice, _BASIS, {"tensors": len(rows)})


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""
