"""An inspection in a few lines: a table by type of tensor, suggested options, and everything as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import yaml

from mergekit_3h.diagnostics.conclusions import Conclusion, Inspection
from mergekit_3h.diagnostics.rows import ExpertMeasures, PairMeasures, SpectrumMeasures, TensorMeasures
from mergekit_3h.tables import Table


@dataclass(frozen=True)
class Column:
    """A measure of a tensor, as the table shows its median over the tensors of a type."""

    title: str
    meaning: str
    of_tensor: Callable[[TensorMeasures], float | None]
    form: str


def _mean(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return fmean(present) if present else None


def _of_experts(measure: Callable[[ExpertMeasures], float | None]) -> Callable[[TensorMeasures], float | None]:
    return lambda row: _mean(measure(expert) for expert in row.experts)


def _of_spectra(measure: Callable[[SpectrumMeasures], float]) -> Callable[[TensorMeasures], float | None]:
    return lambda row: _mean(measure(expert.spectrum) for expert in row.experts if expert.spectrum is not None)


def _of_pairs(measure: Callable[[PairMeasures], float | None]) -> Callable[[TensorMeasures], float | None]:
    return lambda row: _mean(measure(pair) for pair in row.pairs)


COLUMNS = (
    Column("update", "size of the update over the base's", _of_experts(lambda e: e.relative_size), ".2%"),
    Column("unchanged", "weights that are the base's own", _of_experts(lambda e: e.unchanged), ".0%"),
    Column("kurtosis", "3 for a Gaussian, more for heavy tails", _of_experts(lambda e: e.kurtosis), ".1f"),
    Column("eff. rank", "effective rank of the update", _of_spectra(lambda s: s.effective_rank), ".0f"),
    Column("kept", "singular values that the merge keeps", _of_spectra(lambda s: s.rank), ".0f"),
    Column("visible", "energy above the rounding edge", _of_spectra(lambda s: s.above_edge), ".0%"),
    Column("Omega", "sparsity, Eq. 9", lambda row: row.matrix.omega if row.matrix else None, ".2f"),
    Column("cosine", "of two experts' updates", _of_pairs(lambda p: p.cosine), ".3f"),
    Column("conflicts", "opposite signs where both change a weight", _of_pairs(lambda p: p.sign_conflicts), ".0%"),
    Column("overlap", "of two experts' leading directions, lesser side", _of_pairs(lambda p: lesser_overlap(p)), ".2f"),
    Column(
        "STI/S", "interference over the singular values", lambda r: r.matrix and r.matrix.relative_interference, ".2f"
    ),
    Column("s_r", "how often a plain sum counts an expert's directions", _of_spectra(lambda s: s.over_counting), ".2f"),
)


def lesser_overlap(pair: PairMeasures) -> float | None:
    """Of the two sides of the matrix, the one whose leading directions overlap less."""
    if pair.overlap_output is None or pair.overlap_input is None:
        return None
    return min(pair.overlap_output, pair.overlap_input)


def table_by_type(rows: Sequence[TensorMeasures]) -> Table:
    """Medians over the tensors of each type, of the experts' or pairs' means; a dash where there is none."""
    by_type: dict[str, list[TensorMeasures]] = {}
    for row in rows:
        if not row.problem:
            by_type.setdefault(row.place[1], []).append(row)
    body = [[kind, str(len(own)), *(_cell(column, own) for column in COLUMNS)] for kind, own in by_type.items()]
    return Table(["type", "tensors", *(column.title for column in COLUMNS)], body)


def _cell(column: Column, rows: Sequence[TensorMeasures]) -> str:
    values = [value for value in map(column.of_tensor, rows) if value is not None]
    return format(median(values), column.form) if values else "-"


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
        "tensors": [row.model_dump(mode="json") for row in inspection.rows],
    }
