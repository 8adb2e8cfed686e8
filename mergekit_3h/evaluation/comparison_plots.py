"""A table of models as plots: a radar of its columns, and helpfulness against harmlessness with the Pareto set.

Rows are numbered as in the table, and the numbers stand at the points: names of many rows would cover each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import copysign, cos, pi, sin
from pathlib import Path
from typing import Any

from mergekit_3h.drawings import Point, drawing, line, marker, number, path, scale_of, series, text, text_width
from mergekit_3h.evaluation.result import ScoreWithInterval
from mergekit_3h.evaluation.side_by_side import AVERAGE, FORGETTING, ComparedModel, ScoreColumn, SideBySide
from mergekit_3h.optional import optional
from mergekit_3h.pages import Html

MOST_IN_A_RADAR = 6
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
    shapes += [shape for point in points for shape in _error_bars(point, x, y)]
    shapes += [
        marker((x(point.at[0]), y(point.at[1])), _kind(point.row), title=f"{point.place}. {point.row.name}")
        for point in points
    ]
    area = (left, 0.0, _WIDTH, height - bottom)
    shapes += _labels([(x(a), y(b)) for a, b in (point.at for point in points)], [p.place for p in points], area)
    return drawing(_WIDTH, height, shapes, label=f"{pair[1]} against {pair[0]} of {len(points)} models")


def _labels(points: Sequence[Point], numbers: Sequence[int], area: Area) -> list[Html]:
    found: list[Html] = []
    places, names = grouped(points, numbers)
    for point, name, place in zip(places, names, placed_labels(places, names, area), strict=True):
        if place is None:
            continue
        x, y = place
        if max(abs(x + text_width(name) / 2 - point[0]), abs(y - 4 - point[1])) > _NEAR:
            found.append(line(point, (x + text_width(name) / 2, y - 4), "grid"))
        found.append(text(place, name, kind="label"))
    return found


_NEAR = 16.0
"""A number farther from its point than this has a line to it."""


Area = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def grouped(points: Sequence[Point], numbers: Sequence[int]) -> tuple[list[Point], list[str]]:
    """Points at (nearly) one place share a name with their numbers in it, the first three of them."""
    groups: list[tuple[Point, list[int]]] = []
    for point, own in zip(points, numbers, strict=True):
        near = next((members for at, members in groups if max(abs(at[0] - point[0]), abs(at[1] - point[1])) < 2), None)
        if near is None:
            groups.append((point, [own]))
        else:
            near.append(own)
    names = [
        ", ".join(map(str, members[:3])) + (f" +{len(members) - 3}" if len(members) > 3 else "")
        for _, members in groups
    ]
    return [point for point, _ in groups], names


def placed_labels(points: Sequence[Point], names: Sequence[str], area: Area) -> list[Point | None]:
    """Where each name begins: beside its point, where neither a point nor another name is; y runs downward.

    None where no place within 50 units is free.
    """
    taken = [(px - 5, py - 5, px + 5, py + 5) for px, py in points]
    found: list[Point | None] = []
    for (px, py), name in zip(points, names, strict=True):
        wide = text_width(name)
        place = None
        for distance in (11.0, 22.0, 34.0, 46.0):
            for turn in (1, 7, 3, 5, 2, 6, 0, 4):  # eighths of a turn; the diagonals first
                x = px + distance * sin(pi * turn / 4) - wide / 2 + copysign(wide / 2 - 3, sin(pi * turn / 4 + 1e-9))
                y = py - distance * cos(pi * turn / 4) + 4
                room = (x - 1, y - 10, x + wide + 1, y + 2)
                inside = room[0] >= area[0] and room[1] >= area[1] and room[2] <= area[2] and room[3] <= area[3]
                if inside and not any(_overlap(room, other) for other in taken):
                    place = (x, y)
                    taken.append(room)
                    break
            if place is not None:
                break
        found.append(place)
    return found


def _overlap(first: Sequence[float], second: Sequence[float]) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def _error_bars(point: TradeOff, x: Any, y: Any) -> list[Html]:
    (across, up), kind = point.at, series(_kind(point.row), "open")
    bars: list[Html] = []
    if point.across.low is not None and point.across.high is not None:
        bars.append(line((x(point.across.low), y(up)), (x(point.across.high), y(up)), kind))
    if point.up.low is not None and point.up.high is not None:
        bars.append(line((x(across), y(point.up.low)), (x(across), y(point.up.high)), kind))
    return bars


def _kind(row: ComparedModel) -> int:
    """Merges, experts and the base differ in colour and shape."""
    return {"merge": 0, "expert": 1, "base": 2}.get(row.role, 0)


def _ends(scores: Sequence[ScoreWithInterval]) -> list[float]:
    values = [value for score in scores for value in (score.score, score.low, score.high)]
    return [value for value in values if value is not None]


def radar_axes(table: SideBySide) -> list[ScoreColumn]:
    """The metrics where higher is better; the dimensions' averages where there are fewer than three of those."""
    columns = [column for column in table.columns if column.name not in (AVERAGE, FORGETTING)]
    metrics = [column for column in columns if not column.is_average and column.better == "higher" and column.dimension]
    chosen = metrics if len(metrics) >= 3 else [column for column in columns if column.is_average]
    return chosen if len(chosen) >= 3 else []


