"""What a conveyor carries: a tensor of all models, and what it takes of memory on its way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Load:
    """A tensor of all models, to be merged on the device."""

    name: str
    inputs: Mapping[Any, Tensor]
    merge: Callable[[dict[Any, Tensor]], Tensor | None]
    """Of the inputs on the device, in the thread that merges."""
    working: int
    """Bytes that merging takes of the device's memory beyond the inputs; the result is among them."""
    result: int
    """Bytes of the result."""


class CarriedTensor:
    """A load on its way."""

    def __init__(self, load: Load) -> None:
        self.load: Load | None = load
        self.there: dict[Any, Tensor] | None = None
        self.merged: Tensor | None = None
        self.name, self.working, self.result = load.name, load.working, load.result
        self.inputs = sum(tensor.nbytes for tensor in load.inputs.values())
        self.future: Future[Any] = Future()

    @property
    def need(self) -> int:
        return self.inputs + self.working

    @property
    def in_host_memory(self) -> int:
        return self.result + (self.inputs if self.load is not None else 0)

    def no_memory(self, device: torch.device, free: int | None, said: str) -> str:
        """What there is to say if it does not fit there even alone."""
        there = "" if free is None else f"; {free / 1e9:.1f} GB are free"
        first = next(iter(said.strip().splitlines()), "out of memory").partition(". ")[0]
        return (
            f"tensor {self.name!r} does not fit into the memory of {device}, alone there: merging it takes about "
            f"{self.need / 1e9:.1f} GB{there} ({first}). End other programs that use the device, take one with more "
            "memory, or merge on the CPU"
        )
