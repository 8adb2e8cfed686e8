"""Hill climbing: on weights and on options of a method, each on its own scale, and with few merges."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from mergekit_3h.errors import OptionError
from mergekit_3h.search import Layout, Measurement, SearchOptions, open_problem, parse_search_options, solve
from mergekit_3h.search.axes import Axis, axis_of
from mergekit_3h.search.tuned_families import TunedFamily, Tuning, UnmergeableError
from mergekit_3h.search.tuning import spectral_axes
from mergekit_3h.spectral.registry import parse_options

CPU = torch.device("cpu")
LAMBDA = Axis("lambda", 1.0, 1 / 16, 16.0, "geometric")
POWER = Axis("power", 0.5, 0.0, 1.0)
LAYOUT = Layout(("a", "b"), (), (LAMBDA, POWER))
CLIMB = SearchOptions(solver="climb", over="lambda,power")


@dataclass
class Hill:
    """Losses of lambda and power with a minimum that moves with power, and a count of what a merge would cost."""

    best: tuple[float, float] = (1.4, 0.2)
    slope: float = 1.0
    fails_below: float = 0.0
    asked: list[tuple[float, ...]] = field(default_factory=list)
    dies_after: int = 10**9
    layout: Layout = LAYOUT

    @property
    def set_weights(self) -> dict[str, float]:
        return {"safety": 1.0, "domain": 1.0}

    def evaluate(self, candidates: Sequence[Sequence[float]], *, gradient: bool) -> Iterator[Measurement]:
        for factor, power in candidates:
            if len(self.asked) >= self.dies_after:
                raise KeyboardInterrupt
            self.asked.append((factor, power))
            if power < self.fails_below:
                yield Measurement(failure="the method refuses this power")
                continue
            off = math.log(factor / self.best[0]) - self.slope * (power - self.best[1])
            loss = 1 + off**2 + (power - self.best[1]) ** 2
            yield Measurement({"safety": loss, "domain": loss}, None, 0.0, 1)

    def evaluate_models(self, labels: Sequence[str]) -> Iterator[Measurement]:
        yield from (Measurement({"safety": 2.0, "domain": 2.0}, None, 0.0, 1) for _ in labels)


@pytest.mark.parametrize("slope", [0.0, 1.0, -2.0])
def test_the_best_point_of_the_grid_is_found(slope: float) -> None:
    """Whether or not the best lambda depends on power: 2^(1/8) and 1/16 are the distances of the grid."""
    hill = Hill(slope=slope)
    solution = solve(hill, hill.layout, CLIMB)
    factor, power = solution.coefficients
    assert solution.stopped == "converged"
    assert abs(math.log2(factor / 1.4)) <= 1 / 8 and abs(power - 0.2) <= 1 / 16
    assert solution.option_values() == {"lambda": factor, "power": power}
    assert solution.mergekit_weights() == {}
    assert len(hill.asked) == len(set(hill.asked)) == solution.passes < 60


def test_lambdas_of_one_setting_are_asked_for_together() -> None:
    hill = Hill()
    solution = solve(hill, hill.layout, CLIMB)
    changes = 1 + sum(before != after for (_, before), (_, after) in pairwise(hill.asked))
    assert solution.merges == changes == solution.to_dict()["merges"] < solution.passes / 2


def test_the_result_does_not_depend_on_being_interrupted(tmp_path: Path) -> None:
    whole = solve(Hill(), LAYOUT, CLIMB, trace_path=tmp_path / "whole.jsonl")
    with pytest.raises(KeyboardInterrupt):
        solve(Hill(dies_after=7), LAYOUT, CLIMB, trace_path=tmp_path / "killed.jsonl")
    rest = Hill()
    resumed = solve(rest, LAYOUT, CLIMB, trace_path=tmp_path / "killed.jsonl", resume=True)
    assert len(rest.asked) == whole.passes - 7
    assert resumed.to_dict() == whole.to_dict()


def test_the_budget_is_kept() -> None:
    hill = Hill()
    solution = solve(hill, hill.layout, CLIMB.model_copy(update={"max_evaluations": 5}))
    assert (len(hill.asked), solution.stopped) == (5, "budget spent")


def test_candidates_that_cannot_be_merged_do_not_end_the_search() -> None:
    hill = Hill(fails_below=0.4)
    solution = solve(hill, hill.layout, CLIMB)
    assert solution.option_values()["power"] == pytest.approx(0.4375)
    assert solution.to_dict()["failed"] > 0


def test_a_value_at_the_end_of_its_range_is_said() -> None:
    hill = Hill(best=(100.0, 0.0), slope=0.0)
    remarks = solve(hill, hill.layout, CLIMB).remarks()
    assert len(remarks) == 1, "power 0 is the end of the option, lambda 16 that of the search"
    assert remarks[0].startswith("lambda ended at 16, where the search ends (0.0625 to 16)")


def test_weights_are_climbed_too(quadratic) -> None:
    runner = quadratic(2)
    solution = solve(runner, runner.layout, SearchOptions(solver="climb"))
    exact = solve(quadratic(2), runner.layout, SearchOptions(solver="gradient"))
    assert all(abs(a - b) <= 1 / 8 for a, b in zip(solution.coefficients, exact.coefficients, strict=True))


@pytest.mark.parametrize(
    ("axis", "values"),
    [
        (Axis("p", 0.5, 0.0, 1.0), [0.0, 0.25, 0.5, 0.75, 1.0]),
        (axis_of("energy", 1.0, 0.0, 1.0, whole=(False, True)), [0.5078, 0.7539, 1.0, 1.0, 1.0]),
        (axis_of("lambda", 0.8, None, None, whole=(False, False)), [0.4, 0.5657, 0.8, 1.131, 1.6]),
        (axis_of("tau", 0.0, 0.0, None, whole=(True, False)), [0.0, 0.0, 0.0, 0.3333, 1.0]),
        (axis_of("epsilon", 0.3, 0.0, None, whole=(True, False)), [0.0, 0.1, 0.3, 0.9, 18.9]),
    ],
)
def test_scales(axis: Axis, values: list[float]) -> None:
    assert [axis.clipped(axis.at(4 * i)) for i in range(-2, 3)] == pytest.approx(values, rel=2e-4)


def test_axes_of_a_spectral_method_begin_where_it_stands() -> None:
    starts = {
        ("iso_c", "power"): 0.3,
        ("rtsvm", "gamma"): 0.2,
        ("rtsvm", "epsilon"): 0.3,
        ("svc", "alpha"): 0.25,
        ("tsvm", "lambda"): 1.0,
    }
    for (name, option), start in starts.items():
        method = parse_options(name, {"power": 0.3} if name == "iso_c" else {})
        (axis,) = spectral_axes([option], method, 4)
        assert (axis.name, axis.start) == (option, start)


OPTIONS = [
    ("iso_c", "pwoer", "iso_c has no option 'pwoer'; did you mean 'power'?"),
    ("iso_c", "scale", "scale of iso_c is no number to be searched; iso_c can be searched over weight, lambda, power"),
    ("tsvm", "tolerance", "can be searched over weight, lambda, energy, decorrelation"),
]


@pytest.mark.parametrize(("method", "over", "message"), OPTIONS)
def test_options_that_cannot_be_searched(method: str, over: str, message: str) -> None:
    with pytest.raises(OptionError) as refused:
        spectral_axes([over], parse_options(method, {}), 2)
    assert message in str(refused.value)


@pytest.mark.parametrize("start", [0.0, -1.0])
def test_a_factor_to_start_from(start: float) -> None:
    with pytest.raises(OptionError, match=f"lambda starts from {start:g}; .* a value above 0 to start from"):
        spectral_axes(["lambda"], parse_options("tsvm", {"lambda": start}), 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"over": " , "}, "expected weight, options of the merge method, or both"),
        ({"over": "power,power"}, "power is there 2 times"),
        ({"over": "power", "solver": "gradient"}, "found by solver 'climb', by forward passes alone"),
        ({"over": "lambda,weight", "solver": "cmaes"}, "found by solver 'climb'"),
    ],
)
def test_conflicts(given: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        parse_search_options(given)


def test_options_take_their_solver() -> None:
    assert parse_search_options({"over": "lambda,power"}).solver == "climb"
    assert parse_search_options({"over": "weight"}).solver == "gradient"


def test_the_merge_is_kept_for_every_lambda() -> None:
    merged = []

    def merge(name, base, experts, weights, options):
        merged.append((weights, options))
        return base + options["lambda"] * options["power"] * sum(e - base for e in experts)

    base, experts = torch.zeros(4, 4, dtype=torch.bfloat16), [torch.ones(4, 4, dtype=torch.bfloat16)] * 2
    family = TunedFamily("w", base, experts, Tuning((LAMBDA, POWER), merge, scales=True))
    assert [float(family.at([f, 0.5], CPU)[0, 0]) for f in (0.5, 1.0, 3.0)] == [0.5, 1.0, 3.0]
    assert merged == [(None, {"lambda": 1.0, "power": 0.5})]
    assert family.at([0.2, 0.3, 2.0, 0.25], CPU).dtype == torch.float32
    assert merged[1:] == [([0.2, 0.3], {"lambda": 1.0, "power": 0.25})]


def test_a_lambda_that_is_no_factor_is_merged_anew() -> None:
    merged = []

    def merge(name, base, experts, weights, options):
        merged.append(options)
        if options["lambda"] > 2:
            raise ValueError("too much")
        return base + options["lambda"] ** 2

    family = TunedFamily("w", torch.zeros(2), [torch.ones(2)], Tuning((LAMBDA,), merge, scales=False))
    assert [float(family.at([f], CPU)[0]) for f in (1.0, 2.0)] == [1.0, 4.0]
    assert len(merged) == 2
    with pytest.raises(UnmergeableError, match="w cannot be merged with lambda 4: too much"):
        family.at([4.0], CPU)


def test_from_python(trained) -> None:
    """Without a host: a spectral method's options, with weights or without."""
    options = parse_search_options({"over": "power,lambda", "combine": "iso_c", "max_evaluations": 6})
    problem = open_problem(trained.base, trained.experts, trained.data, options)
    solution = solve(problem.local_runner(), problem.layout, options)
    assert set(solution.option_values()) == {"power", "lambda"}
    assert solution.best.score < solution.uniform.score
    both = parse_search_options({"over": "weight,power", "combine": "iso_c", "max_evaluations": 3})
    problem = open_problem(trained.base, trained.experts, trained.data, both)
    assert problem.layout.names() == ["aligned", "domain", "power"]
    found = solve(problem.local_runner(), problem.layout, both)
    assert set(found.mergekit_weights()) == {"aligned", "domain"} and "power" in found.option_values()
    with pytest.raises(OptionError, match="take a spectral method"):
        trained.problem(over="lambda", solver="climb")
