"""Seeds side by side: each process takes some, and hands over every line as soon as it is there.

A SIGTERM or Ctrl-C ends the processes with the run; one whose run is gone ends by itself.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from results import Line

Work = Callable[[int], Iterator[Line]]
"""What is missing of a seed; a function that another process can import."""

PATIENCE = 1.0
"""Seconds between two looks at whether all processes are alive."""

DONE = None


def lines_of(work: Work, seeds: Sequence[int], jobs: int) -> Iterator[Line]:
    """The lines of all seeds, in the order in which they are made."""
    if jobs == 1 or len(seeds) == 1:
        for seed in seeds:
            yield from work(seed)
        return
    context = multiprocessing.get_context("spawn")
    lines: Any = context.Queue()
    parts = [seeds[i::jobs] for i in range(min(jobs, len(seeds)))]
    processes = [context.Process(target=_do, args=(work, part, lines), daemon=True) for part in parts]
    for process in processes:
        process.start()
    try:
        yield from _received(lines, processes)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def _received(lines: Any, processes: Sequence[Any]) -> Iterator[Line]:
    working = len(processes)
    while working:
        try:
            line = lines.get(timeout=PATIENCE)
        except queue.Empty:
            failed = [process.exitcode for process in processes if process.exitcode]
            if failed:
                sys.exit(f"a worker ended with {failed[0]}; what went wrong stands above. What is done is kept.")
            continue
        if line is DONE:
            working -= 1
        else:
            yield line


def _do(work: Work, seeds: Sequence[int], lines: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run itself ends its workers
    run = multiprocessing.parent_process()
    for seed in seeds:
        for line in work(seed):
            if run is not None and not run.is_alive():
                os._exit(1)
            lines.put(line)
    lines.put(DONE)


def end_on_sigterm() -> None:
    """So that what has to be put in order at the end is."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
