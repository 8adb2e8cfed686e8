"""Tasks of lm-eval on the model in memory give what lm-eval's own command gives on the saved model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import write_jsonl, write_suite

pytest.importorskip("lm_eval")

FACTS = {
    "dataset_path": "json",
    "test_split": "test",
    "doc_to_text": "{{prompt}} answer :",
    "doc_to_target": "{{choices.index(response)}}",
}


@pytest.fixture
def tasks(questions: Path, tmp_path: Path) -> dict[str, dict[str, Any]]:
    """Tier one in small: lm-eval's own tasks over local files, and tasks of our own, by name of their file."""
    import lm_eval.tasks

    own = Path(lm_eval.tasks.__file__).parent
    arc = [
        {
            "question": f"what is two plus {word}?",
            "choices": {"text": ["four", "lazy dog", "a fox"], "label": ["A", "B", "C"]},
            "answerKey": "ABC"[number % 3],
        }
        for number, word in enumerate(["two", "three", "four", "five", "six", "seven", "eight"])
    ]
    truths = [
        {
            "question": "is the sky blue?",
            "mc1_targets": {"choices": ["yes", "no", "let me think"], "labels": [1, 0, 0]},
        },
        {"question": "will it rain?", "mc1_targets": {"choices": ["nobody knows", "yes"], "labels": [1, 0]}},
    ]
    write_jsonl(tmp_path / "arc.jsonl", arc)
    write_jsonl(tmp_path / "truths.jsonl", truths)
    local = {"dataset_path": "json", "dataset_name": None}

    def files(path: Path) -> dict[str, Any]:
        return {"data_files": {"test": str(path), "validation": str(path)}}

    return {
        "arc": {
            "include": str(own / "arc" / "arc_easy.yaml"),
            "task": "arc_local",
            **local,
            "dataset_kwargs": files(tmp_path / "arc.jsonl"),
            "training_split": None,
        },
        "truths": {
            "include": str(own / "truthfulqa" / "truthfulqa_mc1.yaml"),
            "task": "truths_local",
            **local,
            "dataset_kwargs": files(tmp_path / "truths.jsonl"),
        },
        "facts": {
            **FACTS,
            "task": "facts_local",
            "dataset_kwargs": files(questions / "helpful.jsonl"),
            "output_type": "multiple_choice",
            "doc_to_choice": "choices",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        },
        "answers": {
            **FACTS,
            "task": "answers_local",
            "dataset_kwargs": files(questions / "helpful.jsonl"),
            "output_type": "generate_until",
            "doc_to_target": "response",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
            "metric_list": [{"metric": "exact_match"}],
        },
    }


@pytest.fixture
def task_files(tasks: dict[str, dict[str, Any]], tmp_path: Path) -> dict[str, Path]:
    found = {}
    for name, task in tasks.items():
        if name == "facts":
            continue
        found[name] = tmp_path / f"{name}.yaml"
        found[name].write_text(yaml.safe_dump(task, sort_keys=False))
    return found


def suite_of(folder: Path, **metrics: dict[str, Any]) -> Path:
    kinds = {name: {"kind": "lm-eval", **metric} for name, metric in metrics.items()}
    return write_suite(folder / "suite.yml", {"name": "tasks", "dimensions": {"helpful": kinds}})


