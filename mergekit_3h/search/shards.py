"""One evaluation in pieces: what a few batches contribute, and the measurement put together from all of them.

The batches are those of the undivided objective and their sums are exactly rounded, so that neither the number of
pieces nor the order in which they arrive changes a bit of the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from mergekit_3h.search.answers import Batch
from mergekit_3h.search.objective import Losses, Objective, record_losses
from mergekit_3h.search.runner import LocalRunner
from mergekit_3h.search.typed import floats

Subject: TypeAlias = "str | tuple[float, ...]"
"""What is measured: a single model by its label, or a candidate by its coefficients."""


@dataclass(frozen=True)
class Part:
    """The losses of one batch's records, and the derivatives of their share of the set's mean. Plain values."""

    batch: int
    losses: list[float]
    gradient: list[float] | None


class DividedObjective(Objective):
    """An objective that can be computed batch by batch in several places."""

    def part(self, model: nn.Module, number: int, collect: Callable[[], list[float]] | None) -> Part:
        """One batch. ``collect``, where derivatives are wanted, hands over those of what was passed back."""
        batch = self.batches[number]
        with torch.set_grad_enabled(collect is not None):
            losses = record_losses(model, batch)
            if collect is None:
                return Part(number, floats(losses.double()), None)
            shares = torch.tensor(self._shares(batch), dtype=losses.dtype, device=losses.device)
            (losses * shares).sum().backward()  # pyright: ignore[reportUnknownMemberType]
        return Part(number, floats(losses.detach().double()), collect())

    def total(self, parts: Sequence[Part]) -> Losses:
        """The losses over all batches."""
        measured: list[tuple[Batch, Tensor]] = []
        rows: dict[str, list[list[float]]] = {name: [] for name in self.sizes}
        for part in parts:
            batch = self.batches[part.batch]
            measured.append((batch, torch.tensor(part.losses, dtype=torch.float64)))
            if part.gradient is not None:
                rows[batch.set_name].append(part.gradient)
        means = self.mean_losses(measured)
        if not any(rows.values()):
            return Losses(means)
        return Losses(means, {name: [_sum(c) for c in zip(*own, strict=True)] for name, own in rows.items()})


class DividedRunner(LocalRunner):
    """A runner that measures whole candidates, or some batches of one."""

    @classmethod
    def of(cls, runner: LocalRunner, objective: DividedObjective) -> DividedRunner:
        """With the models and components of a runner that is there already."""
        return cls(runner._candidates, list(runner._models.values()), objective)

    def parts(self, subject: Subject, batches: Sequence[int], gradient: bool) -> list[Part]:
        """What these batches contribute to the losses of a model or candidate."""
        if isinstance(subject, str):
            self._candidates.become_model(self._models[subject])
        else:
            self._candidates.become(subject)
        model = self._candidates.model
        with self._candidates.collecting() if gradient else nullcontext() as collect:
            return [self._divided.part(model, number, collect) for number in batches]

    @property
    def _divided(self) -> DividedObjective:
        assert isinstance(self._objective, DividedObjective)  # the constructor ``of`` takes no other
        return self._objective


def shards(batches: int, count: int) -> list[list[int]]:
    """Batch numbers in ``count`` pieces of like work: batches come sorted by length, so they are dealt out in turn."""
    return [list(range(first, batches, count)) for first in range(min(count, batches))]


def _sum(values: Sequence[float]) -> float:
    return math.fsum(values) if all(map(math.isfinite, values)) else math.nan
