"""Runs a sweep: base and experts first, then every method, here or on a Ray cluster; what is done is not done again."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mergekit_3h.cluster.options import ClusterOptions
from mergekit_3h.data.backends.settings import TransformersSettings
from mergekit_3h.data.generation.asking import seed_of
from mergekit_3h.data.records import derived_id
from mergekit_3h.errors import OptionError
from mergekit_3h.evaluation.evaluator import Evaluator
from mergekit_3h.evaluation.local_rows import Keep
from mergekit_3h.evaluation.result import EvaluationResult
from mergekit_3h.evaluation.side_by_side import ComparedModel, SideBySide, side_by_side
from mergekit_3h.evaluation.subject import subject_of
from mergekit_3h.evaluation.suite import ReadySuite, read_suite
from mergekit_3h.evaluation.sweep.settings import SweepSettings, SweptMethod, swept_methods
from mergekit_3h.evaluation.sweep.trials import (
    MergesConfigs,
    MethodOutcome,
    SweepBench,
    TrialOutcome,
    ValidationGoal,
    goal_kind,
)
from mergekit_3h.writing import write_text_whole

log = logging.getLogger(__name__)

BASE = "base"


@dataclass(frozen=True)
class SweepRun:
    """A sweep with everything it needs. Plain values: it travels to the workers of a cluster."""

    settings: SweepSettings
    folder: Path
    """Where paths of the sweep's file start."""
    model_settings: TransformersSettings
    merger: MergesConfigs
    files: Mapping[str, str]
    judges: Mapping[str, str]

    @property
    def output(self) -> Path:
        return (self.folder / self.settings.output).resolve()

    def suites(self) -> tuple[ReadySuite, ReadySuite]:
        """The suites of the validation and of the test split."""

        def read(name: str, keep: Keep | None) -> ReadySuite:
            path = self.folder / name
            return read_suite(str(path) if path.is_file() else name, self.files, self.judges, keep)

        if self.settings.validation is not None:
            return read(self.settings.validation, None), read(self.settings.suite, None)
        share = self.settings.validation_share
        return (
            read(self.settings.suite, _SplitHalf(share, is_validation=True)),
            read(self.settings.suite, _SplitHalf(share, is_validation=False)),
        )

    def subject(self, name: str) -> Any:
        model = self.settings.base_model if name == BASE else self.settings.models[name]
        return subject_of(self.model_path(model), self.model_settings, name)

    def model_path(self, model: str) -> str:
        """A path of the sweep's file, or a name on the hub."""
        path = self.folder / model
        return str(path.resolve()) if path.exists() else model

    def with_paths(self) -> SweepRun:
        """The same with absolute paths of models, as configs of mergekit need them."""
        settings = self.settings.model_copy(
            update={
                "base_model": self.model_path(self.settings.base_model),
                "models": {name: self.model_path(path) for name, path in self.settings.models.items()},
            }
        )
        return SweepRun(settings, self.folder, self.model_settings, self.merger, self.files, self.judges)


@dataclass(frozen=True)
class _SplitHalf:
    """Items of one part of a suite: the same rows are in the same part whatever the metric."""

    share: float
    is_validation: bool

    def __call__(self, row: str) -> bool:
        return (seed_of("split", row) / 2**31 < self.share) == self.is_validation


@dataclass
class SweepOutcome:
    """What came out: base and experts on the test split, and every method."""

    references: dict[str, EvaluationResult]
    experts: dict[str, str]
    methods: list[MethodOutcome]

    @property
    def failed(self) -> list[MethodOutcome]:
        return [method for method in self.methods if method.result is None]

    def table(self) -> SideBySide:
        """Base, experts, every method's best trial; a method that failed is a row without scores and a note."""
        results = {**self.references, **{one.label: one.result for one in self.methods if one.result is not None}}
        found = side_by_side(results, BASE, self.experts)
        for method in self.failed:
            found.rows.append(ComparedModel(method.label, notes=[f"failed: {method.error}"]))
            found.notes.append(f"{method.label} failed: {method.error}")
        return found

    def results(self) -> dict[str, EvaluationResult]:
        return {**self.references, **{one.label: one.result for one in self.methods if one.result is not None}}


def run_sweep(run: SweepRun, cluster: ClusterOptions | None, say: Callable[[str], object]) -> SweepOutcome:
    """The whole sweep. Every method that has been finished under the same settings is read, not run."""
    run = run.with_paths()
    validation, test = run.suites()
    for ready in (validation, test):
        ready.require_ready()
    experts = {name: name for name in test.suite.dimensions if name in run.settings.models}
    swept = swept_methods(run.settings)
    for one in swept:
        run.merger.require_known(one.trials[0].config["merge_method"])
    names = [BASE, *run.settings.models]
    subjects = {name: run.subject(name) for name in names}
    say(f"{len(swept)} methods, {len(swept[0].trials)} trials each, chosen on the validation split")
    validated = _references(run, validation, subjects, "validation", say)
    tested = _references(run, test, subjects, "test", say)
    goal = ValidationGoal(
        validated[BASE],
        {dimension: validated[name] for dimension, name in experts.items()},
        goal_kind(run.settings.objective, list(validated.values())),
    )
    key = derived_id([subject.key for subject in subjects.values()], validation.keys(), test.keys())
    kept = _KeptOutcomes(run.output / "methods", key)
    missing = [one for one in swept if kept.read(one) is None]
    for done in _outcomes(run, missing, goal, cluster):
        number = next(place for place, one in enumerate(missing) if one.label == done.label)
        kept.write(missing[number], done)
        say(f"{done.label}: {_told(done)}")
    return SweepOutcome(tested, experts, [outcome for one in swept if (outcome := kept.read(one)) is not None])


