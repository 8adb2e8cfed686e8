"""The kinds of experts that are merged, and the one who makes them of a base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from models import Base, Size, make_base
from training import Weights, dpo_loss, draws, loss_of_answers, preferences, restrict, tokens_of, train
from world import DIMENSIONS, TRAIN, Pair, pairs

EXPERT_BATCH = 24


@dataclass(frozen=True)
class Course:
    """What an expert learns, and how."""

    dimension: str
    steps: int = 80
    rate: float = 3e-4
    by_preference: bool = True
    weights: Weights = "all"
    half: int | None = None
    """Every other lesson alone, from the first or from the second."""

    def lessons(self) -> list[Pair]:
        every = pairs(self.dimension, TRAIN)
        return every if self.half is None else every[self.half :: 2]


COURSES = {
    "full_dpo": Course(""),
    "full_faint": Course("", rate=3e-5),
    "full_sft": Course("", by_preference=False),
    "full_long": Course("", steps=240, rate=1e-3, by_preference=False),
    "lora_faint": Course("", steps=120, rate=3e-4, by_preference=False, weights="lora"),
    "lora_moderate": Course("", steps=120, rate=3e-3, by_preference=False, weights="lora"),
    "lora_overtrained": Course("", steps=240, rate=2e-2, by_preference=False, weights="lora"),
    "heavy_tailed": Course(""),
    "pair": Course(""),
    "halves": Course(""),
}
"""By kind, how its experts learn."""

KINDS = tuple(COURSES)
HEAVY_TAILED = replace(COURSES["full_dpo"], weights="few", rate=3e-3)


def courses(kind: str, seed: int) -> dict[str, Course]:
    """The experts of a kind by their names. Which dimension is treated apart goes round with the seed."""
    own = {dimension: replace(COURSES[kind], dimension=dimension) for dimension in DIMENSIONS}
    chosen = DIMENSIONS[seed % len(DIMENSIONS)]
    if kind == "heavy_tailed":
        return own | {chosen: replace(HEAVY_TAILED, dimension=chosen)}
    if kind == "pair":
        return {dimension: course for dimension, course in own.items() if dimension != chosen}
    if kind == "halves":
        return {f"{name} {half}": replace(course, half=half) for name, course in own.items() for half in (0, 1)}
    return own


def specialists(kind: str, seed: int) -> dict[str, Course]:
    """The experts by whose gain a merge is measured, one a dimension: those that are merged, if they learnt it all."""
    if kind == "halves":
        return {dimension: replace(COURSES[kind], dimension=dimension) for dimension in DIMENSIONS}
    return courses(kind, seed)


class School:
    """Makes a base, and experts of it, when they are first asked for."""

    def __init__(self, size: Size, seed: int) -> None:
        self._size, self._seed = size, seed
        self._made: dict[Course, Any] = {}

    @cached_property
    def base(self) -> Base:
        return make_base(self._size, self._seed)

    def expert(self, course: Course) -> Any:
        if course not in self._made:
            self._made[course] = taught(self.base, self.base.copy(), course.lessons(), course)
        return self._made[course]


def taught(base: Base, model: Any, lessons: Sequence[Pair], course: Course) -> Any:
    """The model after a course with these lessons. DPO compares with ``base``, whatever the model was before."""
    seed = base.seed
    become_ordinary = restrict(model, course.weights, seed)
    chosen, rejected = (
        tokens_of([pair.record(getattr(pair, side)) for pair in lessons], base.tokenizer)
        for side in ("chosen", "rejected")
    )
    if course.by_preference:
        drawn = draws(preferences(base.model, chosen, rejected), EXPERT_BATCH, seed)
        train(model, course.steps, course.rate, lambda: dpo_loss(model, next(drawn)))
    else:
        answers = draws(chosen, EXPERT_BATCH, seed)
        train(model, course.steps, course.rate, lambda: loss_of_answers(model, next(answers)))
    become_ordinary()
    return model
