"""Lines of JSON, one a model that was measured. What is there already is not done again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

Line = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """Which experts: their kind, the seed of their training, the dtype of their checkpoints."""

    kind: str
    seed: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.kind}, seed {self.seed}, {self.dtype}"


def short(value: float) -> float:
    """Four digits: a file of results stays small, and a seed differs by more."""
    return float(f"{value:.4g}")


class Results:
    """A file of lines that grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = read_lines([path]) if path.exists() else []

    @property
    def known(self) -> frozenset[tuple[Case, str]]:
        """What there is a line of."""
        return frozenset((Case(line["kind"], line["seed"], line["dtype"]), line["row"]) for line in self.lines)

    def add(self, line: Line) -> None:
        self.lines.append(line)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(line, separators=(",", ":")) + "\n")


def read_lines(paths: Iterable[Path]) -> list[Line]:
    """A last line that a killed run left unfinished is cut off, so that what is written next stands on its own."""
    found: list[Line] = []
    for path in paths:
        text = path.read_text()
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            path.write_text(whole)
        found += [cast(Line, json.loads(line)) for line in whole.splitlines()]
    return found
