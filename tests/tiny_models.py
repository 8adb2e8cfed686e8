"""Tiny real models on disk: every architecture with a real tokenizer, as a base and experts that differ from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "a merged model should be helpful, honest and harmless",
    "I cannot help with that request. Here is what I can do instead.",
    "question: what is two plus two? answer: four.",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
VOCABULARY = 384


def tiny_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<pad>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<|end|>", chat_template=CHAT_TEMPLATE
    )


def tiny_config(architecture: str, **overrides: object) -> transformers.PretrainedConfig:
    """``llama``, ``llama-tied``, ``mistral``, ``qwen2``, ``gpt2`` or ``mixtral``, with two layers of width 32."""
    shared = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }
    if architecture == "gpt2":
        return transformers.GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=256,
            bos_token_id=1,
            eos_token_id=1,
            **overrides,
        )
    classes = {
        "llama": (transformers.LlamaConfig, {}),
        "llama-tied": (transformers.LlamaConfig, {"tie_word_embeddings": True}),
        "mistral": (transformers.MistralConfig, {"sliding_window": None}),
        "qwen2": (transformers.Qwen2Config, {}),
        "mixtral": (
            transformers.MixtralConfig,
            {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
        ),
    }
    config_class, own = classes[architecture]
    return config_class(**{**shared, **own, **overrides})


def tiny_model(architecture: str, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: object):
    """A randomly initialised causal LM."""
    torch.manual_seed(seed)
    return transformers.AutoModelForCausalLM.from_config(tiny_config(architecture, **overrides)).to(dtype)


@dataclass(frozen=True)
class Family:
    """Paths of a base and of the experts made from it."""

    base: Path
    experts: list[Path]


def write_family(
    root: Path,
    architecture: str = "llama",
    *,
    experts: int = 3,
    update: float = 1e-2,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "5GB",
    **overrides: object,
) -> Family:
    """Write a base and ``experts`` full-rank variations of it, each a loadable checkpoint with the tokenizer."""
    tokenizer = tiny_tokenizer()
    base = tiny_model(architecture, **overrides)

    def save(model: transformers.PreTrainedModel, name: str) -> Path:
        path = root / name
        model.to(dtype).save_pretrained(path, max_shard_size=max_shard_size)
        tokenizer.save_pretrained(path)
        return path

    paths = []
    for i in range(experts):
        expert = tiny_model(architecture, **overrides)
        torch.manual_seed(100 + i)
        with torch.no_grad():
            for parameter in expert.parameters():
                parameter += update * torch.randn_like(parameter)
        paths.append(save(expert, f"expert{i}"))
    return Family(save(base, "base"), paths)