def _references(
    run: SweepRun, ready: ReadySuite, subjects: Mapping[str, Any], split: str, say: Callable[[str], object]
) -> dict[str, EvaluationResult]:
    """Base and experts on one split."""
    found: dict[str, EvaluationResult] = {}
    for name, subject in subjects.items():
        say(f"{name} on the {split} split")
        folder = run.output / split
        evaluator = Evaluator(ready, quiet=True)
        found[name] = evaluator.evaluate(subject, folder / f"{name}.json", folder / f"{name}.journal")
        subject.free()
    ready.close()
    return found


def _outcomes(
    run: SweepRun, swept: Sequence[SweptMethod], goal: ValidationGoal, cluster: ClusterOptions | None
) -> Iterator[MethodOutcome]:
    if not swept:
        return
    if cluster is not None:
        yield from _on_a_cluster(run, swept, goal, cluster)
        return
    bench = opened_bench(run, goal)
    for one in swept:
        yield bench.method(one)


def opened_bench(run: SweepRun, goal: ValidationGoal) -> SweepBench:
    validation, test = run.suites()
    return SweepBench(run.subject(BASE), run.merger, validation, test, goal)


class SweepWorker:
    """An actor of a cluster: it loads the base once and runs methods."""

    def __init__(self, run: SweepRun, goal: ValidationGoal, threads: int, gpus: float) -> None:
        self._run, self._goal, self._threads, self._gpus = run, goal, threads, gpus
        self._bench: SweepBench | None = None

    def open(self) -> str:
        import torch

        from mergekit_3h.kernels.card_memory import keep_to_share

        torch.set_num_threads(self._threads)
        keep_to_share(self._gpus)
        self._bench = opened_bench(self._run, self._goal)
        return "ready"

    def method(self, swept: SweptMethod) -> MethodOutcome:
        if self._bench is None:
            raise OptionError("the worker has not been opened")
        return self._bench.method(swept)


def _on_a_cluster(
    run: SweepRun, swept: Sequence[SweptMethod], goal: ValidationGoal, cluster: ClusterOptions
) -> Iterator[MethodOutcome]:
    import torch

    from mergekit_3h.cluster.connection import connect, require_ray, room
    from mergekit_3h.cluster.pool import RayPool

    ray = require_ray()
    ours = connect(cluster)
    try:
        actor = ray.remote(**cluster.reserved())(SweepWorker)
        threads = cluster.threads or torch.get_num_threads()
        count = min(cluster.workers or room(cluster), room(cluster), len(swept))
        pool = RayPool(
            lambda: actor.remote(run, goal, threads, cluster.gpus_per_worker), count, cluster, lambda _: None
        )
        try:
            yield from pool.run([("method", (one,)) for one in swept])
        finally:
            pool.close()
    finally:
        if ours:
            ray.shutdown()


class _KeptOutcomes:
    """A file for each finished method, there whole or not at all."""

    def __init__(self, folder: Path, key: str) -> None:
        self._folder, self._key = folder, key

    def read(self, swept: SweptMethod) -> MethodOutcome | None:
        try:
            content: Any = json.loads(self._place(swept).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if content.pop("key", None) != self._key:
            return None
        result = content["result"]
        trials = [TrialOutcome(**trial) for trial in content["trials"]]
        parsed = None if result is None else EvaluationResult.model_validate(result)
        return MethodOutcome(content["label"], trials, content["best"], parsed, content["error"])

    def write(self, swept: SweptMethod, outcome: MethodOutcome) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        content = {
            "key": self._key,
            "label": outcome.label,
            "trials": [asdict(trial) for trial in outcome.trials],
            "best": outcome.best,
            "error": outcome.error,
            "result": None if outcome.result is None else outcome.result.model_dump(mode="json"),
        }
        write_text_whole(self._place(swept), json.dumps(content, indent=1))

    def _place(self, swept: SweptMethod) -> Path:
        return self._folder / f"{swept.id}.json"


def _told(outcome: MethodOutcome) -> str:
    if outcome.result is None:
        return f"failed: {outcome.error}"
    goal = next(trial.goal for trial in outcome.trials if trial.trial == outcome.best)
    return f"best with {outcome.best}, validation {goal:.3f}"
