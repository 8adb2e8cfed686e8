"""What check says of tensors that mergekit would lose, asks for in vain, or leaves out as transformers does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures.families import write_models
from lint.workshop import Workshop, only


@pytest.fixture
def architecture(absolute: Path) -> Callable[[str], Workshop]:
    return lambda name: Workshop(absolute, *write_models(absolute, name))


def slices(models: Workshop, *ranges: tuple[int, int]) -> dict[str, Any]:
    parts = [
        {"sources": [{"model": str(path), "layer_range": list(taken)} for path in (models.base, *models.experts)]}
        for taken in ranges
    ]
    return models.config(models=None, slices=parts)


def add_to_all(models: Workshop, *names: str) -> None:
    for folder in (models.base, *models.experts):
        models.edit_weights(folder, lambda tensors: tensors.update({name: torch.ones(4) for name in names}))


@pytest.mark.parametrize(
    ("method", "way_out"), [("ties", "method=mergekit method.merge_method=ties"), ("rtsvm", "method=rtsvm")]
)
def test_routed_experts_that_mergekit_drops(architecture: Callable[[str], Workshop], method: str, way_out: str) -> None:
    deepseek = architecture("deepseek-v3")
    finding = only(deepseek.lint(deepseek.config(method)), "lost-tensor")
    assert (finding.severity, finding.model) == ("error", str(deepseek.base))
    assert finding.tensor == "model.layers.1.mlp.experts.0.down_proj.weight"
    # One dense layer, and four experts of three matrices in the other.
    assert "12 of 41 tensors" in finding.message and "and of 2 more models" in finding.message
    assert f"fusion_bench {way_out}" in finding.advice


def test_slices_lose_only_what_lies_in_the_layers_they_take(architecture: Callable[[str], Workshop]) -> None:
    deepseek = architecture("deepseek-v3")
    assert deepseek.lint(slices(deepseek, (0, 1))) == []  # the dense layer
    assert "12 of 41" in only(deepseek.lint(slices(deepseek, (1, 2))), "lost-tensor").message


def test_list_of_another_transformers(architecture: Callable[[str], Workshop]) -> None:
    neox = architecture("gpt-neox")
    finding = only(neox.lint(neox.config("linear")), "listed-tensor")
    assert "asks for 6" in finding.message and "attention.masked_bias" in finding.message
    assert "GPTNeoXForCausalLM" in finding.message and "method=mergekit" in finding.advice


def test_what_the_planner_says_comes_without_the_models_config(architecture: Callable[[str], Workshop]) -> None:
    """mergekit has a list for Qwen2-VL that looks for num_hidden_layers where this transformers has a text_config."""
    qwen = architecture("qwen2-vl")
    message = only(qwen.lint(qwen.config("linear")), "plan").message
    assert "{...}" in message and "text_config" not in message and len(message) < 200
    assert "num_hidden_layers" in message


def test_a_tensor_that_the_model_needs_is_missing_all_the_same(architecture: Callable[[str], Workshop]) -> None:
    neox = architecture("gpt-neox")
    name = "gpt_neox.layers.1.mlp.dense_h_to_4h.weight"
    neox.edit_weights(neox.experts[0], lambda tensors: tensors.pop(name))
    findings = neox.lint(neox.config())
    assert only(findings, "missing-tensor").tensor == name
    assert only(findings, "listed-tensor").severity == "error"


def test_one_expert_of_a_layer_is_missing(architecture: Callable[[str], Workshop]) -> None:
    mixtral = architecture("mixtral")
    mixtral.edit_weights(
        mixtral.experts[1], lambda tensors: tensors.pop("model.layers.1.block_sparse_moe.experts.3.w2.weight")
    )
    finding = only(mixtral.lint(mixtral.config()), "missing-tensor")
    assert (finding.tensor, finding.model) == ("model.layers.1.mlp.experts.down_proj", str(mixtral.experts[1]))


def test_what_transformers_does_not_load_is_left_out(llamas: Workshop) -> None:
    add_to_all(llamas, "model.layers.2.eh_proj.weight", "model.layers.0.self_attn.rotary_emb.inv_freq")
    finding = only(llamas.lint(llamas.config()), "left-out")
    # A multi-token head behind the last layer, as DeepSeek's; rotary frequencies are no news.
    assert finding.severity == "note" and "1 of 23 tensors" in finding.message
    assert finding.tensor == "model.layers.2.eh_proj.weight"


def test_a_tied_head_that_is_stored_twice_is_not_lost(workshop: Callable[..., Workshop]) -> None:
    tied = workshop("llama-tied")
    for folder in (tied.base, *tied.experts):
        tied.edit_weights(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert tied.lint(tied.config()) == []


def test_a_model_that_transformers_cannot_build_is_compared_by_mergekits_list_alone(llamas: Workshop) -> None:
    for folder in (llamas.base, *llamas.experts):
        llamas.edit_json(folder / "config.json", lambda content: content.update({"hidden_act": "nonsense"}))
    name = "model.norm.weight"
    llamas.edit_weights(llamas.experts[0], lambda tensors: tensors.pop(name))
    assert only(llamas.lint(llamas.config()), "missing-tensor").tensor == name
