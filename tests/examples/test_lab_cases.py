"""The laboratory's experiments with one set of experts, on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean
from types import ModuleType
from typing import Any

import pytest
import torch

Lab = Callable[[str], ModuleType]


@pytest.mark.parametrize("method", ["task_arithmetic", "tsvm"])
def test_weights_start_from_the_scale_tuned_for_the_same_merge(
    lab: Lab, open_case: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """The scale's line comes first, and is taken from the results where it is there."""
    weights = lab("weights")
    results, case = lab("results").Results(tmp_path / "lines.jsonl", [4, 4]), open_case()
    (weighing,) = [one for one in weights.WEIGHINGS if one.method == method]
    solve, problems, solutions = weights.solve_problem, [], []

    def watched(problem: Any, **more: Any) -> Any:
        problems.append(problem)
        solutions.append(solve(problem, **more))
        return solutions[-1]

    monkeypatch.setattr(weights, "solve_problem", watched)
    case.run([weighing], 3, results, lambda _: None)
    scaled, line = results.line(case.case, method), results.line(case.case, weighing.label)
    assert scaled is not None and line is not None
    assert problems[0].options.start == line["start"] == scaled["scale"]
    assert line["passes"] == 3 + solutions[0].passes <= 3 + 3 * weights.STEPS
    assert [one["row"] for one in results.lines[-2:]] == [method, weighing.label]

    results.lines = [{**one, "scale": 2.5} for one in results.lines if one["row"] == method]
    case.run([weighing], 3, results, lambda _: None)
    assert [problem.options.start for problem in problems] == [scaled["scale"], 2.5]
    assert problems[1].options.max_coefficient == 5.0


def test_weights_are_no_worse_than_where_they_start(lab: Lab, open_case: Callable[..., Any]) -> None:
    merging, weights = lab("merging"), lab("weights")
    case = open_case()
    scaled = case.merged(merging.Row(merging.SUM, merging.SUM), 3)
    case.weighed(weights.WEIGHINGS[0], scaled)
    kept = case.kept(case.exams["validation"].take(case.model), "validation")
    started = max(kept for _, kept in scaled["tried"])
    assert sum(kept.values()) / 3 >= started - 1e-3  # what is tried is noted in four digits, and models are bfloat16


def test_what_was_learnt_at_once_is_scaled_like_a_merge(
    lab: Lab, open_case: Callable[..., Any], tmp_path: Path
) -> None:
    """Nothing is trained for other rows; its line is that of the trained model's update at the best of the scales."""
    rows, merging = lab("rows"), lab("merging")
    results, case = lab("results").Results(tmp_path / "lines.jsonl", [4, 4]), open_case()
    stem = case.folders["helpful"].with_name("mixture-bf16")
    case.run([merging.Row(merging.SUM, merging.SUM)], 3, results, lambda _: None)
    assert not stem.exists()
    case.run([rows.EVERYTHING], 3, results, lambda _: None)
    line = results.line(case.case, "training on everything")
    assert line is not None and stem.is_dir() and len(line["tried"]) == 3
    model = lab("models").load(stem)[0]
    base = lab("models").load(stem.parents[2] / "base-bf16")[0]
    with torch.no_grad():
        for own, learnt in zip(base.parameters(), model.parameters(), strict=True):
            own += line["scale"] * (learnt - own)
    losses = case.exams["test"].take(base.to(torch.bfloat16).eval())
    assert losses == line["losses"]


def test_a_pair_keeps_of_its_own_dimensions_alone(lab: Lab, open_case: Callable[..., Any], tmp_path: Path) -> None:
    merging = lab("merging")
    results, case = lab("results").Results(tmp_path / "lines.jsonl", [4, 4]), open_case(together="pair")
    case.run([merging.Row(merging.SUM, merging.SUM)], 3, results, lambda _: None)
    lines = results.lines
    assert [line["row"] for line in lines] == ["base", "expert: helpful", "expert: harmless", "task_arithmetic"]
    assert all(line["together"] == "pair" and list(line["kept"]) == ["helpful", "harmless"] for line in lines)
    assert set(lines[-1]["surviving"]) == {"helpful", "harmless"}
    assert "honest" in lines[-1]["losses"]  # what the merge does to the others is measured all the same


def test_of_six_the_measure_is_the_mean_of_the_own_experts(
    lab: Lab, open_case: Callable[..., Any], tmp_path: Path
) -> None:
    """By hand; the sum is that of all six updates, and weights are one an expert."""
    merging, weights = lab("merging"), lab("weights")
    results, case = lab("results").Results(tmp_path / "lines.jsonl", [4, 4]), open_case(together="six")
    case.run([merging.Row(merging.SUM, merging.SUM), weights.WEIGHINGS[0]], 3, results, lambda _: None)
    by_row = {line["row"]: line for line in results.lines}
    names = [f"{name}-{seed}" for seed in (0, 1) for name in lab("data").DIMENSIONS]
    assert list(by_row) == ["base", *(f"expert: {name}" for name in names), merging.SUM, f"{merging.SUM}, weights"]

    def loss(row: str) -> float:
        return mean(by_row[row]["losses"]["honest"])

    own = (loss("expert: honest-0") + loss("expert: honest-1")) / 2
    kept = (loss("base") - loss(merging.SUM)) / (loss("base") - own)
    assert by_row[merging.SUM]["kept"]["honest"] == pytest.approx(kept, abs=1e-9)
    assert list(by_row[f"{merging.SUM}, weights"]["weights"]) == names
    stored = {name: lab("models").load(folder)[0].state_dict() for name, folder in case.folders.items()}
    base = lab("models").load(case.folders["honest-1"].parents[2] / "base-bf16")[0].state_dict()
    name = "model.layers.0.mlp.up_proj.weight"
    summed = sum(state[name] - base[name] for state in stored.values())
    update = merging.Row(merging.SUM, merging.SUM).update(case.base, case.experts).update
    assert torch.allclose(update[name], summed, atol=1e-6)  # float32


def test_lines_that_say_nothing_of_it_are_of_three(lab: Lab, tmp_path: Path) -> None:
    results = lab("results")
    path, case = tmp_path / "lines.jsonl", results.Case("full_short", 0, "bf16")
    path.write_text(
        json.dumps({"row": "tsvm", "experts": "full_short", "seed": 0, "dtype": "bf16", "questions": [4, 4]})
    )
    found = results.Results(path, [4, 4])
    assert found.has(case, "tsvm") and not found.has(replace(case, together="pair"), "tsvm")
    assert "together" not in case.fields() and replace(case, together="six").fields()["together"] == "six"
    assert list(replace(case, seed=3, together="six").members())[-1] == "harmless-4"
