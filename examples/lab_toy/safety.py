"""An expert that lost its refusals by harmless training, merged with the model that has them.

The aligned model is the base after learning to refuse. The spoilt one is what becomes of it by learning the dishes, and
to give what is asked for in every other colour: it then gives the blue ones, too. Weights are searched on validation
questions, of the dishes alone or of refusals besides; measured are test questions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from experts import Course, School, taught
from measures import PLAIN, Exam, Quality
from merging import SUM, State, become, rounded
from results import Case, Line, short
from world import FORBIDDEN, TEST, TRAIN, VALIDATION, Pair, harmless_requests, pairs, plain_questions

from mergekit_3h.search import Problem, SearchOptions, StateDictSource, in_memory, solve_problem
from mergekit_3h.spectral.registry import parse_options

KIND = "safety"
ALIGNMENT = Course("harmless")
SPOILING = Course("helpful", steps=160, rate=2e-3, by_preference=False)
COMBINATIONS = (SUM, "tsvm")
SETS = {"refusals": "safety", "dishes": "domain", "look-alikes": "overrefusal"}
"""Questions by name, and what a search calls such a set."""

CANDIDATES = 36
"""Of grid and CMA-ES. The gradient solver gets eight steps, 24 passes."""


@dataclass(frozen=True)
class Searching:
    """Which questions decide, and how."""

    label: str
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    records: int | None = None
    """Of the refusals, the first so many."""


DOMAIN_ONLY = {"safety_weight": 0.0, "expert_weight": 1.0}
SEARCHES = (
    Searching("uniform", {"max_evaluations": 1}),
    Searching("grid, domain data only", {"solver": "grid", "max_evaluations": CANDIDATES, **DOMAIN_ONLY}),
    Searching("domain data only", DOMAIN_ONLY),
    Searching("with safety data"),
    Searching("with safety data, by cmaes", {"solver": "cmaes", "max_evaluations": CANDIDATES}),
    Searching("with safety data, by cocktail", {"solver": "cocktail"}),
    *(Searching(f"alpha {alpha}", {"expert_weight": alpha}) for alpha in (0.1, 1.0, 3.0)),
    *(Searching(f"{records} safety records", records=records) for records in (3, 6)),
    Searching("by layer", {"layer_granularity": 1}),
)


class SafetyStudy:
    """One seed of it."""

    def __init__(self, school: School, seed: int, dtype: torch.dtype = torch.bfloat16) -> None:
        self.case = Case(KIND, seed, "bf16")
        self._school, self._dtype = school, dtype

    def tasks(self) -> dict[str, Callable[[], Line]]:
        """How to get every line, by its row."""
        found: dict[str, Callable[[], Line]] = {
            name: partial(self._single, name) for name in ("base", "aligned", "spoilt")
        }
        for combination in COMBINATIONS:
            for search in SEARCHES:
                label = f"{combination}, {search.label}"
                found[label] = partial(self._searched, label, combination, search)
        return found

    @cached_property
    def _models(self) -> dict[str, State]:
        base = self._school.base
        aligned = self._school.expert(ALIGNMENT)
        lessons = [*pairs("helpful", TRAIN), *harmless_requests(TRAIN)]
        spoilt = taught(base, _copy(base, aligned), lessons, SPOILING)
        models = {"base": base.model, "aligned": aligned, "spoilt": spoilt}
        return {name: rounded(model, self._dtype) for name, model in models.items()}

    @cached_property
    def _room(self) -> Any:
        return self._school.base.copy()

    @cached_property
    def _exam(self) -> Exam:
        return Exam(self._school.base.tokenizer, questions(TEST) | {PLAIN: plain_questions(TEST)})

    def _single(self, name: str) -> Line:
        return self._line(name, self._models[name])

    def _searched(self, label: str, combination: str, search: Searching) -> Line:
        options = SearchOptions(**{"combine": combination, "max_evaluations": 8, "batch_size": 256, **search.options})
        base, *experts = [StateDictSource(name, state) for name, state in self._models.items()]
        method = None if combination == SUM else parse_options(combination, {})
        records = in_memory(_records(search.records))
        tokenizer = self._school.base.tokenizer
        problem = Problem(base, tuple(experts), self._room, tokenizer, records, options, method)
        runner = problem.local_runner()
        solution = solve_problem(problem, runner=runner)
        list(runner.evaluate([solution.coefficients], gradient=False))  # leaves the merge in the room
        state = {name: parameter.detach().clone() for name, parameter in self._room.named_parameters()}
        weights = [short(value) for value in solution.coefficients]
        return {**self._line(label, state), "weights": weights, "passes": solution.passes}

    def _line(self, label: str, state: State) -> Line:
        nothing = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
        quality: Quality = self._exam.take(become(self._room, state, nothing, 0.0, self._dtype))
        return {
            "row": label,
            **vars(self.case),
            "exact": {name: short(value) for name, value in quality.exact.items()},
            "loss": {name: short(value) for name, value in quality.loss.items()},
        }


def questions(parts: tuple[int, ...]) -> dict[str, list[Pair]]:
    """What must be refused, what looks like it, and the domain."""
    coloured = pairs("harmless", parts)
    refused = [pair for pair in coloured if FORBIDDEN in pair.prompt.split()]
    return {
        "refusals": refused,
        "look-alikes": [pair for pair in coloured if pair not in refused],
        "dishes": pairs("helpful", parts),
    }


def _records(refusals: int | None) -> list[Any]:
    """Of the validation questions, each in the set that a search knows it by."""
    asked: dict[str, Sequence[Pair]] = dict(questions(VALIDATION))
    if refusals is not None:
        asked["refusals"] = asked["refusals"][:refusals]
    return [
        pair.record(pair.chosen).changed(set=SETS[name], label="refusal" if name == "refusals" else None)
        for name, members in asked.items()
        for pair in members
    ]


def _copy(base: Any, model: Any) -> Any:
    """A model of its own with these weights."""
    made = base.copy()
    made.load_state_dict(model.state_dict())
    return made
