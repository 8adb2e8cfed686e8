"""The results by what a table asks of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mean

from experts import KINDS
from results import Line
from spread import about


def kept(line: Line) -> float:
    return mean(line["kept"].values())


def worst(line: Line) -> float:
    return min(line["kept"].values())


def markdown(cells: Sequence[Sequence[str]]) -> str:
    """A table; the first row is its head."""
    head, *rows = cells
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


@dataclass(frozen=True)
class Board:
    """Every line, found by what it is of."""

    lines: Sequence[Line]

    @cached_property
    def _by_place(self) -> dict[tuple[str, str, str], dict[int, Line]]:
        found: dict[tuple[str, str, str], dict[int, Line]] = {}
        for line in sorted(self.lines, key=lambda line: line["seed"]):
            found.setdefault((line["kind"], line["dtype"], line["row"]), {})[line["seed"]] = line
        return found

    def seeds(self, kind: str, row: str, dtype: str = "bf16") -> dict[int, Line]:
        """The lines of a row by seed."""
        return self._by_place.get((kind, dtype, row), {})

    def rows(self, kind: str, dtype: str = "bf16") -> list[str]:
        """In the order in which they were measured."""
        own = [line for line in self.lines if line["kind"] == kind and line["dtype"] == dtype]
        return list(dict.fromkeys(line["row"] for line in own))

    @property
    def kinds(self) -> list[str]:
        there = {line["kind"] for line in self.lines}
        return [kind for kind in KINDS if kind in there]

    def differences(self, kind: str, row: str, other: str, dtypes: tuple[str, str] = ("bf16", "bf16")) -> list[float]:
        """Of the gain kept, seed by seed."""
        first, second = self.seeds(kind, row, dtypes[0]), self.seeds(kind, other, dtypes[1])
        return [kept(first[seed]) - kept(second[seed]) for seed in first if seed in second]

    def mean_kept(self, kind: str, row: str) -> str:
        lines = self.seeds(kind, row)
        return about([kept(line) for line in lines.values()]) if lines else ""

    def mean_difference(self, kind: str, row: str, other: str, dtypes: tuple[str, str] = ("bf16", "bf16")) -> str:
        found = self.differences(kind, row, other, dtypes)
        return about(found, "+") if found else ""
