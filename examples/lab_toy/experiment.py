"""One base, and experts of one kind: what they look like, every way to merge them, and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from statistics import mean
from typing import Any

import torch
from experts import School, courses, specialists
from measures import Exam, Quality, exam, gain_kept, mean_kept
from merging import Row, State, become, rounded, surviving, tuned
from observables import interfered, observed
from results import Case, Line, short
from weights import Weighing, weighed
from world import TEST, VALIDATION, pairs

TRIALS = 7
"""Scales tried for every merge on the validation questions."""

DTYPES = {"bf16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class References:
    """What the base and the specialists themselves reach on one part of the questions."""

    base: Quality
    specialists: Mapping[str, Quality]

    def kept(self, merged: Quality) -> dict[str, float]:
        return gain_kept(merged, self.base, self.specialists)

    def mean_kept(self, merged: Quality) -> float:
        return mean_kept(merged, self.base, self.specialists)

    @property
    def gains(self) -> dict[str, float]:
        return {name: self.base.loss[name] - own.loss[name] for name, own in self.specialists.items()}


class Experiment:
    """A base and its experts as checkpoints in one data type. Merges are checkpoints in it, too."""

    def __init__(self, school: School, case: Case) -> None:
        self.case, self.school = case, school
        self._dtype = DTYPES[case.dtype]

    def tasks(self, rows: Sequence[Row], weighings: Sequence[Weighing]) -> dict[str, Callable[[], Line]]:
        """How to get every line, by its row. Nothing is trained before one of them is asked for."""
        names = courses(self.case.kind, self.case.seed)
        return {
            "base": lambda: self.line("base", self.quality(self._base)),
            **{f"expert: {name}": partial(self._expert_line, name) for name in names},
            "observables": self._observables,
            **{row.label: partial(self._merged, row) for row in rows},
            **{weighing.label: partial(self._weighed, weighing) for weighing in weighings},
        }

    @cached_property
    def room(self) -> Any:
        """A model to write weights into."""
        return self.school.base.copy()

    @cached_property
    def _base(self) -> State:
        return self._stored(self.school.base.model)

    @cached_property
    def _exams(self) -> dict[str, Exam]:
        tokenizer = self.school.base.tokenizer
        return {"validation": exam(tokenizer, VALIDATION), "test": exam(tokenizer, TEST)}

    @cached_property
    def _experts(self) -> dict[str, State]:
        own = courses(self.case.kind, self.case.seed)
        return {name: self._stored(self.school.expert(course)) for name, course in own.items()}

    @cached_property
    def references(self) -> dict[str, References]:
        found: dict[str, References] = {}
        for part in self._exams:
            own = {
                name: self.quality(self._stored(self.school.expert(course)), part)
                for name, course in specialists(self.case.kind, self.case.seed).items()
            }
            found[part] = References(self.quality(self._base, part), own)
        return found

    def without_gain(self) -> list[str]:
        """Dimensions of whose gain nothing can be kept: their expert answers no better than the base."""
        gains = [part.gains for part in self.references.values()]
        return [name for name in gains[0] if min(own[name] for own in gains) <= 0]

    def quality(self, state: State, part: str = "test") -> Quality:
        """Of a model as it is."""
        nothing = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
        return self._exams[part].take(become(self.room, state, nothing, 0.0, self._dtype))

    def _expert_line(self, name: str) -> Line:
        return self.line(f"expert: {name}", self.quality(self._experts[name]))

    def _observables(self) -> Line:
        own = courses(self.case.kind, self.case.seed)
        validation = self.references["validation"]
        answers = {
            name: (own[name].dimension, self.quality(state, "validation")) for name, state in self._experts.items()
        }
        values = observed(self._base, self._experts) | interfered(validation.base, answers, validation.gains)
        return {"row": "observables", **vars(self.case), "values": {name: short(v) for name, v in values.items()}}

    def _merged(self, row: Row) -> Line:
        merged = row.update(self._base, self._experts)
        line = self.tuned(row.label, merged.update) | {"left": self._left(merged.update)}
        return line if merged.rank is None else {**line, "rank": short(merged.rank)}

    def trained(self, label: str, model: Any) -> Line:
        """What was learnt at once instead of merged; its scale is tuned like that of a merge."""
        state = self._stored(model)
        return self.tuned(label, {name: state[name] - own for name, own in self._base.items()})

    def tuned(self, label: str, update: State) -> Line:
        """Scaled as validation questions want it, measured on test questions."""

        def quality(scale: float, part: str) -> Quality:
            return self._exams[part].take(become(self.room, self._base, update, scale, self._dtype))

        tried = tuned(lambda scale: self.references["validation"].mean_kept(quality(scale, "validation")), TRIALS)
        best = max(tried, key=tried.__getitem__)
        untuned = self.references["test"].mean_kept(quality(1.0, "test"))
        line = self.line(label, quality(best, "test"))
        return {**line, "scale": short(best), "passes": len(tried), "untuned": short(untuned)}

    def _weighed(self, weighing: Weighing) -> Line:
        """One weight an expert instead of one for all."""
        questions = {name: pairs(name, VALIDATION) for name in self.references["validation"].specialists}
        gains = self.references["validation"].gains
        update, found, passes = weighed(
            weighing, self.room, self.school.base.tokenizer, self._base, self._experts, questions, gains
        )
        made = become(self.room, self._base, update, 1.0, self._dtype)
        line = self.line(weighing.label, self._exams["test"].take(made))
        weights = {label: [short(value) for value in values] for label, values in found.items()}
        return {**line, "weights": weights, "passes": passes, "left": self._left(update)}

    def line(self, label: str, quality: Quality) -> Line:
        """What is kept of every dimension's gain, and the exact answers to its and to plain questions."""
        kept = self.references["test"].kept(quality)
        return {
            "row": label,
            **vars(self.case),
            "kept": {name: short(value) for name, value in kept.items()},
            "exact": {name: short(quality.exact[name]) for name in (*kept, "plain")},
        }

    def _left(self, update: State) -> float:
        """The mean over the experts of how much of each one's update is in M."""
        return short(mean(surviving(self._base, self._experts, update).values()))

    def _stored(self, model: Any) -> State:
        return rounded(model, self._dtype)
