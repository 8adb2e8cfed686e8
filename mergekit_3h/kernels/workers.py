"""Independent pieces of work side by side, one BLAS thread each: parts of a matrix, or whole matrices (``jobs.py``).

Splitting work by shape alone and running every piece on one BLAS thread makes a result bit-identical for any number
of workers: a piece computes the same bits wherever it runs, and two pieces never add into the same memory.

A matrix has no more eigendecompositions at once than tasks, so many cores would idle. ``MERGEKIT_3H_BLAS_THREADS``
gives every piece that many BLAS threads instead. The last bits depend on this number, and still not on the workers.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache, lru_cache

import torch

from mergekit_3h.errors import OptionError

BLAS_THREADS = "MERGEKIT_3H_BLAS_THREADS"

_this_thread = threading.local()


def run_all(device: torch.device, pieces: Sequence[Callable[[], None]]) -> None:
    """Run every piece and return when all are done. The first error is raised, when nothing is running any more.

    On a CPU as many run at once as torch may use threads. Elsewhere the device has its own queue: they run in turn.
    """
    if not pieces:
        return
    pool = pool_for(device)
    if pool is None:
        for piece in pieces:
            piece()
        return
    running = [pool.submit(without_grad, piece) for piece in pieces]
    wait(running)
    for done in running:
        done.result()


def without_grad(piece: Callable[[], object]) -> None:
    with torch.no_grad():
        piece()


def pool_for(device: torch.device) -> Pool | None:
    """Workers for the cores that torch may use; None where the calling thread does the work itself."""
    threads, each = torch.get_num_threads(), blas_threads()
    if device.type != "cpu" or getattr(_this_thread, "is_worker", False) or threads == each:
        return None
    return _pool(max(1, threads // each), each, os.getpid())


@cache
def blas_threads() -> int:
    """BLAS threads of a piece, as the environment says; 1 if it says nothing."""
    text = os.environ.get(BLAS_THREADS, "1")
    if not text.isdecimal() or int(text) < 1:
        raise OptionError(f"the environment variable {BLAS_THREADS} is {text!r}; expected a whole number of 1 or more")
    return int(text)


@lru_cache(maxsize=4)
def _pool(workers: int, each: int, _process: int) -> Pool:
    """Threads that use ``each`` BLAS threads. Keyed by process, because threads do not survive a fork."""
    before = torch.get_num_threads()
    pool = Pool(workers, each)
    # set_num_threads also changes what threads started later inherit: give them back what the caller has.
    torch.set_num_threads(before)
    return pool


class Pool(ThreadPoolExecutor):
    """Workers that are ready: their threads are started and set up."""

    def __init__(self, workers: int, each: int) -> None:
        self.workers = workers
        self._ready = threading.Barrier(workers + 1)
        super().__init__(workers, thread_name_prefix="mergekit-3h", initializer=self._start, initargs=(each,))
        for _ in range(workers):
            self.submit(lambda: None)
        self._ready.wait()

    def _start(self, each: int) -> None:
        _this_thread.is_worker = True
        torch.get_num_threads()  # torch sets a thread up at its first use; later it would undo the next line
        torch.set_num_threads(each)
        self._ready.wait()


def spans(length: int, step: int) -> list[slice]:
    """``range(length)`` cut into slices of ``step``; the cut depends on the length alone."""
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]
