"""What lm-eval reports of a task, as items with values, and kept on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from mergekit_3h.evaluation.items import EvaluatedItem, Measured
from mergekit_3h.writing import write_text_whole

_AGREEMENT = 1e-6
"""How far the mean of the items may be from lm-eval's score when it is that mean: both are sums in another order."""


def measured_of(report: Mapping[str, Any], metric: tuple[str, str], scale: float) -> Measured:
    column = ",".join(metric)
    top = next(iter(report.get("groups") or report["results"]))
    outcome = (report.get("groups") or report["results"])[top]
    tasks = report["samples"]
    items = [
        _item(sample, metric[0], name if len(tasks) > 1 else "")
        for name, samples in tasks.items()
        for sample in samples
        if sample.get("filter", "none") == metric[1]
    ]
    higher = next((known[metric[0]] for known in report["higher_is_better"].values() if metric[0] in known), True)
    versions = {name: str(found) for name, found in report["versions"].items()}
    found: dict[str, Any] = {"lm-eval": column, "task versions": versions}
    measured = Measured(items, "lower" if higher is False else "higher", scale, details=found)
    values = list(measured.values.values())
    score = outcome.get(column)
    if score is None or (
        len(values) == len(items) and abs(sum(values) / len(values) - score) <= _AGREEMENT * max(1.0, abs(score))
    ):
        return measured
    error = outcome.get(f"{metric[0]}_stderr,{metric[1]}")
    error = error if isinstance(error, float) else None
    return Measured(items, measured.better, scale, scale * score, None if error is None else scale * error, found)


def _item(sample: Mapping[str, Any], metric: str, task: str) -> EvaluatedItem:
    value: Any = sample.get(metric)
    number = float(value) if isinstance(value, (bool, int, float)) or hasattr(value, "item") else None
    return EvaluatedItem(
        id="/".join(filter(None, [task, str(sample["doc_id"]), str(sample["doc_hash"])[:12]])),
        prompt=_first_text(sample["arguments"]),
        reply=_first_text(sample["filtered_resps"]) if _is_text(sample["filtered_resps"]) else None,
        value=number,
        verdict=str(sample["target"])[:200],
        reason=None if number is not None else "lm-eval gives no number for a single item of this metric",
    )


def _is_text(replies: Any) -> bool:
    return isinstance(replies, list) and bool(replies) and isinstance(replies[0], str)


def _first_text(given: Any) -> str:
    """The first text in lm-eval's nested lists and mappings."""
    while not isinstance(given, str):
        if isinstance(given, Mapping) and given:
            given = next(iter(cast("Mapping[str, Any]", given).values()))
        elif isinstance(given, Sequence) and given:
            given = given[0]
        else:
            return str(given)
    return given


class KeptReport:
    """What a task gave, on disk: it is there whole or not at all."""

    def __init__(self, path: Path, key: str) -> None:
        self._path, self._key = path, key

    def read(self) -> Measured | None:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if found.pop("key", None) != self._key:
            return None
        return Measured(**{**found, "items": [EvaluatedItem.model_validate(item) for item in found["items"]]})

    def write(self, measured: Measured) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        content = {**vars(measured), "items": [item.model_dump() for item in measured.items], "key": self._key}
        write_text_whole(self._path, json.dumps(content))
