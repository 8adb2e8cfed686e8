"""A contender's own end: the inputs in memory, and the answers to what it is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from mergekit_3h.benchmarks.contenders import OURS, Facts, Recipe, Run, prepare
from mergekit_3h.benchmarks.memory import PeakMemory
from mergekit_3h.benchmarks.problems import (
    DTYPES,
    LORA_RANK,
    MatrixProblem,
    is_told_from_unrounded,
    make_inputs,
    unrounded_updates,
)
from mergekit_3h.kernels.dense import eigh_in_place
from mergekit_3h.kernels.jobs import Job, run_jobs
from mergekit_3h.spectral.literal import relative_error
from mergekit_3h.spectral.tensors import matrix_bytes

GEMM_SIDE = {"cpu": 1024, "cuda": 8192}
GEMM_RUNS = 3
EIGH_RUNS = 2

WARM_UP_SIDE = 384
"""Of the matrix that every contender merges first: large enough for BLAS to allocate all buffers that it keeps."""


@dataclass(frozen=True)
class Assignment:
    """A stream of matrices, each with its count, for one contender. The matrices of one shape are the same."""

    contender: str
    stream: tuple[tuple[MatrixProblem, int], ...]
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
    is_counted: bool
    """Whether the matrix products are those that ``products.product_flops`` counts."""


@dataclass(frozen=True)
class Errors:
    """Relative Frobenius errors of one result."""

    oracle: float | None
    """Against the same merge by full SVDs in float64, where the method has them."""
    unrounded: float | None = None
    """Against the same merge of the updates before 16 bits rounded them; of LoRA updates at their own rank."""


def _itself(run: Run) -> Run:
    return run


class Served:
    """A job with its inputs in memory; every public method answers a question of ``processes.Contestant``."""

    def __init__(self, job: Assignment) -> None:
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
            self._prepared(MatrixProblem(WARM_UP_SIDE, WARM_UP_SIDE, first.experts, first.dtype, "flat"))()
        return self._runs

    def _prepared(self, problem: MatrixProblem) -> Run:
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
        return FirstRun(extra, seconds, facts, results, self.job.recipe.is_counted)

    def seconds(self) -> float:
        jobs = self._jobs()
        return self._timed(lambda: self._merge(jobs))

    @property
    def _merges_side_by_side(self) -> bool:
        return self.job.contender == OURS and sum(count for _, count in self.job.stream) > 1

    def _jobs(self, most_of_a_kind: int | None = None) -> list[Job]:
        """Every matrix of the stream, or the first few of each shape."""
        method = self.job.recipe.spectral()
        matrices: list[Job] = []
        for run, (problem, count) in zip(self.runs, self.job.stream, strict=True):
            shape = (problem.rows, problem.columns)
            need = matrix_bytes(shape, DTYPES[problem.dtype], problem.experts, method) + problem.input_bytes
            copies = count if most_of_a_kind is None else min(count, most_of_a_kind)
            matrices += [Job(need, partial(_itself, run))] * copies
        return matrices

    def _merge(self, matrices: list[Job]) -> None:
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
        updates = make_inputs(problem, self.device).updates(torch.float64)
        oracle = facts.oracle(self.job.recipe, updates)
        return Errors(
            None if oracle is None else relative_error(merged, oracle), self._unrounded_error(problem, merged, facts)
        )

    def _unrounded_error(self, problem: MatrixProblem, merged: Tensor, facts: Facts) -> float | None:
        if not is_told_from_unrounded(problem.update, problem.dtype):
            return None
        updates = [update.to(torch.float64) for update in unrounded_updates(problem, self.device)]
        if problem.update == "lora":
            rank = min(LORA_RANK, max(1, min(problem.rows, problem.columns) // problem.experts))
            ranks = [rank] * len(updates)
            if facts.report is not None:
                facts = replace(facts, report=replace(facts.report, ranks=ranks))
            facts = replace(facts, ranks=ranks)
        oracle = facts.oracle(self.job.recipe, updates)
        return None if oracle is None else relative_error(merged, oracle)
