"""The best models over all metrics, as a radar."""

from __future__ import annotations

from math import cos, pi, sin

from mergekit_3h.drawings import Point, drawing, line, marker, path, series, text, text_width
from mergekit_3h.evaluation.side_by_side import AVERAGE, FORGETTING, ComparedModel, ScoreColumn, SideBySide
from mergekit_3h.pages import Html

MOST_IN_A_RADAR = 6
_WIDTH = 400.0
_LINE_HEIGHT = 15.0


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
        shapes += [line(centre, end, "grid"), *_axis_label(axis, len(axes), radius, centre, column.name)]
    for order, (_, row) in enumerate(rows):
        corners = [
            _on(axis, len(axes), radius * share_of_radius(table, row, column), centre)
            for axis, column in enumerate(axes)
        ]
        shapes.append(path(corners, series(order, "open"), closed=True, width=2))
        shapes += [marker(corner, order, size=3.2, title=row.name) for corner in corners]
    return drawing(_WIDTH, height, shapes, label=f"radar of {len(rows)} models over {len(axes)} scores")


def share_of_radius(table: SideBySide, row: ComparedModel, column: ScoreColumn) -> float:
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


def _axis_label(axis: int, count: int, radius: float, centre: Point, name: str) -> list[Html]:
    """At the end of its axis; a long name on two lines."""
    x, y = _on(axis, count, radius + 12, centre)
    across, up = cos(2 * pi * axis / count - pi / 2), -sin(2 * pi * axis / count - pi / 2)
    anchor = "middle" if abs(across) < 0.2 else "start" if across > 0 else "end"
    room = ((_WIDTH - x) if anchor == "start" else x if anchor == "end" else _WIDTH) - 2
    lines = [_shortened(part, room) for part in _within(name, room)]
    first = y + 4 - (_LINE_HEIGHT * (len(lines) - 1) if up > 0.2 else 0.0)
    return [text((x, first + _LINE_HEIGHT * number), part, anchor=anchor) for number, part in enumerate(lines)]


def _within(name: str, room: float) -> list[str]:
    """One line if there is room, else two, divided where the longer one is shortest."""
    breaks = [place + 1 for place, letter in enumerate(name[:-1]) if letter in "-_ ."]
    if text_width(name) <= room or not breaks:
        return [name]
    best = min(breaks, key=lambda place: max(text_width(name[:place]), text_width(name[place:])))
    return [name[:best], name[best:]]


def _shortened(part: str, room: float) -> str:
    while text_width(part) > room and len(part) > 4:
        part = part[:-2].rstrip("…") + "…"
    return part
