"""The models of a pool, opened for reading one tensor at a time, whatever the pool gives out.

A pool loads whole modules or, lazily, references to checkpoints. Both become an :class:`OpenModel`: the shapes and
dtypes of all tensors without reading them, a module that carries the architecture, and which of its tensors are tied.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from fusion_bench.modelpool.base_pool import BaseModelPool
from fusion_bench.utils.lazy_state_dict import LazyStateDict
from omegaconf import DictConfig, OmegaConf
from safetensors import safe_open
from torch import Tensor, nn

from mergekit_3h.errors import ModelError, TensorError

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


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


class LazyModel(OpenModel):
    """A checkpoint on disk. Its files are read directly: their headers give shapes and dtypes without the tensors."""

    def __init__(self, name: str, lazy: LazyStateDict) -> None:
        if lazy.meta_module is None:
            raise ModelError(f"model {name!r} is lazy but has no module class, so no model can be built from it")
        self._dtype: torch.dtype | None = lazy._torch_dtype
        self._reader = _FileReader(lazy._checkpoint_files or [])
        module = deepcopy(lazy.meta_module)
        tie_again(module)
        stored = {key: replace(seen, dtype=self._loaded_as(seen.dtype)) for key, seen in self._reader.facts().items()}
        super().__init__(name, module, stored)
        # What the module does not know is left out, as transformers does (old checkpoints store rotary frequencies).
        self.facts = {key: seen for key, seen in stored.items() if key in module.state_dict()} | self._converted(stored)

    def _converted(self, stored: Mapping[str, TensorFacts]) -> dict[str, TensorFacts]:
        """The parameters that transformers makes out of tensors of other names, as it fuses Mixtral's experts."""
        from mergekit.architecture.conversion import can_convert_checkpoint_keys

        lacking = {key: value for key, value in self.module.named_parameters() if self.stored_name(key) is None}
        unmade = [key for key in lacking if not can_convert_checkpoint_keys(self._model_type, set(stored), key)]
        if unmade:
            raise missing_from_checkpoint(self.name, unmade)
        return {key: TensorFacts(tuple(value.shape), self._loaded_as(value.dtype)) for key, value in lacking.items()}

    @property
    def _model_type(self) -> str | None:
        return getattr(getattr(self.module, "config", None), "model_type", None)

    def _loaded_as(self, dtype: torch.dtype) -> torch.dtype:
        return self._dtype if self._dtype is not None and dtype.is_floating_point else dtype

    def _read(self, stored_name: str) -> Tensor:
        tensor = self._reader.read(stored_name) if stored_name in self._reader else self._convert(stored_name)
        return tensor.to(self.facts[stored_name].dtype)

    def _convert(self, name: str) -> Tensor:
        from mergekit.architecture.conversion import convert_checkpoint_tensors

        tensor = convert_checkpoint_tensors(self._model_type, self._reader.sources(), name)
        if tensor is None:
            raise missing_from_checkpoint(self.name, [name])
        return tensor


class _FileReader:
    """Tensors out of safetensors files, which stay open, or out of PyTorch's own, memory-mapped."""

    def __init__(self, files: Iterable[str]) -> None:
        self._sources: dict[str, Any] = {}
        for file in files:
            if file.endswith(".safetensors"):
                handle = safe_open(file, framework="pt", device="cpu")
                self._sources.update(dict.fromkeys(handle.keys(), handle))
            else:
                self._sources.update(torch.load(file, map_location="cpu", weights_only=True, mmap=True))

    def __contains__(self, key: str) -> bool:
        return key in self._sources

    def sources(self) -> dict[str, Callable[[], Tensor]]:
        return {key: partial(self.read, key) for key in self._sources}

    def facts(self) -> dict[str, TensorFacts]:
        return {key: self._facts(key, source) for key, source in self._sources.items()}

    def read(self, key: str) -> Tensor:
        source = self._sources[key]
        return source if isinstance(source, Tensor) else source.get_tensor(key)

    def _facts(self, key: str, source: Any) -> TensorFacts:
        if isinstance(source, Tensor):
            return TensorFacts(tuple(source.shape), source.dtype)
        header = source.get_slice(key)
        kind = header.get_dtype()
        dtype = _DTYPES[kind] if kind in _DTYPES else source.get_tensor(key).dtype
        return TensorFacts(tuple(header.get_shape()), dtype)


def open_model(pool: BaseModelPool, name: str) -> OpenModel:
    """The model ``name`` of ``pool``; whatever goes wrong names it."""
    try:
        loaded, missing = _load(pool, name)
    except Exception as error:
        reason = str(error).strip() or "no further reason given"
        raise ModelError(f"model {name!r} of the pool cannot be loaded: {type(error).__name__}: {reason}") from error
    if missing:
        raise missing_from_checkpoint(name, sorted(missing))
    if isinstance(loaded, LazyStateDict):
        return LazyModel(name, loaded)
    if isinstance(loaded, nn.Module):
        return LoadedModel(name, loaded)
    raise ModelError(f"model {name!r} of the pool is a {type(loaded).__name__}, expected a torch module")


def tie_again(module: nn.Module) -> None:
    """Tie what the architecture ties; only models of transformers know how."""
    tie_weights: Any = getattr(module, "tie_weights", None)
    if tie_weights is not None:
        tie_weights()


def tied_names(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """For every name of a shared parameter the other names it has."""
    names_of: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names_of.setdefault(id(parameter), []).append(name)
    return {
        name: tuple(other for other in names if other != name)
        for names in names_of.values()
        if len(names) > 1
        for name in names
    }


def missing_from_checkpoint(name: str, missing: list[str]) -> TensorError:
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return TensorError(
        f"the checkpoint of model {name!r} lacks the tensor {missing[0]!r}{more} that its architecture has; loading "
        "would fill it with random numbers. Download or save the checkpoint again."
    )


def _load(pool: BaseModelPool, name: str) -> tuple[Any, set[str]]:
    """What the pool loads, and which tensors transformers had to make up because the checkpoint lacks them."""
    what: Any = pool._models[name]
    is_lazy = bool(getattr(pool, "enable_lazy_loading", False))
    if isinstance(what, DictConfig) and is_lazy:
        # FusionBench takes the path out of the config that it loads a lazy model from; it gets a copy.
        what = deepcopy(what)
        OmegaConf.set_struct(what, False)
        return pool.load_model(what), set()
    if is_lazy or not _comes_from_transformers(pool, what):
        return pool.load_model(name), set()
    model_and_info: Any = pool.load_model(name, output_loading_info=True)
    return model_and_info[0], set(model_and_info[1]["missing_keys"])


def _comes_from_transformers(pool: BaseModelPool, what: Any) -> bool:
    """Whether ``load_model`` passes keywords on to a ``from_pretrained`` of transformers and returns its result."""
    from fusion_bench.modelpool.causal_lm.causal_lm import CausalLMPool
    from fusion_bench.modelpool.clip_vision.modelpool import CLIPVisionModelPool

    if type(pool).load_model not in (CausalLMPool.load_model, CLIPVisionModelPool.load_model):
        return False
    if isinstance(what, str):
        return True
    target = str(what.get("_target_", "")) if isinstance(what, DictConfig) else ""
    return target.startswith("transformers.") and target.endswith(".from_pretrained")
