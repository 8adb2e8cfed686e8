"""One coordinate of a search: where it starts, how far it may go, and the grid on which a climb steps along it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mergekit_3h.errors import OptionError

Scale = Literal["even", "geometric", "open"]

COARSE = 4
"""Points of the grid between a value and the next that a climb tries first; it halves them twice."""
_REACH = 16.0
"""A value without bounds is searched from a sixteenth to sixteen times its start: the best factors on real experts
were between 0.5 and 2."""
_FINEST = {"even": 1 / 16, "geometric": 1 / 8, "open": 1 / 16}
_EDGE = 1 / 64
"""How near a bound that is no value itself is approached, as a share of the range."""


@dataclass(frozen=True)
class Axis:
    """``even``: a straight line from ``lower`` to ``upper``. ``geometric``: factors of 2^(1/8). ``open``: from a lower
    bound towards infinity by x / (1 - x), of which ``unit`` is the middle."""

    name: str
    start: float
    lower: float
    upper: float
    scale: Scale = "even"
    unit: float = 1.0

    def at(self, index: int) -> float:
        """The value at a point of the grid, of which 0 is the start. Beyond a bound it is the bound."""
        if index == 0:
            return self.start
        place = self._place(self.start) + index * _FINEST[self.scale]
        return self.clipped(float(f"{self._value(place):.4g}"))

    @property
    def is_limited(self) -> bool:
        """Whether it ends where the search does, and not where the option does."""
        return self.scale != "even"

    def clipped(self, value: float) -> float:
        return min(max(float(value), self.lower), self.upper)

    def _place(self, value: float) -> float:
        if self.scale == "geometric":
            return 0.0
        if self.scale == "even":
            return (value - self.lower) / (self.upper - self.lower)
        return (value - self.lower) / (value - self.lower + self.unit)

    def _value(self, place: float) -> float:
        if self.scale == "geometric":
            return self.start * 2.0**place
        if self.scale == "even":
            return self.lower + (self.upper - self.lower) * place
        return self.lower + self.unit * place / (1 - place) if place < 1 else self.upper


def axis_of(name: str, start: float, low: float | None, high: float | None, *, whole: tuple[bool, bool]) -> Axis:
    """The axis of an option with these bounds, either of which it may lack; ``whole`` tells which are values."""
    if low is not None and high is not None:
        lower, upper = _inside(low, high - low, whole[0]), _inside(high, low - high, whole[1])
        return _started(Axis(name, start, lower, upper))
    if low is not None:
        unit = start - low if start > low else 1.0
        furthest = low + unit * (1 - _EDGE) / _EDGE
        return _started(Axis(name, start, low if whole[0] else low + unit * _EDGE, furthest, "open", unit))
    if high is not None or start <= 0:
        raise OptionError(
            f"option 'over': {name} starts from {start:g}; it has no lower bound and is searched by factors, so give "
            "it a value above 0 to start from"
        )
    return Axis(name, start, start / _REACH, start * _REACH, "geometric")


def _inside(bound: float, away: float, is_value: bool) -> float:
    return bound if is_value else bound + away * _EDGE


def _started(axis: Axis) -> Axis:
    if axis.start != axis.clipped(axis.start):
        raise OptionError(
            f"option 'over': {axis.name} starts from {axis.start:g}; it is searched between {axis.lower:g} and "
            f"{axis.upper:g}, so give it such a value to start from"
        )
    return axis
