"""One set of experts: what is made of them, tuned on validation, measured on test, written down at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from measures import Exam, Losses, gain_kept
from mechanism import observed
from merging import Row, State, become, sizes, surviving, tuned, weights_of
from results import Case, Results
from torch import nn
from weights import Weighing, weigh


@dataclass(frozen=True)
class Mixed:
    """Instead of a merge: one model that learnt what all experts did. It is trained when its row is asked for."""

    label: str


@dataclass(frozen=True)
class Observing:
    """Of the experts' updates, before anything is merged."""

    label: str


AnyRow = Row | Weighing | Mixed | Observing


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
    def base(self) -> State:
        return weights_of(self._base_folder, self.model)

    @cached_property
    def experts(self) -> dict[str, State]:
        return {name: weights_of(folder, self.model) for name, folder in self.folders.items()}

    @cached_property
    def _references(self) -> dict[str, dict[str, Losses]]:
        """The losses of the base and of every expert, by part."""
        found: dict[str, dict[str, Losses]] = {}
        for label, state in {"base": self.base, **self.experts}.items():
            become(self.model, state)
            found[label] = {part: exam.take(self.model) for part, exam in self.exams.items()}
        return found

    def _own_losses(self, part: str) -> Losses:
        """Of every dimension's own expert, question by question; of several, their mean."""
        found: Losses = {}
        for name in self.case.dimensions:
            own = [self._references[k][part][name] for k, (learnt, _) in self.case.members().items() if learnt == name]
            found[name] = [mean(losses) for losses in zip(*own, strict=True)]
        return found

    def kept(self, losses: Losses, part: str) -> dict[str, float]:
        return gain_kept(losses, self._references["base"][part], self._own_losses(part))

    def run(self, rows: Sequence[AnyRow], trials: int, results: Results, say: Callable[[str], None]) -> None:
        """What is missing among base, experts and rows."""
        for label, name in {"base": "base", **{f"expert: {name}": name for name in self.folders}}.items():
            if not results.has(self.case, label):
                about = {"sizes": sizes(self.base, self.experts[name])} if name != "base" else {}
                results.add(self._line(label, self._references[name]["test"]) | about)
        for row in rows:
            self._measured(row, trials, results, say)

    def _measured(self, row: AnyRow, trials: int, results: Results, say: Callable[[str], None]) -> dict[str, Any]:
        """The row's line, made now if it is not there. Weights start from a scale, whose row comes first."""
        line = results.line(self.case, row.label)
        if line is not None:
            return line
        if isinstance(row, Observing):
            line = {"row": row.label, **self.case.fields(), "values": observed(self.base, self.experts)}
            results.add(line)
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
        merged = row.update(self.base, self.experts)
        seconds = time.perf_counter() - started
        return {
            **self._tuned(row.label, merged.update, trials),
            "method": row.method,
            "options": row.options,
            "rank": merged.about.get("rank"),
            "reports": {name: value for name, value in merged.about.items() if name != "rank"},
            "merge_seconds": round(seconds, 1),
        }

    def mixed(self, row: Mixed, trials: int) -> dict[str, Any]:
        """A line for the model that learnt everything: what it learnt is scaled as if it were merged."""
        learnt = weights_of(self._mixture(), self.model)
        return self._tuned(row.label, {name: learnt[name] - own for name, own in self.base.items()}, trials)

    def _tuned(self, label: str, update: State, trials: int) -> dict[str, Any]:
        """Scaled as validation questions want it, measured on test questions."""

        def validated(scale: float) -> float:
            become(self.model, self.base, update, scale)
            losses = self.exams["validation"].take(self.model, self.case.dimensions)
            return mean(self.kept(losses, "validation").values())

        tried = tuned(validated, trials)
        best = max(tried, key=tried.__getitem__)
        become(self.model, self.base, update, best)
        return {
            **self._line(label, self.exams["test"].take(self.model)),
            "scale": best,
            "tried": [[scale, round(kept, 4)] for scale, kept in tried.items()],
            "surviving": surviving(self.base, self.experts, update),
        }

    def weighed(self, weighing: Weighing, scaled: Mapping[str, Any]) -> dict[str, Any]:
        """A line for one weight an expert instead of one for all; ``scaled`` is the line of the latter."""
        base, own = self._references["base"]["validation"], self._own_losses("validation")
        gains = {name: mean(base[name]) - mean(losses) for name, losses in own.items()}
        questions = {name: self.exams["validation"].records[name] for name in own}
        experts, start = self.experts, scaled["scale"]
        found = weigh(weighing, self.model, self._tokenizer, self.base, experts, questions, gains, start)
        line = self._line(weighing.label, self.exams["test"].take(self.model))
        return {**line, **vars(found), "passes": found.passes + len(scaled["tried"])}

    def _line(self, label: str, losses: Losses) -> dict[str, Any]:
        return {"row": label, **self.case.fields(), "kept": self.kept(losses, "test"), "losses": losses}
