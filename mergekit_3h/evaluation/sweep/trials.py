"""One method of a sweep: its trials on the validation split, and the best of them on the test split."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from mergekit_3h.data.records import derived_id
from mergekit_3h.errors import ModelError, ThreeHError
from mergekit_3h.evaluation.evaluator import Evaluator
from mergekit_3h.evaluation.gains import likelihood_metrics, score_difference, scored_metrics
from mergekit_3h.evaluation.result import EvaluationResult
from mergekit_3h.evaluation.subject import EvaluatedModel
from mergekit_3h.evaluation.suite import ReadySuite
from mergekit_3h.evaluation.sweep.settings import SweepTrial, SweptMethod


class MergesConfigs(Protocol):
    """What makes the tensors of a merge; the merging host's adapter does."""

    def require_known(self, method: str) -> None:
        """Raise, with a suggestion, unless there is such a merge method."""
        ...

    def tensors(self, config: Mapping[str, Any], seed: int) -> dict[str, Tensor]: ...

    def tensors_by_files(self, config: Mapping[str, Any], seed: int) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class ValidationGoal:
    """The mean share of the experts' gains on the validation split, of the likelihoods or of the averages."""

    base: EvaluationResult
    experts: Mapping[str, EvaluationResult]
    """By dimension."""
    of_likelihoods: bool

    def __call__(self, result: EvaluationResult) -> float:
        """Where no expert is better than the base in any dimension: the mean gain over the base."""
        metrics_of = likelihood_metrics if self.of_likelihoods else scored_metrics
        shares: list[float] = []
        gains: list[float] = []
        for dimension in result.dimensions:
            names = metrics_of(self.base, dimension)
            gained = score_difference(result, self.base, names) if names else None
            if gained is None:
                continue
            gains.append(gained.difference)
            expert = self.experts.get(dimension)
            whole = score_difference(expert, self.base, names) if expert is not None else None
            if whole is not None and whole.difference > 0.0:
                shares.append(gained.difference / whole.difference)
        chosen = shares or gains
        if not chosen:
            raise ModelError("no metric of the validation split has a score for base and merge; see its items")
        return sum(chosen) / len(chosen)


@dataclass
class TrialOutcome:
    """One trial: what the goal makes of it, or why it has none."""

    trial: str
    goal: float | None = None
    error: str = ""


@dataclass
class MethodOutcome:
    """One row of the table: every trial, the best one's result on the test split, or why there is none."""

    label: str
    trials: list[TrialOutcome] = field(default_factory=list)
    best: str = ""
    result: EvaluationResult | None = None
    error: str = ""


@dataclass
class SweepBench:
    """What merges and evaluates: the base's module, into which every merge's tensors are loaded."""

    subject: EvaluatedModel
    """The base model."""
    merger: MergesConfigs
    validation: ReadySuite
    test: ReadySuite
    goal: ValidationGoal
    _base: dict[str, Tensor] = field(default_factory=dict)

    def method(self, swept: SweptMethod) -> MethodOutcome:
        """All trials of a method. What goes wrong is part of the outcome, so that the other methods go on."""
        found = MethodOutcome(swept.label)
        update: tuple[Mapping[str, Any], dict[str, Tensor]] | None = None
        kept: dict[str, SweepTrial] = {}
        failed: dict[str, Any] = {}
        for trial in swept.trials:
            outcome = TrialOutcome(str(trial))
            if trial.config == failed.get("config"):
                outcome.error = failed["error"]
                found.trials.append(outcome)
                continue
            try:
                if update is None or update[0] != trial.config:
                    update = (trial.config, self._update(trial.config, swept.seed))
                outcome.goal = self.goal(self._evaluated(trial, update[1], swept, self.validation))
                kept[str(trial)] = trial
            except (ThreeHError, RuntimeError, MemoryError) as error:
                outcome.error = _one_line(error)
                failed = {"config": trial.config, "error": outcome.error}
            found.trials.append(outcome)
        scored = [outcome for outcome in found.trials if outcome.goal is not None]
        if not scored:
            found.error = found.trials[0].error
            return found
        best = max(scored, key=lambda outcome: outcome.goal or 0.0)
        trial = kept[best.trial]
        if update is None or update[0] != trial.config:
            update = (trial.config, self._update(trial.config, swept.seed))
        found.best = best.trial
        found.result = self._evaluated(trial, update[1], swept, self.test)
        return found

    def _update(self, config: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
        """What the merge adds to the base, in float32, by the module's names."""
        base = self._base_tensors()
        tensors = self.merger.tensors(config, seed)
        if not base.keys() <= tensors.keys():
            tensors = self.merger.tensors_by_files(config, seed)
        missing = sorted(base.keys() - tensors.keys())
        if missing:
            raise ModelError(f"the merge has no tensor {missing[0]!r} (and {len(missing) - 1} more of the base's)")
        update: dict[str, Tensor] = {}
        for name, tensor in base.items():
            merged = tensors[name]
            if merged.shape != tensor.shape:
                shapes = f"{list(merged.shape)} in the merge, {list(tensor.shape)} in the base"
                raise ModelError(f"tensor {name!r} is {shapes}")
            update[name] = merged.float() - tensor.float()
        return update

    def _base_tensors(self) -> dict[str, Tensor]:
        """The base's own parameters, tied ones once; kept because the module is written over."""
        if not self._base:
            parameters = self.subject.module.named_parameters()
            self._base = {name: tensor.detach().cpu().clone() for name, tensor in parameters}
        return self._base

    @torch.no_grad()
    def _evaluated(
        self, trial: SweepTrial, update: Mapping[str, Tensor], swept: SweptMethod, ready: ReadySuite
    ) -> EvaluationResult:
        parameters = dict(self.subject.module.named_parameters())
        for name, tensor in self._base_tensors().items():
            parameters[name].copy_(tensor.float() + trial.scale * update[name])
        identity = derived_id(self.subject.identity, dict(trial.config), trial.scale, swept.seed)[:20]
        module, base = self.subject.module, self.subject
        candidate = EvaluatedModel(swept.label, base.settings, identity, base.tokenizer, base.context, lambda: module)
        with tempfile.TemporaryDirectory(prefix="mergekit-3h-") as journal:
            return Evaluator(ready, quiet=True).evaluate(candidate, None, Path(journal))


def goal_kind(wanted: str, results: Sequence[EvaluationResult]) -> bool:
    """Whether the goal is of likelihoods."""
    if wanted != "auto":
        return wanted == "likelihood"
    first = results[0]
    return any(likelihood_metrics(first, dimension) for dimension in first.dimensions)


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
