"""``check`` on a safety_merge config: what its search will cost, beside what the merge does."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner

from mergekit_3h.cli import main
from mergekit_3h.errors import OptionError
from mergekit_3h.safety.estimate import estimate_search
from mergekit_3h.search import open_problem, parse_search_options
from mergekit_3h.search.solving import solve_problem
from mergekit_3h.spectral.registry import parse_options

from .conftest import Trained


def checked(config: dict[str, Any], folder: Path, *flags: str) -> Any:
    file = folder / "config.yml"
    file.write_text(yaml.safe_dump(config))
    result = CliRunner().invoke(main, ["check", str(file), *flags])
    return json.loads(result.stdout) if "--json" in flags else result.stdout


def test_the_search_is_estimated(trained: Trained, absolute: Path) -> None:
    [search] = checked(trained.config(max_evaluations=7), absolute, "--json")["searches"]
    assert (search["records"], search["evaluations"], search["dtype"], search["device"]) == (24, 7, "float32", "cpu")
    assert search["tokens"] > 24 * 10 and search["seconds_each"] > 0 and search["peak_bytes"] > 600_000_000
    assert math.isclose(search["seconds_most"], search["seconds_models"] + 7 * search["seconds_each"])


def test_the_text_says_what_is_at_most(trained: Trained, absolute: Path) -> None:
    told = checked(trained.config(max_evaluations=7), absolute)
    assert "The search before it, in float32 on cpu:" in told and "at most 7 evaluations (24 records," in told


def test_no_gradient_is_a_third_of_the_passes(trained: Trained, absolute: Path) -> None:
    """By far the largest part for a model of any size; here the mixing counts too."""
    [cheap] = checked(trained.config(solver="cmaes", max_evaluations=7), absolute, "--json")["searches"]
    [dear] = checked(trained.config(max_evaluations=7), absolute, "--json")["searches"]
    assert cheap["seconds_each"] < dear["seconds_each"] and cheap["peak_bytes"] < dear["peak_bytes"]


@pytest.mark.parametrize("flags", [("--no-estimate",), ()])
def test_none_where_there_is_none_to_make(trained: Trained, absolute: Path, flags: tuple[str, ...]) -> None:
    config = trained.config(max_evaluations=7)
    if not flags:  # a search that is refused
        config["parameters"]["data"] = str(absolute / "nowhere.jsonl")
    assert checked(config, absolute, "--json", *flags)["searches"] == []


def test_none_for_a_merge_without_a_search(trained: Trained, absolute: Path) -> None:
    config = trained.config() | {"merge_method": "task_arithmetic", "parameters": {"weight": 0.5}}
    report = checked(config, absolute, "--json")
    assert report["searches"] == [] and len(report["estimates"]) == 1


@pytest.mark.parametrize(
    ("parameters", "merges"),
    [
        ({"combine": "iso_c", "over": "lambda"}, 1),
        ({"combine": "iso_c", "over": "lambda,power"}, 4),
        ({"combine": "iso_c", "over": "power"}, 7),
        ({"combine": "iso_c"}, 2),  # with its preconditioner held, and once more at the end
        ({"combine": "tsvm"}, 1),
        ({"combine": "ties", "density": 0.5, "solver": "cmaes"}, 7),
    ],
)
def test_merges_are_counted(parameters: dict[str, Any], merges: int, trained: Trained, absolute: Path) -> None:
    config = trained.config(max_evaluations=7, **parameters)
    [search] = checked(config, absolute, "--json")["searches"]
    assert search["merges"] == merges and search["seconds_merge"] > 0
    most = search["seconds_models"] + 7 * search["seconds_each"] + merges * search["seconds_merge"]
    assert math.isclose(search["seconds_most"], most)
    assert ("for each of about" in checked(config, absolute)) == (merges > 1)


def test_a_climb_needs_no_more_merges_than_are_said(trained: Trained, absolute: Path) -> None:
    """Counted where tensors are merged, over the climb's own way."""
    options = parse_search_options({"combine": "iso_c", "over": "lambda,power", "max_evaluations": 30})
    experts = {"aligned": trained.aligned, "domain": trained.domain}
    problem = open_problem(trained.base, experts, trained.data, options)
    assert problem.tuning is not None
    merged: list[str] = []

    def counted(name: str, *given: Any) -> torch.Tensor:
        merged.append(name)
        return merge(name, *given)

    merge = problem.tuning.merge
    problem = replace(problem, tuning=replace(problem.tuning, merge=counted))
    solution = solve_problem(problem)
    said = estimate_search(problem, "cpu")
    once = len(set(merged))
    assert len(merged) % once == 0 and len(solution.points) > 10
    assert len(merged) / once <= math.ceil(len(solution.points) / 2) <= said.merges == 15


def test_blocks_of_another_number_of_experts_are_refused(trained: Trained) -> None:
    experts = {"aligned": trained.aligned, "domain": trained.domain}
    method = parse_options("tsvm", {"block_weights": "1 1"})
    with pytest.raises(OptionError, match="which is for 1 experts; there are 2"):
        open_problem(trained.base, experts, trained.data, parse_search_options({"combine": "tsvm"}), method=method)
