"""Runs a suite on a model and writes its result."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any

from tqdm.auto import tqdm

from mergekit_3h.data.records import derived_id
from mergekit_3h.evaluation.items import Measured
from mergekit_3h.evaluation.journal import Journal
from mergekit_3h.evaluation.metrics.contract import MetricKind
from mergekit_3h.evaluation.result import (
    EvaluationResult,
    MetricResult,
    dimension_scores,
    mean_or_none,
    with_interval,
)
from mergekit_3h.evaluation.subject import EvaluatedModel
from mergekit_3h.evaluation.suite import ReadySuite

_PACKAGES = ("mergekit-3h", "torch", "transformers", "lm-eval")


@dataclass(frozen=True)
class Evaluator:
    """A suite that is ready, and how its runs behave."""

    ready: ReadySuite
    quiet: bool = False
    retry_failed: bool = False

    def evaluate(self, subject: EvaluatedModel, output: Path | None, journal: Path) -> EvaluationResult:
        """One model. What is in the journal is not computed again; ``output`` appears when it is whole."""
        written = Journal(journal, subject.key, retry_failed=self.retry_failed)
        keys, started = self.ready.keys(), perf_counter()
        metrics: dict[str, MetricResult] = {}
        for name, dimension, metric in self.ready.suite.metrics():
            begun = perf_counter()
            with tqdm(desc=name, unit="item", disable=True if self.quiet else None, leave=False) as bar:
                measured = metric.measure(name, subject, written, self.ready.around(), _stepping(bar))
            seconds = perf_counter() - begun
            metrics[name] = self._metric(name, dimension, metric, measured, keys[name], seconds)
        result = self._result(subject, metrics, perf_counter() - started)
        if output is not None:
            result.save(output)
        return result

    def _metric(
        self, name: str, dimension: str | None, metric: MetricKind, measured: Measured, key: str, seconds: float
    ) -> MetricResult:
        values = measured.values
        score = measured.score
        if score is None and values:
            score = measured.scale * sum(values.values()) / len(values)
        found = MetricResult(
            kind=metric.kind,  # type: ignore[attr-defined]
            dimension=dimension,
            better=measured.better,
            scale=measured.scale,
            weight=metric.weight,
            key=key,
            score=score,
            standard_error=measured.standard_error,
            seconds=round(seconds, 3),
            details=measured.details,
            items=list(measured.items),
        )
        sure = with_interval(score, found.replicates(name, self.ready.suite.seed, self.ready.suite.resamples))
        return found.model_copy(update={"low": sure.low, "high": sure.high})

    def _result(self, subject: EvaluatedModel, metrics: dict[str, MetricResult], seconds: float) -> EvaluationResult:
        suite = self.ready.suite
        dimensions = dimension_scores(metrics, list(suite.dimensions))
        found = EvaluationResult(
            model=subject.name,
            model_path=subject.settings.model if Path(subject.settings.model).is_dir() else None,
            model_identity=subject.identity,
            suite=suite.name,
            suite_key=derived_id({name: metric.key for name, metric in metrics.items()}),
            seed=suite.seed,
            resamples=suite.resamples,
            unscored_limit=suite.unscored_limit,
            device=subject.settings.device,
            dtype=subject.settings.dtype,
            versions=_versions(),
            seconds=round(seconds, 3),
            peak_memory_bytes=_peak_memory(subject.settings.device),
            metrics=metrics,
            dimensions={name: with_interval(score, None) for name, score in dimensions.items()},
            average=with_interval(mean_or_none(list(dimensions.values())), None),
        )
        replicates = found.replicates()
        return found.model_copy(
            update={
                "dimensions": {
                    name: with_interval(score, replicates.get(f"dimension {name}"))
                    for name, score in dimensions.items()
                },
                "average": with_interval(found.average.score, replicates.get("")),
            }
        )


def _stepping(bar: Any) -> Callable[[int], object]:
    return bar.update


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _peak_memory(device: str) -> int | None:
    """Bytes: of the GPU where the model was on one, else of this process, whatever it did before."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
