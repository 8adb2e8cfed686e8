"""Results as a table: means over the seeds with standard errors, and every merge against the sum, seed by seed."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, median, stdev
from typing import Any

from world import DIMENSIONS

REFERENCE = "task_arithmetic"
COLUMNS = (
    "row",
    "gain kept",
    "of the worst dimension",
    "more than the sum",
    "seeds won",
    "scale",
    "at scale 1",
    *(f"{dimension}, exact" for dimension in DIMENSIONS),
    "plain, exact",
)


def table(lines: Sequence[dict[str, Any]]) -> str:
    """A row a model, in the order in which they were measured."""
    by_row: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        by_row.setdefault(line["row"], []).append(line)
    reference = [_kept(line) for line in by_row[REFERENCE]]
    cells = [COLUMNS, ["---"] * len(COLUMNS), *(_cells(row, found, reference) for row, found in by_row.items())]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _cells(row: str, found: Sequence[dict[str, Any]], reference: Sequence[float]) -> list[str]:
    kept, is_merge = [_kept(line) for line in found], "scale" in found[0]
    more = [own - other for own, other in zip(kept, reference, strict=True)]
    compares = is_merge and row != REFERENCE
    return [
        row,
        _mean(kept),
        _mean([min(line["kept"].values()) for line in found]),
        _mean(more, sign="+") if compares else "",
        f"{sum(gain > 0 for gain in more)} of {len(more)}" if compares else "",
        f"{median(line['scale'] for line in found):.2f}" if is_merge else "",
        _mean([line["untuned"] for line in found]) if is_merge else "",
        *(f"{mean(line['exact'][name] for line in found):.2f}" for name in (*DIMENSIONS, "plain")),
    ]


def _kept(line: dict[str, Any]) -> float:
    return mean(line["kept"].values())


def _mean(values: Sequence[float], sign: str = "") -> str:
    error = f" ± {stdev(values) / len(values) ** 0.5:.3f}" if len(values) > 1 else ""
    return f"{mean(values):{sign}.3f}{error}"
