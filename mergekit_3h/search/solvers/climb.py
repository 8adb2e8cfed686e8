"""Hill climbing on a grid along the axes, by forward passes alone: any method's weights, and its continuous options.

The factor lambda needs no merge, so it is refined at every setting of the others while their merge is at hand. The
grid is coarse at first and is halved twice where no neighbour is better.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from mergekit_3h.search.axes import COARSE
from mergekit_3h.search.search import Point, Search
from mergekit_3h.search.solvers import BUDGET_SPENT
from mergekit_3h.search.tuning import FACTOR

log = logging.getLogger(__name__)

Place = tuple[int, ...]
"""A point of the grid, an index for each axis."""


class _BudgetSpentError(Exception):
    pass


@dataclass
class _Climb:
    search: Search
    known: dict[tuple[float, ...], Point] = field(default_factory=dict[tuple[float, ...], Point])

    def point(self, place: Place) -> Point:
        values = tuple(axis.at(index) for axis, index in zip(self.search.axes, place, strict=True))
        if values not in self.known:
            asked = self.search.evaluate([values])
            if not asked:
                raise _BudgetSpentError
            self.known[values] = asked[0]
        return self.known[values]

    def is_better(self, place: Place, than: Place) -> bool:
        """By more than the search calls an improvement: the same point is none."""
        new, old = self.point(place), self.point(than)
        if new.measured.failure or old.measured.failure:
            return not new.measured.failure
        return new.score < old.score - self.search.options.convergence * abs(old.score)

    def refined(self, place: Place, axes: list[int], step: int) -> Place:
        """The best place in reach by steps along ``axes`` alone."""
        best = place
        for axis in axes:
            for direction in (step, -step):
                before = best
                while self.is_better(moved := _moved(best, axis, direction), best):
                    best = moved
                if best != before:
                    break
        return best

    def climbed(self, place: Place, step: int) -> Place:
        """The best place from which no step along an axis leads up, each tried with its own best factor."""
        axes = self.search.axes
        free = [i for i, axis in enumerate(axes) if axis.name == FACTOR]
        merged = [i for i in range(len(axes)) if i not in free]
        best, is_done = self.refined(place, free, step), False
        while not is_done:
            is_done = True
            for axis in merged:
                for direction in (step, -step):
                    before = best
                    while self._changes(best, moved := _moved(best, axis, direction)) and self.is_better(
                        tried := self.refined(moved, free, step), best
                    ):
                        best, is_done = tried, False
                    if best != before:
                        break
        return best

    def _changes(self, place: Place, moved: Place) -> bool:
        """Whether a step leads anywhere: not from a bound outward."""
        return any(axis.at(i) != axis.at(j) for axis, i, j in zip(self.search.axes, place, moved, strict=True))


def solve(search: Search) -> str:
    """Climb from the start, on a grid of which the steps are halved twice."""
    climb, place, step = _Climb(search), (0,) * search.dimension, COARSE
    try:
        climb.point(place)
        while step:
            place = climb.climbed(place, step)
            shown = zip(search.axes, place, strict=True)
            log.info("steps of %d: %s", step, ", ".join(f"{axis.name} {axis.at(i):.4g}" for axis, i in shown))
            step //= 2
    except _BudgetSpentError:
        return BUDGET_SPENT
    return "converged"


def _moved(place: Place, axis: int, by: int) -> Place:
    return tuple(index + by * (i == axis) for i, index in enumerate(place))
