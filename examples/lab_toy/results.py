"""Lines of JSON, one a model that was measured. What is there already is not done again."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

Line = dict[str, Any]

BEGINNING = '{"row":'
"""Of every line."""


@dataclass(frozen=True)
class Case:
    """Which experts: their kind, the seed of their training, the dtype of their checkpoints."""

    kind: str
    seed: int
    dtype: str


def short(value: float) -> float:
    """Four digits: a file of results stays small, and a seed differs by more."""
    return float(f"{value:.4g}")


class Results:
    """A file of lines that grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = read_lines([path]) if path.exists() else []
        self._is_whole = False

    @property
    def known(self) -> frozenset[tuple[Case, str]]:
        """What there is a line of."""
        return frozenset((Case(line["kind"], line["seed"], line["dtype"]), line["row"]) for line in self.lines)

    def add(self, line: Line) -> None:
        self.lines.append(line)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+") as file:
            self._cut_unfinished(file)
            file.write(json.dumps(line, separators=(",", ":")) + "\n")

    def _cut_unfinished(self, file: Any) -> None:
        """So that what is written next stands on its own."""
        if not self._is_whole:
            file.seek(0)
            file.truncate(file.read().rfind("\n") + 1)
        self._is_whole = True


def read_lines(paths: Iterable[Path]) -> list[Line]:
    """Every whole line; one at the end that a killed run left unfinished is passed over."""
    found: list[Line] = []
    for path in paths:
        *whole, rest = path.read_text().split("\n")
        found += [_line(path, number, line) for number, line in enumerate(whole, start=1)]
        if not rest.startswith(BEGINNING[: len(rest)]):
            _line(path, len(whole) + 1, rest)
    return found


def _line(path: Path, number: int, text: str) -> Line:
    try:
        line = cast(Line, json.loads(text))
        _ = [line[name] for name in ("kind", "seed", "dtype", "row")]
    except (ValueError, KeyError, TypeError):
        sys.exit(f"--results {path}, line {number}: no line that examples/lab_toy/run.py wrote; give another file")
    return line
