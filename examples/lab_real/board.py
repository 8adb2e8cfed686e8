"""What all tables have in common: which lines belong together, and how numbers are written."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from results import THREE

REFERENCE = "task_arithmetic"
COMPARED = ("tsvm", "iso_c", "iso_c, power 0.5")

Line = dict[str, Any]
Group = tuple[str, str, str]
"""Kind and dtype of the experts, and which of them are merged together."""

NUMBERS = {"pair": "2", THREE: "3", "six": "6"}
TITLES = {THREE: "", "pair": ", helpful and harmless alone", "six": ", six of two seeds"}


def kept(line: Line) -> float:
    return mean(line["kept"].values())


def over_seeds(values: Sequence[float], sign: str = "") -> str:
    """The mean and its standard error."""
    error = f" ± {stdev(values) / len(values) ** 0.5:.3f}" if len(values) > 1 else ""
    return f"{mean(values):{sign}.3f}{error}"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table; the first row is its head."""
    head, *others = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *others))
