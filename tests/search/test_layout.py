"""Coefficient groups mean the same here and in mergekit's parameter filters."""

from __future__ import annotations

import pytest
from mergekit.config import ConditionalParameter, evaluate_setting

from mergekit_3h.errors import ModelError
from mergekit_3h.search.layout import layout_of


def llama_names(layers: int, prefix: str = "model.") -> list[str]:
    inside = ["self_attn.q_proj.weight", "mlp.down_proj.weight", "input_layernorm.weight"]
    return [
        f"{prefix}embed_tokens.weight",
        *(f"{prefix}layers.{i}.{name}" for i in range(layers) for name in inside),
        f"{prefix}norm.weight",
        "lm_head.weight",
    ]


GPT2 = [
    "transformer.wte.weight",
    "transformer.h.0.attn.c_attn.bias",
    "transformer.h.11.mlp.c_fc.weight",
    "transformer.h.1.x",
]
BARE = ["wte.weight", "h.0.attn.weight", "h.10.attn.weight", "h.1.attn.weight"]
MOE = [f"model.layers.{i}.block_sparse_moe.experts.{e}.w1.weight" for i in range(12) for e in range(4)] + [
    "lm_head.weight"
]
TWO_STACKS = [f"vision_model.layers.{i}.w" for i in range(3)] + [f"model.layers.{i}.w" for i in range(12)] + ["head.w"]


@pytest.mark.parametrize(
    "names", [llama_names(14), GPT2, BARE, MOE, TWO_STACKS], ids=["llama", "gpt2", "bare", "moe", "two"]
)
@pytest.mark.parametrize("granularity", [0, 1, 3])
def test_mergekit_gives_every_tensor_the_same_coefficient(names: list[str], granularity: int) -> None:
    layout = layout_of(names, ["a", "b"], granularity)
    coefficients = [k + 1.0 for k in range(layout.dimension)]
    settings = layout.mergekit_weights(coefficients)
    for name in names:
        mine = layout.of_tensor(coefficients, name)
        for expert, value in zip(("a", "b"), mine, strict=True):
            setting = settings[expert]
            if isinstance(setting, list):
                setting = [ConditionalParameter(**condition) for condition in setting]
            assert evaluate_setting(name, setting, validate=float) == value


def test_groups_of_layers() -> None:
    layout = layout_of(llama_names(7), ["a", "b"], 3)
    assert [group.name for group in layout.groups] == ["model.layers.0-2", "model.layers.3-5", "model.layers.6", "rest"]
    assert layout.dimension == 8
    assert layout.names()[:3] == ["a @ model.layers.0-2", "b @ model.layers.0-2", "a @ model.layers.3-5"]
    groups = {name: layout.groups[layout.group_index(name)].name for name in llama_names(7)}
    assert groups["model.layers.3.mlp.down_proj.weight"] == "model.layers.3-5"
    assert groups["model.embed_tokens.weight"] == groups["lm_head.weight"] == "rest"


def test_layer_three_is_not_layer_thirteen() -> None:
    layout = layout_of(llama_names(14), ["a"], 1)
    at = {name: layout.of_tensor(list(range(15)), name)[0] for name in llama_names(14)}
    assert at["model.layers.3.mlp.down_proj.weight"] == 3
    assert at["model.layers.13.mlp.down_proj.weight"] == 13


def test_a_model_without_layers() -> None:
    assert layout_of(["embed.weight", "head.weight"], ["a"], 0).dimension == 1
    with pytest.raises(ModelError, match=r"layer_granularity is 2.*set layer_granularity to 0"):
        layout_of(["embed.weight", "head.weight"], ["a"], 2)


def test_names_that_substring_filters_cannot_tell_apart() -> None:
    """The filter of layer 0, "0.", also fits a tensor outside the layers."""
    with pytest.raises(ModelError, match=r"'layer10\.bias' .* cannot tell this model's layers apart"):
        layout_of(["0.w", "1.w", "layer10.bias"], ["a"], 1)
