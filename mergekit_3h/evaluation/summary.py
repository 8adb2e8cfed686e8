"""One result as a table of text."""

from __future__ import annotations

from mergekit_3h.evaluation.result import EvaluationResult, MetricResult, ScoreWithInterval
from mergekit_3h.tables import Table


def summary_table(result: EvaluationResult) -> Table:
    """A row for each metric, each dimension and the average."""
    rows: list[list[str]] = []
    for dimension, score in result.dimensions.items():
        rows += [_metric_row(name, metric) for name, metric in result.metrics_of(dimension).items()]
        rows.append([dimension, "average", *score_cells(score), ""])
    rows += [_metric_row(name, metric) for name, metric in result.metrics_of(None).items()]
    rows.append(["all dimensions", "average", *score_cells(result.average), ""])
    return Table(["metric", "of", "score", "95 % interval", "items"], rows, left=2)


def score_cells(score: ScoreWithInterval, digits: int = 2) -> list[str]:
    """The score and its interval."""
    if score.score is None:
        return ["-", "-"]
    if score.low is None or score.high is None:
        return [f"{score.score:.{digits}f}", "-"]
    return [f"{score.score:.{digits}f}", f"{score.low:.{digits}f} to {score.high:.{digits}f}"]


def counted_items(metric: MetricResult) -> str:
    """How many items there are, and how many of them the score rests on if not on all."""
    total = len(metric.items)
    if not metric.unscored_share:
        return str(total)
    return f"{len(metric.values)} of {total} scored ({1 - metric.unscored_share:.0%})"


def _metric_row(name: str, metric: MetricResult) -> list[str]:
    digits = 4 if metric.scale == 1.0 and metric.better == "lower" else 2
    label = metric.dimension or "forgetting"
    mark = " (lower is better)" if metric.better == "lower" else ""
    return [f"  {name}{mark}", label, *score_cells(metric, digits), counted_items(metric)]
