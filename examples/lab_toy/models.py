"""A small Llama trained from scratch, and from it an expert for every dimension, by DPO or from right answers alone."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from world import DIMENSIONS, TRAIN, base_lessons, pairs, vocabulary

from mergekit_3h.data.records import Record
from mergekit_3h.losses.answers import Answer, batched, tokenized
from mergekit_3h.losses.objective import record_losses
from mergekit_3h.losses.options import LossOptions
from mergekit_3h.losses.records import in_memory

BASE_RATE, EXPERT_RATE = 2e-3, 3e-4
BASE_BATCH, EXPERT_BATCH = 48, 24
BETA = 0.5
CHOSEN_SHARE = 0.2
"""Of the chosen answer's own loss, added to DPO's: without it both answers become unlikely and a third one is given."""

SIDES = ("chosen", "rejected")
TEMPLATE = (
    "{% for turn in messages %}<|{{ turn['role'] }}|> {{ turn['content'] }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_One = TypeVar("_One")


@dataclass(frozen=True)
class Size:
    """How large the models are and how long they are trained."""

    hidden: int
    layers: int
    base_steps: int
    expert_steps: int


@dataclass(frozen=True)
class Family:
    """A base and its experts, in float32. The base's weights are such that bfloat16 holds them."""

    tokenizer: Any
    base: transformers.LlamaForCausalLM
    experts: dict[str, transformers.LlamaForCausalLM]

    def room(self) -> transformers.LlamaForCausalLM:
        """A model of the same kind, to write weights into."""
        return copy.deepcopy(self.base)


def make_family(size: Size, training: str, seed: int) -> Family:
    """Train everything. The same seed gives the same weights on one machine."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    base = new_model(tokenizer, size)
    draws = _draws(_tokenized(base_lessons(), tokenizer), BASE_BATCH, seed)
    _train(base, size.base_steps, BASE_RATE, lambda: _loss_of_answers(base, next(draws)))
    base.to(torch.bfloat16).to(torch.float32)
    experts = {name: _expert(base, tokenizer, name, size, training, seed) for name in DIMENSIONS}
    return Family(tokenizer, base, experts)


def _expert(base: Any, tokenizer: Any, dimension: str, size: Size, training: str, seed: int) -> Any:
    expert = copy.deepcopy(base)
    learnt = pairs(dimension, TRAIN)
    chosen, rejected = (
        _tokenized([pair.record(getattr(pair, which)) for pair in learnt], tokenizer) for which in SIDES
    )
    if training == "sft":
        answers = _draws(chosen, EXPERT_BATCH, seed)
        _train(expert, size.expert_steps, EXPERT_RATE, lambda: _loss_of_answers(expert, next(answers)))
        return expert
    with torch.no_grad():
        before = (_log_likelihoods(base, chosen) - _log_likelihoods(base, rejected)).tolist()
    draws = _draws([Preference(*three) for three in zip(chosen, rejected, before, strict=True)], EXPERT_BATCH, seed)
    _train(expert, size.expert_steps, EXPERT_RATE, lambda: _dpo_loss(expert, next(draws)))
    return expert


@dataclass(frozen=True)
class Preference:
    """Two answers to one prompt, and how much more likely the chosen one is to the base, in nats."""

    chosen: Answer
    rejected: Answer
    before: float


def _dpo_loss(expert: Any, drawn: Sequence[Preference]) -> torch.Tensor:
    """-log sigmoid of beta times how much more than the base the expert prefers the chosen answer."""
    chosen, rejected = [pair.chosen for pair in drawn], [pair.rejected for pair in drawn]
    likely = _log_likelihoods(expert, chosen)
    margins = likely - _log_likelihoods(expert, rejected) - likely.new_tensor([pair.before for pair in drawn])
    tokens = likely.new_tensor([len(answer.ids) - answer.prompt_length for answer in chosen])
    return -torch.nn.functional.logsigmoid(BETA * margins).mean() - CHOSEN_SHARE * (likely / tokens).mean()


def _log_likelihoods(model: Any, answers: Sequence[Answer]) -> torch.Tensor:
    """Of whole answers, in the order in which they were given: a batch is sorted by length."""
    (batch,) = batched({"answers": answers}, len(answers))
    values = -record_losses(model, batch) * batch.is_answer.sum(1)
    return torch.zeros_like(values).index_copy(0, torch.tensor(batch.order), values)


def _loss_of_answers(model: Any, answers: Sequence[Answer]) -> torch.Tensor:
    return record_losses(model, batched({"lessons": answers}, len(answers))[0]).mean()


def _tokenized(records: Sequence[Record], tokenizer: Any) -> list[Answer]:
    return tokenized(in_memory(records), tokenizer, LossOptions(), None)


def _train(model: Any, steps: int, rate: float, loss: Any) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


def _draws(lessons: Sequence[_One], size: int, seed: int) -> Iterator[list[_One]]:
    draw = random.Random(seed)
    while True:
        yield draw.sample(lessons, size)


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


def new_model(tokenizer: transformers.PreTrainedTokenizerFast, size: Size) -> transformers.LlamaForCausalLM:
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
