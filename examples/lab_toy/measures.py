"""What a model is worth: how likely it finds the right answers, and whether it would give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from training import tokens_of
from world import DIMENSIONS, Pair, pairs, plain_questions

from mergekit_3h.losses.answers import batched

PLAIN = "plain"
"""Questions that nobody was trained on since the base: what merging broke."""


@dataclass(frozen=True)
class Quality:
    """By set of questions, the mean loss of the right answers, and the share that is answered word for word."""

    loss: dict[str, float]
    exact: dict[str, float]


class Exam:
    """The same questions for every model."""

    def __init__(self, tokenizer: Any, asked: Mapping[str, Sequence[Pair]]) -> None:
        every = [pair for members in asked.values() for pair in members]
        answers = tokens_of([pair.record(pair.chosen) for pair in every], tokenizer)
        (self._batch,) = batched({"exam": answers}, len(answers))
        places = {position: row for row, position in enumerate(self._batch.order)}
        self._rows: dict[str, list[int]] = {}
        begin = 0
        for name, members in asked.items():
            self._rows[name] = [places[begin + i] for i in range(len(members))]
            begin += len(members)

    @torch.no_grad()
    def take(self, model: nn.Module) -> Quality:
        """A greedy answer is the right one if every of its tokens follows most likely from those before it."""
        batch = self._batch
        logits = model(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False).logits[:, :-1]
        targets, counts = batch.ids[:, 1:], batch.is_answer[:, 1:]
        losses = nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        losses = (losses * counts).sum(1) / counts.sum(1)
        is_right = ((logits.argmax(-1) == targets) | ~counts).all(1).float()
        return Quality(self._means(losses), self._means(is_right))

    def _means(self, values: Tensor) -> dict[str, float]:
        return {name: values[rows].mean().item() for name, rows in self._rows.items()}


def exam(tokenizer: Any, parts: tuple[int, ...]) -> Exam:
    """Of all dimensions, and the plain questions."""
    return Exam(tokenizer, {name: pairs(name, parts) for name in DIMENSIONS} | {PLAIN: plain_questions(parts)})


def gain_kept(merged: Quality, base: Quality, experts: Mapping[str, Quality]) -> dict[str, float]:
    """Of what every dimension's own expert gained over the base, in loss, the share that the merge has."""
    return {
        name: (base.loss[name] - merged.loss[name]) / (base.loss[name] - expert.loss[name])
        for name, expert in experts.items()
    }


def mean_kept(merged: Quality, base: Quality, experts: Mapping[str, Quality]) -> float:
    return mean(gain_kept(merged, base, experts).values())
