"""``mergekit-3h evaluate``: what is missing is said in one line, a kill loses little, failures are counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pipeline_runs import kill, wait_until

from mergekit_3h.evaluation.intervals import FEWEST_ITEMS
from mergekit_3h.evaluation.suite import shipped_suites

from .conftest import tiny_suite, write_suite


@pytest.fixture(autouse=True)
def _requests_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub sends no request in offline mode, not even to this machine."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def scores(path: Path) -> dict[str, Any]:
    """A result without what differs between any two runs."""
    found = json.loads(path.read_text())
    for name in ("seconds", "peak_memory_bytes"):
        found.pop(name, None)
    for metric in found["metrics"].values():
        metric.pop("seconds", None)
    return found


def test_models_are_evaluated_and_shown(mergekit_3h, experts, suite_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    said = mergekit_3h("evaluate", experts["base"], experts["helpful"], "--suite", suite_file, "-o", out).output
    assert "helpful-choice" in said and "all dimensions" in said and "95 % interval" in said
    base, helpful = scores(out / "base.json"), scores(out / "helpful.json")
    assert base["dimensions"]["helpful"]["score"] == 0.0 and helpful["dimensions"]["helpful"]["score"] == 100.0
    assert base["suite_key"] == helpful["suite_key"] and base["model_identity"] != helpful["model_identity"]


def test_the_small_suite_runs_on_any_model(mergekit_3h, experts, tmp_path: Path) -> None:
    assert "3h-small" in mergekit_3h("evaluate", "--suites").output.split() == shipped_suites()
    mergekit_3h("evaluate", experts["helpful"], "--suite", "3h-small", "-o", tmp_path, "-q")
    found = json.loads((tmp_path / "helpful.json").read_text())
    assert set(found["dimensions"]) == {"helpful", "honest", "harmless"}
    fewest = {True: 12, False: FEWEST_ITEMS}
    for metric in found["metrics"].values():
        assert len(metric["items"]) >= fewest[metric["kind"] == "answer-likelihood"]


def changed(questions: Path, **changes: Any) -> dict[str, Any]:
    """A suite with one metric's settings changed; None takes one away."""
    suite = tiny_suite(questions)
    metric = suite["dimensions"]["harmless"]["refusals"]
    metric.update(changes)
    suite["dimensions"]["harmless"]["refusals"] = {key: value for key, value in metric.items() if value is not None}
    return suite


WRONG: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "a typo in the suite": (lambda q: {**tiny_suite(q), "dimension": {}}, "no option 'dimension'; did you mean 'dim"),
    "a typo in a metric": (
        lambda q: changed(q, max_tokens=3),
        "no option 'max_tokens'; did you mean 'max_new_tokens'?",
    ),
    "an unknown kind": (
        lambda q: changed(q, kind="judge"),
        "metric 'refusals': no kind 'judge'; did you mean 'judged'?",
    ),
    "no kind": (lambda q: changed(q, kind=None), "metric 'refusals': it has no kind; there are: answer-likelihood"),
    "a missing file": (lambda q: changed(q, data="gone.jsonl"), "gone.jsonl: no such file; expected a table"),
    "an unknown judge": (lambda q: changed(q, judge="phrase"), "no judge 'phrase'; did you mean 'phrases'?"),
    "no label": (lambda q: changed(q, good=None), "metric 'refusals': say with `good` which of the labels"),
    "an unknown label": (lambda q: changed(q, good=["refused"]), "got 'refused'; input should be"),
    "a missing column": (lambda q: changed(q, prompt="{question}"), "there is no column 'question'"),
    "no row": (lambda q: changed(q, where={"prompt": "x"}), "no row where {'prompt': 'x'}"),
    "an unknown guard": (
        lambda q: {**tiny_suite(q), "judges": {"phrases": {"guard": "keywords"}}},
        "judge 'phrases': there is no guard or judge 'keywords'; did you mean 'keyword'?",
    ),
    "a judge without a model": (
        lambda q: {**tiny_suite(q), "judges": {"phrases": {"guard": "wildguard"}}},
        "judge 'phrases': wildguard needs a model and has none; pass --judge phrases=FOLDER",
    ),
    "a judge that is not there": (
        lambda q: {**tiny_suite(q), "judges": {"phrases": {"guard": "wildguard", "backend": {"model": "./gone"}}}},
        "model 'judge phrases': ./gone is no such folder",
    ),
    "a file to be named": (
        lambda q: {**changed(q, data="mine"), "files": {"mine": {"about": "a thing"}}},
        "the suite tiny needs the file 'mine' (a thing); pass --file mine=PATH",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_missing_is_said_before_a_model_is_loaded(
    mergekit_3h, experts, questions, tmp_path: Path, no_model, what: str
) -> None:
    build, message = WRONG[what]
    suite = write_suite(tmp_path / "suite.yml", build(questions))
    said = mergekit_3h("evaluate", experts["base"], "--suite", suite, "-o", tmp_path / "out", status=1).output
    assert message in said
    assert said.startswith("Error: ") and len(said.strip().splitlines()) <= 2
    assert not (tmp_path / "out").exists()


def test_a_missing_extra_is_named_before_a_model_is_loaded(
    mergekit_3h, experts, questions, tmp_path: Path, no_model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    metric = {"kind": "lm-eval", "task": "arc_easy"}
    suite = {**tiny_suite(questions), "forgetting": {"arc": metric}}
    said = mergekit_3h(
        "evaluate", experts["base"], "--suite", write_suite(tmp_path / "suite.yml", suite), status=1
    ).output
    assert "metric 'arc' needs lm_eval" in said and "pip install 'mergekit-3h[eval]'" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "3h-smal"], "suite '3h-smal': no such file, and no shipped suite; did you mean '3h-small'?"),
        (["--suite", "3h-small", "--judge", "phrase=x"], "--judge phrase: the suite 3h-small has no such judge; did"),
        (["--suite", "3h-small", "--file", "x"], "--file: got 'x', expected NAME=..."),
        (["--suite", "3h-small", "--name", "a", "--name", "b"], "--name: got 2 for 1 models"),
        (["--suite", "3h-small", "--device", "cuda:7"], "torch sees"),
    ],
)
def test_wrong_arguments_are_explained(mergekit_3h, experts, no_model, arguments: list[str], message: str) -> None:
    assert message in mergekit_3h("evaluate", experts["base"], *arguments, status=1).output


