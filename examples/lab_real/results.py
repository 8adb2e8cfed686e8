"""What a result is of, and the lines of JSON that hold them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data import DIMENSIONS

THREE = "three"
TOGETHER = {
    THREE: "the three of a seed",
    "pair": "helpful and harmless of a seed",
    "six": "the three of a seed and of the next",
}
"""Which experts are merged."""


@dataclass(frozen=True)
class Case:
    """Which experts: their kind, the seed of their training, the dtype of their checkpoints, how many together."""

    experts: str
    seed: int
    dtype: str
    together: str = THREE

    def __str__(self) -> str:
        return ", ".join([self.experts, f"seed {self.seed}", self.dtype, *([self.together] * (self.together != THREE))])

    def members(self) -> dict[str, tuple[str, int]]:
        """By the name it has here, the dimension that each expert learnt, and its seed."""
        if self.together == "six":
            return {f"{name}-{seed}": (name, seed) for seed in (self.seed, self.seed + 1) for name in DIMENSIONS}
        names = ("helpful", "harmless") if self.together == "pair" else DIMENSIONS
        return {name: (name, self.seed) for name in names}

    @property
    def dimensions(self) -> list[str]:
        return list(dict.fromkeys(dimension for dimension, _ in self.members().values()))

    def fields(self) -> dict[str, Any]:
        """In a line of results. Three together is what a line means that says nothing of it."""
        return {name: value for name, value in vars(self).items() if name != "together" or value != THREE}

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Case:
        return cls(line["experts"], line["seed"], line["dtype"], line.get("together", THREE))


class Results:
    """Lines of JSON, one an experiment. What is there already is not done again."""

    def __init__(self, path: Path, questions: Sequence[int]) -> None:
        """``questions`` are those of a dimension in validation and test; other numbers do not belong into one file."""
        self.path, self._questions = path, list(questions)
        self.lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        for line in self.lines:
            if line.get("questions", self._questions) != self._questions:  # some lines asked none
                sys.exit(
                    f"--results {path}: it was measured on {line['questions']} questions for validation and test, now "
                    f"there are {self._questions}. Give the same --questions, or another file."
                )

    def has(self, case: Case, label: str) -> bool:
        return self.line(case, label) is not None

    def line(self, case: Case, label: str) -> dict[str, Any] | None:
        return next((line for line in self.lines if line["row"] == label and Case.of(line) == case), None)

    def add(self, line: dict[str, Any]) -> None:
        self.lines.append({**line, "questions": self._questions})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(self.lines[-1]) + "\n")
