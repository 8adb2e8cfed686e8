"""Values that mergekit takes and makes NaN or nothing of, or that stop it in the middle of the merge."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hosts import mergekit_yaml, read_model
from lint.workshop import Workshop, all_of, only


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ties", {"density": 1.5}),
        ("ties", {"density": -0.5}),
        ("dare_linear", {"density": [0.2, 1.01]}),
        ("della", {"epsilon": 0.6}),
        ("breadcrumbs", {"gamma": [{"filter": "mlp", "value": -0.1}, {"value": 0.01}]}),
        ("sce", {"select_topk": 2}),
        ("tsvm", {"lambda": math.inf}),
        ("ties", {"weight": math.nan}),
        ("linear", {"weight": [math.nan, 1.0]}),
    ],
    ids=str,
)
def test_values_out_of_range(llamas: Workshop, method: str, options: dict[str, Any]) -> None:
    needed = {} if method in ("sce", "tsvm") else {"weight": 1.0}
    finding = only(llamas.lint(llamas.config(method, parameters={**needed, **options})), "bad-value")
    assert finding.severity == "error" and next(iter(options)) in finding.where


@pytest.mark.parametrize("options", [{"density": 0}, {"density": 1, "lambda": -2.0}, {"weight": -1.0}], ids=str)
def test_unusual_values_that_mean_something(llamas: Workshop, options: dict[str, Any]) -> None:
    assert llamas.lint(llamas.config(parameters={"weight": 1.0, **options})) == []


def opposite(models: Workshop, method: str, first: Any, second: Any, **options: Any) -> dict[str, Any]:
    weights = zip(models.experts, (first, second), strict=True)
    listed = [{"model": str(path), "parameters": {"weight": weight}} for path, weight in weights]
    return models.config(method, models=listed, parameters=options, base_model=None)


def test_weights_that_sum_up_to_nothing_do_give_nan_as_check_says(llamas: Workshop) -> None:
    config = opposite(llamas, "linear", 1.0, -1.0)
    finding = only(llamas.lint(config), "bad-value")
    assert "sum up to 0" in finding.message and "every tensor" in finding.message
    out = Path(llamas.folder / "merged")
    mergekit_yaml(config, out, "--no-write-model-card", "--no-copy-tokenizer")
    assert all(not torch.isfinite(tensor).all() for tensor in read_model(out).values())
    assert llamas.lint(opposite(llamas, "linear", 1.0, -1.0, normalize=False)) == []
    assert llamas.lint(opposite(llamas, "linear", 1.0, -0.5)) == []


def test_weights_that_sum_up_to_nothing_in_some_tensors(llamas: Workshop) -> None:
    by_filter = [{"filter": "mlp", "value": 0.3}, {"value": 1.0}]
    finding = only(llamas.lint(opposite(llamas, "linear", by_filter, -0.3)), "bad-value")
    assert "6 of 21 tensors" in finding.message and finding.tensor and "mlp" in finding.tensor
    assert only(llamas.lint(opposite(llamas, "multislerp", 0.5, -0.5)), "bad-value").severity == "error"


def test_density_within_epsilon_of_an_end_does_stop_the_merge_as_check_says(llamas: Workshop) -> None:
    config = llamas.config("della", parameters={"weight": 1.0, "density": 0.1, "epsilon": 0.5})
    assert "density and epsilon" in only(llamas.lint(config), "bad-value").message
    done = mergekit_yaml(config, llamas.folder / "merged", check=False)
    assert done.returncode and "density +/- epsilon" in done.stderr
    # With epsilon at its default, in the layers of the gradient that come close.
    gradient = llamas.config("della", parameters={"weight": 1.0, "density": [0.1, 0.5]})
    assert "of 21 tensors" in only(llamas.lint(gradient), "bad-value").message
    assert llamas.lint(llamas.config("della", parameters={"weight": 1.0, "density": 0.5})) == []
    assert llamas.lint(llamas.config("della", parameters={"weight": 1.0, "density": 1.0, "epsilon": 0.5})) == []


def test_misspelt_tokenizer_source(llamas: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    finding = only(llamas.lint(llamas.config(tokenizer_source="unoin")), "tokenizer-source")
    assert (finding.severity, finding.where) == ("error", "tokenizer_source") and "'union'" in finding.advice
    assert (
        only(llamas.lint(llamas.config(tokenizer={"source": "bsae"})), "tokenizer-source").where == "tokenizer.source"
    )
    for name in ("org/other", "base/x"):
        assert only(llamas.lint(llamas.config(tokenizer_source=name)), "download").where == "tokenizer_source"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert only(llamas.lint(llamas.config(tokenizer_source="org/other")), "tokenizer-source").severity == "error"


def test_tokenizer_source_that_is_a_path(llamas: Workshop) -> None:
    absent = str(llamas.folder / "absent")
    assert absent in only(llamas.lint(llamas.config(tokenizer_source=absent)), "tokenizer-source").message
    (llamas.folder / "empty").mkdir()
    finding = only(llamas.lint(llamas.config(tokenizer_source=str(llamas.folder / "empty"))), "tokenizer-missing")
    assert finding.where == "tokenizer_source"
    assert llamas.lint(llamas.config(tokenizer_source=str(llamas.experts[0]))) == []


def test_models_of_which_none_has_a_tokenizer(llamas: Workshop) -> None:
    for folder in (llamas.base, *llamas.experts):
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            (folder / name).unlink()
    finding = only(llamas.lint(llamas.config()), "tokenizer-missing")
    assert finding.severity == "warning" and "no model has a tokenizer" in finding.message


def test_blocks_that_only_hold_anchors(llamas: Workshop) -> None:
    first, second = llamas.experts
    text = f"""\
x-unused: 1
common: &common
  parameters: &weights {{weight: 0.5}}
merge_method: ties
base_model: {llamas.base}
models:
  - model: {first}
    <<: *common
  - model: {second}
    parameters: *weights
"""
    assert llamas.lint(text) == []
    mergekit_yaml_runs(llamas, text)
    finding = only(
        llamas.lint(text.replace("*common", "{parameters: {weight: 1}}").replace("*weights", "{weight: 1}")),
        "unknown-key",
    )
    assert finding.where == "common"
    misspelt = text.replace("common:", "parameterz:").replace("merge_method", "parameters: {density: 1}\nmerge_method")
    assert only(llamas.lint(misspelt), "unknown-key").where == "parameterz"


def mergekit_yaml_runs(llamas: Workshop, text: str) -> None:
    import yaml

    mergekit_yaml(yaml.safe_load(text), llamas.folder / "merged", "--no-write-model-card")


def test_the_base_of_slerp_is_one_of_its_two_models(llamas: Workshop) -> None:
    models = [{"model": str(llamas.base)}, {"model": str(llamas.experts[0])}]
    assert llamas.lint(llamas.config("slerp", models=models, parameters={"t": 0.5})) == []
    models.append({"model": str(llamas.experts[1])})
    assert all_of(llamas.lint(llamas.config("ties", models=models)), "base-as-expert")[0].severity == "note"
