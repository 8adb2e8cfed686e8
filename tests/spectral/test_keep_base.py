"""Tensors that stay the base's: by patterns, and by presets that know how architectures name their parts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from architectures.families import FAMILIES

from mergekit_3h.kernels.core_space import LowRank
from mergekit_3h.spectral.low_rank import LowRankUpdates, merge_low_rank
from mergekit_3h.spectral.name_patterns import is_kept
from mergekit_3h.spectral.registry import parse_options
from mergekit_3h.spectral.tensors import merge_tensor, tensor_components
from mergekit_3h.testing.updates import checkpoints, factors

ROUTED = [
    "mixtral",
    "qwen2-moe",
    "qwen3-moe",
    "gpt-oss",
    "deepseek-v2",
    "deepseek-v3",
    "olmoe",
    "phimoe",
    "granitemoe",
    "granitemoe-hybrid",
    "llama4",
    "glm4-moe",
    "ernie4.5-moe",
]


def names_of(family: str) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in FAMILIES[family].build().state_dict().items()}


@pytest.mark.parametrize("family", ROUTED)
def test_the_preset_router_is_what_has_an_entry_for_each_of_the_four_experts(family: str) -> None:
    kept = {name: shape for name, shape in names_of(family).items() if is_kept(name, "router")}
    assert any(shape == (4, 32) for shape in kept.values())
    assert all(shape in [(4, 32), (4,), (1, 4)] for shape in kept.values()), kept


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "phi3", "gemma3", "mamba"])
def test_a_model_that_is_no_mixture_has_no_router(family: str) -> None:
    assert not any(is_kept(name, "router") for name in names_of(family))


@pytest.mark.parametrize("family", ["llava", "qwen2-vl"])
def test_the_preset_vlm_leaves_the_linear_layers_of_the_language_tower(family: str) -> None:
    merged = [name for name in names_of(family) if not is_kept(name, "vlm")]
    assert len([name for name in merged if name.endswith("_proj.weight")]) == 14
    assert all("language_model.layers." in name and "_proj." in name for name in merged)


@pytest.mark.parametrize(
    "name",
    [
        "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight",
        "model.mm_projector.0.weight",
        "model.connector.modality_projection.proj.weight",
        "mlp1.1.weight",
        "visual.merger.mlp.0.weight",
        "language_model.model.embed_tokens.weight",
        "language_model.lm_head.weight",
        "language_model.model.layers.3.post_attention_layernorm.weight",
    ],
)
def test_names_of_other_checkpoints_that_the_preset_vlm_keeps(name: str) -> None:
    assert is_kept(name, "vlm")


def test_what_is_kept_is_the_base_in_the_dtype_of_the_merge() -> None:
    base, experts = checkpoints((48, 32), 3, torch.bfloat16)
    experts["expert0"] = experts["expert0"].float()
    method = parse_options("tsvm", {"keep_base": "lm_head, *.gate.weight", "lambda": 0.5})
    for name, is_base in (("model.lm_head.weight", True), ("mlp.gate.weight", True), ("mlp.up_proj.weight", False)):
        result = merge_tensor(name, base, experts, dict.fromkeys(experts, 1.0), method)
        assert result.dtype == torch.float32
        assert torch.equal(result, base.float()) is is_base
        shares = tensor_components(name, base, experts, method)
        assert all(bool(share.dense().any()) is not is_base for share in shares.values())


def test_a_kept_tensor_stands_in_the_record(tmp_path: Path) -> None:
    from mergekit_3h.diagnostics.record import watcher

    base, experts = checkpoints((24, 16), 2, torch.float32)
    method = parse_options("star", {"keep_base": "router", "record": str(tmp_path)})
    merge_tensor(
        "mlp.gate.weight", base, experts, dict.fromkeys(experts, 1.0), method, watch=watcher(method, ["a", "b"])
    )
    line = json.loads((tmp_path / "record.jsonl").read_text().splitlines()[1])
    assert (line["tensor"], line["changed"], line["surviving"]) == ("mlp.gate.weight", 0.0, [0.0, 0.0])


def test_lora_updates_of_a_kept_tensor_are_left_out() -> None:
    base, _ = checkpoints((40, 24), 1, torch.float32)
    updates: dict[str, LowRank] = {"a": factors((40, 24), 4, 0), "b": factors((40, 24), 4, 1)}
    given = LowRankUpdates("mlp.gate.weight", updates, dict.fromkeys(updates, 1.0))
    assert torch.equal(merge_low_rank(base, given, parse_options("tsvm", {"keep_base": "router"})), base)
    assert not torch.equal(merge_low_rank(base, given, parse_options("tsvm", {})), base)
