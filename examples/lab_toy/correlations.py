"""Which observable tells, before anything is merged, which method wins and which scale is best?"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from math import log2
from statistics import fmean

from board import Board, kept, markdown
from merging import SUM
from observables import OBSERVABLES
from spread import correlation, with_chance

Outcome = Callable[[Board, str, int], float]


def _more(row: str, other: str = SUM) -> Outcome:
    return lambda board, kind, seed: kept(board.seeds(kind, row)[seed]) - kept(board.seeds(kind, other)[seed])


def _scale(row: str) -> Outcome:
    return lambda board, kind, seed: log2(board.seeds(kind, row)[seed]["scale"])


OUTCOMES: dict[str, Outcome] = {
    "tsvm - sum": _more("tsvm"),
    "iso_c - sum": _more("iso_c"),
    "rtsvm - tsvm": _more("rtsvm", "tsvm"),
    "kept by the sum": lambda board, kind, seed: kept(board.seeds(kind, SUM)[seed]),
    "scale of the sum": _scale(SUM),
    "scale of tsvm": _scale("tsvm"),
}


def observables(board: Board) -> str:
    """Means of every kind."""
    cells = [["experts", *OBSERVABLES]]
    for kind in board.kinds:
        lines = board.seeds(kind, "observables").values()
        cells.append([f"`{kind}`", *(f"{fmean(line['values'][name] for line in lines):.3g}" for name in OBSERVABLES)])
    return markdown(cells)


def between_kinds(board: Board) -> str:
    """Over the kinds, each with the means of its seeds."""

    def told(points: Points) -> str:
        means: list[tuple[float, float]] = []
        for own in _by_kind(points).values():
            means.append((fmean(point[0] for point in own), fmean(point[1] for point in own)))
        return with_chance(means)

    return _table(board, told)


def within_kinds(board: Board) -> str:
    """Over the seeds of the kinds, each value less the mean of its kind; the interval is one over kinds drawn again."""
    return _table(board, lambda points: correlation(_by_kind(_centred(points))))


Points = dict[tuple[str, int], tuple[float, float]]


def _table(board: Board, told: Callable[[Points], str]) -> str:
    rows = [[name, *(told(_points(board, name, outcome)) for outcome in OUTCOMES.values())] for name in OBSERVABLES]
    return markdown([["observable", *OUTCOMES], *rows])


def _by_kind(points: Points) -> dict[Hashable, list[tuple[float, float]]]:
    groups: dict[Hashable, list[tuple[float, float]]] = {}
    for (kind, _), point in points.items():
        groups.setdefault(kind, []).append(point)
    return groups


def _points(board: Board, name: str, outcome: Outcome) -> Points:
    return {
        (kind, seed): (line["values"][name], outcome(board, kind, seed))
        for kind in board.kinds
        for seed, line in board.seeds(kind, "observables").items()
        if seed in board.seeds(kind, "tsvm")
    }


def _centred(points: Points) -> Points:
    found: Points = {}
    for (kind, seed), (x, y) in points.items():
        own = [point for (other, _), point in points.items() if other == kind]
        found[kind, seed] = x - fmean(point[0] for point in own), y - fmean(point[1] for point in own)
    return found
