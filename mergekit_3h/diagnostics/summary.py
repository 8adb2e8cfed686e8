"""An inspection in a few lines: a table by type of tensor, suggested options, and everything as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import yaml

from mergekit_3h.diagnostics.conclusions import Conclusion, Inspection
from mergekit_3h.diagnostics.measures import MEASURES, Measure
from mergekit_3h.diagnostics.rows import TensorMeasures
from mergekit_3h.tables import Table


def table_by_type(rows: Sequence[TensorMeasures]) -> Table:
    """Medians over the tensors of each type, of the experts' or pairs' means; a dash where there is none."""
    by_type: dict[str, list[TensorMeasures]] = {}
    for row in rows:
        if not row.problem:
            by_type.setdefault(row.place[1], []).append(row)
    shown = [measure for measure in MEASURES if measure.in_table]
    body = [[kind, str(len(own)), *(_typical(measure, own) for measure in shown)] for kind, own in by_type.items()]
    return Table(["type", "tensors", *(measure.title for measure in shown)], body)


def _typical(measure: Measure, rows: Sequence[TensorMeasures]) -> str:
    values = [value for value in map(measure.mean, rows) if value is not None]
    return measure.text(median(values) if values else None)


def suggested_config(inspection: Inspection, found: Sequence[Conclusion], models: Sequence[str]) -> str:
    """The options that the conclusions propose as a piece of a mergekit config; empty where they propose none.

    ``models`` are the experts' names as a config writes them.
    """
    weights: dict[str, float] = {}
    options: dict[str, Any] = {}
    for conclusion in found:
        options |= {name: value for name, value in conclusion.options.items() if name != "weights"}
        weights |= conclusion.options.get("weights", {})
    if not weights and not options:
        return ""
    entries: list[dict[str, Any]] = []
    for name, model in zip(inspection.experts, models, strict=True):
        own = {"parameters": {"weight": weights[name]}} if name in weights else {}
        entries.append({"model": model, **own})
    needs_rtsvm = bool({"epsilon", "epsilon_mode"} & set(options))
    method = "rtsvm" if needs_rtsvm or not inspection.method else inspection.method
    content: dict[str, Any] = {"merge_method": method, "base_model": inspection.base, "models": entries}
    if options:
        content["parameters"] = options
    return yaml.safe_dump(content, sort_keys=False)


def as_json(inspection: Inspection, found: Sequence[Conclusion], models: Sequence[str]) -> dict[str, Any]:
    return {
        "base": inspection.base,
        "experts": list(inspection.experts),
        "conclusions": [conclusion.as_dict() for conclusion in found],
        "suggested_config": suggested_config(inspection, found, models),
        "gradients": [each.as_dict() for each in inspection.gradients],
        "tensors": [row.model_dump(mode="json") for row in inspection.rows],
    }
