"""``mergekit-yaml`` with stopwatches.

``python -m mergekit_3h.benchmarks.profiled_merge PROFILE.json CONFIG.yml OUT [flags]`` is the real command in a process
of its own; only the times of its parts are noted on the way.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

_PAGE = 4096


class Stopwatch:
    """Seconds by name."""

    def __init__(self) -> None:
        parts = ("merge", "graph", "reading", "kernel", "writing")
        self.seconds: dict[str, float] = dict.fromkeys(parts, 0.0)

    def timed(self, name: str, function: Callable[..., Any], after: Callable[[Any], None] = lambda _: None) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = perf_counter()
            result = function(*args, **kwargs)
            after(result)
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
    SaveTensor.execute = watch.timed("writing", SaveTensor.execute)
    FinalizeModel.execute = watch.timed("writing", FinalizeModel.execute)
    Executor.run = watch.timed_iteration("graph", Executor.run)
    run_yaml.run_merge = watch.timed("merge", run_yaml.run_merge)
    try:
        run_yaml.main(arguments, standalone_mode=False)
    finally:
        Path(profile).write_text(json.dumps({**watch.seconds, "peak_rss": _peak_rss()}))


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
