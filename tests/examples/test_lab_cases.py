"""The laboratory's experiments with one set of experts, on a tiny model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
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
    experiment, weights = lab("experiment"), lab("weights")
    results, case = experiment.Results(tmp_path / "lines.jsonl", [4, 4]), open_case()
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
    rows, experiment, merging = lab("rows"), lab("experiment"), lab("merging")
    results, case = experiment.Results(tmp_path / "lines.jsonl", [4, 4]), open_case()
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
