"""The command ``mergekit-3h inspect``, on real checkpoints: what it prints and writes, and how it goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from hosts import merge_config, read_model
from lint.workshop import Workshop
from tiny_models import Family

from mergekit_3h.cli import main
from mergekit_3h.diagnostics.rows import TensorMeasures
from mergekit_3h.diagnostics.subjects import short_names, subject_of_models
from mergekit_3h.diagnostics.survey import MEASURES, sampled
from mergekit_3h.kernels.assembly import merge
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.spectral.registry import parse_options


def inspect(*arguments: object, check: bool = True) -> Result:
    pictures = [] if "--pictures" in arguments else ["--no-pictures"]
    result = CliRunner().invoke(main, ["inspect", *map(str, arguments), *pictures])
    if check and result.exit_code:
        raise AssertionError(f"{result.output}\n{result.exception!r}")
    return result


def as_options(family: Family) -> list[object]:
    return ["--base", family.base, *(part for expert in family.experts for part in ("--expert", expert))]


@pytest.fixture
def rounded(family: Callable[..., Family]) -> Family:
    return family("llama", experts=3, update=1e-3, dtype=torch.bfloat16)


def test_what_is_written(rounded: Family, tmp_path: Path) -> None:
    inspect(*as_options(rounded)[:4], "--out", tmp_path / "out", "--pictures")
    names = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")}
    assert {"index.html", "measures.jsonl", "heat_maps/relative_size.png", "heat_maps/omega.png"} <= names
    assert not any("cosine" in name for name in names), "one expert has no pairs"
    assert "expert0 against" in (tmp_path / "out" / "index.html").read_text()


def test_terminal(rounded: Family) -> None:
    text = inspect(*as_options(rounded)).output
    assert text.count("?\n") == 10, "a line for each question"
    assert "experts expert0, expert1, expert2" in text
    assert "self_attn.q_proj" in text and "STI/S" in text
    assert "merge_method" not in text, "nothing to suggest for sound models"


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("rtsvm", {}),
        ("rtsvm", {"gamma": 0.6, "rank_budget": "per_task", "outlier_weighting": "inverse", "outlier_strength": 0.5}),
        ("rtsvm", {"preset": "paper", "epsilon": 1e-3, "gamma": 0.5}),
        ("tsvm", {"energy": 0.9, "noise_floor": "off"}),
        ("ties", {}),
    ],
)
def test_numbers_are_those_of_the_kernels(
    rounded: Family, tmp_path: Path, method: str, options: dict[str, Any]
) -> None:
    """alpha, Omega, edges, budget and ranks of every matrix, as merging it reports them."""
    config = tmp_path / "config.yml"
    config.write_text(yaml.safe_dump(merge_config(rounded, method, parameters={"weight": 1.0, **options})))
    found = json.loads(inspect(config, "--json").stdout)
    assert found["experts"] == ["expert0", "expert1", "expert2"]
    rows = {row.tensor: row for row in map(TensorMeasures.model_validate, found["tensors"])}
    settings = (parse_options(method, options) if method != "ties" else parse_options("rtsvm", {})).settings()
    base, *experts = [read_model(path) for path in (rounded.base, *rounded.experts)]
    assert rows.keys() == base.keys()
    for name, start in base.items():
        if start.ndim < 2:
            assert rows[name].matrix is None
            continue
        _, report = merge(TaskMatrices([expert[name] for expert in experts], start), [1.0] * 3, settings)
        matrix, spectra = rows[name].matrix, [expert.spectrum for expert in rows[name].experts]
        assert matrix is not None and matrix.budget == report.budget and matrix.omega == report.omega
        assert [s.rank for s in spectra if s] == report.ranks
        assert [s.alpha for s in spectra if s] == report.outlier_weights
        assert [s.noise_edge for s in spectra if s] == report.noise_edges


def test_a_run_that_was_stopped_goes_on(rounded: Family, tmp_path: Path) -> None:
    whole = json.loads(inspect(*as_options(rounded), "--json", "--out", tmp_path / "out").stdout)
    file = tmp_path / "out" / MEASURES
    lines = file.read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + len(whole["tensors"])
    file.write_bytes(b"".join(lines[:9]) + lines[9][: len(lines[9]) // 2])  # killed while it wrote the ninth tensor
    again = json.loads(inspect(*as_options(rounded), "--json", "--out", tmp_path / "out").stdout)
    assert file.read_bytes().splitlines(keepends=True)[:9] == lines[:9]
    for first, second in zip(whole["tensors"], again["tensors"], strict=True):
        assert {**first, "seconds": 0} == {**second, "seconds": 0}


def test_a_sample_is_completed_later(family: Callable[..., Family], tmp_path: Path) -> None:
    made = family("llama", update=1e-3, num_hidden_layers=5, hidden_size=16, intermediate_size=16)
    part = json.loads(inspect(*as_options(made), "--json", "--sample", 0.4, "--out", tmp_path).stdout)
    names = {row["tensor"] for row in part["tensors"]}
    assert {name.split(".")[2] for name in names if "layers." in name} == {"0", "4"}
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"} < names
    before = (tmp_path / MEASURES).read_bytes()
    inspect(*as_options(made), "--out", tmp_path)
    after = (tmp_path / MEASURES).read_bytes()
    assert after.startswith(before) and after.count(b"\n") == 1 + 3 + 5 * 9


@pytest.mark.parametrize(
    ("share", "layers"), [(0.01, [0, 79]), (0.1, [0, 11, 23, 34, 45, 56, 68, 79]), (1.0, range(80))]
)
def test_layers_of_a_sample_are_spread_evenly(family: Callable[..., Family], share: float, layers: Any) -> None:
    made = family("llama", hidden_size=16, intermediate_size=16)
    subject = subject_of_models(str(made.base), [str(made.experts[0])])
    template = next(tensor for tensor in subject.tensors if "layers.0.mlp.up" in tensor.name)
    stack = [type(template)(f"model.layers.{i}.up", template.base, template.experts) for i in range(80)]
    assert [tensor.name for tensor in sampled(stack, share)] == [f"model.layers.{i}.up" for i in layers]


def test_a_folder_of_other_models_is_refused(rounded: Family, tmp_path: Path) -> None:
    inspect(*as_options(rounded), "--out", tmp_path)
    other = as_options(rounded)[:-2]
    result = inspect(*other, "--out", tmp_path, check=False)
    assert result.exit_code == 1 and "holds measures of other models" in result.output
    (tmp_path / MEASURES).write_text("what is this\n\n{}\n")
    result = inspect(*other, "--out", tmp_path, check=False)
    assert result.exit_code == 1 and "line 1 is no JSON" in result.output


def test_pickled_weight_files(rounded: Family, tmp_path: Path) -> None:
    """Two files of mergekit-pytorch, the base as well."""
    files = []
    for folder in (rounded.base, rounded.experts[0]):
        files.append(tmp_path / f"{folder.name}.bin")
        torch.save(read_model(folder), files[-1])
    found = json.loads(inspect("--base", files[0], "--expert", files[1], "--json").stdout)
    reference = json.loads(inspect(*as_options(rounded)[:4], "--json").stdout)
    by_name = {row["tensor"]: row["experts"] for row in reference["tensors"]}
    assert {row["tensor"]: row["experts"] for row in found["tensors"]} == by_name


def test_a_head_that_is_the_embedding_is_measured_once(family: Callable[..., Family]) -> None:
    tied = family("llama-tied", experts=2, update=1e-3)
    found = json.loads(inspect(*as_options(tied), "--json").stdout)
    names = [row["tensor"] for row in found["tensors"]]
    assert "lm_head.weight" not in names and set(names) == set(read_model(tied.base))


def test_exit_status_of_an_error(trio: Callable[..., Workshop]) -> None:
    workshop = trio()
    workshop.edit_weights(workshop.experts[0], lambda tensors: tensors["lm_head.weight"].fill_(torch.nan))
    result = inspect("--base", workshop.base, "--expert", workshop.experts[0], check=False)
    assert result.exit_code == 1 and "are NaN or infinite" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected a CONFIG"),
        (["--base", "b"], "at least one --expert"),
        (["--base", "/no/such/model", "--expert", "/no/other"], "is not there"),
        (["--base", "b", "--expert", "e", "--device", "quantum"], "not on this machine"),
        (["--base", "b", "--expert", "e", "--expert", "b"], "b is named twice"),
        (["--sample", "0"], "0<x<=1"),
    ],
)
def test_wrong_command_lines(arguments: list[str], message: str) -> None:
    result = inspect(*arguments, check=False)
    assert result.exit_code != 0 and message in result.output
    assert "Traceback" not in result.output


def test_configs_that_cannot_be_inspected(trio: Callable[..., Workshop]) -> None:
    workshop = trio()

    def refused(**changes: Any) -> str:
        result = inspect(workshop.write(workshop.config(**changes)), check=False)
        assert result.exit_code == 1 and result.output.startswith("Error: ")
        return result.output

    assert "names no base model" in refused(method="linear", base_model=None)
    assert "is a LoRA adapter" in refused(models=[{"model": f"{workshop.base}+{workshop.experts[0]}"}])
    assert "expected a mapping" in inspect(workshop.write("- 1"), check=False).output
    two = (
        yaml.safe_dump({"name": "one", **workshop.config()})
        + "---\n"
        + yaml.safe_dump({"name": "two", **workshop.config()})
    )
    assert "holds 2 merges" in inspect(workshop.write(two), check=False).output
    (workshop.experts[1] / "model.safetensors").write_bytes(b"cut off")
    assert "cannot be read" in refused()


def test_slices_take_the_base_layer_that_the_merge_takes(trio: Callable[..., Workshop]) -> None:
    """Layer 0 of the result is the base's and the expert's layer 1: what is measured is their difference."""
    workshop = trio()
    sources = [{"model": str(path), "layer_range": [1, 2]} for path in (workshop.base, workshop.experts[0])]
    config = {
        "merge_method": "task_arithmetic",
        "base_model": str(workshop.base),
        "slices": [{"sources": sources}],
        "parameters": {"weight": 1.0},
    }
    found = json.loads(inspect(workshop.write(config), "--json").stdout)
    name = "model.layers.0.mlp.up_proj.weight"
    base, expert = read_model(workshop.base), read_model(workshop.experts[0])
    delta = expert[name.replace("0", "1")].double() - base[name.replace("0", "1")].double()
    row = next(row for row in found["tensors"] if row["tensor"] == name)
    assert row["experts"][0]["norm"] == pytest.approx(float(delta.norm()))
    assert not any("layers.1." in row["tensor"] for row in found["tensors"])


def test_experts_of_one_name_keep_their_folders() -> None:
    assert short_names(["/a/run1/final", "/a/run2/final"]) == ["run1/final", "run2/final"]
    assert short_names(["/models/helpful", "/models/honest/"]) == ["helpful", "honest"]
    assert short_names(["/same", "/same"]) == ["same", "same"]
