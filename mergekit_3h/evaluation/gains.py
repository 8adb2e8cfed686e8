"""What a merge kept of what its experts gained, and what it lost of what nobody trained for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING

from mergekit_3h.evaluation.intervals import (
    FEWEST_ITEMS,
    Interval,
    interval_of,
    is_clear,
    paired_difference,
    resampled_means,
    sign_flips,
)
from mergekit_3h.evaluation.result import EvaluationResult, MetricResult, ScoreWithInterval, averaged_metrics

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class GainKept:
    """(merge - base) / (expert - base) in one dimension, as a share; or why there is no number."""

    share: float | None
    interval: Interval | None = None
    why_not: str = ""


@dataclass(frozen=True)
class ScoreDifference:
    """One model's average of some metrics minus another's, on the items that both have a value for."""

    difference: float
    replicates: Tensor
    items: int | None = None
    """Of the metric that has the fewest: its noise is in the average. None where the scores do not say."""
    shares: Sequence[float] | None = None
    """What each item's difference adds to the whole. None where a score is no mean of items."""

    def times(self, factor: float) -> ScoreDifference:
        shares = None if self.shares is None else [factor * share for share in self.shares]
        return ScoreDifference(factor * self.difference, factor * self.replicates, self.items, shares)

    @property
    def interval(self) -> Interval:
        return interval_of(self.replicates)

    @property
    def too_few(self) -> str:
        """Why nothing can be said about the difference; empty where there are enough items."""
        if self.items is None or self.items >= FEWEST_ITEMS:
            return ""
        return f"too few items ({self.items}, of at least {FEWEST_ITEMS})"

    @property
    def is_clear(self) -> bool:
        """Not by chance, as for a single metric; an item counts in the exact test by what it adds to the average."""
        p_value = None if self.shares is None else sign_flips(self.shares)
        return is_clear(FEWEST_ITEMS if self.items is None else self.items, self.interval, p_value)


def score_difference(
    first: EvaluationResult,
    second: EvaluationResult,
    names: Mapping[str, float],
    others: Sequence[EvaluationResult] = (),
) -> ScoreDifference | None:
    """``names``: the metrics with their weights. Items that one of the models (``others`` too) lacks are left out.

    Where lower is better the sign is turned: a positive difference always speaks for ``first``.
    """
    total = sum(names.values())
    found = [_metric_difference(first, second, name, others) for name in names]
    parts = [part.times(weight / total) for part, weight in zip(found, names.values(), strict=True) if part is not None]
    if not parts or len(parts) < len(found):
        return None
    return ScoreDifference(
        sum(part.difference for part in parts),
        reduce(add, [part.replicates for part in parts]),
        min((part.items for part in parts if part.items is not None), default=None),
        None if any(part.shares is None for part in parts) else [one for part in parts for one in part.shares or ()],
    )


def _metric_difference(
    first: EvaluationResult, second: EvaluationResult, name: str, others: Sequence[EvaluationResult]
) -> ScoreDifference | None:
    mine, theirs = first.metrics.get(name), second.metrics.get(name)
    if mine is None or theirs is None or mine.score is None or theirs.score is None:
        return None
    sign = 1.0 if mine.better == "higher" else -1.0
    if not (mine.is_mean_of_items and theirs.is_mean_of_items):
        return _unpaired(mine, theirs, name, sign, first)
    all_values = [result.metrics[name].values for result in (first, second, *others) if name in result.metrics]
    shared = sorted(set.intersection(*(set(values) for values in all_values)))
    if not shared:
        return None
    scale = sign * mine.scale
    differences = [scale * (mine.values[item] - theirs.values[item]) for item in shared]
    replicates = resampled_means(differences, first.resamples, first.seed, name)
    shares = [difference / len(shared) for difference in differences]
    return ScoreDifference(sum(differences) / len(shared), replicates, len(shared), shares)


def _unpaired(
    mine: MetricResult, theirs: MetricResult, name: str, sign: float, result: EvaluationResult
) -> ScoreDifference | None:
    """Scores of which only a standard error is known: their noise is taken as independent, which is the wider way."""
    here = mine.replicates(f"{name} first", result.seed, result.resamples)
    there = theirs.replicates(f"{name} second", result.seed, result.resamples)
    if here is None or there is None or mine.score is None or theirs.score is None:
        return None
    items = min((len(metric.items) for metric in (mine, theirs) if metric.items), default=None)
    return ScoreDifference(sign * (mine.score - theirs.score), sign * (here - there), items)


def gain_kept(
    merge: EvaluationResult, base: EvaluationResult, expert: EvaluationResult, names: Mapping[str, float]
) -> GainKept:
    """Of the metrics ``names``, by weight. No number where the expert's own gain may be none, or items are too few."""
    if not names:
        return GainKept(None, why_not="not measured")
    gained = score_difference(expert, base, names, [merge])
    kept = score_difference(merge, base, names, [expert])
    if gained is None or kept is None:
        return GainKept(None, why_not="not measured by all three")
    if gained.too_few:
        return GainKept(None, why_not=gained.too_few)
    if gained.difference <= 0.0:
        return GainKept(None, why_not="the expert is no better than the base")
    if not gained.is_clear:
        return GainKept(None, why_not="the expert's own gain may be chance")
    return GainKept(kept.difference / gained.difference, interval_of(kept.replicates / gained.replicates))


def scored_metrics(result: EvaluationResult, dimension: str | None) -> dict[str, float]:
    """The metrics of a dimension's average, with their weights."""
    return {name: metric.weight for name, metric in averaged_metrics(result.metrics_of(dimension)).items()}


def likelihood_metrics(result: EvaluationResult, dimension: str | None) -> dict[str, float]:
    """The answer likelihoods of a dimension, with their weights."""
    return {
        name: metric.weight or 1.0
        for name, metric in result.metrics_of(dimension).items()
        if metric.kind == "answer-likelihood"
    }


def forgetting(merge: EvaluationResult, base: EvaluationResult) -> ScoreDifference | None:
    """The base's mean score minus the merge's on what nobody trained for; above zero something is lost."""
    names = dict.fromkeys(base.metrics_of(None), 1.0)
    return score_difference(base, merge, names) if names else None


def forgotten(merge: EvaluationResult, base: EvaluationResult) -> ScoreWithInterval | None:
    """The same as a score; without an interval where there are too few items for one."""
    found = forgetting(merge, base)
    if found is None:
        return None
    if found.too_few:
        return ScoreWithInterval(score=found.difference)
    return ScoreWithInterval(score=found.difference, low=found.interval.low, high=found.interval.high)


def clearly_different(first: EvaluationResult, second: EvaluationResult, name: str) -> bool | None:
    """Whether two models differ in a metric by more than chance; None where that cannot be said."""
    mine, theirs = first.metrics[name], second.metrics[name]
    if not (mine.is_mean_of_items and theirs.is_mean_of_items):
        found = score_difference(first, second, {name: 1.0})
        return None if found is None else found.is_clear
    paired = paired_difference(mine.values, theirs.values, mine.scale, first.resamples, first.seed, name)
    return None if paired is None else paired.is_clear
