"""One LoRA adapter written as peft, mergekit and vLLM load it: scale 1, and ranks that may differ between modules."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergekit_3h.checkpoints.adapted_base import AdaptedBase, AdaptedPlace
from mergekit_3h.checkpoints.adapters import CONFIG, PREFIX, WEIGHTS, Adapter
from mergekit_3h.errors import ModelError
from mergekit_3h.kernels.core_space import LowRank
from mergekit_3h.writing import write_text_whole, write_whole


@dataclass(frozen=True)
class MergedModule:
    """A module of the new adapter, and the change of its weight as it is stored in the base."""

    name: str
    place: AdaptedPlace
    update: LowRank

    def factors(self) -> dict[str, Tensor]:
        """A and B under peft's names, in float32."""
        scaled = self.update.left * self.update.scale
        first, second = (scaled.T, self.update.right.T) if self.place.is_transposed else (self.update.right, scaled)
        kind, end = ("lora_embedding", "") if self.place.is_embedding else ("lora", ".weight")
        return {
            f"{PREFIX}{self.name}.{kind}_{side}{end}": factor.to("cpu", torch.float32).contiguous()
            for side, factor in (("A", first), ("B", second))
        }


def write_adapter(
    folder: Path,
    modules: Sequence[MergedModule],
    base: AdaptedBase,
    named: tuple[str, str | None],
    merged: Sequence[Adapter],
) -> None:
    """The adapter of these modules; those of rank 0 are left out. The config is written last.

    ``named`` is the base's path or name on the hub, and its revision.
    """
    from safetensors.torch import save_file

    changed = [module for module in modules if module.update.rank]
    if not changed:
        raise ModelError("the merged update is nothing, so there is no adapter to write; are all weights 0?")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor for module in changed for name, tensor in module.factors().items()}
    write_whole(folder / WEIGHTS[0], lambda new: save_file(tensors, str(new), metadata={"format": "pt"}))
    config = _config(changed, base, named, merged)
    write_text_whole(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def _config(
    changed: Sequence[MergedModule], base: AdaptedBase, named: tuple[str, str | None], merged: Sequence[Adapter]
) -> dict[str, Any]:
    ranks = {module.name: module.update.rank for module in changed}
    largest = max(ranks.values())
    # The whole name is its own pattern; alpha is the rank, so that the scale is 1 everywhere.
    others = {name: rank for name, rank in ranks.items() if rank != largest}
    task_types = {adapter.config.get("task_type") for adapter in merged}
    return {
        "peft_type": "LORA",
        "task_type": task_types.pop() if len(task_types) == 1 else None,
        "base_model_name_or_path": named[0],
        "revision": named[1],
        "inference_mode": True,
        "r": largest,
        "lora_alpha": largest,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "fan_in_fan_out": any(m.place.is_transposed and not m.place.is_embedding for m in changed),
        "bias": "none",
        "modules_to_save": None,
        "init_lora_weights": True,
        "target_modules": target_modules(ranks, base),
        "rank_pattern": others,
        "alpha_pattern": others,
    }


def target_modules(ranks: Mapping[str, int], base: AdaptedBase) -> list[str]:
    """The last part of a name where all modules that have it are changed, as every reader expects; else whole names."""
    ends = {name.rpartition(".")[2] for name in ranks}
    whole = {end for end in ends if base.same_kind(end) <= ranks.keys()}
    return sorted(whole | {name for name in ranks if name.rpartition(".")[2] not in whole})
