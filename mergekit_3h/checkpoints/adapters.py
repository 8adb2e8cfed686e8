"""LoRA adapters as peft saves them: which modules they change, and each change as a product of two small matrices.

Only what is B A on a matrix and nothing else is read; whatever else an adapter may hold is refused by name, and so is
every setting that is not known to leave the product as it is.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mergekit_3h.checkpoints.headers import read_checkpoint, tensor_reader
from mergekit_3h.checkpoints.locations import read_json
from mergekit_3h.errors import ModelError, TensorError
from mergekit_3h.kernels.core_space import LowRank

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."

# fmt: off
_HARMLESS = frozenset({
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config",
    "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core", "peft_version", "qalora_group_size", "r",
    "rank_pattern", "revision", "runtime_config", "target_modules", "task_type", "use_rslora",
})
# fmt: on
"""Settings that leave the update what it is, the scaled product of the stored matrices."""

_PLAIN = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}
"""Settings that do so for some values. The other ways to start change the base as well."""

_FACTORS = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_embedding_A": "A",
    ".lora_embedding_B": "B",
    ".base_layer.weight": "base",
}
"""``base``: peft saves embeddings and heads that an adapter changes beside it, as they were."""

Reader = Callable[[str], Tensor]


@dataclass(frozen=True)
class AdaptedModule:
    """One module that an adapter changes: the names of its factors, and what their product is multiplied with."""

    first: str
    """A, rank x inputs."""
    second: str
    """B, outputs x rank."""
    rank: int
    shape: tuple[int, int]
    """Of B A."""
    scale: float
    is_embedding: bool
    base_copy: str | None
    """The weight of the base, where the adapter brings it."""


class Adapter:
    """An adapter whose factors are read one module at a time."""

    def __init__(
        self, label: str, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], read: Reader
    ) -> None:
        self.label = label
        self.config = dict(config)
        self._file = read
        self._reading = threading.Lock()
        _require_plain(label, config)
        self.modules = _modules(label, config, shapes)

    @property
    def base_name(self) -> str:
        """What it says it was trained on; may be empty."""
        return str(self.config.get("base_model_name_or_path") or "")

    def _read(self, name: str) -> Tensor:
        with self._reading:  # hosts merge several tensors at once
            return self._file(name)

    def base_copy(self, module: str) -> Tensor | None:
        """The base's weight as the adapter brings it; few do."""
        name = self.modules[module].base_copy
        return None if name is None else self._read(name)

    def update(self, module: str, *, is_transposed: bool = False) -> LowRank:
        """The change of the weight of a module, which may be stored as inputs x outputs."""
        adapted = self.modules[module]
        first, second = self._read(adapted.first), self._read(adapted.second)
        return LowRank(first.T, second.T, adapted.scale) if is_transposed else LowRank(second, first, adapted.scale)


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def open_adapter(folder: Path, label: str) -> Adapter:
    """The adapter in a folder of peft's; only its headers are read."""
    config = read_json(folder / CONFIG)
    if not config:
        raise ModelError(f"adapter {label}: {folder / CONFIG} is missing or no JSON object; expected what peft saves")
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise ModelError(f"adapter {label}: {folder} has neither {WEIGHTS[0]} nor {WEIGHTS[1]}")
    stored = read_checkpoint(file)
    if stored.problems:
        raise ModelError(f"adapter {label}: {'; '.join(stored.problems)}. Download or save it again.")
    shapes = {name: tensor.shape for name, tensor in stored.tensors.items()}
    return Adapter(label, config, shapes, tensor_reader(stored))


def _require_plain(label: str, config: Mapping[str, Any]) -> None:
    for name, allowed in _PLAIN.items():
        value = config.get(name, allowed[0])
        if value not in allowed:
            choices = " or ".join(map(str, allowed))
            raise ModelError(
                f"adapter {label}: {name} is {value!r} in its {CONFIG}, expected {choices}: only LoRA that changes "
                f"nothing but matrices can be merged as it is. {_WAY_OUT}"
            )
    others = [name for name, value in config.items() if value and name not in _HARMLESS | _PLAIN.keys()]
    if others:
        raise ModelError(
            f"adapter {label}: {others[0]} is set in its {CONFIG} ({config[others[0]]!r}), so its update is more than "
            f"a product of two matrices. {_WAY_OUT}"
        )


_WAY_OUT = "Merge it into its base once with peft's merge_and_unload, and name the model that this gives."


def _modules(label: str, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, AdaptedModule]:
    names: dict[str, dict[str, str]] = {}
    for name in shapes:
        suffix = next((suffix for suffix in _FACTORS if name.endswith(suffix)), None)
        if suffix is None or not name.startswith(PREFIX):
            raise TensorError(
                f"adapter {label}: its tensor {name!r} is no LoRA factor of a matrix, and would be lost. {_WAY_OUT}"
            )
        names.setdefault(name[len(PREFIX) : -len(suffix)], {})[_FACTORS[suffix]] = name
    if not names:
        raise TensorError(f"adapter {label}: its weight file has no tensors")
    return {module: _module(label, config, module, found, shapes) for module, found in sorted(names.items())}


def _module(
    label: str, config: Mapping[str, Any], module: str, found: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> AdaptedModule:
    if not {"A", "B"} <= found.keys():
        lacks = "B" if "A" in found else "A"
        raise TensorError(f"adapter {label}: the module {module!r} has no lora_{lacks}. Save the adapter again.")
    first, second = shapes[found["A"]], shapes[found["B"]]
    rank = int(_of_module(config.get("rank_pattern"), module, config.get("r", 8)))
    if len(first) != 2 or len(second) != 2 or first[0] != rank or second[1] != rank:
        raise TensorError(
            f"adapter {label}, module {module!r}: lora_A is {list(first)} and lora_B {list(second)}, expected "
            f"[{rank}, inputs] and [outputs, {rank}] by the rank of its {CONFIG}"
        )
    alpha = float(_of_module(config.get("alpha_pattern"), module, config.get("lora_alpha", 8)))
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    is_embedding = ".lora_embedding_" in found["A"]
    return AdaptedModule(found["A"], found["B"], rank, (second[0], first[1]), scale, is_embedding, found.get("base"))


def _of_module(pattern: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The value for a module, of the first pattern that fits all of its name, or its end from a dot on."""
    fitting = (value for key, value in (pattern or {}).items() if re.match(rf"(.*\.)?({key})$", module))
    return next(fitting, default)
