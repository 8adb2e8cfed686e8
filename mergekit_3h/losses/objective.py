"""The loss of a causal language model on the answers: mean over records of the mean cross-entropy of answer tokens.

Every record's loss is kept, and sums are exactly rounded (``math.fsum``): a mean does not depend on the order in
which batches were computed, nor on where. So an evaluation can be divided into parts, a batch each, and put together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from mergekit_3h.kernels.values import floats
from mergekit_3h.losses.answers import Answer, Batch, batched
from mergekit_3h.losses.token_losses import token_losses


@dataclass(frozen=True)
class Losses:
    """Mean loss of each set, and where asked for its derivative by every coefficient."""

    by_set: dict[str, float]
    gradients: dict[str, list[float]] | None = None

    def not_finite(self) -> str:
        """What is wrong with the losses, or an empty string."""
        bad = [f"the loss of the {name} set is {loss}" for name, loss in self.by_set.items() if not math.isfinite(loss)]
        for name, gradient in (self.gradients or {}).items():
            if not all(map(math.isfinite, gradient)):
                bad.append(f"the gradient of the {name} set is not finite")
        return "; ".join(bad)


@dataclass(frozen=True)
class Part:
    """The losses of one batch's records, and the derivatives of their share of the set's mean. Plain values."""

    batch: int
    losses: list[float]
    gradient: list[float] | None


class Objective:
    """Losses of any model on fixed batches, all at once or batch by batch in several places."""

    def __init__(self, answers: Mapping[str, Sequence[Answer]], batch_size: int) -> None:
        self.sizes = {name: len(members) for name, members in answers.items()}
        self.batches = batched(answers, batch_size)
        self._weights = {name: [answer.weight for answer in members] for name, members in answers.items()}
        self._total_weight = {name: math.fsum(weights) for name, weights in self._weights.items()}

    @property
    def total_weights(self) -> dict[str, float]:
        """Sum of the records' weights in each set: their number, unless the data say otherwise."""
        return self._total_weight

    def losses(self, model: nn.Module) -> Losses:
        return self.total([self.part(model, number, None) for number in range(len(self.batches))])

    def losses_and_gradients(self, model: nn.Module, collect: Callable[[], list[float]]) -> Losses:
        """Like ``losses``; after each backward pass ``collect`` hands over the derivative of what was passed back."""
        return self.total([self.part(model, number, collect) for number in range(len(self.batches))])

    def part(self, model: nn.Module, number: int, collect: Callable[[], list[float]] | None) -> Part:
        """One batch. ``collect``, where derivatives are wanted, hands over those of what was passed back."""
        batch = self.batches[number]
        with torch.set_grad_enabled(collect is not None):
            losses = record_losses(model, batch)
            if collect is not None:
                shares = torch.tensor(self._shares(batch), dtype=losses.dtype, device=losses.device)
                (losses * shares).sum().backward()  # pyright: ignore[reportUnknownMemberType]
        return Part(number, floats(losses.detach().double()), collect() if collect is not None else None)

    def total(self, parts: Sequence[Part]) -> Losses:
        """The sets' mean losses, and their derivatives where the parts have them, from all parts in any order."""
        terms: dict[str, list[float]] = {name: [] for name in self.sizes}
        rows: dict[str, list[list[float]]] = {name: [] for name in self.sizes}
        for part in parts:
            batch = self.batches[part.batch]
            terms[batch.set_name] += [s * loss for s, loss in zip(self._shares(batch), part.losses, strict=True)]
            if part.gradient is not None:
                rows[batch.set_name].append(part.gradient)
        means = {name: _sum(values) for name, values in terms.items()}
        if not any(rows.values()):
            return Losses(means)
        return Losses(means, {name: [_sum(c) for c in zip(*own, strict=True)] for name, own in rows.items()})

    def _shares(self, batch: Batch) -> list[float]:
        total, weights = self._total_weight[batch.set_name], self._weights[batch.set_name]
        return [weights[i] / total for i in batch.order]


def _sum(values: Sequence[float]) -> float:
    """NaN, a failed candidate, where a term is not finite: ``fsum`` raises an error for infinities of both signs."""
    return math.fsum(values) if all(map(math.isfinite, values)) else math.nan


def record_losses(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy of the answer tokens of every record, in float32 or better."""
    device = next(model.parameters()).device
    ids = batch.ids.to(device)
    predicts = batch.is_answer[:, 1:].to(device)
    logits = _logits(model, batch, predicts)
    losses = token_losses(logits, ids[:, 1:][predicts])
    # Scattered into place and summed by row: unlike index_add, this gives the same bits every time on a GPU.
    by_position = torch.zeros(predicts.shape, dtype=losses.dtype, device=device).masked_scatter(predicts, losses)
    return by_position.sum(dim=1) / predicts.sum(dim=1)


def _logits(model: nn.Module, batch: Batch, predicts: Tensor) -> Tensor:
    """The rows of logits that ``predicts`` marks. A model that can leaves out the places that no record needs: with a
    large vocabulary, logits over prompts would be most of the memory."""
    ids, attention = batch.ids.to(predicts.device), batch.attention.to(predicts.device)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": attention, "use_cache": False}
    if "logits_to_keep" not in signature(model.forward).parameters:
        output: Any = model(**inputs)
        return output.logits[:, :-1][predicts]
    places = batch.places.to(predicts.device)
    output = model(**inputs, logits_to_keep=places)
    return output.logits[predicts[:, places]]
