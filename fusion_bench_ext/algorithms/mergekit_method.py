"""The FusionBench algorithm ``MergeKitAlgorithm``: any merge method that is registered with mergekit."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from fusion_bench.modelpool.base_pool import BaseModelPool
from mergekit import merge_methods
from mergekit.config import ParameterSetting
from mergekit.merge_methods import BasePolicy, MergeMethod, ParameterScope
from mergekit.parameter_resolver import resolve_parameters
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from fusion_bench_ext.algorithms.streaming import StreamingAlgorithm
from fusion_bench_ext.errors import shown_by_hydra
from fusion_bench_ext.hydra_values import plain_value
from fusion_bench_ext.models import OpenModel
from fusion_bench_ext.pools import BASE_NAME
from mergekit_3h.errors import ModelError, OptionError, TensorError
from mergekit_3h.options import require_known
from mergekit_3h.suggestions import did_you_mean

if TYPE_CHECKING:
    from mergekit_3h.methods.groups import MeasuredMethod

_LAYER = re.compile(r"\.(?:layers|h|blocks|block|layer)\.(\d+)\.")
_SETTING = TypeAdapter(ParameterSetting)


class MergeKitAlgorithm(StreamingAlgorithm):
    """Merges with the mergekit method ``merge_method``: ties, della, breadcrumbs, karcher, sce, model_stock, ...

    Args:
        merge_method: the name under which the method is registered with mergekit.
        parameters: the method's parameters for all models, as in the ``parameters`` of a mergekit config. Values may be
            layer gradients (lists) and filters by tensor name, as there.
        model_parameters: model name -> parameters of that model, as in ``models[].parameters`` of a mergekit config.
        base_model: the base, for methods that take one; without it ``_pretrained_``. Other methods never see
            ``_pretrained_``.
        seed: seeds torch right before merging, for methods that draw random numbers, as ``--random-seed`` does.
        model_save_path: where to save the merged model, with tokenizer and model card.
    """

    _config_mapping = StreamingAlgorithm._config_mapping | {
        key: key for key in ("merge_method", "parameters", "model_parameters", "base_model", "seed")
    }

    def __init__(
        self,
        merge_method: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        model_parameters: Mapping[str, Mapping[str, Any]] | None = None,
        base_model: str | None = None,
        seed: int | None = None,
        *,
        model_save_path: str | None = None,
        **kwargs: Any,
    ) -> None:
        host_keys = {name: kwargs.pop(name) for name in list(kwargs) if name.startswith("_")}
        super().__init__(model_save_path=model_save_path, **host_keys)
        self.merge_method, self.base_model, self.seed = merge_method, base_model, seed
        self.parameters = dict(plain_value(parameters) or {})
        given = plain_value(model_parameters) or {}
        self.model_parameters = {name: dict(plain_value(own) or {}) for name, own in given.items()}
        with shown_by_hydra():
            for name in kwargs:
                known = [key for key in self._config_mapping.values() if not key.startswith("_")]
                require_known("mergekit", name, known)
            self._method = _registered(merge_method)
            self.title = self._method.spec.pretty_name or merge_method
            self._settings = {None: self._checked_settings("parameters", self.parameters)}
            for model, own in self.model_parameters.items():
                self._settings[model] = self._checked_settings(f"model_parameters.{model}", own, for_model=True)

    def base_name(self, modelpool: BaseModelPool) -> str | None:
        policy = self._method.spec.contract.base
        if policy not in (BasePolicy.REQUIRED, BasePolicy.OPTIONAL):
            if self.base_model is not None:
                raise OptionError(f"option 'base_model': {self.merge_method} does not take a base; leave it null")
            return None
        if self.base_model is not None and self.base_model not in modelpool.all_model_names:
            known = modelpool.all_model_names
            raise OptionError(
                f"option 'base_model': the pool has no model {self.base_model!r}; "
                f"{did_you_mean(self.base_model, known)}"
            )
        base = self.base_model or (BASE_NAME if modelpool.has_pretrained else None)
        if base is None and policy == BasePolicy.REQUIRED:
            raise ModelError(
                f"{self.merge_method} needs a base: add {BASE_NAME!r} to the pool's models or name one of them as "
                f"base_model. The pool has: {modelpool.all_model_names}"
            )
        return base

    def check_pool(self, base: str | None, experts: Sequence[str]) -> None:
        ids = [*experts, base] if base else list(experts)
        for name in self.model_parameters:
            if name not in ids:
                raise OptionError(
                    f"option 'model_parameters': no model to merge is called {name!r}; {did_you_mean(name, ids)}"
                )
        try:
            self._method.validate_inputs(ids, base)
        except ValueError as error:
            raise ModelError(f"{self.merge_method} cannot merge the models {ids}: {error}") from error
        # Resolving them once finds parameters that are missing before anything is loaded.
        self._resolve("", 0.0, ids, base)

    def arrange(self, names: list[str]) -> list[str]:
        if self.seed is not None:
            torch.manual_seed(self.seed)
        self.memory_gb = None
        self._last_layer = max((layer for name in names if (layer := _layer(name)) is not None), default=0)
        # mergekit's order, so that methods that draw random numbers draw the same ones.
        return sorted(names)

    def bytes_needed(self, name: str, reference: OpenModel, experts: Sequence[OpenModel]) -> int | None:
        """Of a spectral method, which says it. mergekit's own merge one tensor after the other, in its order. Of
        different ``memory_gb`` the smallest counts."""
        if not hasattr(self._method, "bytes_to_merge"):
            return None
        facts, models = reference.describe(name), [*(model.name for model in experts), reference.name]
        resolved = self._resolve(name, self._depth(name), models, reference.name)
        of_models = {parameter.name for parameter in self._method.spec.input_parameters}
        shared = {option: value for option, value in resolved.items() if option not in of_models}
        allowed = shared.get("memory_gb")
        if allowed is not None:
            self.memory_gb = min(allowed, self.memory_gb or allowed)
        tensors = [torch.empty(facts.shape, dtype=facts.dtype, device="meta") for _ in models]
        return cast("MeasuredMethod", self._method).bytes_to_merge(name, tensors, shared)

    def merge(self, name: str, base: tuple[str, Tensor] | None, experts: Mapping[str, Tensor]) -> Tensor:
        # mergekit, too, appends a base that is not among the models.
        tensors = dict(experts) if base is None else {**experts, base[0]: base[1]}
        for model, tensor in tensors.items():
            if not bool(torch.isfinite(tensor).all()):
                raise TensorError(
                    f"tensor {name!r} of model {model!r} holds NaN or infinity; a merge with it would be NaN too"
                )
        ids: list[Hashable] = list(tensors)
        parameters = self._resolve(name, self._depth(name), list(tensors), base[0] if base else None)
        try:
            return merge_methods.merge_tensors(
                list(tensors.values()),
                self._method,
                parameters=parameters,
                ids=ids,
                base_index=len(ids) - 1 if base else None,
                name=name,
            )
        except (ArithmeticError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise TensorError(f"{self.merge_method} failed on the tensor {name!r}: {error}") from error

    def _depth(self, name: str) -> float:
        """Where a tensor is for layer gradients, as mergekit has it: 0 at the first layer and 1 at the last."""
        layer = _layer(name)
        if layer is None:
            return 0.0
        return layer / self._last_layer if self._last_layer else 1.0

    def _resolve(self, name: str, depth: float, models: Sequence[str], base: str | None) -> dict[str, Any]:
        """The parameters' values for one tensor; those that each model has for itself as a mapping from names."""
        try:
            shared, of_models = resolve_parameters(
                self._method.spec,
                tensor_name=name,
                inputs=dict.fromkeys(models, name),  # type: ignore[arg-type]  # any hashable does
                sources=self._sources,  # type: ignore[arg-type]
                base_model=base,  # type: ignore[arg-type]
                t=depth,
            )
        except RuntimeError as error:
            raise OptionError(f"{self.merge_method}: {error}; give it in `parameters` or `model_parameters`") from error
        own: Any = of_models
        per_model = {
            parameter.name: {model: own[model][parameter.name] for model in models if parameter.name in own[model]}
            for parameter in self._method.spec.input_parameters
        }
        return {**shared, **per_model}

    def _sources(self, model: str | None) -> list[Mapping[str, Any]]:
        """Where to look for a model's parameters, what is most specific first."""
        own = [self._settings[model]] if model is not None and model in self._settings else []
        return [*own, self._settings[None]]

    def _checked_settings(self, where: str, given: Mapping[str, Any], *, for_model: bool = False) -> dict[str, Any]:
        """``given`` in mergekit's types, every value of it valid for the method."""
        spec = self._method.spec
        checked = {}
        for name, value in given.items():
            parameter = next((known for known in spec.parameters if known.name == name), None)
            if parameter is None:
                known = [known.name for known in spec.parameters]
                raise OptionError(
                    f"{where}: {self.merge_method} has no parameter {name!r}; {did_you_mean(name, known)}"
                )
            if for_model and parameter.scope == ParameterScope.SHARED:
                raise OptionError(
                    f"{where}: {name!r} of {self.merge_method} is one for all models; move it to `parameters`"
                )
            if value is None:
                continue
            try:
                checked[name] = _SETTING.validate_python(value)
                for scalar in _scalars(value):
                    parameter.validate(scalar)
            except ValidationError as error:
                reason = error.errors()[0]["msg"]
                raise OptionError(f"{where}.{name}: got {value!r}; {reason[0].lower()}{reason[1:]}") from error
        return checked


def _registered(name: str | None) -> MergeMethod:
    known = {method.spec.name: method for method in merge_methods.registered_methods()}
    if name is None:
        raise OptionError(f"option 'merge_method': name the mergekit method to use, one of: {', '.join(sorted(known))}")
    if name not in known:
        raise OptionError(
            f"option 'merge_method': mergekit has no merge method {name!r}; {did_you_mean(name, sorted(known))}"
        )
    return known[name]


def _layer(name: str) -> int | None:
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def _scalars(setting: Any) -> list[Any]:
    """The single values in a setting: of a gradient its points, of filters the value of each."""
    if isinstance(setting, list):
        return [scalar for part in setting for scalar in _scalars(part)]
    if isinstance(setting, Mapping):
        return _scalars(setting.get("value"))
    return [setting]
