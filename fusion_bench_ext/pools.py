"""Opens the models of FusionBench's pools."""

from __future__ import annotations

from copy import deepcopy
from functools import cached_property
from typing import Any

from fusion_bench.modelpool.base_pool import BaseModelPool
from fusion_bench.utils.lazy_state_dict import LazyStateDict
from omegaconf import DictConfig, OmegaConf
from torch import nn

from fusion_bench_ext.adapters import AdaptedModel, adapter_in_folder, adapter_in_memory, is_peft_model
from fusion_bench_ext.lazy_models import LazyModel
from fusion_bench_ext.load_failures import load_failure
from fusion_bench_ext.models import LoadedModel, OpenModel, missing_from_checkpoint
from mergekit_3h.checkpoints.adapters import Adapter
from mergekit_3h.errors import ModelError, ThreeHError

BASE_NAME = "_pretrained_"
"""What a pool calls the model that the others were trained from."""


class PoolModels:
    """The models of a pool. What is an adapter is opened on the pool's base, which is opened once."""

    def __init__(self, pool: BaseModelPool) -> None:
        self._pool = pool

    @cached_property
    def base(self) -> OpenModel:
        return self._opened(BASE_NAME)

    def open(self, name: str) -> OpenModel:
        """The model ``name``; whatever goes wrong names it."""
        if name == BASE_NAME:
            return self.base
        adapter = adapter_in_folder(name, _entry(self._pool, name), model_path(self._pool, BASE_NAME))
        return self._opened(name) if adapter is None else self._adapted(name, adapter)

    def _opened(self, name: str) -> OpenModel:
        try:
            loaded, missing = _load(self._pool, name)
            if isinstance(loaded, LazyStateDict):
                return LazyModel(name, loaded)
        except ThreeHError:
            raise
        except Exception as error:
            raise load_failure(name, model_path(self._pool, name), error) from error
        if missing:
            raise missing_from_checkpoint(name, sorted(missing))
        if is_peft_model(loaded):
            return self._adapted(name, adapter_in_memory(name, loaded))
        if isinstance(loaded, nn.Module):
            return LoadedModel(name, loaded)
        raise ModelError(f"model {name!r} of the pool is a {type(loaded).__name__}, expected a torch module")

    def _adapted(self, name: str, adapter: Adapter) -> OpenModel:
        if not self._pool.has_pretrained:
            raise ModelError(
                f"model {name!r} of the pool is a LoRA adapter, and the pool has no {BASE_NAME!r} to read it on; add "
                "the base that it was trained on"
            )
        return AdaptedModel(name, self.base, adapter)


def _entry(pool: Any, name: str) -> Any:
    """What the pool says of a model; pools of FusionBench 0.1 (PeftModelForSeq2SeqLMPool) load theirs by themselves."""
    models: Any = getattr(pool, "_models", None)
    return models.get(name) if hasattr(models, "get") else None


def model_path(pool: BaseModelPool, name: str) -> str | None:
    """Where the pool takes a model from, if that is a path or a name on the hub."""
    what = _entry(pool, name)
    path = what.get("pretrained_model_name_or_path") if isinstance(what, DictConfig | dict) else what
    return path if isinstance(path, str) else None


def model_revision(pool: BaseModelPool, name: str) -> str | None:
    """The revision of a model of the hub that the pool names, if it does."""
    what = _entry(pool, name)
    return what.get("revision") if isinstance(what, DictConfig | dict) else None


def _load(pool: BaseModelPool, name: str) -> tuple[Any, set[str]]:
    """What the pool loads, and which tensors transformers had to make up because the checkpoint lacks them."""
    what = _entry(pool, name)
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
