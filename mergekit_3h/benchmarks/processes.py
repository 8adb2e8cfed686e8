"""A contender in a process of its own, which runs when it is told to.

On a CPU the processes are forked from one that has imported everything and computed nothing, where the system can do
that: each starts in milliseconds, and no contender sees the memory or the threads of another. CUDA does not survive a
fork, so on a GPU every process imports for itself.
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from mergekit_3h.benchmarks.contenders import FUSION_BENCH, FUSION_BENCH_MODULE, OURS, Facts, Recipe, Run, prepare
from mergekit_3h.benchmarks.literal import merge_literally, relative_error
from mergekit_3h.benchmarks.memory import PeakMemory
from mergekit_3h.benchmarks.problems import DTYPES, LORA_RANK, Problem, make_inputs, unrounded_updates
from mergekit_3h.errors import ThreeHError
from mergekit_3h.kernels.dense import eigh_in_place
from mergekit_3h.kernels.workers import Job as Matrix
from mergekit_3h.kernels.workers import run_jobs
from mergekit_3h.merging import matrix_bytes
from mergekit_3h.options import parse_options

GEMM_SIDE = {"cpu": 1024, "cuda": 8192}
GEMM_RUNS = 3
EIGH_RUNS = 2

WARM_UP_SIDE = 384
"""Of the matrix that every contender merges first: large enough for BLAS to allocate all buffers that it keeps."""


class ContenderError(ThreeHError):
    """A contender failed: out of memory, or an error of its own."""


@dataclass(frozen=True)
class Job:
    """A stream of matrices, each with its count, for one contender. The matrices of one shape are the same."""

    contender: str
    stream: tuple[tuple[Problem, int], ...]
    recipe: Recipe
    device: str = "cpu"
    threads: int = 1


@dataclass(frozen=True)
class FirstRun:
    """What the first run of each distinct matrix shows besides its time."""

    extra_bytes: int
    seconds: float
    """Of a pass over the stream, each distinct matrix timed once; with everything that is slower the first time."""
    facts: list[Facts]
    results: list[Path]


@dataclass(frozen=True)
class Errors:
    """Relative Frobenius errors of one result."""

    oracle: float
    """Against the same merge by full SVDs in float64."""
    unrounded: float | None = None
    """Against TSVM of the updates before the checkpoints were rounded, for LoRA updates at their own rank."""


class Contestant:
    """The parent's end of a contender's process."""

    def __init__(self, job: Job) -> None:
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


def _serve(connection: Connection, job: Job) -> None:
    torch.set_num_threads(job.threads)
    try:
        served = _Served(job)
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


def _itself(run: Run) -> Run:
    return run


class _Served:
    """The process's end: the inputs in memory, and the answers to a ``Contestant``'s questions."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.device = torch.device(job.device)
        self._runs: list[Run] | None = None

    @property
    def runs(self) -> list[Run]:
        if self._runs is None:
            problems = [problem for problem, _ in self.job.stream]
            self._runs = [self._prepared(problem) for problem in problems]
            first = problems[0]
            # What BLAS allocates once for the life of the process, about 6 MB a thread, is not this matrix's memory.
            self._prepared(Problem(WARM_UP_SIDE, WARM_UP_SIDE, first.experts, first.dtype, "flat"))()
        return self._runs

    def _prepared(self, problem: Problem) -> Run:
        return prepare(self.job.contender, make_inputs(problem, self.device), self.job.recipe)

    def first_run(self, folder: Path) -> FirstRun:
        runs, facts, results = self.runs, list[Facts](), list[Path]()
        seconds = 0.0
        with PeakMemory(self.device) as peak:
            for i, (run, (_, count)) in enumerate(zip(runs, self.job.stream, strict=True)):
                self._synchronize()
                start = perf_counter()
                merged, found = run()
                self._synchronize()
                seconds += count * (perf_counter() - start)
                results.append(folder / f"{self.job.contender}-{i}.pt")
                torch.save(merged, results[-1])
                del merged
                facts.append(found)
        extra = peak.extra
        if self._merges_side_by_side:
            with PeakMemory(self.device) as peak:
                self._merge(self._jobs(most_of_a_kind=self.job.threads))
            extra = max(extra, peak.extra)
        return FirstRun(extra, seconds, facts, results)

    def seconds(self) -> float:
        jobs = self._jobs()
        return self._timed(lambda: self._merge(jobs))

    @property
    def _merges_side_by_side(self) -> bool:
        return self.job.contender == OURS and sum(count for _, count in self.job.stream) > 1

    def _jobs(self, most_of_a_kind: int | None = None) -> list[Matrix]:
        """Every matrix of the stream, or the first few of each shape."""
        recipe = self.job.recipe
        options = parse_options(recipe.method, recipe.options)
        matrices: list[Matrix] = []
        for run, (problem, count) in zip(self.runs, self.job.stream, strict=True):
            shape = (problem.rows, problem.columns)
            need = matrix_bytes(shape, DTYPES[problem.dtype], problem.experts, options) + problem.input_bytes
            copies = count if most_of_a_kind is None else min(count, most_of_a_kind)
            matrices += [Matrix(need, partial(_itself, run))] * copies
        return matrices

    def _merge(self, matrices: list[Matrix]) -> None:
        """Our kernel as the FusionBench algorithms run it, side by side; the others one matrix after the other."""
        if self._merges_side_by_side:
            run_jobs(self.device, matrices)
        else:
            for matrix in matrices:
                matrix.begin()()

    def gemm_rate(self) -> float:
        side = GEMM_SIDE.get(self.device.type, GEMM_SIDE["cpu"])
        matrix = torch.randn(side, side, dtype=torch.float64, device=self.device)
        out = torch.empty_like(matrix)
        torch.mm(matrix, matrix, out=out)
        best = min(self._timed(lambda: torch.mm(matrix, matrix, out=out)) for _ in range(GEMM_RUNS))
        return 2 * side**3 / best

    def eigh_seconds(self, side: int) -> float:
        matrix = torch.randn(side, side, dtype=torch.float64, device=self.device)
        gram = matrix @ matrix.T
        torch.set_num_threads(1)
        try:
            return min(self._timed(lambda: eigh_in_place(gram.clone())) for _ in range(EIGH_RUNS))
        finally:
            torch.set_num_threads(self.job.threads)

    def _timed(self, work: Callable[[], object]) -> float:
        self._synchronize()
        start = perf_counter()
        work()
        self._synchronize()
        return perf_counter() - start

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def errors(self, i: int, result: Path, facts: Facts) -> Errors:
        problem, _ = self.job.stream[i]
        merged = torch.load(result, map_location=self.device, weights_only=True)
        inputs = make_inputs(problem, self.device)
        oracle = merge_literally(
            inputs.updates(torch.float64), facts.ranks, facts.scales, orthogonalize_first=facts.orthogonalize_first
        )
        return Errors(relative_error(merged, oracle), self._unrounded_error(problem, merged, facts))

    def _unrounded_error(self, problem: Problem, merged: Tensor, facts: Facts) -> float | None:
        if problem.update != "lora" or facts.orthogonalize_first:
            return None
        updates = [update.to(torch.float64) for update in unrounded_updates(problem, self.device)]
        rank = min(LORA_RANK, max(1, min(problem.rows, problem.columns) // problem.experts))
        return relative_error(merged, merge_literally(updates, [rank] * len(updates), facts.scales))
