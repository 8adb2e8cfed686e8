"""Independent pieces of work side by side, one BLAS thread each.

Splitting work by shape alone and running every piece on one BLAS thread makes a result bit-identical for any number
of workers: a piece computes the same bits wherever it runs, and two pieces never add into the same memory.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
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


def _without_grad(piece: Callable[[], None]) -> None:
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
