"""Pieces of work side by side: room in memory, and what the caller may rely on when one of them fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from mergekit_3h.errors import OptionError
from mergekit_3h.kernels import room
from mergekit_3h.kernels.jobs import Job, run_jobs
from mergekit_3h.kernels.room import LEAST_MEMORY
from mergekit_3h.kernels.workers import BLAS_THREADS, blas_threads, run_all

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def test_an_error_is_raised_when_nothing_is_running_any_more() -> None:
    """Else a caller that frees memory and tries again would share it with the rest of what failed."""
    finished: list[bool] = []

    def fail() -> None:
        raise MemoryError("too large")

    def work() -> None:
        time.sleep(0.2)
        finished.append(True)

    with pytest.raises(MemoryError, match="too large"):
        run_all(CPU, [fail, work])
    assert finished == [True]


class Watch:
    """Counts the memory of the jobs that run at once, and notes who runs them with how many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._used = 0
        self.most = 0
        self.finished: list[str] = []
        self.threads: dict[str, int] = {}

    def job(self, name: str, memory: int, *, fails: bool = False) -> Job:
        def piece() -> None:
            time.sleep(0.02)  # long enough to overlap with another one
            self._account(-memory)
            if fails:
                raise MemoryError(name)
            self.finished.append(name)

        def begin() -> Callable[[], None]:
            assert threading.current_thread() is threading.main_thread()
            self._account(memory)

            def run() -> None:
                self.threads[name] = torch.get_num_threads()
                piece()

            return run

        return Job(memory, begin)

    def _account(self, memory: int) -> None:
        with self._lock:
            self._used += memory
            self.most = max(self.most, self._used)


def test_jobs_side_by_side_stay_within_the_memory() -> None:
    watch = Watch()
    names = [str(i) for i in range(12)]
    run_jobs(CPU, [watch.job(name, 3 + i % 3) for i, name in enumerate(names)], memory=10)
    assert sorted(watch.finished) == sorted(names)
    assert 5 < watch.most <= 10
    assert set(watch.threads.values()) == {1}


def test_a_job_too_large_to_share_runs_alone_with_all_threads() -> None:
    """More than half of the memory; or of the work, so that nothing would be left to run beside it."""
    for memory in (10, 1000):
        watch = Watch()
        run_jobs(CPU, [watch.job("small", 1), watch.job("large", 6), watch.job("other", 1)], memory=memory)
        assert watch.threads == {"small": 1, "large": 2, "other": 1}
        assert watch.finished[0] == "large"
        assert watch.most == 6


def test_jobs_of_which_too_few_fit_side_by_side_run_alone() -> None:
    """Alone, a matrix has a thread for each of its tasks; two at once would leave two of four threads idle."""
    torch.set_num_threads(4)
    watch = Watch()
    run_jobs(CPU, [watch.job(str(i), 4) for i in range(8)], memory=10)
    assert set(watch.threads.values()) == {4}
    watch = Watch()
    run_jobs(CPU, [watch.job(str(i), 3) for i in range(8)], memory=10)
    assert set(watch.threads.values()) == {1} and watch.most == 9


def test_fewer_jobs_than_threads_run_in_turn_with_all_threads() -> None:
    watch = Watch()
    run_jobs(CPU, [watch.job("only", 1)], memory=10)
    assert watch.threads == {"only": 2}


def test_without_a_number_jobs_take_a_quarter_of_what_is_free_and_what_the_largest_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "free_bytes", lambda: 0)
    watch = Watch()
    run_jobs(CPU, [watch.job("large", 2 * LEAST_MEMORY), *(watch.job(str(i), LEAST_MEMORY) for i in range(4))])
    assert watch.most == 2 * LEAST_MEMORY
    watch = Watch()
    run_jobs(CPU, [watch.job(str(i), LEAST_MEMORY // 2) for i in range(4)])
    assert watch.most == LEAST_MEMORY
    monkeypatch.setattr(room, "free_bytes", lambda: 12 * LEAST_MEMORY)
    watch = Watch()
    run_jobs(CPU, [watch.job(str(i), LEAST_MEMORY) for i in range(4)])
    assert watch.most == 2 * LEAST_MEMORY  # there are two threads


def test_no_job_begins_after_one_has_failed_and_the_earliest_error_is_raised() -> None:
    watch = Watch()
    failing = [watch.job(f"fails {i}", 1, fails=True) for i in range(2)]
    with pytest.raises(MemoryError, match="fails 0"):
        run_jobs(CPU, [*failing, *(watch.job(str(i), 1) for i in range(20))], memory=100)
    assert len(watch.finished) <= 2  # those that were under way


@pytest.mark.parametrize(("threads", "workers"), [(4, 2), (5, 2), (2, 1), (1, 1)])
def test_pieces_of_several_blas_threads_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, threads: int, workers: int
) -> None:
    monkeypatch.setattr("mergekit_3h.kernels.workers.blas_threads", lambda: 2)
    torch.set_num_threads(threads)
    lock, seen, running, most = threading.Lock(), list[int](), [0], [0]

    def piece() -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
            seen.append(torch.get_num_threads())
        time.sleep(0.05)
        with lock:
            running[0] -= 1

    run_all(CPU, [piece] * 4)
    assert seen == [2] * 4 and most == [workers]
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5", ""])
def test_blas_threads_that_are_no_number(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(BLAS_THREADS, value)
    blas_threads.cache_clear()
    try:
        with pytest.raises(OptionError, match=f"{BLAS_THREADS} is '{value}'; expected a whole number of 1 or more"):
            run_all(CPU, [lambda: None])
    finally:
        blas_threads.cache_clear()


def test_an_error_that_came_first_is_not_lost_to_one_of_beginning() -> None:
    watch = Watch()

    def begin() -> Callable[[], None]:
        time.sleep(0.05)  # the first job has failed by then
        raise OSError("cannot be read")

    with pytest.raises(MemoryError, match="first"):
        run_jobs(CPU, [watch.job("first", 2, fails=True), Job(1, begin), Job(1, begin)], memory=100)
