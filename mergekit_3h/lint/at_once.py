"""How many tensors of a merge are in the works at once, by the rules of ``kernels/jobs.py`` and, for those that go
through a GPU, of ``kernels/conveyor.py``; and what they take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mergekit_3h.kernels.conveyor import INPUTS_SHARE, has_conveyor
from mergekit_3h.kernels.jobs import room_within, runs_alone
from mergekit_3h.kernels.room import allowed_bytes
from mergekit_3h.options import checked
from mergekit_3h.spectral import registry
from mergekit_3h.spectral.method import RunningOptions


@dataclass(frozen=True)
class Need:
    """Bytes that merging one tensor takes."""

    own: int
    """Memory of the process."""
    mapped: int
    """Pages of weight files."""


@dataclass(frozen=True)
class AtOnce:
    """The largest group of a merge. ``allowed`` bytes it may take: the option ``memory_gb``, or what is free."""

    tensors: int
    own: int
    allowed: int | None


def largest_at_once(needs: Sequence[Need], allowed: int | None, workers: int) -> AtOnce:
    """Of tensors that are merged side by side within ``allowed`` bytes; without these, one after the other."""
    alone = max((need.own for need in needs), default=0)
    if allowed is None or workers < 2:
        return AtOnce(min(1, len(needs)), alone, None)
    room, taken, own, count = room_within(allowed), 0, 0, 0
    beside = [need for need, is_alone in zip(needs, merged_alone(needs, allowed, workers), strict=True) if not is_alone]
    for need in sorted(beside, key=lambda need: need.own, reverse=True):
        if count < workers and taken + need.own + need.mapped <= room:
            taken, own, count = taken + need.own + need.mapped, own + need.own, count + 1
    return AtOnce(count, own, allowed) if own > alone else AtOnce(min(1, len(needs)), alone, allowed)


def merged_alone(needs: Sequence[Need], allowed: int | None, workers: int) -> list[bool]:
    """Which of the tensors are merged with all cores while no other is."""
    if allowed is None or workers < 2:
        return [True] * len(needs)
    sizes = [need.own + need.mapped for need in needs]
    room, whole = room_within(allowed), max(1, sum(sizes))
    return [runs_alone(size, size / whole, room, workers) for size in sizes]


def carried_at_once(inputs: Sequence[Need], results: Sequence[int], allowed: int) -> AtOnce:
    """Of tensors that go through a GPU: the inputs of those that are on their way or wait, and the results that wait
    to be saved. What merging takes beyond them is the GPU's."""
    room, taken, own, count = int(INPUTS_SHARE * allowed), 0, 0, 0
    for need, result in sorted(zip(inputs, results, strict=True), key=lambda each: each[0].own + each[1], reverse=True):
        whole = need.own + need.mapped + result
        if not count or taken + whole <= room:
            taken, own, count = taken + whole, own + need.own + result, count + 1
    return AtOnce(count, own + min(sum(results), allowed - room), allowed)


def is_carried(config: Any, device: str) -> bool:
    """Whether the tensors of this merge go through a GPU while others are read and saved."""
    import torch

    return config.merge_method in registry.names() and has_conveyor(torch.device(device))


def allowed_at_once(config: Any, device: str) -> int | None:
    """Bytes for the tensors of this merge that run side by side, or are on their way through a GPU; None where they
    run one after the other."""
    if config.merge_method not in registry.names() or (device != "cpu" and not is_carried(config, device)):
        return None
    given = (config.parameters or {}).get("memory_gb")
    is_plain = not isinstance(given, list | dict)
    return allowed_bytes(checked(RunningOptions, "memory_gb", given) if is_plain else None)


def workers_on(device: str) -> int:
    """Tensors that the cores can merge at once."""
    import torch

    from mergekit_3h.kernels.workers import pool_for

    pool = pool_for(torch.device(device))
    return 1 if pool is None else pool.workers
