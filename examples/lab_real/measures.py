"""Answer likelihood: the mean loss of the right answers, by dimension, and what a merge kept of the experts' gain."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

import torch
from data import BESIDES, DIMENSIONS, Parts, short_answers, short_records
from torch import nn

from mergekit_3h.losses.answers import Answer, batched
from mergekit_3h.losses.objective import record_losses

BATCH = 16

Losses = dict[str, list[float]]
"""The loss of every question's answer, by dimension, always in the same order."""


class Exam:
    """The same questions for every model."""

    def __init__(self, records: Mapping[str, Parts], part: str, tokenizer: Any, most: int, besides: bool) -> None:
        names = (*DIMENSIONS, *BESIDES) if besides else DIMENSIONS
        self.records = {name: short_records(records[name][part], tokenizer, most) for name in names}
        self._answers = {name: short_answers(members, tokenizer) for name, members in self.records.items()}

    def take(self, model: nn.Module, names: Sequence[str] | None = None) -> Losses:
        """All questions, or those of some dimensions."""
        return {name: _losses(model, self._answers[name]) for name in names or self._answers}


@torch.no_grad()
def _losses(model: nn.Module, answers: Sequence[Answer]) -> list[float]:
    found = [0.0] * len(answers)
    for batch in batched({"exam": answers}, BATCH):
        for place, loss in zip(batch.order, record_losses(model, batch).tolist(), strict=True):
            found[place] = round(loss, 4)
    return found


def gain_kept(merged: Losses, base: Losses, own: Losses) -> dict[str, float]:
    """(base - merge) / (base - own expert) for every dimension that ``own`` has the losses of."""
    kept: dict[str, float] = {}
    for name, losses in own.items():
        gain = mean(base[name]) - mean(losses)
        if gain <= 0:
            sys.exit(
                f"the expert for {name} answers no better than the base (loss {mean(losses):.3f}, base "
                f"{mean(base[name]):.3f}), so a merge can keep no share of its gain. Train it longer."
            )
        kept[name] = (mean(base[name]) - mean(merged[name])) / gain
    return kept
