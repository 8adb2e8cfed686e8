"""One set of experts: what is made of them, tuned on validation, measured on test, written down at once."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from measures import Exam, Losses, gain_kept
from merging import Row, State, become, sizes, surviving, tuned, weights_of
from torch import nn
from weights import Weighing, weigh


@dataclass(frozen=True)
class Case:
    """Which experts: their kind, the seed of their training, the dtype of their checkpoints."""

    experts: str
    seed: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.experts}, seed {self.seed}, {self.dtype}"


@dataclass(frozen=True)
class Mixed:
    """Instead of a merge: one model that learnt what all experts did. It is trained when its row is asked for."""

    label: str


AnyRow = Row | Weighing | Mixed


class Results:
    """Lines of JSON, one an experiment. What is there already is not done again."""

    def __init__(self, path: Path, questions: Sequence[int]) -> None:
        """``questions`` are those of a dimension in validation and test; other numbers do not belong into one file."""
        self.path, self._questions = path, list(questions)
        self.lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        for line in self.lines:
            if line["questions"] != self._questions:
                sys.exit(
                    f"--results {path}: it was measured on {line['questions']} questions for validation and test, now "
                    f"there are {self._questions}. Give the same --questions, or another file."
                )

    def has(self, case: Case, label: str) -> bool:
        return self.line(case, label) is not None

    def line(self, case: Case, label: str) -> dict[str, Any] | None:
        own = [line for line in self.lines if line["row"] == label and all(line[k] == v for k, v in vars(case).items())]
        return own[0] if own else None

    def add(self, line: dict[str, Any]) -> None:
        self.lines.append({**line, "questions": self._questions})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(self.lines[-1]) + "\n")


class Experiment:
    """A base and its experts, opened when they are needed.

    Whatever the experts are stored in, a merge is measured as a bfloat16 model, which is what would be published: two
    cases that differ in ``dtype`` differ in the rounding of the experts alone.
    """

    def __init__(
        self,
        case: Case,
        base: Path,
        experts: Mapping[str, Path],
        exams: Mapping[str, Exam],
        model: nn.Module,
        tokenizer: Any,
        mixture: Callable[[], Path],
    ) -> None:
        """``mixture`` gives the folder of the model that learnt everything, and may take a training."""
        self.case, self._tokenizer = case, tokenizer
        self.exams, self.model = exams, model
        self._base_folder, self.folders, self._mixture = base, experts, mixture

    @cached_property
    def _base(self) -> State:
        return weights_of(self._base_folder, self.model)

    @cached_property
    def _experts(self) -> dict[str, State]:
        return {name: weights_of(folder, self.model) for name, folder in self.folders.items()}

    @cached_property
    def _references(self) -> dict[str, dict[str, Losses]]:
        """The losses of the base and of every expert, by part."""
        found: dict[str, dict[str, Losses]] = {}
        for label, state in {"base": self._base, **self._experts}.items():
            become(self.model, state)
            found[label] = {part: exam.take(self.model) for part, exam in self.exams.items()}
        return found

    def kept(self, losses: Losses, part: str) -> dict[str, float]:
        own = {name: self._references[name][part] for name in self._experts}
        return gain_kept(losses, self._references["base"][part], own)

    def run(self, rows: Sequence[AnyRow], trials: int, results: Results, say: Callable[[str], None]) -> None:
        """What is missing among base, experts and rows."""
        for label, name in {"base": "base", **{f"expert: {name}": name for name in self.folders}}.items():
            if not results.has(self.case, label):
                about = {"sizes": sizes(self._base, self._experts[name])} if name != "base" else {}
                results.add(self._line(label, self._references[name]["test"]) | about)
        for row in rows:
            self._measured(row, trials, results, say)

    def _measured(self, row: AnyRow, trials: int, results: Results, say: Callable[[str], None]) -> dict[str, Any]:
        """The row's line, made now if it is not there. Weights start from a scale, whose row comes first."""
        line = results.line(self.case, row.label)
        if line is not None:
            return line
        if isinstance(row, Weighing):
            line = self.weighed(row, self._measured(Row(row.method, row.method), trials, results, say))
        else:
            line = self.merged(row, trials) if isinstance(row, Row) else self.mixed(row, trials)
        results.add(line)
        how = f"at scale {line['scale']:.2f}" if "scale" in line else f"with weights {line['weights']}"
        say(f"{self.case}: {row.label} keeps {mean(line['kept'].values()):.3f} {how}")
        return line

    @torch.no_grad()
    def merged(self, row: Row, trials: int) -> dict[str, Any]:
        """A line for one way to merge."""
        started = time.perf_counter()
        merged = row.update(self._base, self._experts)
        seconds = time.perf_counter() - started
        return {
            **self._tuned(row.label, merged.update, trials),
            "method": row.method,
            "options": row.options,
            "rank": merged.rank,
            "merge_seconds": round(seconds, 1),
        }

    def mixed(self, row: Mixed, trials: int) -> dict[str, Any]:
        """A line for the model that learnt everything: what it learnt is scaled as if it were merged."""
        learnt = weights_of(self._mixture(), self.model)
        return self._tuned(row.label, {name: learnt[name] - own for name, own in self._base.items()}, trials)

    def _tuned(self, label: str, update: State, trials: int) -> dict[str, Any]:
        """Scaled as validation questions want it, measured on test questions."""

        def losses(scale: float, part: str) -> Losses:
            become(self.model, self._base, update, scale)
            return self.exams[part].take(self.model)

        tried = tuned(lambda scale: mean(self.kept(losses(scale, "validation"), "validation").values()), trials)
        best = max(tried, key=tried.__getitem__)
        return {
            **self._line(label, losses(best, "test")),
            "scale": best,
            "tried": [[scale, round(kept, 4)] for scale, kept in tried.items()],
            "surviving": surviving(self._base, self._experts, update),
        }

    def weighed(self, weighing: Weighing, scaled: Mapping[str, Any]) -> dict[str, Any]:
        """A line for one weight an expert instead of one for all; ``scaled`` is the line of the latter."""
        base, own = self._references["base"]["validation"], self._experts
        gains = {name: mean(base[name]) - mean(self._references[name]["validation"][name]) for name in own}
        questions = {name: self.exams["validation"].records[name] for name in own}
        found = weigh(weighing, self.model, self._tokenizer, self._base, own, questions, gains, scaled["scale"])
        line = self._line(weighing.label, self.exams["test"].take(self.model))
        return {**line, **vars(found), "passes": found.passes + len(scaled["tried"])}

    def _line(self, label: str, losses: Losses) -> dict[str, Any]:
        return {"row": label, **vars(self.case), "kept": self.kept(losses, "test"), "losses": losses}
