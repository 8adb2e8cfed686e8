"""The base that adapters change: which parameter each of their modules is, and how it is oriented there."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from mergekit_3h.checkpoints.adapters import Adapter
from mergekit_3h.checkpoints.headers import read_checkpoint, tensor_reader
from mergekit_3h.checkpoints.loading import tied_names
from mergekit_3h.checkpoints.locations import locate
from mergekit_3h.errors import ModelError, TensorError
from mergekit_3h.kernels.core_space import LowRank

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AdaptedPlace:
    """A parameter that an adapter may change."""

    parameter: str
    shape: tuple[int, int]
    is_transposed: bool
    """Stored as inputs x outputs: embeddings and the linear layers of GPT-2."""
    is_embedding: bool


class AdaptedBase:
    """The modules of a base, as transformers builds it; no weights are needed."""

    def __init__(self, label: str, module: nn.Module) -> None:
        self.label = label
        self._module = module
        self._ties = tied_names(module)

    def place(self, adapter: Adapter, name: str) -> AdaptedPlace:
        """Where the adapter's module ``name`` is; an error that names both if it is nowhere, or not as the factors."""
        found = self._place(name)
        if found is None:
            raise TensorError(
                f"adapter {adapter.label} changes the module {name!r}, which is no linear layer or embedding of "
                f"{self.label}; was it trained on another model ({adapter.base_name or 'its config does not say'})?"
            )
        adapted = adapter.modules[name]
        outputs, inputs = adapted.shape
        expected = (inputs, outputs) if found.is_transposed else (outputs, inputs)
        if found.shape != expected or found.is_embedding != adapted.is_embedding:
            raise TensorError(
                f"adapter {adapter.label}: its update of the module {name!r} is {list(expected)}, the weight in "
                f"{self.label} is {list(found.shape)}; they are of different models"
            )
        if found.parameter in self._ties:
            raise TensorError(
                f"adapter {adapter.label} changes {found.parameter!r}, which {self.label} ties to "
                f"{', '.join(self._ties[found.parameter])}: merged, it would change these too. Save the base untied "
                "(tie_word_embeddings: false), or merge without this module."
            )
        return found

    def _place(self, name: str) -> AdaptedPlace | None:
        from transformers.pytorch_utils import Conv1D

        try:
            module = self._module.get_submodule(name)
        except AttributeError:
            return None
        if not isinstance(module, nn.Linear | nn.Embedding | Conv1D):
            return None
        rows, columns = module.weight.shape
        is_embedding = isinstance(module, nn.Embedding)
        is_transposed = is_embedding or isinstance(module, Conv1D)
        return AdaptedPlace(f"{name}.weight", (rows, columns), is_transposed, is_embedding)

    def same_kind(self, name: str) -> set[str]:
        """All modules that could be adapted whose names end like this one's."""
        end = name.rpartition(".")[2]
        return {other for other, _ in self._module.named_modules() if other.rpartition(".")[2] == end}


class PlacedAdapter:
    """An adapter by the parameters of its base."""

    def __init__(self, adapter: Adapter, base: AdaptedBase) -> None:
        self.adapter = adapter
        self.base = base
        self.places = {place.parameter: (name, place) for name, place in _places(adapter, base)}

    def update(self, parameter: str, base: Tensor) -> LowRank:
        """Of a parameter, which is ``base``; of rank 0 if the adapter leaves it as it is."""
        if parameter not in self.places:
            return nothing(base)
        name, place = self.places[parameter]
        self._require_base(name, base)
        return self.adapter.update(name, is_transposed=place.is_transposed)

    def rank(self, parameter: str) -> int:
        """Of the adapter's update of a parameter."""
        return self.adapter.modules[self.places[parameter][0]].rank if parameter in self.places else 0

    def _require_base(self, name: str, base: Tensor) -> None:
        """Raise if the adapter brings another weight of the base than the base has."""
        copy = self.adapter.base_copy(name)
        if copy is None or (copy.shape == base.shape and _share_alike(copy, base) >= SAME_ENTRIES):
            return
        raise TensorError(
            f"adapter {self.adapter.label} brings a weight of its base for the module {name!r}, and it is not the one "
            "that is here; was the vocabulary resized, or the embedding trained as a whole? Merge the adapter into "
            "its base once with peft's merge_and_unload, and name the model that this gives."
        )


def _places(adapter: Adapter, base: AdaptedBase) -> Iterable[tuple[str, AdaptedPlace]]:
    return ((name, base.place(adapter, name)) for name in adapter.modules)


def nothing(base: Tensor) -> LowRank:
    """An update of rank 0."""
    rows, columns = base.shape
    return LowRank(base.new_zeros(rows, 0), base.new_zeros(0, columns))


def require_trained_on(adapter: Adapter, name: str, folder: Path) -> None:
    """Raise if the adapter's base is another model than the one called ``name`` in ``folder``, as far as can be seen.

    A folder that is there is compared by its weights, a name on the hub with a name on the hub; a path of another
    machine says nothing, which the log tells.
    """
    trained_on = adapter.base_name
    if trained_on in ("", name):
        return
    theirs, ours = locate(trained_on), locate(name)
    if theirs.path is not None:
        is_same = theirs.path.resolve() == folder.resolve() or _are_alike(theirs.path, folder)
    else:
        both_of_the_hub = theirs.status == "hub" and ours.status in ("hub", "cached")
        is_same = not both_of_the_hub or trained_on.lower() == name.lower()
        if is_same:
            log.warning(
                "adapter %s was trained on %s, which is not here to compare with %s", adapter.label, trained_on, name
            )
    if not is_same:
        raise ModelError(
            f"adapter {adapter.label} was trained on {trained_on}, as its adapter_config.json says, not on {name}: its "
            "update means nothing there. Name the base that it was trained on; if that is this one under another name, "
            "correct base_model_name_or_path in the file."
        )


SAME_ENTRIES = 0.9
"""Share of the entries of a matrix that are the same in two copies of a model, in bfloat16. A heuristic: copies may
have been rounded to another dtype, and a fine-tuning leaves few entries of an attention matrix alone."""


def _are_alike(first: Path, second: Path) -> bool:
    """Whether two checkpoints have one architecture and the same numbers in their smallest matrix."""
    one, other = read_checkpoint(first), read_checkpoint(second)
    shapes = [{name: tensor.shape for name, tensor in each.tensors.items()} for each in (one, other)]
    matrices = [name for name, shape in shapes[0].items() if len(shape) == 2 and name in shapes[1]]
    if any(shapes[0][name] != shapes[1][name] for name in matrices):
        return False
    if not matrices:
        return True
    name = min(matrices, key=lambda each: one.tensors[each].elements)
    return _share_alike(tensor_reader(one)(name), tensor_reader(other)(name)) >= SAME_ENTRIES


def _share_alike(first: Tensor, second: Tensor) -> float:
    import torch

    return float((first.to(second.device, torch.bfloat16) == second.to(torch.bfloat16)).float().mean())
