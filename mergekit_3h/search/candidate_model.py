"""A loaded model whose weights become those of any candidate, in place, and back-propagate to its coefficients."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mergekit_3h.checkpoints.sources import WeightSource
from mergekit_3h.errors import ModelError
from mergekit_3h.kernels.values import floats
from mergekit_3h.search.components import TensorFamily
from mergekit_3h.search.layout import Layout


class CandidateModel:
    """The model that all candidates are written into, a tensor at a time. Nothing touches the disk.

    Tied weights are one tensor here and are written once. Buffers stay as they are.
    """

    def __init__(self, model: nn.Module, families: Mapping[str, TensorFamily], layout: Layout) -> None:
        self.model = model.eval()
        self.layout = layout
        self._parameters = merged_parameters(model, families.keys())
        self._families = families

    @torch.no_grad()
    def become(self, coefficients: Sequence[float]) -> None:
        """Take the weights of a candidate, rounded once to the model's data type like those of a final merge."""
        options = list(self.layout.option_values(coefficients).values())
        for name, parameter in self._parameters.items():
            own = [*self.layout.of_tensor(coefficients, name), *options]
            parameter.copy_(self._families[name].at(own, parameter.device))

    @torch.no_grad()
    def become_merged(self, merged: Callable[[str, Sequence[float]], Tensor], coefficients: Sequence[float]) -> None:
        """Take the weights of a candidate by another way than by the families."""
        for name, parameter in self._parameters.items():
            parameter.copy_(merged(name, coefficients))

    @torch.no_grad()
    def become_model(self, source: WeightSource) -> None:
        """Take the weights of one of the models that are merged."""
        for name, parameter in self._parameters.items():
            parameter.copy_(source.tensor(name))

    @contextmanager
    def collecting(self) -> Generator[Callable[[], list[float]]]:
        """Within, a backward pass gives the derivative by every coefficient, and keeps no gradient of a weight.

        Each weight's gradient is multiplied with its components and freed as soon as it is complete, so that memory
        stays near that of inference. The function that is handed out returns the derivatives since its last call.
        """
        device = next(iter(self._parameters.values())).device
        totals = torch.zeros(self.layout.dimension, dtype=torch.float64, device=device)

        def take(name: str, parameter: Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            if gradient is not None:
                begin = self.layout.offset(name)
                products = torch.stack(self._families[name].inner_products(gradient))
                totals[begin : begin + len(products)] += products

        def collect() -> list[float]:
            taken = floats(totals)
            totals.zero_()
            return taken

        required = [(parameter, parameter.requires_grad) for parameter in self.model.parameters()]
        handles: list[Any] = []
        try:
            for parameter, _ in required:
                parameter.requires_grad_(False)
            for name, parameter in self._parameters.items():
                parameter.requires_grad_(True)
                untyped: Any = parameter
                handles.append(untyped.register_post_accumulate_grad_hook(partial(take, name)))
            yield collect
        finally:
            for handle in handles:
                handle.remove()
            for parameter, before in required:
                parameter.requires_grad_(before)
                parameter.grad = None


def merged_parameters(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    """The model's parameters by the name that the checkpoints give them; tied ones only once."""
    known = set(names)
    names_of: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names_of.setdefault(parameter, []).append(name)
    found: dict[str, nn.Parameter] = {}
    for parameter, aliases in names_of.items():
        there = [name for name in aliases if name in known]
        if not there:
            raise ModelError(
                f"the loaded model has a parameter {aliases[0]!r} that no tensor of the checkpoint is named after, so "
                "candidates cannot be written into it. This version of transformers renames or fuses tensors of this "
                "architecture when it loads them; merge it with fixed weights instead of searching."
            )
        found[there[0]] = parameter
    return found
