"""Actors of a Ray cluster that share a list of jobs; the job of an actor that dies is done again by another one."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from mergekit_3h.cluster.connection import require_ray
from mergekit_3h.cluster.options import ClusterOptions
from mergekit_3h.errors import ThreeHError

log = logging.getLogger(__name__)


class ClusterError(ThreeHError):
    """The cluster's workers have no result."""


@dataclass
class Call:
    """A method of the actor with its arguments, and the place of its result among those of the other jobs."""

    index: int
    method: str
    arguments: tuple[Any, ...]
    begun: int = 0


@dataclass
class Worker:
    """An actor, and the job it is at: none while it opens its models, or at one whose result nobody wants any more."""

    number: int
    actor: Any
    report: Any = None
    """What ``open`` returned, once it has."""
    job: Call | None = None


class RayPool:
    """Workers of one kind. ``start`` makes an actor; its method ``open`` comes first, ``accept`` sees the result."""

    def __init__(
        self,
        start: Callable[[], Any],
        count: int,
        scale: ClusterOptions,
        accept: Callable[[Any], None],
        *,
        advice: str = "a smaller batch_size, or more cpus_per_worker. What was measured is in the trace; continue with "
        "resume",
    ) -> None:
        """``advice`` is for who has lost too many workers: what may help, and how to go on."""
        self._ray = require_ray()
        self._start, self._scale, self._accept, self._advice = start, scale, accept, advice
        self._idle: list[Worker] = []
        self._busy: dict[Any, Worker] = {}
        self._deaths_while_opening = 0
        for number in range(count):
            self._hire(number)

    @property
    def reports(self) -> list[Any]:
        """What the workers that are ready reported when they opened their models."""
        workers = sorted([*self._idle, *self._busy.values()], key=lambda worker: worker.number)
        return [worker.report for worker in workers if worker.report is not None]

    def run(self, calls: Sequence[tuple[str, tuple[Any, ...]]]) -> Iterator[Any]:
        """The results of these calls of the actors' methods, in the order of the calls, as soon as they are there."""
        results: dict[int, Any] = {}
        with closing(self.run_unordered(calls)) as done:
            for index in range(len(calls)):
                while index not in results:
                    results.update([next(done)])
                yield results.pop(index)

    def run_unordered(self, calls: Sequence[tuple[str, tuple[Any, ...]]]) -> Generator[tuple[int, Any]]:
        """The results with the places of their calls, in the order in which they come."""
        waiting = deque(Call(index, method, arguments) for index, (method, arguments) in enumerate(calls))
        results: dict[int, Any] = {}
        try:
            for _ in calls:
                while not results:
                    self._hand_out(waiting)
                    self._take_next(waiting, results)
                self._hand_out(waiting)
                yield results.popitem()
        finally:
            for worker in self._busy.values():
                worker.job = None

    def close(self) -> None:
        for worker in [*self._idle, *self._busy.values()]:
            self._ray.kill(worker.actor)
        self._idle, self._busy = [], {}

    def _hire(self, number: int) -> None:
        worker = Worker(number, self._start())
        self._busy[worker.actor.open.remote()] = worker

    def _hand_out(self, waiting: deque[Call]) -> None:
        while waiting and self._idle:
            worker, job = self._idle.pop(0), waiting.popleft()
            job.begun += 1
            worker.job = job
            self._busy[getattr(worker.actor, job.method).remote(*job.arguments)] = worker

    def _take_next(self, waiting: deque[Call], results: dict[int, Any]) -> None:
        """Wait until one worker has finished or died."""
        someone_is_ready = any(worker.report is not None for worker in self._busy.values())
        patience = None if someone_is_ready else self._scale.start_timeout
        ready, _ = self._ray.wait(list(self._busy), num_returns=1, timeout=patience)
        if not ready:
            raise ClusterError(
                f"no worker was ready within {patience:g} s (start_timeout). One needs {self._scale.needs}; the "
                f"cluster has {self._ray.available_resources()} free. Ask for less, add nodes, or wait longer."
            )
        worker = self._busy.pop(ready[0])
        job, worker.job = worker.job, None
        try:
            result = self._ray.get(ready[0])
        except (self._ray.exceptions.RayActorError, self._ray.exceptions.OutOfMemoryError) as error:
            self._replace(worker, job, error)
            if job is not None:
                waiting.appendleft(job)
            return
        except self._ray.exceptions.RayTaskError as error:
            self._idle.append(worker)
            raise own_error(error) from None
        if worker.report is None:
            self._accept(result)
            worker.report, self._deaths_while_opening = result, 0
        elif job is not None:
            results[job.index] = result
        self._idle.append(worker)

    def _replace(self, worker: Worker, job: Call | None, error: Exception) -> None:
        """Another worker in the place of one that died, unless that has happened too often."""
        reason = str(error).strip().splitlines()[0]
        if worker.report is None:
            self._deaths_while_opening += 1
            begun, what = self._deaths_while_opening, "while they loaded the models"
        else:
            begun, what = (job.begun if job else 0), "of the same piece of work"
        if begun >= self._scale.attempts:
            raise ClusterError(
                f"{begun} workers died {what} ({reason}). The usual cause is memory: Ray or the system kills a process "
                f"that takes too much. Use fewer workers per node, {self._advice}."
            )
        log.warning("worker %d died (%s); another one takes its place%s", worker.number, reason, " and job" * bool(job))
        self._ray.kill(worker.actor)  # it may only have been out of reach
        self._hire(worker.number)


def own_error(error: Any) -> ThreeHError:
    """The error that was raised inside an actor, as if it had been raised here."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, ThreeHError):
        return cause
    return ClusterError(f"a worker failed: {type(cause).__name__}: {cause}. Its log is in Ray's session folder.")
