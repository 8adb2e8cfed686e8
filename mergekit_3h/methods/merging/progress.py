"""How far a merge is, and the time that is left: learnt from the tensors that it has merged so far."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from time import monotonic
from typing import Any

from mergekit_3h.safety.progress import duration

_LINE_SECONDS = 60.0
"""Between lines where there is no terminal, whose one line could change all the time."""
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} tensors [{elapsed}{postfix}]"


@dataclass(frozen=True)
class ExpectedTensor:
    """A tensor of the result as its inputs let expect it."""

    shape: tuple[int, ...]
    bytes: int


class Pace:
    """Seconds that tensors took, by their shape: layers are alike, so after the first one the rest is known.

    A shape that has not been met yet is taken to cost as much per number as all that have.
    """

    def __init__(self) -> None:
        self._seconds: defaultdict[tuple[int, ...], float] = defaultdict(float)
        self._met: Counter[tuple[int, ...]] = Counter()

    def hear(self, shape: tuple[int, ...], seconds: float) -> None:
        self._seconds[shape] += seconds
        self._met[shape] += 1

    def left(self, waiting: Mapping[tuple[int, ...], int]) -> float | None:
        """Seconds for so many tensors of each shape; None as long as nothing has been merged."""
        numbers = sum(prod(shape) * count for shape, count in self._met.items())
        if not numbers:
            return None
        each = sum(self._seconds.values()) / numbers
        return sum(
            count * (self._seconds[shape] / self._met[shape] if shape in self._met else prod(shape) * each)
            for shape, count in waiting.items()
        )


class MergeProgress:
    """One line on a terminal; elsewhere a line a minute."""

    def __init__(self, expected: Mapping[str, ExpectedTensor], *, disable: bool) -> None:
        from tqdm import tqdm

        self._waiting = {name: tensor.shape for name, tensor in expected.items()}
        self._shapes = Counter(self._waiting.values())
        self._total = len(expected)
        self._pace, self._workers = Pace(), 1
        self._begun = self._last = self._told = monotonic()
        self._is_quiet = disable
        on_terminal = sys.stderr.isatty() and not disable
        self._bar: Any = tqdm(total=self._total, desc="merge", bar_format=_BAR, disable=not on_terminal)

    def known(self, names: Iterable[str]) -> None:
        """These were finished by the run before."""
        self._bar.update(sum(self._drop(name) for name in names))
        self._last = monotonic()

    def shared_by(self, workers: int) -> None:
        """So many processes merge at once."""
        self._workers = workers

    def merged(self, name: str, shape: tuple[int, ...], seconds: float | None = None) -> None:
        """One more; it took the ``seconds`` since the one before, unless they are given."""
        now = monotonic()
        self._pace.hear(shape, now - self._last if seconds is None else seconds)
        self._last = now
        self._drop(name)
        self._bar.set_postfix_str(self._left(), refresh=False)
        self._bar.update()
        if self._bar.disable and not self._is_quiet and now - self._told >= _LINE_SECONDS:
            self._told = now
            done = self._total - len(self._waiting)
            sys.stderr.write(f"merge: {done} of {self._total} tensors{self._left()}\n")

    def close(self) -> None:
        self._bar.close()

    def _drop(self, name: str) -> bool:
        shape = self._waiting.pop(name, None)
        if shape is not None:
            self._shapes[shape] -= 1
        return shape is not None

    def _left(self) -> str:
        seconds = self._pace.left(self._shapes)
        return "" if seconds is None else f", about {duration(seconds / self._workers)} left"
