"""The candidate that the search judged is the model that an ordinary merge with its coefficients makes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
from search.training import domain_records, safety_records, write_jsonl
from tiny_models import Family
from transformers import AutoModelForCausalLM

from mergekit_3h.losses.objective import Objective
from mergekit_3h.search import SearchOptions, open_problem, solve


@pytest.mark.parametrize("combine", ["task_arithmetic", "tsvm", "rtsvm"])
@pytest.mark.parametrize("granularity", [0, 1])
def test_found_coefficients_in_a_mergekit_config(llama: Family, absolute: Path, combine: str, granularity: int) -> None:
    data = write_jsonl(absolute / "data.jsonl", [*safety_records()[:4], *domain_records()[:4]])
    experts = {f"expert{i}": path for i, path in enumerate(llama.experts)}
    options = SearchOptions(combine=combine, layer_granularity=granularity, max_evaluations=3, start=0.4)
    problem = open_problem(llama.base, experts, data, options)
    solution = solve(problem.local_runner(), problem.layout, options)
    assert len(set(solution.coefficients)) > 1
    weights = solution.mergekit_weights()
    config = {
        "merge_method": combine,
        "base_model": str(llama.base),
        "models": [{"model": str(path), "parameters": {"weight": weights[label]}} for label, path in experts.items()],
        "dtype": "float32",
    }
    run_merge(MergeConfiguration.model_validate(config), str(absolute / "merged"), MergeOptions(lazy_unpickle=True))
    merged = AutoModelForCausalLM.from_pretrained(absolute / "merged")
    losses = Objective(problem.answers, options.batch_size).losses(merged.eval()).by_set
    # the same sums of float32 numbers in another order
    assert losses == pytest.approx(solution.best.measured.losses, rel=1e-5)
    assert losses != pytest.approx(solution.uniform.measured.losses, rel=1e-4), "or any coefficients would do"
    for name, parameter in merged.named_parameters():
        own = solution.of_tensor(name)
        assert list(own.values()) == solution.layout.of_tensor(solution.coefficients, name)
        assert torch.isfinite(parameter).all()


def test_a_search_in_bfloat16(family, absolute: Path) -> None:
    """Checkpoints in bf16 are searched in bf16, and the gradient still descends."""
    made = family("llama", dtype=torch.bfloat16, update=0.05)
    data = write_jsonl(absolute / "data.jsonl", [*safety_records()[:4], *domain_records()[:4]])
    experts = {f"expert{i}": path for i, path in enumerate(made.experts)}
    options = SearchOptions(combine="tsvm", max_evaluations=15, allow_negative=True, layer_granularity=1)
    problem = open_problem(made.base, experts, data, options)
    assert {parameter.dtype for parameter in problem.model.parameters()} == {torch.bfloat16}
    solution = solve(problem.local_runner(), problem.layout, options)
    assert solution.best.score < solution.uniform.score - 0.05
