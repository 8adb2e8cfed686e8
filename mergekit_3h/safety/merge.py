"""One safety merge: checked when it is made, searched once, on first use, whatever host merges with the result."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor

from mergekit_3h.errors import ModelError, OptionError
from mergekit_3h.losses.draws import drawing_from
from mergekit_3h.losses.tokenizers import shared_tokenizer
from mergekit_3h.safety.port import Fixed, FixedMerge, SafetyHost
from mergekit_3h.safety.progress import search_progress
from mergekit_3h.safety.report import TRACE, write_report
from mergekit_3h.safety.traces import kept_trace
from mergekit_3h.search.axes import Axis
from mergekit_3h.search.candidate_model import merged_parameters
from mergekit_3h.search.combinations import is_held, is_linear
from mergekit_3h.search.problem import Problem
from mergekit_3h.search.runner import OnDemandRunner, Runner
from mergekit_3h.search.search import Point
from mergekit_3h.search.solution import Solution
from mergekit_3h.search.solving import solve_problem
from mergekit_3h.search.tuned_families import Tuning
from mergekit_3h.search.tuning import FACTOR

log = logging.getLogger(__name__)

_TRIED_SIDE = 8
_NAMED = 3


class SearchedMerge(Generic[Fixed]):
    """A search over a host's models and, once it is asked for, its solution. Any number of threads may ask."""

    def __init__(self, host: SafetyHost[Fixed]) -> None:
        self.host = host
        self.problem = checked_problem(host)
        self._lock = threading.Lock()
        self._found: tuple[Solution, Fixed] | None = None
        self._kept_trace = kept_trace()

    @property
    def facts(self) -> dict[str, Any]:
        """What is searched, for reports."""
        combination = self.host.combination
        return {
            "models": dict(self.host.names),
            "data": [str(path) for path in combination.given.run.files()],
            "records": {name: len(members) for name, members in self.problem.answers.items()},
            "combine": combination.method,
            **combination.parameters(),
        }

    def found(self) -> tuple[Solution, Fixed]:
        """What the search found, and the host's merge with it; searched when first asked for, and reported."""
        with self._lock:
            if self._found is None:
                self._found = self._searched_and_reported()
            return self._found

    def solve(self, trace: Path | None, *, resume: bool) -> Solution:
        """Search now."""
        options = self.host.combination.given.search
        with search_progress(options, disable=self.host.silent) as on_point, _own_random_numbers():
            try:
                return self._solved(trace, resume, on_point)
            finally:
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()  # the merge that follows gets the room of the searched model

    def _solved(self, trace: Path | None, resume: bool, on_point: Callable[[Point], None]) -> Solution:
        with self._runner() as runner:
            return solve_problem(
                self.problem,
                runner=runner,
                trace_path=trace,
                resume=resume,
                identity=self.host.combination.parameters(),
                on_point=on_point,
            )

    @contextmanager
    def _runner(self) -> Generator[Runner]:
        """In this process, or on a Ray cluster; models get their weights when the first result is needed."""
        options = self.host.combination.given
        if options.run.runner == "local":
            yield OnDemandRunner(lambda: self._opened().local_runner(), self.problem.set_weights)
            return
        reopened = self.host.reopening()
        if reopened is None:
            raise OptionError("option 'runner': got 'ray', but these models cannot be opened by other processes")
        from mergekit_3h.search.ray_runner import RayRunner

        opened = partial(_opened_by_worker, reopened, self.problem.options.dtype)
        with RayRunner(self.problem, opened, options.cluster) as runner:
            yield runner

    def _opened(self) -> Problem:
        return replace(self.problem, model=self.host.searched_module(self.host.device, self.problem.options.dtype))

    def _searched_and_reported(self) -> tuple[Solution, Fixed]:
        folder = self.host.report_folder()
        solution = self.solve(folder / TRACE if folder else self._kept_trace, resume=True)
        weights, options = solution.mergekit_weights(), solution.option_values()
        if folder:
            write_report(folder, solution, self.facts, self.host.static(weights, options))
        else:
            found = [f"the {what} {values}" for what, values in (("weights", weights), ("options", options)) if values]
            log.warning(
                "safety_merge found %s. Nothing else of the search is kept: the option report is not set",
                " and ".join(found),
            )
        return solution, self.host.fixed(weights, options)


