"""LoRA adapters in FusionBench's pools: as folders, as configs that load one, or as peft's models in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fusion_bench_ext.models import OpenModel
from mergekit_3h.checkpoints.adapted_base import AdaptedBase, PlacedAdapter, require_trained_on
from mergekit_3h.checkpoints.adapters import PREFIX, Adapter, is_adapter, open_adapter
from mergekit_3h.checkpoints.headers import read_checkpoint
from mergekit_3h.checkpoints.locations import locate
from mergekit_3h.errors import ModelError
from mergekit_3h.kernels.core_space import LowRank

_LOADERS = {
    "load_peft_causal_lm": ("base_model_path", "peft_model_path", False),
    "load_lora_model": ("base_model_path", "peft_model_path", True),
    "load_lora_vision_model_hf": ("base_model_name", "peft_name", False),
}
"""FusionBench's functions that load an adapter on a base: how they call the two, and whether they merge unasked."""


class AdaptedModel(OpenModel):
    """The pool's base with an adapter. Any algorithm can read it as a whole model, the spectral ones its updates."""

    def __init__(self, name: str, base: OpenModel, adapter: Adapter) -> None:
        super().__init__(name, base.module, base.facts)
        self._base = base
        self.placed = PlacedAdapter(adapter, AdaptedBase(base.label, base.module))

    @property
    def changes(self) -> set[str]:
        """The parameters that the adapter changes."""
        return set(self.placed.places)

    def update(self, name: str, base: Tensor) -> LowRank:
        """Of the parameter ``name``, which is ``base`` in the base."""
        return self.placed.update(name, base)

    def _read(self, stored_name: str) -> Tensor:
        tensor = self._base.load(stored_name)
        if stored_name not in self.changes:
            return tensor
        update = self.update(stored_name, tensor)
        result = tensor.clone()
        for rows in update.row_spans():
            result[rows] = (update.rows(rows) + tensor[rows]).to(tensor.dtype)
        return result


def adapter_in_folder(name: str, entry: Any, base_path: str | None) -> Adapter | None:
    """The adapter that a pool's entry names, if it is on this machine and on the pool's base, which is not loaded."""
    path, trained_on = _named(entry)
    folder = locate(path).path if path is not None else None
    if folder is None or not is_adapter(folder) or read_checkpoint(folder).files:
        return None
    on_base = locate(base_path).path if base_path is not None else None
    if trained_on is not None and (base_path is None or not _is_one_model(trained_on, base_path)):
        return None  # peft's model brings its own base, which is compared with the pool's
    adapter = open_adapter(folder, repr(name))
    if on_base is not None and base_path is not None:
        require_trained_on(adapter, base_path, on_base)
    return adapter


def _named(entry: Any) -> tuple[str | None, str | None]:
    """Folder or name of the adapter, and of the base that the entry loads it on."""
    if isinstance(entry, str):
        return entry, None
    if not isinstance(entry, Mapping) and not hasattr(entry, "get"):
        return None, None
    loader = _LOADERS.get(str(entry.get("_target_", "")).rpartition(".")[2])
    if loader is None:
        return None, None
    base, adapter, merges = loader
    is_merged = entry.get("merge_and_unload", merges)
    return (None, None) if is_merged else (entry.get(adapter), entry.get(base))


def _is_one_model(first: str, second: str) -> bool:
    one, other = locate(first).path, locate(second).path
    return first == second or (one is not None and other is not None and one.resolve() == other.resolve())


def is_peft_model(module: Any) -> bool:
    return isinstance(module, nn.Module) and type(module).__module__.partition(".")[0] == "peft"


def adapter_in_memory(name: str, model: Any) -> Adapter:
    """The adapter of a model of peft's, with the weights that it changes, for comparison with the pool's base."""
    from peft import get_peft_model_state_dict

    active = list(model.active_adapters)
    if len(active) != 1:
        raise ModelError(f"model {name!r} has {len(active)} active adapters ({active}), expected one: activate one")
    tensors: dict[str, Tensor] = dict(
        get_peft_model_state_dict(model, adapter_name=active[0], save_embedding_layers=False)
    )
    for module in {key[len(PREFIX) :].partition(".lora_")[0] for key in tensors}:
        inner = getattr(model.base_model.model.get_submodule(module), "base_layer", None)
        if isinstance(inner, nn.Module):
            tensors[f"{PREFIX}{module}.base_layer.weight"] = inner.get_parameter("weight")
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    return Adapter(repr(name), model.peft_config[active[0]].to_dict(), shapes, lambda key: tensors[key].detach())