def radar_rows(table: SideBySide) -> list[tuple[int, ComparedModel]]:
    """The best merges by average, and base and experts, in the table's order."""
    column = table.column(AVERAGE)
    ranked = table.ranked(column) if column else []
    others = [row for row in table.rows if row.role != "merge"]
    chosen = [*ranked[: max(1, MOST_IN_A_RADAR - len(others))], *others][:MOST_IN_A_RADAR]
    return [(place, row) for place, row in enumerate(table.rows, 1) if any(row is one for one in chosen)]


def radar_drawing(table: SideBySide) -> Html | None:
    """Each axis runs from the lowest score of the rows (centre ring) to the highest (outer ring)."""
    axes, rows = radar_axes(table), radar_rows(table)
    if not axes or not rows:
        return None
    height, radius, centre = 270.0, 92.0, (_WIDTH / 2, 132.0)
    shapes: list[Html] = []
    for ring in (0.25, 0.625, 1.0):
        corners = [_on(axis, len(axes), ring * radius, centre) for axis in range(len(axes))]
        shapes.append(path(corners, "grid open", closed=True))
    for axis, column in enumerate(axes):
        end = _on(axis, len(axes), radius, centre)
        shapes += [line(centre, end, "grid"), _axis_label(axis, len(axes), radius, centre, column.name)]
    for order, (_, row) in enumerate(rows):
        corners = [
            _on(axis, len(axes), radius * _share_of(table, row, column), centre) for axis, column in enumerate(axes)
        ]
        shapes.append(path(corners, series(order, "open"), closed=True, width=2))
        shapes += [marker(corner, order, size=3.2, title=row.name) for corner in corners]
    return drawing(_WIDTH, height, shapes, label=f"radar of {len(rows)} models over {len(axes)} scores")


def _share_of(table: SideBySide, row: ComparedModel, column: ScoreColumn) -> float:
    """Between a quarter (the lowest of the shown rows) and the whole of the radius."""
    values = [value for _, other in radar_rows(table) if (value := other.value(column.name)) is not None]
    own = row.value(column.name)
    if own is None or not values:
        return 0.0
    spread = max(values) - min(values)
    return 1.0 if not spread else 0.25 + 0.75 * (own - min(values)) / spread


def _on(axis: int, count: int, radius: float, centre: Point) -> Point:
    angle = 2 * pi * axis / count - pi / 2
    return centre[0] + radius * cos(angle), centre[1] + radius * sin(angle)


def _axis_label(axis: int, count: int, radius: float, centre: Point, name: str) -> Html:
    x, y = _on(axis, count, radius + 12, centre)
    across = cos(2 * pi * axis / count - pi / 2)
    anchor = "middle" if abs(across) < 0.2 else "start" if across > 0 else "end"
    room = (_WIDTH - x) if anchor == "start" else x if anchor == "end" else _WIDTH
    shown = name
    while text_width(shown) > room - 2 and len(shown) > 4:
        shown = shown[:-2].rstrip("…") + "…"
    return text((x, y + 4), shown, anchor=anchor)


