"""The line that tells how far a search is: evaluations, the best score, and the time left."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from mergekit_3h.search.options import SearchOptions
from mergekit_3h.search.search import Point

_LINE = "{desc}: {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


@contextmanager
def search_progress(options: SearchOptions, *, disable: bool | None) -> Generator[Callable[[Point], None]]:
    """A line over the evaluations; what it hands out hears of every point.

    The time left is that of all evaluations that the search may make. Most solvers are done before.
    """
    from tqdm import tqdm

    with tqdm(
        total=options.max_evaluations, desc=f"safety_merge ({options.solver})", disable=disable, bar_format=_LINE
    ) as bar:
        bar.set_postfix_str("the single models first")
        yield _Pace(bar, options.max_evaluations).hear


class _Pace:
    """The best score, and the seconds between evaluations since the first that was not known before."""

    def __init__(self, bar: Any, total: int) -> None:
        self._bar, self._total = bar, total
        self._best, self._asked, self._measured, self._began = float("inf"), 0, 0, 0.0

    def hear(self, point: Point) -> None:
        self._asked += 1
        self._best = min(self._best, point.score)
        if not point.is_recorded:
            if not self._measured:
                self._began = monotonic() - point.measured.seconds
            self._measured += 1
        self._bar.set_postfix_str(f"best {self._best:.5g}{self._left()}", refresh=False)
        self._bar.update()

    def _left(self) -> str:
        if not self._measured:
            return ""
        each = (monotonic() - self._began) / self._measured
        return f", {duration(each)} each, at most {duration(each * max(0, self._total - self._asked))} left"


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
