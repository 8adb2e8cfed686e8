"""``mergekit-3h merge --evaluate``: one command from models to proof, and a bad merge is said to be one."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import DIMENSIONS, tiny_suite, with_more_items, write_suite


@pytest.fixture
def config(experts, tmp_path: Path) -> Callable[..., Path]:
    def write(weights: dict[str, float] | None = None, **changes: Any) -> Path:
        models = [
            {"model": str(experts[name]), "parameters": {"weight": (weights or {}).get(name, 1.0)}}
            for name in DIMENSIONS
        ]
        file = tmp_path / "merge.yml"
        content = {"merge_method": "task_arithmetic", "base_model": str(experts["base"]), "models": models, **changes}
        file.write_text(yaml.safe_dump(content, sort_keys=False))
        return file

    return write


@pytest.fixture
def suite(questions: Path, tmp_path: Path) -> Path:
    """Likelihoods alone: six items of each dimension tell models apart by them."""
    return write_suite(tmp_path / "suite.yml", likelihoods(with_more_items(tiny_suite(questions))))


def likelihoods(suite: dict[str, Any]) -> dict[str, Any]:
    dimensions = {
        name: {key: metric for key, metric in metrics.items() if metric["kind"] == "answer-likelihood"}
        for name, metrics in suite["dimensions"].items()
    }
    return {"name": "tiny", "dimensions": dimensions}


def test_a_merge_that_loses_a_dimension_says_so(mergekit_3h, config, suite: Path, tmp_path: Path) -> None:
    file = config({"helpful": 1.0, "honest": 0.0, "harmless": 0.0})
    said = mergekit_3h("merge", file, tmp_path / "out", "--evaluate", suite, status=4).output
    assert "honest: lost against honest by" in said and "harmless: lost against harmless by" in said
    assert "Try more weight for honest" in said and "helpful: lost" not in said
    assert (tmp_path / "out" / "model.safetensors").exists() and (tmp_path / "out" / "tokenizer.json").exists()
    report = tmp_path / "out-evaluation"
    rows = {row["method"]: row for row in csv.DictReader((report / "table.csv").open())}
    assert [(name, row["role"]) for name, row in rows.items()] == [
        ("base", "base"),
        *((name, "expert") for name in sorted(DIMENSIONS)),
        ("merge", "merge"),
    ]
    # Weight 1 and lambda 1 are the expert itself, but for the rounding of float32.
    assert float(rows["merge"]["helpful-likelihood"]) == pytest.approx(
        float(rows["helpful"]["helpful-likelihood"]), abs=1e-3
    )
    page = (report / "merge.html").read_text()
    assert "In short" in page and "honest: lost against honest by" in page

    again = mergekit_3h("merge", file, tmp_path / "second", "--evaluate", suite, "--report", report, "-q", status=4)
    assert "merge.html" in again.output, "base and experts are known from the first time"


@pytest.mark.slow
def test_models_of_the_layer_gate_are_no_experts(mergekit_3h, config, suite: Path, tmp_path: Path) -> None:
    """The unaligned model is better than the merge at what only it was trained for; nobody merged it."""
    file = config(merge_method="tsvm")
    content = yaml.safe_load(file.read_text())
    for model in content["models"]:
        if Path(model["model"]).name == "harmless":
            model["parameters"] = {"role": "unaligned"}
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    said = mergekit_3h("merge", file, tmp_path / "out", "--evaluate", suite, status=4).output
    rows = list(csv.DictReader((tmp_path / "out-evaluation" / "table.csv").open()))
    assert [row["method"] for row in rows] == ["base", "helpful", "honest", "merge"]
    assert "against harmless" not in said


def test_two_items_prove_no_loss(mergekit_3h, config, questions: Path, tmp_path: Path) -> None:
    file = config({"helpful": 1.0, "honest": 0.0, "harmless": 0.0})
    few = write_suite(tmp_path / "few.yml", likelihoods(tiny_suite(questions)))
    said = mergekit_3h("merge", file, tmp_path / "out", "--evaluate", few).output
    assert "honest: too few items (2, of at least 6) to tell the merge from honest." in said
    assert "lost against" not in said and "kept honest (likelihood): too few items" in said.replace("\n", " ")


def test_without_a_suite_it_merges(mergekit_3h, config, tmp_path: Path) -> None:
    assert "the merged llama" in mergekit_3h("merge", config(), tmp_path / "out").output
    assert not (tmp_path / "out-evaluation").exists()
    said = mergekit_3h("merge", config(), tmp_path / "out", status=1).output
    assert "is there already and not empty" in said


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({"merge_method": "task_arithmetics"}, [], "task_arithmetics"),
        ({"parameters": {"lamda": 1.0}}, [], "lamda"),
        ({}, ["--evaluate", "gone.yml"], "suite 'gone.yml': no such file, and no shipped suite"),
        ({}, ["--evaluate", "3h-small", "--expert", "helpful=helpfull"], "no such model in"),
        ({"base_model": "./gone"}, ["--evaluate", "3h-small"], "gone"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_merged(
    mergekit_3h, config, tmp_path: Path, changes: dict[str, Any], arguments: list[str], message: str
) -> None:
    said = mergekit_3h("merge", config(**changes), tmp_path / "out", *arguments, status=1).output
    assert message in said and "Traceback" not in said
    assert not (tmp_path / "out").exists()
