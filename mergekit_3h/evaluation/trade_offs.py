"""Helpfulness against harmlessness, with intervals and the Pareto set.

Rows are numbered as in the table, and the numbers stand at the points: names of many rows would cover each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mergekit_3h.drawings import Point, drawing, line, marker, number, path, scale_of, series, text, text_width
from mergekit_3h.evaluation.point_labels import NEAR, Area, Bar, grouped, placed_labels
from mergekit_3h.evaluation.result import ScoreWithInterval
from mergekit_3h.evaluation.side_by_side import ComparedModel, SideBySide
from mergekit_3h.pages import Html

_WIDTH = 400.0


@dataclass(frozen=True)
class TradeOff:
    """A row's scores in two dimensions."""

    place: int
    """Its number in the table."""
    row: ComparedModel
    across: ScoreWithInterval
    up: ScoreWithInterval

    @property
    def at(self) -> Point:
        return self.across.score or 0.0, self.up.score or 0.0

    def bars(self) -> list[Bar]:
        """Its intervals as lines: in the first dimension, and in the second."""
        across, up = self.at
        found: list[Bar] = []
        if self.across.low is not None and self.across.high is not None:
            found.append(((self.across.low, up), (self.across.high, up)))
        if self.up.low is not None and self.up.high is not None:
            found.append(((across, self.up.low), (across, self.up.high)))
        return found


def two_dimensions(table: SideBySide) -> tuple[str, str] | None:
    """Helpfulness and harmlessness by their names, else the first and the last dimension."""
    names = table.dimensions
    if len(names) < 2:
        return None
    across = next((name for name in names if name.lower().startswith("help")), names[0])
    up = next((name for name in names if name.lower().startswith("harm")), names[-1])
    return (across, up) if across != up else (names[0], names[-1])


def trade_offs(table: SideBySide) -> list[TradeOff]:
    pair = two_dimensions(table)
    if pair is None:
        return []
    return [
        TradeOff(place, row, row.scores[pair[0]], row.scores[pair[1]])
        for place, row in enumerate(table.rows, start=1)
        if row.value(pair[0]) is not None and row.value(pair[1]) is not None
    ]


def pareto_set(points: Sequence[TradeOff]) -> list[TradeOff]:
    """Those that no other point is as good as in both dimensions and better in one, from left to right."""

    def is_beaten(point: TradeOff) -> bool:
        return any(
            all(theirs >= mine for theirs, mine in zip(other.at, point.at, strict=True)) and other.at != point.at
            for other in points
        )

    return sorted((point for point in points if not is_beaten(point)), key=lambda point: point.at)


def trade_off_drawing(table: SideBySide) -> Html | None:
    """Numbers at the points are those of the table's rows; the dashed line joins the Pareto set."""
    points, pair = trade_offs(table), two_dimensions(table)
    if not points or pair is None:
        return None
    height, left, bottom = 330.0, 52.0, 44.0
    x = scale_of(_ends([point.across for point in points]), left, _WIDTH - 12)
    y = scale_of(_ends([point.up for point in points]), height - bottom, 12)
    shapes: list[Html] = []
    for tick in x.ticks(5):
        shapes += [line((x(tick), 12), (x(tick), height - bottom), "grid")]
        shapes += [text((x(tick), height - bottom + 17), number(tick), anchor="middle", kind="faint")]
    for tick in y.ticks(5):
        shapes += [line((left, y(tick)), (_WIDTH - 12, y(tick)), "grid")]
        shapes += [text((left - 6, y(tick) + 4), number(tick), anchor="end", kind="faint")]
    shapes += [text(((left + _WIDTH) / 2, height - 6), pair[0], anchor="middle")]
    shapes += [text((14, height / 2 - 12), pair[1], anchor="middle", turned=True)]
    best = [(x(a), y(b)) for a, b in (point.at for point in pareto_set(points))]
    if len(best) > 1:
        shapes.append(path(best, "axis open", dashes="5 4"))
    bars = [((x(a), y(b)), (x(c), y(d))) for point in points for (a, b), (c, d) in point.bars()]
    kinds = [kind_of(point.row) for point in points for _ in point.bars()]
    shapes += [line(*bar, series(kind, "open")) for bar, kind in zip(bars, kinds, strict=True)]
    shapes += [
        marker((x(point.at[0]), y(point.at[1])), kind_of(point.row), title=f"{point.place}. {point.row.name}")
        for point in points
    ]
    area = (left, 0.0, _WIDTH, height - bottom)
    places = [(x(a), y(b)) for a, b in (point.at for point in points)]
    shapes += _labels(places, [point.place for point in points], area, bars)
    return drawing(_WIDTH, height, shapes, label=f"{pair[1]} against {pair[0]} of {len(points)} models")


def _labels(points: Sequence[Point], numbers: Sequence[int], area: Area, bars: Sequence[Bar]) -> list[Html]:
    found: list[Html] = []
    places, names = grouped(points, numbers)
    for point, name, place in zip(places, names, placed_labels(places, names, area, bars), strict=True):
        if place is None:
            continue
        x, y = place
        if max(abs(x + text_width(name) / 2 - point[0]), abs(y - 4 - point[1])) > NEAR:
            found.append(line(point, (x + text_width(name) / 2, y - 4), "grid"))
        found.append(text(place, name, kind="label"))
    return found


def kind_of(row: ComparedModel) -> int:
    """Merges, experts and the base differ in colour and shape."""
    return {"merge": 0, "expert": 1, "base": 2}.get(row.role, 0)


def _ends(scores: Sequence[ScoreWithInterval]) -> list[float]:
    values = [value for score in scores for value in (score.score, score.low, score.high)]
    return [value for value in values if value is not None]
