"""Statistics as a table for people and as a bar chart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from mergekit_3h.data.records import DataError
from mergekit_3h.data.statistics import Statistics
from mergekit_3h.optional import optional
from mergekit_3h.tables import Table

_MOST_ROWS = 30


def as_table(statistics: Statistics, style: Literal["text", "markdown"] = "text") -> str:
    """All counts and rates, a section each."""
    overview = [
        ("records", statistics.records),
        ("unique prompts", statistics.unique_prompts),
        ("with a reply", statistics.with_response),
    ]
    sets = [(name, count, statistics.unique_by_set[name]) for name, count in statistics.sets.items()]
    rates = [
        (rate.source, rate.set, rate.replies, _percent(rate.refusal_rate), _percent(rate.safe_rate), rate.unscored)
        for rate in statistics.rates
    ]
    sections = [
        _rendered(("total", "count"), overview, style),
        _rendered(("set", "records", "unique prompts"), sets, style),
        _rendered(("category", "records"), _most(statistics.categories), style),
        _rendered(("label of the reply", "replies"), _most(statistics.labels), style),
        _rendered(("source", "records"), _most(statistics.sources), style),
        _rendered(("model", "set", "replies", "refused", "safe", "unscored"), rates, style, left=2),
    ]
    return "\n\n".join(section for section in sections if section)


def save_bar_chart(statistics: Statistics, path: str | Path) -> None:
    """Refusal rate of every model, a bar for each set; without any verdicts, the records of each category."""
    optional("matplotlib", "plots", "a chart")
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(8, 4.5), layout="constrained")
    known = figure.canvas.get_supported_filetypes()
    if Path(path).suffix[1:].lower() not in known:
        raise DataError(f"{path}: no format of a chart; expected the name to end in .{', .'.join(sorted(known))}")
    if not statistics.records:
        raise DataError(f"{path}: not written, for there is nothing to draw: the files hold no records")
    axes = figure.add_subplot()
    rated = [rate for rate in statistics.rates if rate.refusal_rate is not None]
    if rated:
        _draw_rates(axes, rated)
    else:
        rows = _most(statistics.categories)[::-1]
        axes.barh([str(row[0]) for row in rows], [row[1] for row in rows], color="tab:blue")
        axes.set_xlabel("records")
    figure.savefig(path, dpi=150)


def _draw_rates(axes: Any, rated: Sequence[Any]) -> None:
    models = list(dict.fromkeys(rate.source for rate in rated))
    sets = list(dict.fromkeys(rate.set for rate in rated))
    width = 0.8 / len(sets)
    for number, name in enumerate(sets):
        heights = {rate.source: 100 * rate.refusal_rate for rate in rated if rate.set == name}
        places = [models.index(model) + (number - (len(sets) - 1) / 2) * width for model in heights]
        bars = axes.bar(places, list(heights.values()), width, label=name)
        axes.bar_label(bars, fmt="%.0f%%")
    axes.set_xticks(range(len(models)), models, rotation=20, ha="right")
    axes.set_ylabel("refusal rate (%)")
    axes.set_ylim(0, 110)
    axes.legend(title="set")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _most(counts: dict[str, int]) -> list[tuple[str, int]]:
    """The largest counts; the others in one row."""
    rows = list(counts.items())
    if len(rows) <= _MOST_ROWS:
        return rows
    rest = rows[_MOST_ROWS - 1 :]
    return [*rows[: _MOST_ROWS - 1], (f"({len(rest)} others)", sum(count for _, count in rest))]


def _rendered(headers: Sequence[str], rows: Sequence[Sequence[object]], style: str, left: int = 1) -> str:
    """Nothing if there are no rows."""
    if not rows:
        return ""
    table = Table(headers, [[str(cell) for cell in row] for row in rows], left)
    return table.as_markdown() if style == "markdown" else table.as_text(ruled=True)
