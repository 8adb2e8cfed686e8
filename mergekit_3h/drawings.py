"""SVG for pages: the few shapes that plots are made of. Colours and fonts are the page's (``pages.py``).

Sizes are in the drawing's own units, one CSS pixel each on a screen that is wide enough; the page scales a drawing down
but never up, so that on a narrow screen a drawing of at most 400 units keeps its letters legible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite, log10

from mergekit_3h.pages import SERIES, Html, html

Point = tuple[float, float]


def drawing(width: float, height: float, shapes: Sequence[Html], *, label: str) -> Html:
    """An SVG element; ``label`` says in words what is to be seen, for those who do not see it."""
    return Html(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{html(label)}">{"".join(shapes)}</svg>'
    )


def series(number: int, *also: str) -> str:
    """The class of the ``number``-th series, with further classes: ``open`` (no filling), ``area`` (thin filling)."""
    return " ".join([f"s{number % SERIES}", *also])


def path(points: Sequence[Point], kind: str, *, closed: bool = False, width: float = 1.5, dashes: str = "") -> Html:
    steps = " ".join(f"{'L' if i else 'M'}{x:.2f} {y:.2f}" for i, (x, y) in enumerate(points))
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return Html(f'<path class="{kind}" d="{steps}{"Z" if closed else ""}" stroke-width="{width:g}"{dashed}/>')


def line(start: Point, end: Point, kind: str = "axis", *, width: float = 1.0, dashes: str = "") -> Html:
    return path([start, end], kind, width=width, dashes=dashes)


def box(corner: Point, width: float, height: float, kind: str, *, title: str = "") -> Html:
    x, y = corner
    return Html(
        f'<rect class="{kind}" x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}">{_title(title)}</rect>'
    )


def marker(at: Point, number: int, *, size: float = 5.0, title: str = "") -> Html:
    """A point of a series. Series differ in shape as well as in colour."""
    x, y = at
    corners = {
        1: [(-1, 1), (1, 1), (0, -1.1)],
        2: [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        3: [(0, -1.2), (1.2, 0), (0, 1.2), (-1.2, 0)],
        4: [(-1, -1), (1, -1), (0, 1.1)],
    }.get(number % 5)
    kind = series(number)
    if corners is None:
        return Html(f'<circle class="{kind}" cx="{x:.2f}" cy="{y:.2f}" r="{size:g}">{_title(title)}</circle>')
    points = " ".join(f"{x + size * dx:.2f},{y + size * dy:.2f}" for dx, dy in corners)
    return Html(f'<polygon class="{kind}" points="{points}">{_title(title)}</polygon>')


def text(at: Point, content: str, *, anchor: str = "start", kind: str = "", turned: bool = False) -> Html:
    """``anchor``: start, middle or end. ``turned``: reads upwards."""
    x, y = at
    turn = f' transform="rotate(-90 {x:.2f} {y:.2f})"' if turned else ""
    return Html(f'<text x="{x:.2f}" y="{y:.2f}" text-anchor="{anchor}" class="{kind}"{turn}>{html(content)}</text>')


def text_width(content: str) -> float:
    """About how wide a text is at the page's size of 13 units; a little too wide rather than too narrow."""
    return sum(4.5 if letter in "iljtf.,:;|'!()[] " else 10.5 if letter in "mwMW@%" else 7.6 for letter in content)


@dataclass(frozen=True)
class Scale:
    """Numbers from ``low`` to ``high`` as places from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, about: int = 5) -> list[float]:
        """Round numbers within the scale, about so many."""
        step = _round_step((self.high - self.low) / max(about, 1))
        first, last = ceil(self.low / step - 1e-9), floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


def scale_of(values: Sequence[float], start: float, end: float, *, margin: float = 0.08) -> Scale:
    """A scale that holds all finite values, with some room at both ends."""
    finite = [value for value in values if isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    room = margin * (high - low) or 0.5 * abs(high) * margin or 0.5
    return Scale(low - room, high + room, start, end)


def number(value: float) -> str:
    """A tick's number without needless digits."""
    return f"{value:.6g}" if value else "0"


def _round_step(step: float) -> float:
    """1, 2 or 5 times a power of ten, not smaller than ``step``."""
    power = 10.0 ** floor(log10(step))
    return next((factor * power for factor in (1.0, 2.0, 5.0) if factor * power >= step * (1 - 1e-9)), 10.0 * power)


def _title(content: str) -> str:
    return f"<title>{html(content)}</title>" if content else ""
