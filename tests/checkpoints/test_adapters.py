"""What an adapter's files say it changes is what peft adds to the weights; everything else is refused by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_adapters import adapted_model, change_config, change_tensors, write_adapter
from tiny_models import Family, tiny_model
from torch import Tensor

from mergekit_3h.checkpoints.adapted_base import AdaptedBase, PlacedAdapter, require_trained_on
from mergekit_3h.checkpoints.adapters import open_adapter
from mergekit_3h.checkpoints.loading import empty_module
from mergekit_3h.errors import ModelError, TensorError, ThreeHError


def placed(base: Path, folder: Path) -> PlacedAdapter:
    module = empty_module(base)
    assert module is not None
    return PlacedAdapter(open_adapter(folder, "mine"), AdaptedBase("the base", module))


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("llama", {"target_modules": ["q_proj", "down_proj", "embed_tokens", "lm_head"]}),
        (
            "llama",
            {"use_rslora": True, "rank_pattern": {"layers.1.self_attn.q_proj": 2}, "alpha_pattern": {"q_proj": 9}},
        ),
        ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
        ("qwen2", {"target_modules": ["q_proj", "o_proj"]}),
    ],
)
def test_updates_are_those_that_peft_adds(
    family: Callable[..., Family], tmp_path: Path, architecture: str, options: dict[str, Any]
) -> None:
    base = family(architecture).base
    model = adapted_model(base, **options)
    model.save_pretrained(tmp_path)
    found, seen = placed(base, tmp_path), 0
    for name, module in model.base_model.model.named_modules():
        if not hasattr(module, "get_delta_weight"):
            continue
        weight, expected = module.base_layer.weight.detach(), module.get_delta_weight("default").detach()
        update = found.update(f"{name}.weight", weight)
        torch.testing.assert_close(
            update.dense(torch.float32), expected, rtol=0, atol=1e-6 * float(expected.abs().max())
        )
        seen += 1
    assert seen == len(found.places) > 0
    norm = "transformer.ln_f.weight" if architecture == "gpt2" else "model.layers.0.mlp.gate_proj.weight"
    assert norm not in found.places


HEAD, NORM = "base_model.model.lm_head.weight", "base_model.model.model.norm.lora_"


def without_a_factor(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if "1.self_attn.q_proj.lora_B" not in name}


def with_a_whole_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, HEAD: torch.ones(2)}


def on_a_norm(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{NORM}A.weight": torch.ones(3, 32), f"{NORM}B.weight": torch.ones(32, 3)}


def narrower(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor[:, :9] if "lora_A" in name else tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        ({"use_dora": True}, None, "adapter mine: use_dora is set"),
        ({"peft_type": "LOHA"}, None, "peft_type is 'LOHA'"),
        ({"bias": "all"}, None, "bias is 'all'"),
        ({"init_lora_weights": "pissa_niter_4"}, None, "init_lora_weights is 'pissa_niter_4'"),
        ({"modules_to_save": ["lm_head"]}, None, "modules_to_save is set"),
        ({"from_the_future": {"rank": 3}}, None, "from_the_future is set"),
        ({"r": 4}, None, "lora_A is [3, 32] and lora_B [32, 3], expected [4, inputs]"),
        ({}, without_a_factor, "'model.layers.1.self_attn.q_proj' has no lora_B"),
        ({}, with_a_whole_head, f"its tensor '{HEAD}' is no LoRA factor"),
        ({}, on_a_norm, "module 'model.norm', which is no linear layer or embedding"),
        ({}, narrower, "q_proj' is [32, 9], the weight in the base is [32, 32]"),
    ],
)
def test_what_is_no_plain_product_is_refused(
    llama: Family, tmp_path: Path, config: dict[str, Any], tensors: Any, message: str
) -> None:
    folder = write_adapter(llama.base, tmp_path)
    change_config(folder, **config)
    if tensors is not None:
        change_tensors(folder, tensors)
    with pytest.raises(ThreeHError, match=re.escape(message)):
        placed(llama.base, folder)


def test_files_that_are_not_whole_are_refused(llama: Family, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"adapter_config\.json is missing"):
        open_adapter(tmp_path, "mine")
    folder = write_adapter(llama.base, tmp_path)
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ModelError, match=r"adapter mine: .*truncated"):
        open_adapter(folder, "mine")
    file.unlink()
    with pytest.raises(ModelError, match=r"neither adapter_model.safetensors nor"):
        open_adapter(folder, "mine")


def test_a_tied_module_is_refused(family: Callable[..., Family], tmp_path: Path) -> None:
    base = family("llama-tied").base
    folder = write_adapter(base, tmp_path, target_modules=["embed_tokens"])
    with pytest.raises(TensorError, match=r"ties to lm_head.weight: merged, it would change these too"):
        placed(base, folder)


def test_an_adapter_of_another_base_is_refused(llama: Family, tmp_path: Path) -> None:
    adapter = open_adapter(write_adapter(llama.base, tmp_path / "adapter"), "mine")
    require_trained_on(adapter, str(llama.base), llama.base)
    copy = tmp_path / "copy"
    tiny_model("llama").save_pretrained(copy, max_shard_size="100KB")  # the same numbers in other files
    require_trained_on(adapter, str(copy), copy)
    other = tmp_path / "other"
    tiny_model("llama", seed=1).save_pretrained(other)
    with pytest.raises(ModelError, match=f"adapter mine was trained on {llama.base}.*, not on {other}"):
        require_trained_on(adapter, str(other), other)


def test_an_adapter_from_elsewhere_is_taken_at_its_word(
    llama: Family, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_adapter(llama.base, tmp_path)
    change_config(folder, base_model_name_or_path="/gone/base")
    require_trained_on(open_adapter(folder, "mine"), str(llama.base), llama.base)
    assert "trained on /gone/base, which is not here to compare" in caplog.text
    change_config(folder, base_model_name_or_path="some/model")
    on_the_hub = open_adapter(folder, "mine")
    require_trained_on(on_the_hub, "Some/Model", llama.base)
    with pytest.raises(ModelError, match=r"trained on some/model, .* not on other/model: .* under another name"):
        require_trained_on(on_the_hub, "other/model", llama.base)


def test_an_embedding_that_was_trained_as_a_whole_is_refused(llama: Family, tmp_path: Path) -> None:
    folder = write_adapter(llama.base, tmp_path, target_modules=["embed_tokens"])
    name = "model.embed_tokens.weight"
    embedding = tiny_model("llama").get_parameter(name).detach()
    assert placed(llama.base, folder).update(name, embedding).rank == 3
    change_tensors(folder, lambda found: {key: each + ("base_layer" in key) for key, each in found.items()})
    with pytest.raises(TensorError, match=r"'model\.embed_tokens', and it is not the one that is here"):
        placed(llama.base, folder).update(name, embedding)
