"""Names beside the points of a plot, so that none stands upon a point, a line or another name; y runs downward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import copysign, cos, pi, sin

from mergekit_3h.drawings import Point, text_width

NEAR = 18.0
"""A name farther from its point than this has a line to it."""
_POINT, _LINE = 5.0, 1.0
"""Half the room that a point and a line take."""

Area = tuple[float, float, float, float]
"""Left, top, right, bottom."""
Bar = tuple[Point, Point]
"""The two ends of a horizontal or vertical line."""


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


def placed_labels(
    points: Sequence[Point], names: Sequence[str], area: Area, bars: Sequence[Bar] = ()
) -> list[Point | None]:
    """Where each name begins: within the area beside its point, clear of the bars too if there is room for that.

    None where no place within 50 units is free.
    """
    taken = [(x - _POINT, y - _POINT, x + _POINT, y + _POINT) for x, y in points]
    lines = [_room_of(bar) for bar in bars]
    found: list[Point | None] = []
    for point, name in zip(points, names, strict=True):
        wide = text_width(name)
        free = [at for at in _around(point, wide) if _is_free(_box(at, wide), area, taken)]
        clear = [at for at in free if _is_free(_box(at, wide), area, lines)]
        place = next(iter(clear or free), None)
        if place is not None:
            taken.append(_box(place, wide))
        found.append(place)
    return found


def _around(point: Point, wide: float) -> Iterator[Point]:
    """Places to begin a name of this width at, the nearest first, and of those the diagonal ones."""
    for distance in (13.0, 24.0, 36.0, 48.0):
        for turn in (1, 7, 3, 5, 2, 6, 0, 4):  # eighths of a turn
            across = sin(pi * turn / 4)
            x = point[0] + distance * across - wide / 2 + copysign(wide / 2 - 3, across + 1e-9)
            yield x, point[1] - distance * cos(pi * turn / 4) + 4


def _box(at: Point, wide: float) -> Area:
    return at[0] - 1, at[1] - 10, at[0] + wide + 1, at[1] + 2


def _room_of(bar: Bar) -> Area:
    (x, y), (end_x, end_y) = bar
    return min(x, end_x) - _LINE, min(y, end_y) - _LINE, max(x, end_x) + _LINE, max(y, end_y) + _LINE


def _is_free(box: Area, area: Area, taken: Sequence[Area]) -> bool:
    inside = box[0] >= area[0] and box[1] >= area[1] and box[2] <= area[2] and box[3] <= area[3]
    return inside and not any(_overlap(box, other) for other in taken)


def _overlap(first: Area, second: Area) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]
