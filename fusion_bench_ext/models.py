"""The models of a pool, opened for reading one tensor at a time, whatever the pool gives out.

A pool loads whole modules or, lazily, references to checkpoints. Both become an :class:`OpenModel`: the shapes and
dtypes of all tensors without reading them, a module that carries the architecture, and which of its tensors are tied.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mergekit_3h.checkpoints.loading import tied_names
from mergekit_3h.errors import TensorError


@dataclass(frozen=True)
class TensorFacts:
    """What can be known of a tensor without reading it."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class OpenModel(ABC):
    """A model's tensors by their names in its state dict; a tied tensor answers to all of its names."""

    def __init__(self, name: str, module: nn.Module, facts: dict[str, TensorFacts]) -> None:
        self.name = name
        self.module = module
        self.facts = facts
        self.ties = tied_names(module)

    @property
    def label(self) -> str:
        """The model as error messages call it."""
        return f"model {self.name!r}"

    def stored_name(self, name: str) -> str | None:
        """The name under which the tensor ``name`` is stored: its own, or that of one it is tied to."""
        return next((known for known in (name, *self.ties.get(name, ())) if known in self.facts), None)

    def describe(self, name: str) -> TensorFacts:
        return self.facts[self._required(name)]

    def load(self, name: str) -> Tensor:
        """The tensor ``name``; it may share memory with the model, so it is only to be read."""
        return self._read(self._required(name))

    def _required(self, name: str) -> str:
        stored = self.stored_name(name)
        if stored is None:
            raise TensorError(f"{self.label} has no tensor {name!r}")
        return stored

    @abstractmethod
    def _read(self, stored_name: str) -> Tensor: ...


class LoadedModel(OpenModel):
    """A module in memory."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self._state = module.state_dict()
        facts = {key: TensorFacts(tuple(value.shape), value.dtype) for key, value in self._state.items()}
        super().__init__(name, module, facts)

    def _read(self, stored_name: str) -> Tensor:
        return self._state[stored_name].detach()


def tie_again(module: nn.Module) -> None:
    """Tie what the architecture ties; only models of transformers know how."""
    tie_weights: Any = getattr(module, "tie_weights", None)
    if tie_weights is not None:
        tie_weights()


def missing_from_checkpoint(name: str, missing: list[str]) -> TensorError:
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return TensorError(
        f"the checkpoint of model {name!r} lacks the tensor {missing[0]!r}{more} that its architecture has; loading "
        "would fill it with random numbers. Download or save the checkpoint again."
    )
