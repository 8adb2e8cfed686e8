"""``check`` on a safety_merge config: what its search will cost, beside what the merge does."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from mergekit_3h.cli import main

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