def test_a_file_that_is_no_yaml_is_named_with_its_line(mergekit_3h, experts, tmp_path: Path) -> None:
    (tmp_path / "suite.yml").write_text("name: x\ndimensions: {a: [}\n")
    said = mergekit_3h("evaluate", experts["base"], "--suite", tmp_path / "suite.yml", status=1).output
    assert "suite.yml, line 2: not YAML" in said


def test_a_judge_that_fails_on_a_third_is_seen(mergekit_3h, careful, blue_suite, judge_server, tmp_path: Path) -> None:
    judge_server.control(faults=["400", "400"])
    suite = blue_suite(judge_server)
    result = mergekit_3h("evaluate", careful, "--suite", suite, "-o", tmp_path / "out", status=3)
    assert "4 of 6 scored (67%)" in result.output
    assert "Beyond the limit: careful, blue: 33% of the items have no score (most often: the request failed: the server"
    found = scores(tmp_path / "out" / "careful.json")
    items = found["metrics"]["blue"]["items"]
    values = [item["value"] for item in items if "value" in item]
    assert len(values) == 4 and found["dimensions"]["harmless"]["score"] == pytest.approx(25.0 * sum(values))
    assert all("the server answers 400" in item["reason"] for item in items if "value" not in item)

    judge_server.control()
    mergekit_3h("evaluate", careful, "--suite", suite, "-o", tmp_path / "out", status=3)
    assert judge_server.seen()["served"] == 0, "a failure is not asked again unasked"
    mergekit_3h("evaluate", careful, "--suite", suite, "-o", tmp_path / "out", "--retry-failed")
    assert judge_server.seen()["served"] == 2
    assert all("value" in item for item in scores(tmp_path / "out" / "careful.json")["metrics"]["blue"]["items"])


def test_a_kill_loses_the_item_under_way_and_no_more(
    mergekit_3h, careful, blue_suite, judge_server, tmp_path: Path
) -> None:
    suite = blue_suite(judge_server)
    mergekit_3h("evaluate", careful, "--suite", suite, "-o", tmp_path / "undisturbed")
    judge_server.control(hold_after=3)
    arguments = ["evaluate", str(careful), "--suite", str(suite), "-o", str(tmp_path / "killed")]
    process = subprocess.Popen(
        [sys.executable, "-c", "from mergekit_3h.cli import main; main()", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0"},
    )
    wait_until(lambda: judge_server.seen()["held"], "the fourth verdict is asked for", process)
    kill(process)
    assert not (tmp_path / "killed" / "careful.json").exists()
    judge_server.control()
    mergekit_3h("evaluate", careful, "--suite", suite, "-o", tmp_path / "killed")
    assert judge_server.seen()["served"] == 3, "the three verdicts before the kill are not asked for again"
    assert scores(tmp_path / "killed" / "careful.json") == scores(tmp_path / "undisturbed" / "careful.json")


def test_a_judge_may_be_named_on_the_command_line(mergekit_3h, careful, frank, blue_suite, tmp_path: Path) -> None:
    mergekit_3h("evaluate", careful, "--suite", blue_suite(), "--judge", f"model={frank}", "-o", tmp_path)
    found = scores(tmp_path / "careful.json")
    assert [item["verdict"] for item in found["metrics"]["blue"]["items"]] == ["refusal"] * 6
