"""How the models learn: from right answers, or from pairs of answers by DPO; with all weights, or some."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mergekit_3h.data.records import Record
from mergekit_3h.losses.answers import Answer, batched, tokenized
from mergekit_3h.losses.objective import record_losses
from mergekit_3h.losses.options import LossOptions
from mergekit_3h.losses.records import in_memory

BETA = 0.5
CHOSEN_SHARE = 0.2
"""Of the chosen answer's own loss, added to DPO's: without it both answers become unlikely and a third one is given."""

LORA_RANK = 4
FREE_SHARE = 0.05
"""Of a matrix's weights that learn where only few do: the update has heavy tails."""

Weights = Literal["all", "lora", "few"]
_One = TypeVar("_One")


def train(model: Any, steps: int, rate: float, loss: Callable[[], Tensor]) -> None:
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=rate, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


def draws(lessons: Sequence[_One], size: int, seed: int) -> Iterator[list[_One]]:
    draw = random.Random(seed)
    while True:
        yield draw.sample(lessons, min(size, len(lessons)))


def tokens_of(records: Sequence[Record], tokenizer: Any) -> list[Answer]:
    return tokenized(in_memory(records), tokenizer, LossOptions.model_validate({}), None)


def loss_of_answers(model: Any, answers: Sequence[Answer]) -> Tensor:
    return record_losses(model, batched({"lessons": answers}, len(answers))[0]).mean()


@dataclass(frozen=True)
class Preference:
    """Two answers to one prompt, and how much more likely the chosen one is to the base, in nats."""

    chosen: Answer
    rejected: Answer
    before: float


def preferences(base: Any, chosen: Sequence[Answer], rejected: Sequence[Answer]) -> list[Preference]:
    with torch.no_grad():
        likely, unlikely = log_likelihoods(base, [*chosen, *rejected]).chunk(2)
    triples = zip(chosen, rejected, (likely - unlikely).tolist(), strict=True)
    return [Preference(*triple) for triple in triples]


def dpo_loss(expert: Any, drawn: Sequence[Preference]) -> Tensor:
    """-log sigmoid of beta times how much more than the base the expert prefers the chosen answer."""
    both = [*(pair.chosen for pair in drawn), *(pair.rejected for pair in drawn)]
    likely, unlikely = log_likelihoods(expert, both).chunk(2)
    margins = likely - unlikely - likely.new_tensor([pair.before for pair in drawn])
    tokens = likely.new_tensor([len(pair.chosen.ids) - pair.chosen.prompt_length for pair in drawn])
    return -nn.functional.logsigmoid(BETA * margins).mean() - CHOSEN_SHARE * (likely / tokens).mean()


def log_likelihoods(model: Any, answers: Sequence[Answer]) -> Tensor:
    """Of whole answers, in the order in which they were given: a batch is sorted by length."""
    (batch,) = batched({"answers": answers}, len(answers))
    values = -record_losses(model, batch) * batch.is_answer.sum(1)
    return torch.zeros_like(values).index_copy(0, torch.tensor(batch.order), values)


class LowRank(nn.Module):
    """W + B A, with B zero at first."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(LORA_RANK, weight.shape[1]) / weight.shape[1] ** 0.5)
        self.b = nn.Parameter(torch.zeros(weight.shape[0], LORA_RANK))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.b @ self.a


def restrict(model: nn.Module, weights: Weights, seed: int) -> Callable[[], None]:
    """Let only these weights learn. What comes back makes an ordinary model of it again."""
    torch.manual_seed(seed)
    if weights == "lora":
        return _with_adapters(model)
    if weights == "few":
        for parameter in model.parameters():
            free = (torch.rand_like(parameter) < FREE_SHARE).to(parameter)
            parameter.register_hook(lambda gradient, free=free: gradient * free)
    return lambda: None


def _with_adapters(model: nn.Module) -> Callable[[], None]:
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    layers = [
        module for name, module in model.named_modules() if isinstance(module, nn.Linear) and ".layers." in f".{name}"
    ]
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight))

    def merge() -> None:
        for layer in layers:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
        for parameter in model.parameters():
            parameter.requires_grad_(True)

    return merge
