"""``--over``: continuous options of a merge method found by forward passes, and a config that merges with them."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hosts import mergekit_yaml
from tiny_models import tiny_tokenizer
from transformers import AutoModelForCausalLM

from mergekit_3h.losses.answers import tokenized
from mergekit_3h.losses.objective import Objective
from mergekit_3h.losses.records import by_set, located_records
from mergekit_3h.search import SearchOptions

from .conftest import Trained
from .test_mergekit import same_bits
from .test_search_command import search, without_seconds


def plain(trained: Trained, method: str, parameters: dict[str, Any] | None = None, **own: Any) -> dict[str, Any]:
    """An ordinary config of a method; ``own`` are parameters of each expert."""
    models = [{"model": str(path), "parameters": dict(own)} for path in (trained.aligned, trained.domain)]
    config = {"merge_method": method, "base_model": str(trained.base), "models": models}
    return {**config, "parameters": parameters or {}}


def losses_of(model: Path, data: Path) -> dict[str, float]:
    """Of a model on disk, without the search."""
    options = SearchOptions()
    sets = {
        name: tokenized(members, tiny_tokenizer(), options, None)
        for name, members in by_set(located_records([data]), ["safety", "domain"]).items()
    }
    return Objective(sets, options.batch_size).losses(AutoModelForCausalLM.from_pretrained(model).eval()).by_set


@pytest.mark.parametrize(
    ("method", "over", "parameters", "own"),
    [
        ("iso_c", "lambda,power", {}, {"weight": 0.8}),
        ("tsvm", "decorrelation,lambda", {"lambda": 0.5, "exclude": "lm_head"}, {}),
        ("ties", "lambda,density", {"density": 0.7}, {"weight": 0.5}),
        ("svc", "alpha,lambda", {}, {}),
    ],
)
def test_found_options_merge_to_what_was_measured(
    trained: Trained, absolute: Path, method: str, over: str, parameters: dict, own: dict
) -> None:
    config = plain(trained, method, parameters, **own)
    flags = ("--over", over, "--data", str(trained.data), "--max-evaluations", "14")
    said = search(config, absolute / "found.yml", *flags).output
    report = json.loads((absolute / "found.json").read_text())
    found = yaml.safe_load((absolute / "found.yml").read_text())
    assert found["parameters"] == {**parameters, **report["found_options"]}
    assert set(report["found_options"]) == set(over.split(","))
    assert [model.get("parameters", {}) for model in found["models"]] == [own, own]
    assert report["score"] < score(report["uniform"])
    mergekit_yaml(found, absolute / "merged")
    measured = {name: entry["loss"] for name, entry in report["losses"].items()}
    # the same update, added to the base in one rounding more
    assert losses_of(absolute / "merged", trained.data) == pytest.approx(measured, rel=1e-4)
    merges = int(re.search(r"(\d+) merges?;", said)[1])
    assert merges == report["merges"] == settings(absolute / "found.trace.jsonl", over) < report["evaluations"]


def score(losses: dict[str, Any]) -> float:
    return losses["safety"]["loss"] + 0.3 * losses["domain"]["loss"]


def settings(trace: Path, over: str) -> int:
    """How often anything but lambda changed from one measurement to the next."""
    lines = [json.loads(line) for line in trace.read_text().splitlines()]
    position = over.split(",").index("lambda")
    others = [
        [v for i, v in enumerate(line["coefficients"]) if i != position]
        for line in lines
        if line["kind"] == "candidate"
    ]
    return 1 + sum(before != after for before, after in pairwise(others))


def test_safety_merge_merges_with_what_it_finds(trained: Trained, absolute: Path) -> None:
    """mergekit-yaml alone: the report's static config gives the same bits; FusionBench finds and merges the same."""
    options = {"combine": "iso_c", "over": "lambda,power", "max_evaluations": 6}
    config = trained.config(**options, power=0.5, report=str(absolute / "report"))
    mergekit_yaml(config, absolute / "searched")
    static = yaml.safe_load((absolute / "report" / "static.yml").read_text())
    assert set(static["parameters"]) == {"lambda", "power"} and "parameters" not in static["models"][0]
    mergekit_yaml(static, absolute / "static")
    assert same_bits(absolute / "searched", absolute / "static")
    pytest.importorskip("fusion_bench")
    from fusion_bench_ext.algorithms import SafetyMerge

    from .test_fusion_bench import pool_of

    pooled = SafetyMerge(
        data=str(trained.data),
        report=str(absolute / "pooled"),
        parameters={"power": 0.5},
        model_save_path=str(absolute / "by-fusion-bench"),
        **options,
    )
    pooled.run(pool_of(trained))
    reports = [without_seconds(absolute / f / "safety_merge.json") for f in ("report", "pooled")]
    assert reports[0] == reports[1]
    assert same_bits(absolute / "searched", absolute / "by-fusion-bench")


