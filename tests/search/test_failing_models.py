"""Losses that are not finite: of a single model an error, of one candidate a reason in the trace."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergekit_3h.errors import ModelError
from mergekit_3h.search import SearchOptions, open_problem, solve
from mergekit_3h.spectral.tsvm import TSVM


def test_an_expert_with_nan(trained, tmp_path: Path) -> None:
    expert = Path(shutil.copytree(trained.experts["domain"], tmp_path / "expert"))
    weights = load_file(expert / "model.safetensors")
    weights["model.norm.weight"][0] = torch.nan
    save_file(weights, expert / "model.safetensors", {"format": "pt"})
    problem = open_problem(
        trained.base, {"aligned": trained.experts["aligned"], "nan": expert}, trained.data, SearchOptions()
    )
    with pytest.raises(
        ModelError, match=r"model 'nan' by itself: the loss of the safety set is nan; .*domain set is nan"
    ):
        solve(problem.local_runner(), problem.layout, problem.options)


def test_one_candidate_with_nan_does_not_end_the_search(trained) -> None:
    """A host's method that overflows for large weights, on a real model."""

    def fragile(name, base, experts, weights):
        merged = base + sum(w * (e - base) for w, e in zip(weights, experts, strict=True))
        return merged * torch.nan if max(weights) > 1.2 else merged

    options = SearchOptions(combine="fragile", solver="grid", max_evaluations=17)
    problem = open_problem(trained.base, trained.experts, trained.data, options, combine=fragile)
    solution = solve(problem.local_runner(), problem.layout, options)
    failed = [point for point in solution.points if point.measured.failure]
    assert failed
    assert all(max(point.coefficients) > 1.2 for point in failed)
    assert all(max(point.coefficients) <= 1.2 for point in solution.points if not point.measured.failure)
    assert "the loss of the safety set is nan" in failed[0].measured.failure


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nprocess 1 has ..."),
        RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
    ],
    ids=["torch", "a library of CUDA's"],
)
@pytest.mark.parametrize("over", ["weight", "weight, energy"])
def test_too_little_memory_comes_with_advice(trained, error, over, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no failure of the candidate that finds none."""

    def exhausting(*arguments: object) -> None:
        raise error

    if over == "weight":
        options = SearchOptions(combine="exhausting", solver="cmaes")
        problem = open_problem(trained.base, trained.experts, trained.data, options, combine=exhausting)
    else:
        monkeypatch.setattr(TSVM, "merge", exhausting)
        options = SearchOptions(combine="tsvm", solver="cmaes", over=over)
        problem = open_problem(trained.base, trained.experts, trained.data, options)
    first = str(error).splitlines()[0]
    with pytest.raises(ModelError, match=rf"\({re.escape(first)}\)\. Lower batch_size"):
        solve(problem.local_runner(), problem.layout, options)
