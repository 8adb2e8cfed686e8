"""One tiny model of every architecture that people merge: its config, and the class that loads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tiny_models import tiny_tokenizer
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

_SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}


@dataclass(frozen=True)
class Tiny:
    """``auto`` is the class of transformers that builds the model and loads it again."""

    config: str
    own: dict[str, Any] = field(default_factory=dict)
    auto: str = "AutoModelForCausalLM"
    without: tuple[str, ...] = ()
    """Sizes of the table above that this config has no such name for."""

    def build_config(self) -> PretrainedConfig:
        shared = {key: value for key, value in _SIZES.items() if key not in self.without}
        return getattr(transformers, self.config)(**{**shared, **self.own})

    def build(self) -> PreTrainedModel:
        config = self.build_config()
        return self.loader.from_config(config) if self.auto.startswith("Auto") else self.loader(config)

    @property
    def loader(self) -> Any:
        return getattr(transformers, self.auto)


_MLA = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "num_key_value_heads": 4,
    "head_dim": 8,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
_IMAGES = "AutoModelForImageTextToText"
_SEQUENCE = "AutoModelForSequenceClassification"

FAMILIES: dict[str, Tiny] = {
    "llama": Tiny("LlamaConfig", {"vocab_size": 97}),
    "llama-tied": Tiny("LlamaConfig", {"tie_word_embeddings": True}),
    "mistral": Tiny("MistralConfig", {"sliding_window": None}),
    "mixtral": Tiny("MixtralConfig", {**_LOCAL, "sliding_window": None}),
    "qwen2": Tiny("Qwen2Config"),
    "qwen2-moe": Tiny("Qwen2MoeConfig", {**_EXPERTS, "shared_expert_intermediate_size": 16}),
    "qwen3": Tiny("Qwen3Config", {"head_dim": 8}),
    "qwen3-moe": Tiny("Qwen3MoeConfig", {**_EXPERTS, "head_dim": 8}),
    "qwen3-moe-dense-layer": Tiny("Qwen3MoeConfig", {**_EXPERTS, "head_dim": 8, "mlp_only_layers": [0]}),
    "gpt-oss": Tiny("GptOssConfig", {**_LOCAL, "head_dim": 8}),
    "deepseek-v2": Tiny("DeepseekV2Config", {**_MLA, "topk_method": "greedy"}),
    "deepseek-v3": Tiny("DeepseekV3Config", _MLA),
    "glm4-moe": Tiny("Glm4MoeConfig", {**_MLA, "head_dim": 8}),
    "olmoe": Tiny("OlmoeConfig", _EXPERTS),
    "phimoe": Tiny("PhimoeConfig", _LOCAL),
    "ernie4.5-moe": Tiny(
        "Ernie4_5_MoeConfig",
        {
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_intermediate_size": 16,
            "moe_num_shared_experts": 1,
            "moe_layer_start_index": 1,
            "moe_layer_end_index": 1,
        },
    ),
    "granitemoe": Tiny("GraniteMoeConfig", _LOCAL),
    "granitemoe-hybrid": Tiny(
        "GraniteMoeHybridConfig",
        {
            **_LOCAL,
            "shared_intermediate_size": 16,
            "layer_types": ["mamba", "attention"],
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_d_state": 8,
            "mamba_expand": 2,
            "mamba_n_groups": 1,
        },
    ),
    "gemma": Tiny("GemmaConfig", {"head_dim": 8, "tie_word_embeddings": True}),
    "gemma2": Tiny("Gemma2Config", {"head_dim": 8, "tie_word_embeddings": True}),
    "gemma3": Tiny("Gemma3TextConfig", {"head_dim": 8, "tie_word_embeddings": True}),
    "phi3": Tiny("Phi3Config"),
    "gpt-neox": Tiny("GPTNeoXConfig"),
    "falcon": Tiny(
        "FalconConfig", {"new_decoder_architecture": False, "multi_query": True, "tie_word_embeddings": True}
    ),
    "gpt2": Tiny(
        "GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "tie_word_embeddings": True}
    ),
    "mamba": Tiny("MambaConfig", {"state_size": 8}),
    "llama4": Tiny(
        "Llama4TextConfig",
        {
            "intermediate_size_mlp": 48,
            "head_dim": 8,
            "interleave_moe_layer_step": 2,
            **_LOCAL,
            "num_experts_per_tok": 1,
        },
    ),
    "cohere2": Tiny("Cohere2Config", {"head_dim": 8, "tie_word_embeddings": True}),
    "olmo2": Tiny("Olmo2Config"),
    "lfm2": Tiny("Lfm2Config", {"layer_types": ["conv", "full_attention"], "tie_word_embeddings": True}),
    "t5": Tiny(
        "T5Config",
        {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
        "AutoModelForSeq2SeqLM",
        ("tie_word_embeddings",),
    ),
    "bert": Tiny("BertConfig", {"tie_word_embeddings": True}, "AutoModelForMaskedLM"),
    "bert-classifier": Tiny("BertConfig", {"num_labels": 3}, _SEQUENCE),
    "llama-classifier": Tiny("LlamaConfig", {"num_labels": 3}, _SEQUENCE),
    "clip-vision": Tiny("CLIPVisionConfig", _VISION, "CLIPVisionModel"),
    "llava": Tiny(
        "LlavaConfig",
        {
            "text_config": {**_SIZES, "model_type": "llama"},
            "vision_config": {**_VISION, "model_type": "clip_vision_model"},
            "image_token_index": 95,
            "tie_word_embeddings": False,
        },
        "AutoModelForImageTextToText",
        tuple(_SIZES),
    ),
    "qwen2-vl": Tiny(
        "Qwen2VLConfig",
        {
            "text_config": {**_SIZES, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
            "vision_config": {
                "depth": 2,
                "embed_dim": 32,
                "hidden_size": 32,
                "num_heads": 4,
                "mlp_ratio": 2,
                "patch_size": 8,
            },
            "tie_word_embeddings": False,
        },
        "AutoModelForImageTextToText",
        tuple(_SIZES),
    ),
}


def write_models(root: Path, name: str) -> tuple[Path, list[Path]]:
    """A base, and two experts that differ from it in every entry."""
    folders = []
    for seed, label in enumerate(("base", "first", "second"), start=1):
        torch.manual_seed(0)
        model = FAMILIES[name].build()
        # The base too: norms of ones and biases of zeros would hide a tensor that is merged wrong.
        _disturb(model, 0.1)
        if label != "base":
            torch.manual_seed(seed)
            _disturb(model, 0.02)
        folders.append(root.resolve() / label)
        model.save_pretrained(folders[-1])
        tiny_tokenizer().save_pretrained(folders[-1])
    return folders[0], folders[1:]


@torch.no_grad()
def _disturb(model: nn.Module, size: float) -> None:
    for parameter in model.parameters():
        parameter += size * torch.randn_like(parameter)