def test_the_numbers_are_those_of_lm_evals_own_command(
    mergekit_3h, experts, task_files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.__main__ import cli_evaluate

    shared = {"arguments": {"limit": 5}}
    suite = suite_of(tmp_path, **{name: {"task": f"{name}.yaml", **shared} for name in task_files})
    mergekit_3h("evaluate", experts["helpful"], "--suite", suite, "-o", tmp_path / "ours", "-q")
    ours = json.loads((tmp_path / "ours" / "helpful.json").read_text())["metrics"]

    command = ["lm-eval", "run", "--model", "hf", "--device", "cpu", "--batch_size", "8", "--limit", "5"]
    command += ["--model_args", f"pretrained={experts['helpful']},dtype=float32"]
    command += ["--tasks", ",".join(map(str, task_files.values())), "--output_path", str(tmp_path / "theirs")]
    monkeypatch.setattr(sys, "argv", command)
    cli_evaluate()
    (report,) = (tmp_path / "theirs").rglob("results_*.json")
    theirs = json.loads(report.read_text())["results"]
    for name, metric in {"arc": "acc", "truths": "acc", "answers": "exact_match"}.items():
        assert ours[name]["score"] == pytest.approx(100 * theirs[f"{name}_local"][f"{metric},none"], abs=1e-9), name
        assert ours[name]["details"]["lm-eval"] == f"{metric},none"
    assert len(ours["arc"]["items"]) == 5, "the user's arguments reach lm-eval"
    assert ours["answers"]["items"][0]["reply"] == "paris"


def test_a_finished_task_is_not_run_again(
    mergekit_3h, experts, tasks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = suite_of(tmp_path, facts={"task": {**tasks["facts"], "task": "facts_inline"}})
    mergekit_3h("evaluate", experts["helpful"], "--suite", suite, "-o", tmp_path, "-q")
    first = json.loads((tmp_path / "helpful.json").read_text())
    monkeypatch.setattr("lm_eval.simple_evaluate", lambda **_: pytest.fail("run again"))
    monkeypatch.setattr(
        "mergekit_3h.evaluation.metrics.lm_eval_task.LmEvalTask._require_known_arguments", lambda *_: None
    )
    mergekit_3h("evaluate", experts["helpful"], "--suite", suite, "-o", tmp_path, "-q")
    assert (
        json.loads((tmp_path / "helpful.json").read_text())["metrics"]["facts"]["items"]
        == first["metrics"]["facts"]["items"]
    )
    assert not list((tmp_path / "helpful.journal").glob("*.db*")), "lm-eval's own cache is gone when the task is done"


Change = Callable[[dict[str, Any]], dict[str, Any]]
WRONG: dict[str, tuple[Change, str]] = {
    "an unknown task": (lambda t: {"task": "arc_eazy"}, "lm-eval has no task 'arc_eazy'; did you mean 'arc_easy'?"),
    "an unknown metric": (
        lambda t: {"task": t["facts"], "metric": "accuracy"},
        "metric 'it': the task has no metric 'accuracy'; ",
    ),
    "an unknown filter": (
        lambda t: {"task": t["facts"], "metric": "acc,strict"},
        "metric 'it': the task has no filter 'strict'; there are: none",
    ),
    "an unknown argument": (
        lambda t: {"task": t["facts"], "arguments": {"num_few_shot": 2}},
        "lm_eval.simple_evaluate has no argument 'num_few_shot'; did you mean 'num_fewshot'?",
    ),
    "an argument of ours": (
        lambda t: {"task": t["facts"], "arguments": {"use_cache": "x"}},
        "metric 'it': the argument 'use_cache' is not given here",
    ),
    "a missing file": (lambda t: {"task": "gone.yaml"}, "gone.yaml: no such file; expected a task of lm-eval in YAML"),
    "missing data": (
        lambda t: {"task": {**t["facts"], "dataset_kwargs": {"data_files": "gone.jsonl"}}},
        "gone.jsonl: no such file; the task 'facts_local' takes its data from it",
    ),
    "data that is not in the cache": (
        lambda t: {"task": "arc_easy"},
        "metric 'it': the task 'arc_easy' cannot be loaded",
    ),
    "code of the model": (
        lambda t: {"task": "humaneval_plus"},
        "metric 'it': the task runs code that the model writes, on this machine; to allow that, set --confirm-run",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said_before_a_model_is_loaded(
    mergekit_3h, experts, tasks, no_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    change, message = WRONG[what]
    suite = suite_of(tmp_path, it=change(tasks))
    said = mergekit_3h("evaluate", experts["base"], "--suite", suite, "-o", tmp_path / "out", status=1).output
    assert message in said
    assert len(said.strip().splitlines()[-1]) > 40 and "Traceback" not in said


def test_consent_must_be_given_twice(mergekit_3h, experts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = suite_of(tmp_path, it={"task": "humaneval_plus"})

    def said(*flags: str) -> str:
        return mergekit_3h("evaluate", experts["base"], "--suite", suite, *flags, status=1).output

    assert "HF_ALLOW_CODE_EVAL=1 in the environment" in said("--confirm-run-unsafe-code")
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")
    assert "--confirm-run-unsafe-code" in said()
    assert "cannot be loaded" in said("--confirm-run-unsafe-code"), "its data is not here"


@pytest.mark.parametrize("name", ["3h-paper", "3h-offline-judgefree"])
def test_every_task_of_the_shipped_suites_is_one_of_lm_eval(name: str) -> None:
    from mergekit_3h.evaluation.metrics.lm_eval_loading import task_manager
    from mergekit_3h.evaluation.metrics.lm_eval_task import LmEvalTask
    from mergekit_3h.evaluation.suite import read_suite

    suite = read_suite(name).suite
    metrics = {label: metric for label, _, metric in suite.metrics() if isinstance(metric, LmEvalTask)}
    assert metrics and {str(metric.task) for metric in metrics.values()} <= set(task_manager().all_tasks)
    assert set(suite.dimensions) == {"helpful", "honest", "harmless"}


def test_the_papers_suite_asks_for_what_it_needs(mergekit_3h, experts, no_lm_eval_loads) -> None:
    said = mergekit_3h("evaluate", experts["base"], "--suite", "3h-paper", status=1).output
    assert "the suite 3h-paper needs the file 'mt_bench' (question.jsonl of MT-Bench" in said


@pytest.fixture
def no_lm_eval_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmarks' data cannot be downloaded here: their readiness is taken for granted."""
    monkeypatch.setattr("mergekit_3h.evaluation.metrics.lm_eval_task.LmEvalTask.require_ready", lambda *_: None)
