"""How an expert is trained: all weights or a LoRA adapter, from right answers or from preferred ones."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from mergekit_3h.losses.answers import Answer, batched
from mergekit_3h.losses.objective import record_losses
from mergekit_3h.writing import write_whole

BATCH = 8
POOL = 10
"""Batches that are drawn together and sorted by length."""

WARM_UP = 0.1
"""Share of the steps in which the rate rises; afterwards it falls to zero."""

KEEP_EVERY = 10
"""Steps between two states on disk (1.6 GB where all weights are trained)."""

LORA_RANK = 16
LORA_ALPHA = 32


@dataclass(frozen=True)
class Recipe:
    """One kind of experts."""

    weights: Literal["full", "lora"]
    steps: int
    rate: float
    learns_from: Literal["answers", "preferences"] = "answers"


RECIPES = {
    "full_short": Recipe("full", 60, 5e-5),
    "full_long": Recipe("full", 150, 1e-4),
    "lora_moderate": Recipe("lora", 100, 2e-4),
    "lora_overtrained": Recipe("lora", 120, 1e-3),
    "full_dpo": Recipe("full", 60, 5e-6, learns_from="preferences"),
}
"""Several kinds, since what merges them best may depend on it: the second and the fourth forget what the base could,
and the steps of the last are so small that bfloat16 swallows many of them."""


class Lessons(Protocol):
    """What a model is trained on."""

    def draws(self, seed: int) -> Iterator[Sequence[Any]]:
        """The lessons of each step, without end."""
        ...

    def loss(self, model: Any, drawn: Sequence[Any]) -> torch.Tensor:
        """What a step lowers."""
        ...


class AnswerLessons:
    """Right answers: the mean loss of their tokens."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        self._answers = answers

    def draws(self, seed: int) -> Iterator[list[Answer]]:
        """Every lesson once before any comes again.

        Lessons of similar length meet, which saves a fifth of the time; the batches come in no order.
        """
        draw = random.Random(seed)
        waiting: list[Answer] = []
        while True:
            while len(waiting) < BATCH * POOL:
                waiting += draw.sample(self._answers, len(self._answers))
            pool, waiting = waiting[: BATCH * POOL], waiting[BATCH * POOL :]
            pool.sort(key=lambda answer: len(answer.ids))
            starts = range(0, len(pool), BATCH)
            for start in draw.sample(starts, len(starts)):
                yield pool[start : start + BATCH]

    def loss(self, model: Any, drawn: Sequence[Answer]) -> torch.Tensor:
        (batch,) = batched({"lessons": drawn}, BATCH)
        return record_losses(model, batch).mean()


def together(every: Sequence[Any], recipe: Recipe, seed: int) -> tuple[Lessons, Recipe]:
    """One training in place of several of one recipe: on the lessons that these see, each as often as there."""
    seen = [lesson for lessons in every for drawn in islice(lessons.draws(seed), recipe.steps) for lesson in drawn]
    return type(every[0])(seen), replace(recipe, steps=len(every) * recipe.steps)


def train(model: Any, lessons: Lessons, recipe: Recipe, seed: int, kept: Path) -> Any:
    """The expert, in float32: ``model`` itself, or for LoRA the model with its adapter beside the weights.

    What is reached goes to the file ``kept`` now and then, so that a training that is killed goes on from there; the
    result is the same. Weights are float32, products bfloat16: half the time where the processor knows it.
    """
    torch.manual_seed(seed)
    trained = with_adapter(model) if recipe.weights == "lora" else model
    weights = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=recipe.rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.rate, total_steps=recipe.steps, pct_start=WARM_UP, anneal_strategy="linear"
    )
    trained.train()
    reached = _resumed(kept, weights, optimizer, schedule)
    for step, drawn in zip(range(1, recipe.steps + 1), lessons.draws(seed), strict=False):
        if step <= reached:
            continue
        optimizer.zero_grad()
        with torch.autocast(weights[0].device.type, torch.bfloat16):
            loss = lessons.loss(trained, drawn)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        if step % KEEP_EVERY == 0:
            print(f"{kept.stem}: step {step} of {recipe.steps}, loss {loss.item():.3f}", flush=True)
            _keep(kept, step, weights, optimizer, schedule)
    return trained.eval()


def with_adapter(model: Any) -> Any:
    """The model with a fresh LoRA adapter on every linear layer of its blocks."""
    from peft import LoraConfig, get_peft_model

    adapter = LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, adapter)


def _keep(kept: Path, step: int, weights: list[torch.nn.Parameter], optimizer: Any, schedule: Any) -> None:
    state = {
        "step": step,
        "weights": [weight.detach() for weight in weights],
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
    }
    write_whole(kept, lambda new: torch.save(state, new))


def _resumed(kept: Path, weights: list[torch.nn.Parameter], optimizer: Any, schedule: Any) -> int:
    """The step that an earlier try reached."""
    if not kept.exists():
        return 0
    state = torch.load(kept, weights_only=True, map_location=weights[0].device)
    with torch.no_grad():
        for weight, value in zip(weights, state["weights"], strict=True):
            weight.copy_(value)
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    return state["step"]
