"""``mergekit-yaml`` with stopwatches.

``python -m mergekit_3h.benchmarks.profiled_merge PROFILE.json CONFIG.yml OUT [flags]`` is the real command in a process
of its own; only the times of its parts are noted on the way.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

_PAGE = 4096


class Stopwatch:
    """Seconds of the main thread by name. What runs inside something that is timed already counts there alone."""

    def __init__(self) -> None:
        parts = ("merge", "graph", "reading", "kernel", "writing")
        self.seconds: dict[str, float] = dict.fromkeys(parts, 0.0)
        self._is_inside = False

    def timed(self, name: str, function: Callable[..., Any], after: Callable[[Any], None] = lambda _: None) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            if self._is_inside or threading.current_thread() is not threading.main_thread():
                return function(*args, **kwargs)
            start, self._is_inside = perf_counter(), True
            try:
                result = function(*args, **kwargs)
                after(result)
            finally:
                self._is_inside = False
            self.seconds[name] += perf_counter() - start
            return result

        return run

    def timed_whole(self, name: str, function: Callable[..., Any]) -> Any:
        """With all that is timed inside."""

        def run(*args: Any, **kwargs: Any) -> Any:
            start = perf_counter()
            result = function(*args, **kwargs)
            self.seconds[name] += perf_counter() - start
            return result

        return run

    def timed_iteration(self, name: str, function: Callable[..., Iterator[Any]]) -> Any:
        def run(*args: Any, **kwargs: Any) -> Iterator[Any]:
            start = perf_counter()
            yield from function(*args, **kwargs)
            self.seconds[name] += perf_counter() - start

        return run


def main() -> None:
    """Install the stopwatches, run mergekit's own command, write what they show."""
    profile, *arguments = sys.argv[1:]
    import yaml
    from mergekit import merge_methods
    from mergekit.graph import Executor
    from mergekit.io.tasks import FinalizeModel, LoadTensor, SaveTensor
    from mergekit.scripts import run_yaml

    watch = Stopwatch()
    method = type(merge_methods.get(yaml.safe_load(Path(arguments[0]).read_text())["merge_method"]))
    LoadTensor.execute = watch.timed("reading", LoadTensor.execute, after=_read_whole)
    for name in ("merge_group", "merge_batch"):
        if hasattr(method, name):
            setattr(method, name, watch.timed("kernel", getattr(method, name)))
    for task in _own_tasks():
        task.execute = watch.timed("kernel", task.execute)
    SaveTensor.execute = watch.timed("writing", SaveTensor.execute)
    FinalizeModel.execute = watch.timed("writing", FinalizeModel.execute)
    Executor.run = watch.timed_iteration("graph", Executor.run)
    run_yaml.run_merge = watch.timed_whole("merge", run_yaml.run_merge)
    try:
        run_yaml.main(arguments, standalone_mode=False)
    finally:
        Path(profile).write_text(json.dumps({**watch.seconds, "peak_rss": _peak_rss()}))


def _own_tasks() -> list[Any]:
    """The tasks that this package brings to mergekit's graph: those that begin a merge and wait for it."""
    from mergekit.graph import Task

    found: list[Any] = Task.__subclasses__()
    for kind in found:
        found += [each for each in kind.__subclasses__() if each not in found]
    return [kind for kind in found if kind.__module__.startswith("mergekit_3h.methods.") and "execute" in vars(kind)]


def _read_whole(tensor: Any) -> None:
    """Touch every page: a mapped file is read when it is used, and that belongs to the reading, not to the kernel."""
    import torch

    if tensor is not None:
        tensor.reshape(-1).view(torch.uint8)[::_PAGE].sum()


def _peak_rss() -> int:
    """From inside: to the parent, Linux reports no less than what the parent itself held when it started this one."""
    from mergekit_3h.benchmarks.memory import high_water_mark

    return high_water_mark()


if __name__ == "__main__":
    main()
