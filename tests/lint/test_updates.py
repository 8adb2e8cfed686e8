"""What ``check --deep`` says of the experts' updates: their rounding, and which are nearly the same."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lint.workshop import Workshop, all_of, only


def test_few_weights_changed_by_a_rounded_expert_are_a_warning(workshop: Callable[..., Workshop]) -> None:
    made = workshop("llama", dtype=torch.bfloat16, update=2e-5)
    assert made.lint(made.config()) == []
    findings = all_of(made.lint(made.config(), deep=True), "rounded-update")
    assert [finding.severity for finding in findings] == ["warning"] * 2
    assert [finding.model for finding in findings] == [str(path) for path in made.experts]
    assert "float32 checkpoint or adapter" in findings[0].advice


def test_most_weights_changed_are_a_note_with_the_numbers(workshop: Callable[..., Workshop]) -> None:
    made = workshop("llama", dtype=torch.bfloat16, update=2e-3)
    finding = all_of(made.lint(made.config(), deep=True), "rounded-update")[0]
    assert finding.severity == "note"
    changed, distance = (int(number) for number in re.findall(r"(\d+)%", finding.message))
    assert changed > 90
    assert 0 < distance < 10


def test_float32_experts_have_no_rounding_to_speak_of(llamas: Workshop) -> None:
    assert [f for f in llamas.lint(llamas.config(), deep=True) if f.rule in ("rounded-update", "near-duplicates")] == []


def test_near_duplicates_are_named_with_their_distance(llamas: Workshop) -> None:
    from safetensors.torch import load_file

    first, second = llamas.experts
    base, own = load_file(llamas.base / "model.safetensors"), load_file(first / "model.safetensors")

    def come_close(tensors: dict[str, Any]) -> None:
        for name in tensors:
            tensors[name] = own[name] + 0.01 * (tensors[name] - base[name])

    llamas.edit_weights(second, come_close)
    finding = only(llamas.lint(llamas.config(), deep=True), "near-duplicates")
    assert (finding.severity, finding.model) == ("warning", str(second))
    assert str(first) in finding.message and "1.0% of their size apart" in finding.message
    assert "leave one out" in finding.advice


@pytest.mark.parametrize("change", ["nan", "shape", "missing"])
def test_tensors_that_cannot_be_compared_are_left_to_other_rules(llamas: Workshop, change: str) -> None:
    name = "model.layers.0.mlp.up_proj.weight"

    def damage(tensors: dict[str, Any]) -> None:
        if change == "nan":
            tensors[name][0, 0] = float("nan")
        elif change == "shape":
            tensors[name] = tensors[name][:, :-1].contiguous()
        else:
            del tensors[name]

    llamas.edit_weights(llamas.experts[0], damage)
    rules = {f.rule for f in llamas.lint(llamas.config(), deep=True)}
    assert rules & {"non-finite", "shape", "missing-tensor"}
    assert not rules & {"rounded-update", "near-duplicates"}