def save_plots(table: SideBySide, place: Path) -> None:
    """Both plots and the numbered names in one picture (PNG, SVG or PDF, by the file's name)."""
    pyplot = optional("matplotlib.figure", "plots", "drawing plots")
    figure = pyplot.Figure(figsize=(14, max(5.2, 0.22 * len(table.rows) + 1)), layout="constrained")
    left, middle, right = figure.add_gridspec(1, 3, width_ratios=(5, 5, 3))
    axes, rows = radar_axes(table), radar_rows(table)
    if axes:
        _plot_radar(figure.add_subplot(left, projection="polar"), table, axes, rows)
    points, pair = trade_offs(table), two_dimensions(table)
    scatter = figure.add_subplot(middle) if points and pair is not None else None
    if scatter is not None and pair is not None:
        _plot_trade_offs(scatter, points, pair)
    names = figure.add_subplot(right)
    names.axis("off")
    listed = "\n".join(f"{place}  {row.name}" for place, row in enumerate(table.rows, start=1))
    names.text(0.0, 1.0, listed, va="top", fontsize=8, transform=names.transAxes)
    figure.suptitle(table.title)
    if scatter is not None:
        figure.draw_without_rendering()  # only then is it known where the points are
        _number_points(scatter, points)
    figure.savefig(place, dpi=150)


_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#3b8fc4")
_MARKERS = ("o", "^", "s", "D", "v", "P")


def _plot_radar(plot: Any, table: SideBySide, axes: Sequence[ScoreColumn], rows: Sequence[Any]) -> None:
    angles = [2 * pi * axis / len(axes) for axis in range(len(axes))]
    plot.set_theta_offset(pi / 2)
    plot.set_theta_direction(-1)
    for order, (_, row) in enumerate(rows):
        values = [_share_of(table, row, column) for column in axes]
        plot.plot(
            [*angles, angles[0]],
            [*values, values[0]],
            color=_COLOURS[order % 6],
            marker=_MARKERS[order % 6],
            markersize=4,
            label=row.name,
        )
    plot.set_xticks(angles, [column.name for column in axes])
    for label, angle in zip(plot.get_xticklabels(), angles, strict=True):
        across = sin(angle)
        label.set_horizontalalignment("center" if abs(across) < 0.2 else "left" if across > 0 else "right")
    plot.set_yticks([0.25, 0.625, 1.0], ["", "", ""])
    plot.set_ylim(0, 1.0)
    plot.set_title("inner ring: lowest shown, outer ring: highest", fontsize=8, pad=24)
    plot.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=3, fontsize=8)


def _plot_trade_offs(plot: Any, points: Sequence[TradeOff], pair: tuple[str, str]) -> None:
    for point in points:
        kind = _kind(point.row)
        (across, up) = point.at
        plot.errorbar(
            across,
            up,
            xerr=_bar(point.across),
            yerr=_bar(point.up),
            color=_COLOURS[kind],
            marker=_MARKERS[kind],
            linewidth=0.8,
        )
    best = [point.at for point in pareto_set(points)]
    plot.plot(*zip(*best, strict=True), color="grey", linestyle="--", linewidth=1, zorder=0)
    plot.set_xlabel(pair[0])
    plot.set_ylabel(pair[1])
    plot.grid(alpha=0.3)


def _number_points(plot: Any, points: Sequence[TradeOff]) -> None:
    """The numbers of the table's rows beside the points, none upon another."""
    corner, end = plot.bbox.corners()[0], plot.bbox.corners()[3]
    pixels = [plot.transData.transform(point.at) - corner for point in points]
    unit = plot.figure.dpi / 72.0
    height = (end[1] - corner[1]) / unit
    places = [(x / unit, height - y / unit) for x, y in pixels]
    width = (end[0] - corner[0]) / unit
    at = dict(zip(places, (point.at for point in points), strict=True))
    places, names = grouped(places, [point.place for point in points])
    labels = placed_labels(places, names, (0.0, 0.0, width, height))
    for name, (x, y), place in zip(names, places, labels, strict=True):
        if place is not None:
            offset = (place[0] - x, y - place[1])
            arrow = {"arrowstyle": "-", "color": "grey", "linewidth": 0.5} if max(map(abs, offset)) > _NEAR else None
            plot.annotate(name, at[x, y], xytext=offset, textcoords="offset points", fontsize=8, arrowprops=arrow)


def _bar(score: ScoreWithInterval) -> list[list[float]] | None:
    if score.score is None or score.low is None or score.high is None:
        return None
    return [[score.score - score.low], [score.high - score.score]]
