"""A contender in a process of its own, which runs when it is told to.

On a CPU the processes are forked from one that has imported everything and computed nothing, where the system can do
that: each starts in milliseconds, and no contender sees the memory or the threads of another. CUDA does not survive a
fork, so on a GPU every process imports for itself.
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import torch

from mergekit_3h.benchmarks.contenders import FUSION_BENCH, FUSION_BENCH_MODULE, Facts
from mergekit_3h.benchmarks.serving import Assignment, Errors, FirstRun, Served
from mergekit_3h.errors import ThreeHError


class ContenderError(ThreeHError):
    """A contender failed: out of memory, or an error of its own."""


class Contestant:
    """The parent's end of a contender's process."""

    def __init__(self, job: Assignment) -> None:
        self.job = job
        self._connection, theirs = multiprocessing.Pipe()
        self._process = _context(job.device).Process(target=_serve, args=(theirs, job), daemon=True)  # type: ignore[attr-defined]
        self._process.start()
        theirs.close()

    def __enter__(self) -> Contestant:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.terminate()

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def first_run(self, folder: Path) -> FirstRun:
        return self._ask("first_run", folder)

    def seconds(self) -> float:
        """Of one pass over the stream; preparation is not in it."""
        return self._ask("seconds")

    def gemm_rate(self) -> float:
        """Floating-point operations per second of a float64 product with this job's threads, the best of some."""
        return self._ask("gemm_rate")

    def eigh_seconds(self, side: int) -> float:
        """Of a float64 eigendecomposition of a matrix of this size on one thread, the best of some."""
        return self._ask("eigh_seconds", side)

    def errors(self, i: int, result: Path, facts: Facts) -> Errors:
        """Of a contender's result for the ``i``-th problem of the stream."""
        return self._ask("errors", i, result, facts)

    def _ask(self, question: str, *arguments: Any) -> Any:
        try:
            self._connection.send((question, arguments))
            succeeded, answer = self._connection.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._process.join(5)
            raise ContenderError(
                f"{self._label}: its process ended with status {self._process.exitcode}. Status -9 means that the "
                "system ran out of memory: try smaller shapes (--shape) or fewer experts (-n)."
            ) from None
        if not succeeded:
            raise ContenderError(f"{self._label}: {answer}")
        return answer

    @property
    def _label(self) -> str:
        shapes = ", ".join(f"{problem.rows}x{problem.columns}" for problem, _ in self.job.stream)
        return f"{self.job.contender} on {shapes} with {self.job.stream[0][0].experts} experts"


def start_template(contenders: Sequence[str], device: str) -> None:
    """Import what the contenders need, once; that takes seconds and is no part of any measurement."""
    if _has_template(device):
        context = multiprocessing.get_context("forkserver")
        # A template that is already running keeps what it has; a process then imports what is missing by itself.
        context.set_forkserver_preload([__name__, *([FUSION_BENCH_MODULE] if FUSION_BENCH in contenders else [])])
        first = context.Process(target=_nothing)
        first.start()
        first.join()


def _nothing() -> None:
    """The template has imported everything once this has run."""


def _has_template(device: str) -> bool:
    return torch.device(device).type == "cpu" and "forkserver" in multiprocessing.get_all_start_methods()


def _context(device: str) -> BaseContext:
    return multiprocessing.get_context("forkserver" if _has_template(device) else "spawn")


def _serve(connection: Connection, job: Assignment) -> None:
    torch.set_num_threads(job.threads)
    try:
        served = Served(job)
        problem = ""
    except Exception as error:
        served, problem = None, _in_one_line(error)
    while True:
        try:
            question, arguments = connection.recv()
        except EOFError:
            return
        if served is None:
            connection.send((False, problem))
            continue
        try:
            connection.send((True, getattr(served, question)(*arguments)))
        except Exception as error:
            connection.send((False, _in_one_line(error)))


def _in_one_line(error: Exception) -> str:
    if isinstance(error, ThreeHError):
        return str(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno})"
