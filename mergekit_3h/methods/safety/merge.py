"""One safety_merge: checked when it is planned, searched once, on first use, and then merged tensor by tensor."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mergekit.common import ModelReference
from mergekit.options import MergeOptions
from torch import Tensor

from mergekit_3h.methods.safety.combining import StaticMerge
from mergekit_3h.methods.safety.problems import checked_problem, opened_problem
from mergekit_3h.methods.safety.request import Request
from mergekit_3h.safety.progress import search_progress
from mergekit_3h.safety.report import TRACE, write_report
from mergekit_3h.safety.running import search
from mergekit_3h.search.search import Point
from mergekit_3h.search.solution import Solution

log = logging.getLogger(__name__)


class SafetyMerge:
    """A request and, once it is asked for, its solution. Any number of threads may ask."""

    def __init__(self, request: Request, options: MergeOptions) -> None:
        self.request = request
        self._options = options
        self._checked = checked_problem(request, options)
        self._lock = threading.Lock()
        self._solved: tuple[Solution, StaticMerge] | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """What is searched, for reports."""
        return self._checked.facts(self.request)

    def merged(self, name: str, tensors: Mapping[ModelReference, Tensor]) -> Tensor | None:
        """One tensor, by the very method and parameters that the static config names."""
        return self._found()[1].merged(name, tensors)

    def solve(self, trace: Path | None, *, resume: bool, on_point: Callable[[Point], None] | None = None) -> Solution:
        """Search now."""
        with _own_random_numbers():
            return search(
                self._checked.problem,
                self._checked.opened,
                self.request.given,
                opened_by_worker=partial(opened_problem, self.request, self._options),
                trace_path=trace,
                resume=resume,
                identity={"parameters": self.facts["parameters"], "model_parameters": self.facts["model_parameters"]},
                on_point=on_point,
            )

    def _found(self) -> tuple[Solution, StaticMerge]:
        with self._lock:
            if self._solved is None:
                self._solved = self._search_and_report()
            return self._solved

    def _search_and_report(self) -> tuple[Solution, StaticMerge]:
        folder = self.request.run.folder()
        with search_progress(self.request.options, disable=self._options.quiet) as on_point:
            solution = self.solve(folder / TRACE if folder else None, resume=True, on_point=on_point)
        static = StaticMerge(self.request, solution.mergekit_weights(), self._options)
        if folder:
            write_report(folder, solution, self.facts, static.config)
        else:
            log.warning(
                "safety_merge found the weights %s. Nothing else of the search is kept: the option report is not set",
                solution.mergekit_weights(),
            )
        return solution, static


@contextmanager
def _own_random_numbers() -> Iterator[None]:
    """Methods that draw at random must merge the same with and without a search before them."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        yield
