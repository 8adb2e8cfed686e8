"""Direct preference optimisation (arXiv 2305.18290): answers to prefer, answers not to give, and the base's view."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from training import BATCH

from mergekit_3h.losses.answers import Answer, Batch, batched
from mergekit_3h.losses.objective import record_losses

BETA = 0.1


@dataclass(frozen=True)
class Preference:
    """Two answers to one prompt, and how much more likely the chosen one is to the base, in nats."""

    chosen: Answer
    rejected: Answer
    before: float


def preferences(base: Any, chosen: Sequence[Answer], rejected: Sequence[Answer]) -> list[Preference]:
    """Pairs with the base's view of them, which is computed once: it stays as it is while the expert changes."""
    with torch.no_grad():
        before = torch.cat([_margins(base, c, r) for c, r in zip(_batches(chosen), _batches(rejected), strict=True)])
    triples = zip(chosen, rejected, before.tolist(), strict=True)
    return [Preference(*triple) for triple in triples]


class PreferenceLessons:
    """Pairs of answers: DPO's loss."""

    def __init__(self, pairs: Sequence[Preference]) -> None:
        self._pairs = pairs

    def draws(self, seed: int) -> Iterator[list[Preference]]:
        """Every pair once before any comes again."""
        draw = random.Random(seed)
        waiting: list[Preference] = []
        while True:
            while len(waiting) < BATCH:
                waiting += draw.sample(self._pairs, len(self._pairs))
            drawn, waiting = waiting[:BATCH], waiting[BATCH:]
            yield drawn

    def loss(self, model: Any, drawn: Sequence[Preference]) -> Tensor:
        (chosen,) = _batches([pair.chosen for pair in drawn])
        (rejected,) = _batches([pair.rejected for pair in drawn])
        margins = _margins(model, chosen, rejected)
        return dpo_loss(margins, margins.new_tensor([pair.before for pair in drawn]))


def dpo_loss(margins: Tensor, before: Tensor, beta: float = BETA) -> Tensor:
    """-log sigmoid(beta (margin - margin of the base)), mean over the pairs; Eq. 7 there.

    A margin is the log-likelihood of the chosen answer minus that of the rejected one.
    """
    return -torch.nn.functional.logsigmoid(beta * (margins - before)).mean()


def _margins(model: Any, chosen: Batch, rejected: Batch) -> Tensor:
    return log_likelihoods(model, chosen) - log_likelihoods(model, rejected)


def log_likelihoods(model: Any, batch: Batch) -> Tensor:
    """Of whole answers, in the order in which they were given: a batch is sorted by length."""
    lengths = batch.is_answer.sum(1).to(next(model.parameters()).device)
    values = -record_losses(model, batch) * lengths
    places = torch.tensor(batch.order, device=values.device)
    return torch.zeros_like(values).index_copy(0, places, values)


def _batches(answers: Sequence[Answer]) -> list[Batch]:
    """In the order given, so that the batches of two lists meet."""
    return [batched({"answers": answers[i : i + BATCH]}, BATCH)[0] for i in range(0, len(answers), BATCH)]
