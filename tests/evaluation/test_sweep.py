"""``mergekit-3h sweep``: every method of the paper, tuned alike, through kills and failures."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pipeline_runs import kill, wait_until
from tiny_models import Family

from mergekit_3h.data.backends.settings import TransformersSettings
from mergekit_3h.evaluation.sweep.named_methods import PAPER_METHODS, preferences
from mergekit_3h.evaluation.sweep.settings import SweepSettings, read_sweep, swept_methods
from mergekit_3h.evaluation.sweep.sweeping import SweepRun
from mergekit_3h.methods.memory_merge import Merger

from .browser import browser_layout
from .conftest import DIMENSIONS, tiny_suite, write_suite


@pytest.fixture
def sweep_file(experts, questions, tmp_path: Path) -> Callable[..., Path]:
    def write(output: str = "out", **changes: Any) -> Path:
        suite = tiny_suite(questions)
        del suite["dimensions"]["harmless"]["refusals"], suite["judges"]
        write_suite(tmp_path / "suite.yml", {**suite, "resamples": 200})
        sweep = {
            "output": output,
            "base_model": str(experts["base"]),
            "models": {name: str(experts[name]) for name in DIMENSIONS},
            "suite": "suite.yml",
            "validation": "suite.yml",
            "methods": ["task_arithmetic", "rtsvm"],
            "scales": [0.5, 1.0],
            **changes,
        }
        file = tmp_path / f"{output}.yml"
        file.write_text(
            yaml.safe_dump({key: value for key, value in sweep.items() if value is not None}, sort_keys=False)
        )
        return file

    return write


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open()))


@pytest.mark.parametrize("method", ["dare_ties", "rtsvm", "linear"])
def test_a_merge_in_memory_is_that_of_mergekit_yaml(llama: Family, tmp_path: Path, method: str) -> None:
    from safetensors.torch import load_file

    config: dict[str, Any] = {
        "merge_method": method,
        "models": [{"model": str(path), "parameters": {"weight": 0.5}} for path in llama.experts],
        "dtype": "bfloat16",
    }
    if method != "linear":
        config["base_model"] = str(llama.base)
    if method == "dare_ties":
        config["parameters"] = {"density": 0.5}
    memory = Merger().tensors(config, seed=7)
    Merger().write(config, tmp_path / "merged", seed=7)
    disk = load_file(tmp_path / "merged" / "model.safetensors")
    assert memory.keys() == disk.keys()
    for name, tensor in disk.items():
        assert memory[name].dtype == tensor.dtype and torch.equal(memory[name], tensor), name
    by_files = Merger().tensors_by_files(config, seed=7)
    assert all(torch.equal(by_files[name], tensor) for name, tensor in disk.items())


@pytest.mark.slow
def test_all_methods_of_the_paper_killed_and_resumed(mergekit_3h, sweep_file, tmp_path: Path) -> None:
    every = ["paper", {"method": "karcher"}, {"method": "slerp", "parameters": {"t": 0.5}}]
    file = sweep_file("killed", methods=every, scales=[1.0])
    process = subprocess.Popen(
        [sys.executable, "-c", "from mergekit_3h.cli import main; main()", "sweep", str(file), "-q"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},  # last digits depend on it
    )
    finished = tmp_path / "killed" / "methods"
    wait_until(lambda: finished.exists() and len(list(finished.glob("[!.]*.json"))) >= 4, "four methods", process)
    kill(process)
    before = {path: path.stat().st_mtime_ns for path in finished.glob("[!.]*.json")}
    assert len(before) < len(PAPER_METHODS)
    said = mergekit_3h("sweep", file, status=3)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items()), "what was done is not done again"

    whole = sweep_file("undisturbed", methods=every, scales=[1.0])
    mergekit_3h("sweep", whole, "-q", status=3)
    found, undisturbed = tmp_path / "killed" / "table.csv", tmp_path / "undisturbed" / "table.csv"
    assert found.read_text() == undisturbed.read_text()
    table = {row["method"]: row for row in rows(found)}
    assert list(table) == ["base", *DIMENSIONS, *PAPER_METHODS, "karcher", "slerp"]
    assert all(float(row["avg"]) >= 0.0 for name, row in table.items() if name != "slerp")
    assert table["slerp"]["avg"] == "" and "requires exactly 2 inputs" in table["slerp"]["notes"]
    assert "slerp failed: " in said.output
    assert table["rtsvm"]["helpful-likelihood"] != table["rtsvm_without_ranks"]["helpful-likelihood"]

    page = tmp_path / "killed" / "sweep.html"
    text = page.read_text()
    assert text.count("<svg") == 2 and "Trials on the validation split" in text and "slerp failed" in text
    for width in (1280, 400):
        scroll, client, overlaps, tiny, labels = browser_layout(page, width)
        assert scroll <= client == width and overlaps == 0 and tiny == 0 and labels > 10


def test_the_best_trial_of_the_validation_split_is_reported(mergekit_3h, sweep_file, tmp_path: Path) -> None:
    file = sweep_file(methods=["task_arithmetic", {"method": "linear", "name": "mean", "parameters": {"weight": 1.0}}])
    mergekit_3h("sweep", file, "-q")
    found = [json.loads(path.read_text()) for path in (tmp_path / "out" / "methods").glob("*.json")]
    assert {len(method["trials"]) for method in found} == {2}
    for method in found:
        best = max(method["trials"], key=lambda trial: trial["goal"])
        assert method["best"] == best["trial"] and method["result"]["model"] == method["label"]
    # Scale 1 of the mean of three is scale 1 / 3 of their sum: far from the best, which is nearer to 1 / 2.
    goals = {method["label"]: max(trial["goal"] for trial in method["trials"]) for method in found}
    assert goals["task_arithmetic"] > goals["mean"] > 0.0
    table = {row["method"]: row for row in rows(tmp_path / "out" / "table.csv")}
    assert table["base"]["role"] == "base" and table["honest"]["role"] == "expert"


def test_halves_of_one_suite(mergekit_3h, sweep_file, questions, tmp_path: Path) -> None:
    lines = [
        json.dumps({"prompt": f"fact : number {i}", "response": "paris", "choices": ["paris", "four"], "answer": "A"})
        for i in range(20)
    ]
    (tmp_path / "many.jsonl").write_text("\n".join(lines))
    file = sweep_file(validation=None, methods=["task_arithmetic"], models=None)
    sweep = yaml.safe_load(file.read_text())
    suite = tiny_suite(questions)
    for metric in suite["dimensions"]["helpful"].values():
        metric["data"] = str(tmp_path / "many.jsonl")
    write_suite(tmp_path / "suite.yml", {"name": "halves", "dimensions": {"helpful": suite["dimensions"]["helpful"]}})
    sweep["models"] = {"helpful": sweep["base_model"]}
    settings = SweepSettings.model_validate(sweep)
    run = SweepRun(settings, tmp_path, TransformersSettings(model="-"), Merger(), {}, {})
    validation, test = run.suites()

    def prompts(ready: Any) -> list[set[str]]:
        return [{row.cells["prompt"] for row in metric._rows(ready.around())} for _, _, metric in ready.suite.metrics()]

    halves = [prompts(validation), prompts(test)]
    assert halves[0][0] == halves[0][1] and halves[1][0] == halves[1][1], "a row is in one half whatever the metric"
    assert not halves[0][0] & halves[1][0] and len(halves[0][0] | halves[1][0]) == 20
    assert 4 <= len(halves[0][0]) <= 16


def test_preferences_are_spread_over_all_weightings() -> None:
    for names, count in ((["a", "b", "c"], 7), (["a", "b"], 5), (["a", "b", "c"], 1)):
        found = preferences(names, count)
        assert len(found) == count and len({tuple(one.values()) for one in found}) == count
        assert found[0] == pytest.approx(dict.fromkeys(names, 1 / len(names)))
        assert all(sum(one.values()) == pytest.approx(1.0) and min(one.values()) >= 0.0 for one in found)


def test_rewarded_soup_with_a_preference_of_ones_own(experts, sweep_file) -> None:
    soup = {"method": "rewarded_soup", "preference": {"helpful": 0.7, "honest": 0.3}}
    (method,) = swept_methods(read_sweep(sweep_file(methods=[soup])))
    assert [trial.scale for trial in method.trials] == [0.5, 1.0]
    weights = [model["parameters"]["weight"] for model in method.trials[0].config["models"]]
    assert weights == [0.7, 0.3, 0.0]
    (swept,) = swept_methods(read_sweep(sweep_file(methods=["rewarded_soup"])))
    assert len(swept.trials) == 2 and all(trial.preference for trial in swept.trials)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": [1.0]}, "no option 'scale'; did you mean 'scales'?"),
        ({"methods": ["tie"]}, "mergekit has no merge method 'tie'; did you mean 'ties'?"),
        ({"methods": ["ties", "ties"]}, "two methods are called 'ties'"),
        ({"methods": [{"method": "ties", "model_parameters": {"helpfull": {}}}]}, "no model 'helpfull'; did you mean"),
        ({"suite": "gone.yml"}, "suite 'gone.yml': no such file, and no shipped suite"),
        ({"base_model": "./gone"}, "model './gone': no such folder"),
        ({"scales": []}, "scales: "),
        ({"models": None}, "models: required, but not given"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(
    mergekit_3h, sweep_file, no_model, changes: dict[str, Any], message: str
) -> None:
    assert message in mergekit_3h("sweep", sweep_file(**changes), status=1).output


@pytest.mark.slow
def test_on_a_ray_cluster_it_is_the_same_table(mergekit_3h, sweep_file, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    mergekit_3h("sweep", sweep_file("here", scales=[1.0]), "-q")
    mergekit_3h("sweep", sweep_file("there", scales=[1.0]), "-q", "--ray", "--ray-workers", "1")
    assert (tmp_path / "there" / "table.csv").read_text() == (tmp_path / "here" / "table.csv").read_text()
