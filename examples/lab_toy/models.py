"""A small Llama trained from scratch on what the base knows, and its tokenizer."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from training import draws, loss_of_answers, tokens_of, train
from world import base_lessons, vocabulary

BASE_RATE, BASE_BATCH = 2e-3, 48

TEMPLATE = (
    "{% for turn in messages %}<|{{ turn['role'] }}|> {{ turn['content'] }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True)
class Size:
    """How large the models are, and how long the base is trained."""

    hidden: int = 64
    layers: int = 2
    base_steps: int = 300


@dataclass(frozen=True)
class Base:
    """A model in float32 whose weights are such that bfloat16 holds them, and the tokenizer of all that come of it."""

    tokenizer: Any
    model: transformers.LlamaForCausalLM
    seed: int

    def copy(self) -> transformers.LlamaForCausalLM:
        return copy.deepcopy(self.model)


def make_base(size: Size, seed: int) -> Base:
    """The same seed gives the same weights on one machine."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    model: Any = new_model(tokenizer, size)
    drawn = draws(tokens_of(base_lessons(), tokenizer), BASE_BATCH, seed)
    train(model, size.base_steps, BASE_RATE, lambda: loss_of_answers(model, next(drawn)))
    model.to(torch.bfloat16).to(torch.float32)
    return Base(tokenizer, model, seed)


def make_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A token for every word, and a chat template."""
    specials = ["<pad>", "<unk>", "<|end|>", "<|user|>", "<|assistant|>"]
    words = {word: i for i, word in enumerate([*specials, *vocabulary()])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|end|>",
        chat_template=TEMPLATE,
    )


def new_model(tokenizer: Any, size: Size) -> transformers.LlamaForCausalLM:
    """An untrained Llama whose matrices are square, wide and tall, as those of large models are."""
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=5 * size.hidden // 2,
        num_hidden_layers=size.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    return transformers.LlamaForCausalLM(config)
