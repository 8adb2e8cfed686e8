"""Independent pieces of work side by side, one BLAS thread each: parts of a matrix, or whole matrices.

Splitting work by shape alone and running every piece on one BLAS thread makes a result bit-identical for any number
of workers: a piece computes the same bits wherever it runs, and two pieces never add into the same memory.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import lru_cache

import torch

from mergekit_3h.kernels.memory import return_large_blocks_when_freed

return_large_blocks_when_freed()  # before the host allocates: holes left in the heap earlier would stay resident


def run_all(device: torch.device, pieces: Sequence[Callable[[], None]]) -> None:
    """Run every piece and return when all are done. The first error is raised, when nothing is running any more.

    On a CPU as many run at once as torch may use threads. Elsewhere the device has its own queue: they run in turn.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1 or not pieces:
        for piece in pieces:
            piece()
        return
    pool = _pool(threads, os.getpid())
    running = [pool.submit(_without_grad, piece) for piece in pieces]
    wait(running)
    for done in running:
        done.result()


LEAST_MEMORY = 1 << 30
"""Bytes that matrices side by side may take, however small they are."""


@dataclass(frozen=True)
class Job:
    """A matrix among many."""

    memory: int
    """Bytes that it needs while it runs."""
    begin: Callable[[], Callable[[], object]]
    """Fetches what the matrix needs, in the caller's thread, and returns the piece of work."""


def run_jobs(device: torch.device, jobs: Sequence[Job], memory: int | None = None) -> None:
    """Run every job, on a CPU as many side by side as there are threads and as ``memory`` bytes have room for.

    Without a number that is twice what the largest job needs, and ``LEAST_MEMORY`` at least. A job that takes more than
    half of the memory, and every job where they are fewer than the threads, runs alone with all threads. No job begins
    after one has failed; of several errors that of the earliest job is raised.
    """
    threads = torch.get_num_threads()
    if memory is None:
        memory = max(LEAST_MEMORY, 2 * max((job.memory for job in jobs), default=0))
    beside, alone = _split(jobs, lambda job: 2 * job.memory <= memory)
    if device.type != "cpu" or threads == 1 or len(beside) < threads:
        beside, alone = [], list(jobs)
    for job in alone:
        job.begin()()
    if not beside:
        return
    pool = _pool(threads, os.getpid())
    running: dict[Future[None], int] = {}
    try:
        for job in beside:
            while len(running) == threads or sum(running.values()) + job.memory > memory:
                _take_finished(running)
            running[pool.submit(_without_grad, job.begin())] = job.memory
        while running:
            _take_finished(running)
    finally:
        wait(running)


def _split(jobs: Sequence[Job], fits: Callable[[Job], bool]) -> tuple[list[Job], list[Job]]:
    return [job for job in jobs if fits(job)], [job for job in jobs if not fits(job)]


def _take_finished(running: dict[Future[None], int]) -> None:
    """Wait for one at least; raise if one failed, the earliest of them when all that run are done."""
    finished, _ = wait(running, return_when=FIRST_COMPLETED)
    if any(done.exception() for done in finished):
        wait(running)
        for done in running:
            done.result()
    for done in finished:
        del running[done]


def _without_grad(piece: Callable[[], object]) -> None:
    with torch.no_grad():
        piece()


@lru_cache(maxsize=4)
def _pool(threads: int, _process: int) -> ThreadPoolExecutor:
    """Threads that use one BLAS thread each. Keyed by process, because threads do not survive a fork."""
    ready = threading.Barrier(threads + 1)

    def start() -> None:
        torch.get_num_threads()  # torch sets a thread up at its first use; later it would undo the next line
        torch.set_num_threads(1)
        ready.wait()

    pool = ThreadPoolExecutor(threads, thread_name_prefix="mergekit-3h", initializer=start)
    for _ in range(threads):
        pool.submit(lambda: None)
    ready.wait()
    # set_num_threads also changes what threads started later inherit: give them back what the caller has.
    torch.set_num_threads(threads)
    return pool


def spans(length: int, step: int) -> list[slice]:
    """``range(length)`` cut into slices of ``step``; the cut depends on the length alone."""
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]
