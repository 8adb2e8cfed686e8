"""Models beside each other: one table that terminal, Markdown, LaTeX, CSV, plots and page are drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from mergekit_3h.data.records import DataError
from mergekit_3h.errors import OptionError
from mergekit_3h.evaluation.gains import (
    GainKept,
    clearly_different,
    forgotten,
    gain_kept,
    likelihood_metrics,
    score_difference,
    scored_metrics,
)
from mergekit_3h.evaluation.intervals import FEWEST_ITEMS
from mergekit_3h.evaluation.items import Direction
from mergekit_3h.evaluation.result import EvaluationResult, ScoreWithInterval
from mergekit_3h.suggestions import did_you_mean

AVERAGE = "average"
FORGETTING = "forgotten"


@dataclass(frozen=True)
class ScoreColumn:
    """One column: a metric, or the average of a dimension or of all of them."""

    name: str
    dimension: str | None
    is_average: bool = False
    better: Direction = "higher"
    digits: int = 2


@dataclass
class ComparedModel:
    """One row. ``ties``: the columns in which the row is not clearly different from the best."""

    name: str
    role: str = "merge"
    """base, expert or merge; only merges compete for bold and underline."""
    scores: dict[str, ScoreWithInterval] = field(default_factory=dict)
    unscored: dict[str, float] = field(default_factory=dict)
    """The share of items without a score, where there are some."""
    ties: set[str] = field(default_factory=set)
    gains: dict[str, GainKept] = field(default_factory=dict)
    likelihood_gains: dict[str, GainKept] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def value(self, column: str) -> float | None:
        found = self.scores.get(column)
        return None if found is None else found.score

    def mean_gain(self, *, of_likelihoods: bool = False) -> tuple[float | None, int]:
        """The mean share kept over the dimensions that have one, and how many those are."""
        gains = self.likelihood_gains if of_likelihoods else self.gains
        shares = [gain.share for gain in gains.values() if gain.share is not None]
        return (fmean(shares), len(shares)) if shares else (None, 0)


@dataclass
class SideBySide:
    """The whole table."""

    title: str
    columns: list[ScoreColumn]
    rows: list[ComparedModel]
    notes: list[str] = field(default_factory=list)

    def ranked(self, column: ScoreColumn) -> list[ComparedModel]:
        """The rows that compete, the best first; the base and the experts where nothing else is there."""
        rows = [row for row in self.rows if row.role == "merge"] or self.rows
        known = [(row.value(column.name), row) for row in rows]
        scored = [(value, row) for value, row in known if value is not None]
        scored.sort(key=lambda pair: pair[0], reverse=column.better == "higher")
        return [row for _, row in scored]

    def rank_of(self, row: ComparedModel, column: ScoreColumn) -> int | None:
        """1 for the best, 2 for the second, equal scores alike; None for other rows and where all are alike."""
        competing = self.ranked(column)
        if len(competing) < 2 or not any(row is other for other in competing):
            return None
        values = list(dict.fromkeys(round(other.value(column.name) or 0.0, column.digits) for other in competing))
        if len(values) == 1:
            return None
        place = values.index(round(row.value(column.name) or 0.0, column.digits))
        return place + 1 if place < 2 else None

    def column(self, name: str) -> ScoreColumn | None:
        return next((column for column in self.columns if column.name == name), None)

    @property
    def dimensions(self) -> list[str]:
        return [column.name for column in self.columns if column.is_average and column.dimension is not None]

    @property
    def has_gains(self) -> bool:
        return any(row.gains for row in self.rows)

    @property
    def has_likelihood_gains(self) -> bool:
        return any(gain.why_not != "not measured" for row in self.rows for gain in row.likelihood_gains.values())


def side_by_side(
    results: Mapping[str, EvaluationResult], base: str | None = None, experts: Mapping[str, str] | None = None
) -> SideBySide:
    """Results of one suite by name; ``experts`` names the expert of each dimension."""
    if not results:
        raise OptionError("nothing to compare; name at least one result")
    experts = dict(experts or {})
    first = next(iter(results.values()))
    _require_roles(results, first, base, experts)
    notes = [*_require_comparable(results), *_few_items(results)]
    columns = _columns(results)
    rows = [_row(name, result, columns, base, experts) for name, result in results.items()]
    table = SideBySide(first.suite, columns, rows, notes)
    _mark_ties(table, results)
    if base is not None:
        for row in rows:
            _add_gains(row, results, base, experts)
        _add_forgetting(table, results, base)
    return table


def _require_roles(
    results: Mapping[str, EvaluationResult], first: EvaluationResult, base: str | None, experts: Mapping[str, str]
) -> None:
    for name in [*([base] if base is not None else []), *experts.values()]:
        if name not in results:
            raise OptionError(f"no result is called {name!r}; {did_you_mean(name, results)}")
    for dimension in experts:
        if dimension not in first.dimensions:
            raise OptionError(f"the suite has no dimension {dimension!r}; {did_you_mean(dimension, first.dimensions)}")
    if experts and base is None:
        raise OptionError("what an expert gained is seen beside the base; name its result with --base")


def _require_comparable(results: Mapping[str, EvaluationResult]) -> list[str]:
    """Raise where two models were measured differently; a metric that only some have is a note."""
    notes: list[str] = []
    seen: dict[str, tuple[str, str]] = {}
    for label, result in results.items():
        for name, metric in result.metrics.items():
            other, key = seen.setdefault(name, (label, metric.key))
            if key != metric.key:
                raise DataError(
                    f"{other} and {label} measured {name!r} differently (other data, settings or judge); evaluate both "
                    "by the same suite"
                )
    for name in seen:
        lacking = [label for label, result in results.items() if name not in result.metrics]
        if lacking:
            notes.append(f"{name} was not measured for {', '.join(lacking)}")
    return notes


def _few_items(results: Mapping[str, EvaluationResult]) -> list[str]:
    """A note on the metrics with too few items to call a difference clear: all models tie there, and in averages."""
    counts: dict[str, int] = {}
    for result in results.values():
        for name, metric in result.metrics.items():
            # The items of a score that is no mean have no values; without any items nobody knows how many there were.
            count = len(metric.values) or len(metric.items) or FEWEST_ITEMS
            counts[name] = min(count, counts.get(name, count))
    few = [f"{name} ({count})" for name, count in counts.items() if count < FEWEST_ITEMS]
    if not few or len(results) < 2:
        return []
    return [f"too few items to call a difference clear, at least {FEWEST_ITEMS} are needed: {', '.join(few)}"]


def _columns(results: Mapping[str, EvaluationResult]) -> list[ScoreColumn]:
    columns: list[ScoreColumn] = []
    dimensions = list(dict.fromkeys(name for result in results.values() for name in result.dimensions))
    for dimension in [*dimensions, None]:
        metrics = {name: m for result in results.values() for name, m in result.metrics_of(dimension).items()}
        columns += [
            ScoreColumn(name, dimension, better=metric.better, digits=4 if metric.kind == "answer-likelihood" else 2)
            for name, metric in metrics.items()
        ]
        if dimension is not None:
            columns.append(ScoreColumn(dimension, dimension, is_average=True))
    return [*columns, ScoreColumn(AVERAGE, None, is_average=True)]


def _row(
    name: str, result: EvaluationResult, columns: Sequence[ScoreColumn], base: str | None, experts: Mapping[str, str]
) -> ComparedModel:
    role = "base" if name == base else "expert" if name in experts.values() else "merge"
    scores: dict[str, ScoreWithInterval] = {}
    for column in columns:
        if column.is_average:
            scores[column.name] = result.average if column.name == AVERAGE else result.dimensions[column.name]
        elif column.name in result.metrics:
            scores[column.name] = result.metrics[column.name]
    unscored = {name: metric.unscored_share for name, metric in result.metrics.items() if metric.unscored_share}
    return ComparedModel(name, role, scores, unscored)


def _mark_ties(table: SideBySide, results: Mapping[str, EvaluationResult]) -> None:
    """A row that is not clearly different from the best one ties with it, in a metric, a dimension, the average."""
    for column in table.columns:
        competing = table.ranked(column)
        for row in competing[1:]:
            best = results[competing[0].name]
            if _is_clear(best, results[row.name], column) is False:
                row.ties.add(column.name)


def _is_clear(best: EvaluationResult, other: EvaluationResult, column: ScoreColumn) -> bool | None:
    if not column.is_average:
        return clearly_different(best, other, column.name)
    dimensions = [column.name] if column.name != AVERAGE else list(best.dimensions)
    weights: dict[str, float] = {}
    for dimension in dimensions:
        own = scored_metrics(best, dimension)
        weights |= {name: weight / sum(own.values()) for name, weight in own.items()}
    found = score_difference(best, other, weights) if weights else None
    return None if found is None else found.is_clear


def _add_gains(
    row: ComparedModel, results: Mapping[str, EvaluationResult], base: str, experts: Mapping[str, str]
) -> None:
    if row.role == "base":
        return
    for dimension, expert in experts.items():
        shared = (results[row.name], results[base], results[expert])
        row.gains[dimension] = gain_kept(*shared, scored_metrics(results[base], dimension))
        row.likelihood_gains[dimension] = gain_kept(*shared, likelihood_metrics(results[base], dimension))


def _add_forgetting(table: SideBySide, results: Mapping[str, EvaluationResult], base: str) -> None:
    found = {row.name: forgotten(results[row.name], results[base]) for row in table.rows if row.name != base}
    if any(score is not None for score in found.values()):
        table.columns.append(ScoreColumn(FORGETTING, None, better="lower"))
        for row in table.rows:
            score = found.get(row.name)
            if score is not None:
                row.scores[FORGETTING] = score