def checked_problem(host: SafetyHost[FixedMerge]) -> Problem:
    """Everything about a search that can be wrong is found here; nothing is read but data and headers."""
    combination = host.combination
    options = combination.given.search
    records, method = combination.records(), combination.spectral()
    models = host.opened()
    options = options.settled(models.stored, str(_device(host)))
    tokenizer = shared_tokenizer(models.tokenizers, options.chat_template)
    parameters = list(merged_parameters(models.module, models.base.names()))
    experts = [expert.label for expert in models.experts]
    fixed = host.fixed(dict.fromkeys(experts, 1.0) if combination.finds_weights else {}, {})
    _require_all(fixed, parameters)
    axes = combination.axes(fixed.spec, len(experts))
    combine = tuning = None
    if axes or not (is_linear(options.combine) or is_held(options.combine, options.solver)):
        weights = [1.0] * len(experts) if combination.finds_weights else None
        _try_parameters(fixed, options.combine, len(experts), weights)
        combine = fixed.combine
    if axes:
        tuning = Tuning(axes, fixed.combine, scales=_is_factor(fixed, axes, len(experts)))
    weights = combination.plain_weights(experts) if options.component_blocks else None
    return Problem(
        models.base, models.experts, models.module, tokenizer, records, options, method, combine, tuning, weights
    )


def _require_all(fixed: FixedMerge, names: Sequence[str]) -> None:
    missing = fixed.not_merged(names)
    if missing:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise ModelError(
            f"the host does not merge {len(missing)} of the model's {len(names)} tensors "
            f"({', '.join(missing[:_NAMED])}{more}), so what is searched would not be what is written"
        )


def _try_parameters(fixed: FixedMerge, method: str, experts: int, weights: Sequence[float] | None) -> None:
    """Raise if the method rejects its parameters, by merging a small tensor with each different set of them."""
    for name in fixed.samples():
        with drawing_from(0, torch.device("cpu")):
            tensors = [torch.randn(_TRIED_SIDE, _TRIED_SIDE) for _ in range(experts + 1)]
            try:
                fixed.combine(name, tensors[-1], tensors[:-1], weights)
            except Exception as error:
                raise OptionError(f"{method} rejects its options for {name}: {error}") from error


def _is_factor(fixed: FixedMerge, axes: Sequence[Axis], experts: int) -> bool:
    """Whether the method takes lambda for a factor on the update, by merging a small tensor with 1 and with 2."""
    if FACTOR not in [axis.name for axis in axes]:
        return False
    name = next(iter(fixed.samples()))
    tensors = [torch.randn(_TRIED_SIDE, _TRIED_SIDE, dtype=torch.float64) for _ in range(experts + 1)]
    once, twice = (
        _tried(fixed, name, tensors, {**{axis.name: axis.start for axis in axes}, FACTOR: factor}) - tensors[-1]
        for factor in (1.0, 2.0)
    )
    return torch.allclose(twice, 2 * once, rtol=1e-6, atol=1e-9)


def _tried(fixed: FixedMerge, name: str, tensors: list[Tensor], options: Mapping[str, float]) -> Tensor:
    weights = [1.0] * (len(tensors) - 1)
    with drawing_from(0, torch.device("cpu")):
        return fixed.combine(name, tensors[-1].clone(), [t.clone() for t in tensors[:-1]], weights, options)


def _opened_by_worker(reopened: Callable[[], SafetyHost[Any]], dtype: str) -> Problem:
    """The problem in a process of a Ray cluster, on the device that Ray gives it.

    All workers compute in one data type, whatever is the fastest on the machine of each.
    """
    host = reopened()
    problem = checked_problem(host)
    options = problem.options.model_copy(update={"dtype": dtype})
    return replace(problem, options=options, model=host.searched_module(_device(host), dtype))


def _device(host: SafetyHost[Any]) -> Any:
    """Where candidates are evaluated: here, or on what Ray gives each of its workers."""
    given = host.combination.given
    return given.worker_device if given.run.runner == "ray" else host.device


@contextmanager
def _own_random_numbers() -> Generator[None]:
    """Methods that draw at random must merge the same with and without a search before them."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        yield
