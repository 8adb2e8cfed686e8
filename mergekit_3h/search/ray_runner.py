"""The runner on a Ray cluster: a model set per worker, and the local runner's results to the last bit."""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mergekit_3h.cluster.connection import connect, require_ray, room
from mergekit_3h.cluster.options import ClusterOptions, parse_cluster_options, require_placeable
from mergekit_3h.cluster.pool import RayPool
from mergekit_3h.errors import ModelError
from mergekit_3h.kernels.card_memory import keep_to_share
from mergekit_3h.losses.objective import Objective, Part
from mergekit_3h.search.problem import Problem
from mergekit_3h.search.runner import Measurement, Subject, measurement
from mergekit_3h.search.tuned_families import UnmergeableError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerReport:
    """What a worker has opened, and where."""

    identity: dict[str, object]
    """That of its problem: the same models and records as everywhere, or not."""
    environment: tuple[str, ...]
    """What the last bits of its results may depend on."""
    host: str
    pid: int


class EvaluationWorker:
    """The actor: one process with the models of a problem, its components, and a model for the candidates."""

    def __init__(self, opened: Callable[[], Problem], threads: int, gpus: float) -> None:
        torch.set_num_threads(threads)
        keep_to_share(gpus)
        self._opened, self._threads = opened, threads

    def open(self) -> WorkerReport:
        """Load the models and compute the components."""
        problem = self._opened()
        self._runner = problem.local_runner()
        device = next(problem.model.parameters()).device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
        environment = (f"torch {torch.__version__}", str(name), f"{self._threads} threads")
        return WorkerReport(problem.identity(), environment, platform.node(), os.getpid())

    def measure(self, subject: Subject, gradient: bool) -> Measurement:
        """A single model or a whole candidate."""
        if isinstance(subject, str):
            (measured,) = self._runner.evaluate_models([subject])
        else:
            (measured,) = self._runner.evaluate([subject], gradient=gradient)
        return measured

    def measure_merged(self, coefficients: Sequence[float]) -> Measurement:
        """A whole candidate with nothing held."""
        (measured,) = self._runner.evaluate_merged([coefficients])
        return measured

    def parts(self, subject: Subject, batches: Sequence[int], gradient: bool) -> list[Part] | str:
        """Some batches of a single model or a candidate, or why there is no such candidate."""
        try:
            return self._runner.parts(subject, batches, gradient)
        except UnmergeableError as error:
            return str(error)


class RayRunner:
    """Evaluates on the workers of a Ray cluster. They start when the first result is needed; ``close`` ends them.

    ``opened`` opens the problem in a worker's process, on its device; Ray sends it there, so it is a function of a
    module that the workers can import, or a ``functools.partial`` of one. ``problem`` is the same problem here, where
    its weights are not used.
    """

    def __init__(self, problem: Problem, opened: Callable[[], Problem], scale: ClusterOptions | None = None) -> None:
        self._scale = scale or parse_cluster_options({})
        require_placeable(self._scale)
        require_ray()
        self._problem, self._opened = problem, opened
        self._objective = Objective(problem.answers, problem.options.batch_size)
        self._pool: RayPool | None = None
        self._count = 0
        self._is_ours = False

    def __enter__(self) -> RayRunner:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def set_weights(self) -> Mapping[str, float]:
        return self._objective.total_weights

    @property
    def workers(self) -> list[WorkerReport]:
        """The workers that are ready."""
        return self._pool.reports if self._pool else []

    def evaluate(self, candidates: Sequence[Sequence[float]], *, gradient: bool) -> Iterator[Measurement]:
        return self._measured([tuple(candidate) for candidate in candidates], gradient)

    def evaluate_models(self, labels: Sequence[str]) -> Iterator[Measurement]:
        return self._measured(list(labels), gradient=False)

    def evaluate_merged(self, candidates: Sequence[Sequence[float]]) -> Iterator[Measurement]:
        if candidates:
            yield from self._started().run([("measure_merged", (tuple(candidate),)) for candidate in candidates])

    def close(self) -> None:
        """End the workers, and the cluster if it was started for them."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        if self._is_ours:
            require_ray().shutdown()
            self._is_ours = False

    def _measured(self, subjects: Sequence[Subject], gradient: bool) -> Iterator[Measurement]:
        if not subjects:
            return
        pool = self._started()
        share = self._scale.share
        if share == "candidates" or (share == "auto" and len(subjects) >= self._count):
            yield from pool.run([("measure", (subject, gradient)) for subject in subjects])
            return
        pieces = shards(len(self._objective.batches), self._count)
        results = pool.run([("parts", (s, batches, gradient)) for s in subjects for batches in pieces])
        for _ in subjects:
            started = time.perf_counter()
            answers: list[list[Part] | str] = [next(results) for _ in pieces]
            failed = [answer for answer in answers if isinstance(answer, str)]
            if failed:
                yield Measurement(seconds=time.perf_counter() - started, failure=failed[0])
                continue
            parts = [part for answer in answers if not isinstance(answer, str) for part in answer]
            yield measurement(self._objective.total(parts), started)

    def _started(self) -> RayPool:
        if self._pool is None:
            self._is_ours = connect(self._scale)
            self._count = self._scale.workers or max(1, room(self._scale))
            log.info("a search on %d Ray workers", self._count)
            self._pool = RayPool(self._actor_factory(), self._count, self._scale, self._accept)
        return self._pool

    def _actor_factory(self) -> Callable[[], Any]:
        # Ray's own restarts would call a worker's methods before its models are open again; the pool does better.
        decorate = require_ray().remote(**self._scale.reserved(), max_restarts=0)
        actor_class: Any = decorate(EvaluationWorker)
        threads = self._scale.threads or torch.get_num_threads()
        return lambda: actor_class.remote(self._opened, threads, self._scale.gpus_per_worker)

    def _accept(self, report: WorkerReport) -> None:
        """Refuse a worker that evaluates something else; warn of one whose last bits may differ."""
        here = self._problem.identity()
        different = [name for name in here if here[name] != report.identity.get(name)]
        if different:
            raise ModelError(
                f"the worker on {report.host} has other {' and '.join(different)} than this process. Every node must "
                "see the same checkpoints and data under the same paths."
            )
        others = {worker.environment for worker in self.workers} - {report.environment}
        if others:
            log.warning(
                "the worker on %s has %s, another one has %s: the last bits of a result may depend on who computes it",
                report.host,
                ", ".join(report.environment),
                ", ".join(others.pop()),
            )
        log.info("worker on %s, process %d: %s", report.host, report.pid, ", ".join(report.environment))


def shards(batches: int, count: int) -> list[list[int]]:
    """Batch numbers in ``count`` pieces of like work: batches come sorted by length, so they are dealt out in turn.

    The batches are those of the undivided objective and their sums are exactly rounded, so that neither the number of
    pieces nor the order in which they arrive changes a bit of the result.
    """
    return [list(range(first, batches, count)) for first in range(min(count, batches))]
