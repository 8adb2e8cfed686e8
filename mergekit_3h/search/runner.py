"""Where candidates are evaluated: the protocol, and the runner that does it in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from torch import Tensor

from mergekit_3h.checkpoints.sources import WeightSource
from mergekit_3h.errors import ModelError
from mergekit_3h.kernels.passages import is_out_of_memory
from mergekit_3h.losses.objective import Losses, Objective, Part
from mergekit_3h.search.candidate_model import CandidateModel
from mergekit_3h.search.tuned_families import UnmergeableError

FORWARD_PASSES = 1
GRADIENT_PASSES = 3
"""A forward pass over the data counts 1, a backward pass 2: it multiplies every weight twice."""

Subject: TypeAlias = "str | tuple[float, ...]"
"""What is measured: a single model by its label, or a candidate by its coefficients."""


@dataclass(frozen=True)
class Measurement:
    """What one evaluation gave; plain values that survive JSON and pickling unchanged."""

    losses: dict[str, float] = field(default_factory=dict[str, float])
    gradients: dict[str, list[float]] | None = None
    seconds: float = 0.0
    passes: int = 0
    failure: str = ""
    """Why there are no losses, or empty."""


class Runner(Protocol):
    """Evaluates candidates and single models. Results come in the order of the requests, as soon as they are there."""

    @property
    def set_weights(self) -> Mapping[str, float]:
        """The sum of the records' weights in each set that is there."""
        ...

    def evaluate(self, candidates: Sequence[Sequence[float]], *, gradient: bool) -> Iterable[Measurement]:
        """The losses of each coefficient vector, with their derivatives if ``gradient``."""
        ...

    def evaluate_models(self, labels: Sequence[str]) -> Iterable[Measurement]:
        """The losses of single models: the base or an expert."""
        ...

    def evaluate_merged(self, candidates: Sequence[Sequence[float]]) -> Iterable[Measurement]:
        """The losses of candidates of a method of which a part was held, as it merges them with nothing held."""
        ...


class LocalRunner:
    """One model in this process, overwritten by one candidate after the other."""

    def __init__(
        self,
        candidates: CandidateModel,
        models: Sequence[WeightSource],
        objective: Objective,
        merged: Callable[[str, Sequence[float]], Tensor],
    ) -> None:
        self._candidates, self._merged = candidates, merged
        self._models = {model.label: model for model in models}
        self._objective = objective

    @property
    def set_weights(self) -> Mapping[str, float]:
        return self._objective.total_weights

    def evaluate(self, candidates: Sequence[Sequence[float]], *, gradient: bool) -> Iterator[Measurement]:
        for coefficients in candidates:
            started = time.perf_counter()
            with _advice_on_memory():
                try:
                    self._candidates.become(coefficients)
                except UnmergeableError as error:
                    yield Measurement(seconds=time.perf_counter() - started, failure=str(error))
                    continue
                losses = self._measure(gradient)
            yield measurement(losses, started)

    def evaluate_models(self, labels: Sequence[str]) -> Iterator[Measurement]:
        for label in labels:
            started = time.perf_counter()
            with _advice_on_memory():
                self._candidates.become_model(self._models[label])
                losses = self._measure(gradient=False)
            yield measurement(losses, started)

    def evaluate_merged(self, candidates: Sequence[Sequence[float]]) -> Iterator[Measurement]:
        for coefficients in candidates:
            started = time.perf_counter()
            with _advice_on_memory():
                self._candidates.become_merged(self._merged, coefficients)
                losses = self._measure(gradient=False)
            yield measurement(losses, started)

    def parts(self, subject: Subject, batches: Sequence[int], gradient: bool) -> list[Part]:
        """What these batches contribute to the losses of a model or candidate."""
        if isinstance(subject, str):
            self._candidates.become_model(self._models[subject])
        else:
            self._candidates.become(subject)
        model = self._candidates.model
        with self._candidates.collecting() if gradient else nullcontext() as collect:
            return [self._objective.part(model, number, collect) for number in batches]

    def _measure(self, gradient: bool) -> Losses:
        if not gradient:
            return self._objective.losses(self._candidates.model)
        with self._candidates.collecting() as collect:
            return self._objective.losses_and_gradients(self._candidates.model, collect)


@contextmanager
def _advice_on_memory() -> Generator[None]:
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ModelError(
            f"the device's memory is too small for this evaluation ({str(error).splitlines()[0]}). Lower batch_size or "
            "component_memory_gb; the solvers cmaes and grid need less than gradient."
        ) from error


class OnDemandRunner:
    """A runner that is made when the first result is needed: never, if a trace has all of them."""

    def __init__(self, make: Callable[[], Runner], set_weights: Mapping[str, float]) -> None:
        self._make = make
        self._runner: Runner | None = None
        self._set_weights = set_weights

    @property
    def set_weights(self) -> Mapping[str, float]:
        return self._set_weights

    def evaluate(self, candidates: Sequence[Sequence[float]], *, gradient: bool) -> Iterator[Measurement]:
        if candidates:
            yield from self._made().evaluate(candidates, gradient=gradient)

    def evaluate_models(self, labels: Sequence[str]) -> Iterator[Measurement]:
        if labels:
            yield from self._made().evaluate_models(labels)

    def evaluate_merged(self, candidates: Sequence[Sequence[float]]) -> Iterator[Measurement]:
        if candidates:
            yield from self._made().evaluate_merged(candidates)

    def _made(self) -> Runner:
        if self._runner is None:
            self._runner = self._make()
        return self._runner


def measurement(losses: Losses, started: float) -> Measurement:
    """The losses as a result; those that are not finite as a failure with its reason."""
    seconds = time.perf_counter() - started
    passes = FORWARD_PASSES if losses.gradients is None else GRADIENT_PASSES
    failure = losses.not_finite()
    if failure:
        return Measurement(seconds=seconds, passes=passes, failure=failure)
    return Measurement(losses.by_set, losses.gradients, seconds, passes)