def test_an_interrupted_search_goes_on(trained: Trained, absolute: Path) -> None:
    config = plain(trained, "iso_c", {"power": 0.25})
    flags = ("--over", "lambda,power", "--data", str(trained.data), "--max-evaluations", "8")
    search(config, absolute / "whole.yml", *flags)
    lines = (absolute / "whole.trace.jsonl").read_bytes().splitlines(keepends=True)
    (absolute / "cut.trace.jsonl").write_bytes(b"".join(lines[:8]) + lines[8][:30])
    search(config, absolute / "cut.yml", *flags, "--resume")
    assert without_seconds(absolute / "cut.json") == without_seconds(absolute / "whole.json")
    refused = search(plain(trained, "iso_c", {"power": 0.5}), absolute / "cut.yml", *flags, "--resume", check=False)
    assert "starts: was {'lambda': 1.0, 'power': 0.25}, is {'lambda': 1.0, 'power': 0.5}" in refused.output


BAD: list[tuple[str, dict[str, Any], dict[str, Any], tuple[str, ...], str]] = [
    ("iso_c", {}, {}, ("pwer",), "iso_c has no option 'pwer'; did you mean 'power'?"),
    (
        "iso_c",
        {},
        {},
        ("scale",),
        "scale of iso_c is no number to be searched; iso_c can be",
    ),
    ("ties", {}, {"weight": 1.0}, ("normalize",), "ties can be searched over weight, lambda, density"),
    ("iso_c", {"power": [0, 1]}, {}, ("power",), "parameters.power: got [0, 1]; the search finds one value"),
    (
        "ties",
        {},
        {"weight": 1.0, "density": 0.4},
        ("density",),
        "density of the model aligned: the search finds one",
    ),
    ("iso_c", {}, {}, ("power", "--solver", "grid"), "got 'grid' with over 'power'; options of a method are found by"),
    ("ties", {}, {}, ("lambda",), "ties needs a weight for every expert"),
    ("iso_c", {"lambda": 0}, {}, ("lambda",), "lambda starts from 0"),
    ("ties", {"density": 2.0}, {"weight": 1.0}, ("density",), "density starts from 2; it is searched between 0 and 1"),
    ("linear", {}, {"weight": 1.0}, ("weight",), "expected a merge method with a base"),
]


@pytest.mark.parametrize(("method", "parameters", "own", "over", "message"), BAD)
def test_bad_options(
    method: str, parameters: dict, own: dict, over: tuple[str, ...], message: str, trained: Trained, absolute: Path
) -> None:
    config = plain(trained, method, parameters, **own)
    flags = ("--data", str(trained.data), "--over", *over)
    refused = search(config, absolute / "found.yml", *flags, check=False)
    assert refused.exit_code == 1
    assert message in refused.output and len(refused.output.strip().splitlines()) == 1, refused.output
    assert not (absolute / "found.trace.jsonl").exists()


def test_an_option_of_the_method_that_the_search_has_too(trained: Trained, absolute: Path) -> None:
    """``combine`` of svc is not that of safety_merge."""
    config = plain(trained, "svc", {"combine": "tsvm"})
    flags = ("--over", "lambda", "--data", str(trained.data), "--max-evaluations", "2")
    assert "1 merge;" in search(config, absolute / "found.yml", *flags).output
    found = yaml.safe_load((absolute / "found.yml").read_text())["parameters"]
    assert (found["combine"], set(found)) == ("tsvm", {"combine", "lambda"})


def test_options_of_a_method_without_weights(trained: Trained, absolute: Path) -> None:
    config = plain(trained, "sce", {"select_topk": 0.5})
    flags = ("--over", "select_topk", "--data", str(trained.data), "--max-evaluations", "3")
    search(config, absolute / "found.yml", *flags)
    assert set(yaml.safe_load((absolute / "found.yml").read_text())["parameters"]) == {"select_topk"}
