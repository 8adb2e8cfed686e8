"""Whole matrices side by side on the cores, one BLAS thread each, within an amount of memory.

A matrix alone has a piece of work for each of its tasks, no more; many matrices keep all cores busy. ``run_jobs`` takes
them all at once; a ``Flow`` takes them as they come, for a host that hands over one after the other.
"""

from __future__ import annotations

import threading
import weakref
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import accumulate
from typing import Any

import torch

from mergekit_3h.kernels.room import allowed_bytes
from mergekit_3h.kernels.workers import Pool, pool_for, without_grad

FEWEST_BESIDE = 3
"""Matrices that must fit side by side to be faster than each alone with all threads, its own tasks side by side."""

LARGEST_SHARE = 2.0
"""Of a core's part of all the work, that one matrix of a ``Flow`` may be. A heuristic: alone, a matrix of three experts
is two to five times as fast on many cores; that pays for the few that are larger, and not for all of a small model."""

WAITING_SHARE = 0.125
"""Of the room of a ``Flow``, for the inputs of what waits for its turn, and as much again for results that wait to be
fetched."""


@dataclass(frozen=True)
class Job:
    """A matrix among many."""

    memory: int
    """Bytes that it needs while it runs."""
    begin: Callable[[], Callable[[], object]]
    """Fetches what the matrix needs, in the caller's thread, and returns the piece of work."""


def run_jobs(device: torch.device, jobs: Sequence[Job], memory: int | None = None) -> None:
    """Run every job, on a CPU as many side by side as there are threads and as ``memory`` bytes have room for.

    Without a number that is ``room.allowed_bytes()``, and what the largest job needs at least. The largest begin first.
    A job runs alone with all threads if it takes more than half of the memory or more than its share of the work, and
    all do where too few fit side by side. No job begins after one has failed; of several that fail side by side the
    error of the one that began first is raised.
    """
    if memory is None:
        memory = max(allowed_bytes(), max((job.memory for job in jobs), default=0))
    flow = flow_on(device)
    ordered = sorted(jobs, key=lambda job: job.memory, reverse=True)
    count = _alone(ordered, memory, flow.workers) if flow else len(ordered)
    for job in ordered[:count]:
        job.begin()()
    if flow is not None:
        _run_beside(flow, ordered[count:], memory)


def _alone(ordered: Sequence[Job], memory: int, workers: int) -> int:
    """How many of the jobs, largest first, run alone with all threads."""
    share = sum(job.memory for job in ordered) / workers
    count = sum(2 * job.memory > memory or job.memory > share for job in ordered)
    beside = ordered[count:]
    need = beside[len(beside) // 2].memory if beside else 0
    return count if len(beside) >= workers and fits_beside(need, memory, workers) else len(ordered)


def fits_beside(need: int, memory: int, workers: int) -> bool:
    """Whether enough matrices of this need fit into the memory to run them side by side."""
    return memory // max(1, need) >= min(workers, FEWEST_BESIDE)


def runs_alone(need: int, share: float, room: int, workers: int) -> bool:
    """Whether a matrix of a ``Flow`` is merged with all threads: too large for the memory, or for its ``share`` of all
    the work, so that in the end the others would wait for one core."""
    return share > LARGEST_SHARE / workers or not fits_beside(need, room, workers)


def room_within(memory: int) -> int:
    """What running matrices may take of the memory, so that what waits for them has its share too."""
    return int(memory / (1 + 2 * WAITING_SHARE))


def last_begun(results: Sequence[int], most: int) -> list[int]:
    """For each matrix the one after which its result is fetched, if the results from it to that one, of these sizes,
    may take so many bytes: within a ``Flow`` ``WAITING_SHARE`` of its room."""
    ends = list(accumulate(results))
    starts = [0, *ends][: len(ends)]
    return [max(i, bisect_right(ends, start + most) - 1) for i, start in enumerate(starts)]


def _run_beside(flow: Flow, jobs: Sequence[Job], memory: int) -> None:
    begun: list[Begun] = []
    try:
        for job in jobs:
            flow.wait_for_room(job.memory, memory)
            begun = [each for each in begun if not each.has_succeeded]
            if any(each.has_failed for each in begun):
                break
            begun.append(flow.begin(job.begin(), job.memory, memory))
    finally:  # an error that came first is not lost to one of beginning
        for each in begun:
            each.wait()
        for each in begun:
            each.result()


class Begun:
    """A piece of work that a ``Flow`` has taken. Once nobody holds this any more it does not begin."""

    def __init__(self, future: Future[Any]) -> None:
        self._future = future
        weakref.finalize(self, future.cancel).atexit = False

    def result(self) -> Any:
        """What the work returned, when it is done; what it raised is raised."""
        return self._future.result()

    def wait(self) -> None:
        """Return when it is done, whether it failed or not."""
        self._future.exception()

    @property
    def is_done(self) -> bool:
        return self._future.done()

    @property
    def has_succeeded(self) -> bool:
        return self._future.done() and self._future.exception() is None

    @property
    def has_failed(self) -> bool:
        return self._future.done() and self._future.exception() is not None


@dataclass
class _Piece:
    work: Callable[[], object] | None
    need: int
    room: int
    held: int
    future: Future[Any] = field(default_factory=Future[Any])


class Flow:
    """Work in the order in which it comes: each piece begins as soon as a worker is free and its memory fits."""

    def __init__(self, pool: Pool) -> None:
        self.workers = pool.workers
        self._pool = pool
        self._changed = threading.Condition()
        self._waiting: deque[_Piece] = deque()
        self._held = 0
        self._running = 0
        self._taken = 0

    def begin(self, work: Callable[[], object], need: int, room: int, held: int = 0) -> Begun:
        """Take a piece of work that needs ``need`` bytes, ``held`` of them before it begins already.

        Running pieces have ``room`` together; one alone may exceed it. The call returns when what waits holds no more
        than ``WAITING_SHARE`` of that, or is the only one to wait.
        """
        piece = _Piece(work, need, room, held)
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting or self._held + held <= WAITING_SHARE * room)
            self._waiting.append(piece)
            self._held += held
            self._begin_what_fits()
        return Begun(piece.future)

    def wait_for_room(self, need: int, room: int) -> None:
        """Return when a piece of this need would begin at once."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and self._has_room(need, room))

    def _has_room(self, need: int, room: int) -> bool:
        return self._running < self.workers and (not self._running or self._taken + need <= room)

    def _begin_what_fits(self) -> None:
        while self._waiting and self._has_room(self._waiting[0].need, self._waiting[0].room):
            piece = self._waiting.popleft()
            self._held -= piece.held
            try:
                self._pool.submit(without_grad, partial(self._run, piece))
            except RuntimeError:  # the interpreter is ending, and nobody will ask
                piece.future.cancel()
                continue
            self._running += 1
            self._taken += piece.need

    def _run(self, piece: _Piece) -> None:
        work, piece.work = piece.work, None
        try:
            if work is not None and piece.future.set_running_or_notify_cancel():
                _fulfil(piece.future, work)
        finally:
            del work  # and with it the inputs
            with self._changed:
                self._running -= 1
                self._taken -= piece.need
                self._begin_what_fits()
                self._changed.notify_all()


def _fulfil(future: Future[Any], work: Callable[[], object]) -> None:
    try:
        result = work()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)


def flow_on(device: torch.device) -> Flow | None:
    """The flow of this process on the cores that torch may use; None where there is nothing to run side by side on."""
    pool = pool_for(device)
    return None if pool is None else _flow(pool)


@lru_cache(maxsize=4)
def _flow(pool: Pool) -> Flow:
    return Flow(pool)
