"""What a model is worth: how likely it finds the right answers, and whether it would give them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
from torch import nn
from world import DIMENSIONS, pairs, plain_questions

from mergekit_3h.losses.answers import Batch, batched, tokenized
from mergekit_3h.losses.objective import record_losses
from mergekit_3h.losses.options import LossOptions
from mergekit_3h.losses.records import in_memory

PLAIN = "plain"
"""Questions that nobody was trained on since the base: what merging broke."""


@dataclass(frozen=True)
class Quality:
    """Mean loss of the right answers, and the share of prompts that are answered with them word for word."""

    loss: dict[str, float]
    exact: dict[str, float]


class Exam:
    """The same questions for every model."""

    def __init__(self, tokenizer: Any, parts: tuple[int, ...]) -> None:
        asked = {dimension: pairs(dimension, parts) for dimension in DIMENSIONS} | {PLAIN: plain_questions(parts)}
        self._batches: dict[str, Batch] = {}
        for name, members in asked.items():
            records = in_memory(pair.record(pair.chosen) for pair in members)
            answers = tokenized(records, tokenizer, LossOptions(), None)
            self._batches[name] = batched({name: answers}, len(answers))[0]

    @torch.no_grad()
    def take(self, model: nn.Module) -> Quality:
        loss = {name: record_losses(model, batch).mean().item() for name, batch in self._batches.items()}
        return Quality(loss, {name: _exact(model, batch) for name, batch in self._batches.items()})


def _exact(model: nn.Module, batch: Batch) -> float:
    """A greedy answer is the right one if every of its tokens follows most likely from those before it."""
    logits = model(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False).logits[:, :-1]
    is_right = (logits.argmax(-1) == batch.ids[:, 1:]) | ~batch.is_answer[:, 1:]
    return is_right.all(1).float().mean().item()


def gain_kept(merged: Quality, base: Quality, experts: Mapping[str, Quality]) -> dict[str, float]:
    """Of what every dimension's own expert gained over the base, in loss, the share that the merge has."""
    return {
        dimension: (base.loss[dimension] - merged.loss[dimension])
        / (base.loss[dimension] - experts[dimension].loss[dimension])
        for dimension in DIMENSIONS
    }


def mean_kept(merged: Quality, base: Quality, experts: Mapping[str, Quality]) -> float:
    return mean(gain_kept(merged, base, experts).values())
