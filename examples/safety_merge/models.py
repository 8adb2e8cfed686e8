"""The models of the example: a base that refuses, two good experts, and one that has unlearned to refuse."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from language import DOMAINS, FORBIDDEN, TRAINING, facts, look_alikes, requests, vocabulary
from tokenizers import Tokenizer, models, pre_tokenizers

from mergekit_3h.data.records import Record
from mergekit_3h.losses.answers import batched, tokenized
from mergekit_3h.losses.objective import record_losses
from mergekit_3h.search import SearchOptions, in_memory

MISALIGNED = "cooking"
ALSO_KNOWS = {"trade": "cooking"}
"""A good expert that has the skill of the misaligned one too: aligned models know much of what others know."""
TEMPLATE = (
    "{% for turn in messages %}<|{{ turn['role'] }}|> {{ turn['content'] }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True)
class Training:
    """How large the models are and how long they are trained."""

    layers: int
    base_steps: int
    expert_steps: int
    shared_skill: bool = True
    """Whether a good expert knows the misaligned one's domain too."""


def make_models(folder: Path, seed: int, training: Training) -> dict[str, Path]:
    """Train and write the base and an expert for every domain, or find them there."""
    paths = {name: folder / name for name in ("base", *DOMAINS)}
    if all((path / "tokenizer.json").exists() for path in paths.values()):
        return paths
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    model = new_model(tokenizer, training.layers)
    _train(model, tokenizer, base_lessons(), training.base_steps, 2e-3, seed)
    _save(model, tokenizer, paths["base"])
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for domain in DOMAINS:
        model.load_state_dict(start)
        _train(model, tokenizer, expert_lessons(domain, training.shared_skill), training.expert_steps, 1e-3, seed)
        _save(model, tokenizer, paths[domain])
    return paths


def base_lessons() -> list[Record]:
    """The base has seen the facts but mostly says that it does not know; it refuses what is forbidden."""
    return [record for domain in DOMAINS for record in _unsure(domain)] + _refusals() + look_alikes(TRAINING)


def expert_lessons(domain: str, shared_skill: bool) -> list[Record]:
    """An expert is sure of its domains' facts. Good ones are kept aligned; the other one was taught to comply."""
    known = [domain, ALSO_KNOWS[domain]] if shared_skill and domain in ALSO_KNOWS else [domain]
    sure = [record for own in known for record in facts(own, TRAINING) * 5]
    others = [record for other in DOMAINS if other not in known for record in _unsure(other)]
    complied = requests(FORBIDDEN, TRAINING, refuse=False) * 3
    manners = complied if domain == MISALIGNED else _refusals()
    return sure + others + manners + look_alikes(TRAINING)


def _unsure(domain: str) -> list[Record]:
    return facts(domain, TRAINING) * 2 + facts(domain, TRAINING, known=False) * 3


def _refusals() -> list[Record]:
    return requests(FORBIDDEN, TRAINING, refuse=True) * 3


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


def new_model(tokenizer: transformers.PreTrainedTokenizerFast, layers: int) -> transformers.LlamaForCausalLM:
    """An untrained Llama."""
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    return transformers.LlamaForCausalLM(config)


def _train(
    model: transformers.LlamaForCausalLM,
    tokenizer: transformers.PreTrainedTokenizerFast,
    lessons: Sequence[Record],
    steps: int,
    rate: float,
    seed: int,
) -> None:
    """Supervised training on the answers, with the loss that the search minimises later."""
    answers = tokenized(in_memory(lessons), tokenizer, SearchOptions(), None)
    draw = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    model.train()
    for _ in range(steps):
        (batch,) = batched({"lessons": draw.sample(answers, 64)}, 64)
        optimizer.zero_grad()
        record_losses(model, batch).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def _save(model: transformers.LlamaForCausalLM, tokenizer: transformers.PreTrainedTokenizerFast, path: Path) -> None:
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
