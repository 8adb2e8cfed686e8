"""One seed: train a base and its experts, merge them in every way, and measure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import cached_property
from typing import Any

import torch
import transformers
from measures import Exam, Quality, gain_kept, mean_kept
from merging import Row, State, become, rounded, rows, tuned
from models import Family, Size, make_family
from world import TEST, VALIDATION

TRIALS = 7
"""Scales tried for every merge on the validation questions."""

DTYPES = {"bf16": torch.bfloat16, "float32": torch.float32}
Line = dict[str, Any]


def one_seed(seed: int, size: Size, training: str, dtypes: list[str]) -> list[Line]:
    """A line for every model: the base, the experts, every merge."""
    torch.set_num_threads(1)  # matrices this small are slower on several
    transformers.logging.set_verbosity_error()
    family = make_family(size, training, seed)
    about = {"seed": seed, "training": training}
    return [{**about, "dtype": dtype, **line} for dtype in dtypes for line in Experiment(family, DTYPES[dtype]).lines()]


class Experiment:
    """A base and its experts as checkpoints in one data type. Merges are checkpoints in it, too."""

    def __init__(self, family: Family, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._room = family.room()
        self._base = rounded(family.base, dtype)
        self._experts = {name: rounded(expert, dtype) for name, expert in family.experts.items()}
        self._exams = {"validation": Exam(family.tokenizer, VALIDATION), "test": Exam(family.tokenizer, TEST)}

    def lines(self) -> Iterator[Line]:
        base, experts = self._references["test"]
        yield self._line("base", base)
        for name, quality in experts.items():
            yield self._line(f"expert: {name}", quality)
        for row in rows():
            yield self._merged(row)

    def _merged(self, row: Row) -> Line:
        update = row.update(self._base, self._experts)

        def quality(scale: float, part: str) -> Quality:
            return self._exams[part].take(become(self._room, self._base, update, scale, self._dtype))

        best = tuned(lambda scale: mean_kept(quality(scale, "validation"), *self._references["validation"]), TRIALS)
        untuned = mean_kept(quality(1.0, "test"), *self._references["test"])
        line = self._line(row.label, quality(best, "test"))
        return {**line, "scale": best, "trials": TRIALS, "untuned": untuned}

    @cached_property
    def _references(self) -> dict[str, tuple[Quality, Mapping[str, Quality]]]:
        """What the base and the experts themselves reach on either part."""
        found: dict[str, tuple[Quality, Mapping[str, Quality]]] = {}
        for part, exam in self._exams.items():
            experts = {name: exam.take(self._as_it_is(expert)) for name, expert in self._experts.items()}
            found[part] = exam.take(self._as_it_is(self._base)), experts
        return found

    def _as_it_is(self, state: State) -> Any:
        nothing = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
        return become(self._room, state, nothing, 0.0, self._dtype)

    def _line(self, label: str, quality: Quality) -> Line:
        return {"row": label, "kept": gain_kept(quality, *self._references["test"]), **asdict(quality)}
