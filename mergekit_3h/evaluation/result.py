"""What an evaluation found, as one JSON file a model: every item, scores with intervals, and what they depend on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mergekit_3h.data.records import DataError
from mergekit_3h.evaluation.intervals import interval_of, normal_scores, resampled_share
from mergekit_3h.evaluation.items import Direction, EvaluatedItem
from mergekit_3h.writing import write_text_whole

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ScoreWithInterval(_Part):
    """A score and the interval that holds it in 95 of 100 repetitions; none where something is missing."""

    score: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def half_width(self) -> float | None:
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


class MetricResult(ScoreWithInterval):
    """One metric of one model."""

    kind: str
    dimension: str | None = Field(None, description="None: a metric of what nobody trained for.")
    better: Direction
    scale: float
    weight: float
    key: str = Field(description="Digest of question, data and judge. Only scores of one key can be compared.")
    standard_error: float | None = Field(None, description="Where the score is no mean of the items' values.")
    seconds: float = 0.0
    details: dict[str, Any] = Field(default_factory=dict)
    items: list[EvaluatedItem]

    @property
    def values(self) -> dict[str, float]:
        """The values of the scored items."""
        return {item.id: item.value for item in self.items if item.value is not None}

    @property
    def is_mean_of_items(self) -> bool:
        return self.standard_error is None and bool(self.values)

    @property
    def unscored_share(self) -> float:
        if self.standard_error is not None or not self.items:
            return 0.0
        return 1.0 - len(self.values) / len(self.items)

    def unscored(self) -> dict[str, int]:
        """How many items have no value, by reason."""
        if self.standard_error is not None:
            return {}
        return dict(Counter(item.reason or "no reason given" for item in self.items if item.value is None))

    def replicates(self, name: str, seed: int, resamples: int) -> Tensor | None:
        """The score under resampling of the items; None if there is no score."""
        if self.is_mean_of_items:
            values = self.values
            return self.scale * resampled_share([values[item] for item in sorted(values)], resamples, seed, name)
        if self.score is None or self.standard_error is None:
            return None
        return normal_scores(self.score, self.standard_error, resamples, seed, name)


class EvaluationResult(_Part):
    """All metrics of one model under one suite."""

    format: int = FORMAT
    model: str
    model_path: str | None = None
    model_identity: str = Field(description="Digest of weights, config and tokenizer.")
    suite: str
    suite_key: str = Field(description="Digest of all metrics' keys.")
    seed: int
    resamples: int
    unscored_limit: float
    device: str
    dtype: str
    versions: dict[str, str] = Field(default_factory=dict)
    seconds: float = 0.0
    peak_memory_bytes: int | None = None
    metrics: dict[str, MetricResult]
    dimensions: dict[str, ScoreWithInterval]
    average: ScoreWithInterval

    def beyond_limit(self) -> dict[str, float]:
        """The metrics of which too many items have no score, with the share."""
        return {
            name: metric.unscored_share
            for name, metric in self.metrics.items()
            if metric.unscored_share > self.unscored_limit or metric.score is None
        }

    def metrics_of(self, dimension: str | None) -> dict[str, MetricResult]:
        return {name: metric for name, metric in self.metrics.items() if metric.dimension == dimension}

    def replicates(self) -> dict[str, Tensor]:
        """Every metric's, every dimension's, and (under an empty name) the average's score under resampling."""
        metrics = {name: metric.replicates(name, self.seed, self.resamples) for name, metric in self.metrics.items()}
        found = {name: replicates for name, replicates in metrics.items() if replicates is not None}
        dimensions: dict[str, Tensor] = {}
        for dimension in self.dimensions:
            averaged = averaged_metrics(self.metrics_of(dimension))
            if averaged and all(name in found for name in averaged):
                total = sum(metric.weight for metric in averaged.values())
                dimensions[dimension] = sum(m.weight / total * found[name] for name, m in averaged.items())  # type: ignore[assignment]
        if len(dimensions) == len(self.dimensions):
            found[""] = sum(dimensions.values()) / len(dimensions)  # type: ignore[assignment]
        return found | {f"dimension {name}": replicates for name, replicates in dimensions.items()}

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_whole(path, self.model_dump_json(indent=1, exclude_none=True))


def averaged_metrics(metrics: Mapping[str, MetricResult]) -> dict[str, MetricResult]:
    """Those that enter a dimension's average: where higher is better. Likelihoods stand beside it."""
    return {name: metric for name, metric in metrics.items() if metric.better == "higher" and metric.weight}


def dimension_scores(metrics: Mapping[str, MetricResult], dimensions: list[str]) -> dict[str, float | None]:
    """The weighted mean of each dimension's metrics; None where one of them has no score."""
    found: dict[str, float | None] = {}
    for dimension in dimensions:
        own = averaged_metrics({name: metric for name, metric in metrics.items() if metric.dimension == dimension})
        scores = [(metric.weight, metric.score) for metric in own.values()]
        if not scores or any(score is None for _, score in scores):
            found[dimension] = None
        else:
            total = sum(weight for weight, _ in scores)
            found[dimension] = sum(weight * (score or 0.0) for weight, score in scores) / total
    return found


def mean_or_none(values: list[float | None]) -> float | None:
    """The mean, if every value is there."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def with_interval(score: float | None, replicates: Tensor | None) -> ScoreWithInterval:
    if score is None or replicates is None:
        return ScoreWithInterval(score=score)
    found = interval_of(replicates)
    return ScoreWithInterval(score=score, low=min(found.low, score), high=max(found.high, score))


def read_result(path: Path) -> EvaluationResult:
    """A result that ``mergekit-3h evaluate`` has written."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; expected a result of mergekit-3h evaluate") from None
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); expected a result of mergekit-3h evaluate") from None
    if not isinstance(content, dict) or "metrics" not in content:
        raise DataError(f"{path}: no result of mergekit-3h evaluate: it has no metrics")
    if content.get("format", FORMAT) != FORMAT:
        raise DataError(f"{path}: has the format {content['format']}, this version reads {FORMAT}; evaluate again")
    try:
        return EvaluationResult.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(f"{path}: {place}: {first['msg']}; expected a result of mergekit-3h evaluate") from None
