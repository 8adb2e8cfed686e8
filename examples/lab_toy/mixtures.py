"""Instead of merging: all lessons at once, a part of them, or one dimension after the other."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from experiment import Experiment
from experts import Course, taught
from results import Line
from torch import Tensor, nn
from training import dpo_loss, preferences, tokens_of
from world import DIMENSIONS, TRAIN, VALIDATION, Pair, pairs

from mergekit_3h.losses.answers import batched

KIND = "full_dpo"
TOGETHER = Course("", steps=240)
"""As many steps as the three experts of ``KIND`` take together."""

RIDGE = 1e-2
"""Of the reward model's heads, of which each has 64 numbers and 24 pairs to learn them from."""


def tasks(experiment: Experiment) -> dict[str, Callable[[], Line]]:
    """How to get every line, by its row."""
    chosen: dict[str, Callable[[Experiment], list[Pair]]] = {
        "training on everything": lambda _: _lessons(),
        "training on half, at random": _at_random,
        "training on half, by reward": _by_reward,
        "training on half, least conflict": _by_conflict,
    }
    found: dict[str, Callable[[], Line]] = {
        label: partial(_together, experiment, label, choose) for label, choose in chosen.items()
    }
    return found | {STAGES: partial(_in_stages, experiment)}


STAGES = "training in three stages"


def _together(experiment: Experiment, label: str, choose: Callable[[Experiment], list[Pair]]) -> Line:
    base = experiment.school.base
    return experiment.trained(label, taught(base, base.copy(), choose(experiment), TOGETHER))


def _in_stages(experiment: Experiment) -> Line:
    """Each starts from the one before, and DPO compares with that. Which comes first goes round with the seed."""
    seed, base = experiment.case.seed, experiment.school.base
    for i in range(len(DIMENSIONS)):
        dimension = DIMENSIONS[(seed + i) % len(DIMENSIONS)]
        base = replace(base, model=taught(base, base.copy(), pairs(dimension, TRAIN), Course(dimension)))
    return experiment.trained(STAGES, base.model)


def _lessons() -> list[Pair]:
    return [pair for dimension in DIMENSIONS for pair in pairs(dimension, TRAIN)]


def _best_half(worth: Callable[[str, Sequence[Pair]], Sequence[float]]) -> list[Pair]:
    """Half of every dimension's lessons, of those against a habit and of the others: nothing is left out."""
    found: list[Pair] = []
    for dimension in DIMENSIONS:
        lessons = pairs(dimension, TRAIN)
        values = worth(dimension, lessons)
        for is_habit in (True, False):
            order = sorted((i for i, pair in enumerate(lessons) if pair.is_habit is is_habit), key=lambda i: -values[i])
            found += [lessons[i] for i in sorted(order[: len(order) // 2])]
    return found


def _at_random(experiment: Experiment) -> list[Pair]:
    draw = random.Random(experiment.case.seed)
    return _best_half(lambda _, lessons: [draw.random() for _ in lessons])


def _by_reward(experiment: Experiment) -> list[Pair]:
    """The mean of three rewards, one a dimension: linear in the base's last state, learnt from validation pairs."""
    base = experiment.school.base
    heads = [_head(_state_differences(base, pairs(dimension, VALIDATION))) for dimension in DIMENSIONS]

    def worth(_: str, lessons: Sequence[Pair]) -> list[float]:
        differences = _state_differences(base, lessons)
        return torch.stack([differences @ head for head in heads]).mean(0).tolist()

    return _best_half(worth)


def _head(differences: Tensor) -> Tensor:
    """Bradley-Terry's logistic regression; the differences it is given then have a root mean square of 1."""
    head = torch.zeros(differences.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([head], max_iter=100)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = -nn.functional.logsigmoid(differences @ head).mean() + RIDGE * head.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    found = head.detach()
    return found / (differences @ found).square().mean().sqrt()


@torch.no_grad()
def _state_differences(base: Any, lessons: Sequence[Pair]) -> Tensor:
    """The base's state at the end of the chosen answer, less that at the end of the rejected one."""
    both = [pair.record(answer) for pair in lessons for answer in (pair.chosen, pair.rejected)]
    (batch,) = batched({"both": tokens_of(both, base.tokenizer)}, len(both))
    states = base.model.model(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False).last_hidden_state
    last = states[torch.arange(len(both)), batch.attention.sum(1) - 1]
    ordered = torch.zeros_like(last).index_copy(0, torch.tensor(batch.order), last)
    return ordered[0::2] - ordered[1::2]


def _by_conflict(experiment: Experiment) -> list[Pair]:
    """Those whose gradients at the base oppose the mean gradients of the other dimensions least."""
    model = experiment.school.base.copy()
    gradients = {dimension: _gradients(experiment, model, pairs(dimension, TRAIN)) for dimension in DIMENSIONS}
    means = {dimension: nn.functional.normalize(own.mean(0), dim=0) for dimension, own in gradients.items()}

    def worth(dimension: str, _: Sequence[Pair]) -> list[float]:
        others = torch.stack([mean for name, mean in means.items() if name != dimension]).sum(0)
        return (nn.functional.normalize(gradients[dimension], dim=1) @ others).tolist()

    return _best_half(worth)


def _gradients(experiment: Experiment, model: nn.Module, lessons: Sequence[Pair]) -> Tensor:
    base = experiment.school.base
    chosen, rejected = (
        tokens_of([pair.record(getattr(pair, side)) for pair in lessons], base.tokenizer)
        for side in ("chosen", "rejected")
    )
    rows: list[Tensor] = []
    for preference in preferences(base.model, chosen, rejected):
        model.zero_grad()
        dpo_loss(model, [preference]).backward()
        rows.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    return torch.stack(rows)
