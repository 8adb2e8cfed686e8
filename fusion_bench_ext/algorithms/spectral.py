"""Spectral methods as FusionBench algorithms: their options from the one declaration, the kernel one tensor at a time.

Every method of ``mergekit_3h.spectral.registry`` has a class in this module, under the name of its own class.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from fusion_bench.modelpool.base_pool import BaseModelPool
from torch import Tensor

from fusion_bench_ext.adapters import AdaptedModel
from fusion_bench_ext.algorithms.streaming import LoadedTensor, StreamingAlgorithm
from fusion_bench_ext.errors import shown_by_hydra
from fusion_bench_ext.hydra_values import plain_value
from fusion_bench_ext.models import OpenModel, TensorFacts
from fusion_bench_ext.pools import BASE_NAME
from fusion_bench_ext.saving import AdapterDestination, Destination
from mergekit_3h.diagnostics.record import watcher
from mergekit_3h.errors import ModelError, OptionError
from mergekit_3h.kernels.workers import blas_threads
from mergekit_3h.options import checked, require_known
from mergekit_3h.spectral import registry
from mergekit_3h.spectral.gate import Roles, roles_of
from mergekit_3h.spectral.low_rank import (
    LowRankUpdates,
    Route,
    bytes_to_merge_low_rank,
    merge_low_rank,
    require_route,
)
from mergekit_3h.spectral.method import ExpertOptions, Role, RunningOptions, SpectralMethod
from mergekit_3h.spectral.rounding_log import RoundingLog
from mergekit_3h.spectral.tensors import matrix_bytes, merge_tensor
from mergekit_3h.suggestions import did_you_mean


class SpectralAlgorithm(StreamingAlgorithm):
    """One spectral method; each option is an attribute, under its YAML key in ``config``.

    ``weight`` is a number for all experts, a list in the pool's order, or a mapping from model names, where those not
    named have the default. ``role`` is such a mapping too: models that are ``unaligned`` or ``safety`` are compared
    with and not merged, and have no weight. ``lambda`` is a keyword of Python: as an attribute it is ``lambda_``, and
    in a call it is given as ``**{"lambda": 0.5}``. ``lora`` says how experts that are all LoRA adapters are merged: in
    their core space where the method has one (auto), there or not at all (core), or multiplied out (dense).
    ``adapter_save_path`` is a folder for one adapter that has the merge of adapters in it, ``adapter_rank`` its rank at
    most; the merged model is then the base with this adapter. Tensors are merged side by side, one BLAS thread each,
    within ``memory_gb``.
    """

    method: ClassVar[type[SpectralMethod]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        keys = {attribute: field.alias or attribute for attribute, field in cls.method.model_fields.items()}
        own = {name: name for name in ("weight", "role", "lora", "adapter_save_path", "adapter_rank", "memory_gb")}
        cls._config_mapping = StreamingAlgorithm._config_mapping | keys | own
        cls.title = cls.method.title

    def __init__(
        self,
        *,
        weight: float | Sequence[float] | Mapping[str, float] = 1.0,
        role: Literal["expert"] | Mapping[str, Role] = "expert",
        lora: Route = "auto",
        adapter_save_path: str | None = None,
        adapter_rank: int | None = None,
        memory_gb: float | None = None,
        model_save_path: str | None = None,
        **options: Any,
    ) -> None:
        host_keys = {name: options.pop(name) for name in list(options) if name.startswith("_")}
        super().__init__(model_save_path=model_save_path, **host_keys)
        with shown_by_hydra():
            for name in options:
                require_known(
                    self.method.name,
                    name,
                    [*registry.option_names(self.method.name), *_OF_THE_HOST],
                )
            parsed = registry.parse_options(self.method.name, options)
            self.weight = plain_value(weight)
            _require_weights(self.weight)
            self.role = plain_value(role)
            _require_roles(self.role)
            self.memory_gb = checked(RunningOptions, "memory_gb", memory_gb)
            _require_route(lora)
            _require_adapter_rank(adapter_rank, adapter_save_path)
        self.lora: Route = lora
        self.adapter_save_path, self.adapter_rank = adapter_save_path, adapter_rank
        self._adapter: AdapterDestination | None = None
        for attribute in self.method.model_fields:
            setattr(self, attribute, getattr(parsed, attribute))

    @property
    def options(self) -> SpectralMethod:
        """The options as they are now, checked again: attributes may have been set since."""
        fields = self.method.model_fields
        return registry.parse_options(
            self.method.name, {field.alias or key: getattr(self, key) for key, field in fields.items()}
        )

    def base_name(self, modelpool: BaseModelPool) -> str:
        if not modelpool.has_pretrained:
            raise ModelError(
                f"{self.method.name} needs the model that the experts were trained from: add it to the pool's models "
                f"as {BASE_NAME!r}. The pool has: {modelpool.all_model_names}"
            )
        return BASE_NAME

    def check_pool(self, base: str | None, experts: Sequence[str]) -> None:
        self.memory_gb = checked(RunningOptions, "memory_gb", self.memory_gb)
        require_route(self.options, self.lora)
        _require_adapter_rank(self.adapter_rank, self.adapter_save_path)
        blas_threads()  # raises if the environment asks for what is no number
        self._used_options, self._roles = self.options, expert_roles(self.role, experts)
        self._roles.require_used(self._used_options)
        self._used_options.require_experts(len(self._roles.experts))
        self._used_weights = expert_weights(self.weight, self._roles.experts)
        self._rounding = RoundingLog()

    def destinations(self, modelpool: BaseModelPool) -> list[Destination | AdapterDestination]:
        models = super().destinations(modelpool)
        self._adapter = None
        if self.adapter_save_path is not None:
            _require_apart(self.adapter_save_path, self.model_save_path)
            self._adapter = AdapterDestination(self.adapter_save_path, self.adapter_rank, modelpool)
        return [*models, *([self._adapter] if self._adapter is not None else [])]

    def check_models(self, base: OpenModel | None, experts: Sequence[OpenModel]) -> None:
        if self._roles.others and (self.lora != "auto" or self._adapter is not None):
            option = "adapter_save_path" if self._adapter is not None else "lora"
            raise OptionError(
                f"option {option!r}: the layer gate compares the experts with {' and '.join(self._roles.others)}, "
                "which takes whole updates; leave the option out"
            )
        if self._adapter is not None:
            self._adapter.open(experts)
        if self.lora != "auto" and _adapters(experts) is None:
            raise OptionError(f"option 'lora': got {self.lora!r}, but not all experts of the pool are LoRA adapters")

    def _adapted(self, experts: Sequence[OpenModel]) -> Sequence[AdaptedModel] | None:
        """The experts where they are merged as adapters."""
        return None if self._roles.others else _adapters(experts)

    def bytes_to_merge(self, facts: TensorFacts, experts: int) -> int:
        result = 2 * max(4, facts.dtype.itemsize) * math.prod(facts.shape)  # and its copy in the models' dtype
        if len(facts.shape) < 2:
            return result
        return result + matrix_bytes(facts.shape, facts.dtype, experts, self._used_options)

    def bytes_needed(self, name: str, reference: OpenModel, experts: Sequence[OpenModel]) -> int | None:
        adapted, facts = self._adapted(experts), reference.describe(name)
        if adapted is None:
            return super().bytes_needed(name, reference, experts)
        base = math.prod(facts.shape) * facts.dtype.itemsize
        if not any(name in expert.changes for expert in adapted):
            return 2 * base
        rows, columns = facts.shape
        return base + bytes_to_merge_low_rank(
            (rows, columns),
            facts.dtype.itemsize,
            [expert.placed.rank(name) for expert in adapted],
            self._used_options,
            self.lora,
            as_adapter=self._adapter is not None,
        )

    def load(self, name: str, base: OpenModel | None, experts: Sequence[OpenModel]) -> LoadedTensor:
        adapted = self._adapted(experts)
        if base is None or adapted is None:
            return super().load(name, base, experts)
        tensor = base.load(name)
        if not any(name in expert.changes for expert in adapted):
            return LoadedTensor({}, lambda _: tensor.clone())
        updates = {expert.label: expert.update(name, tensor) for expert in adapted}
        weights = {expert.label: self._used_weights[expert.name] for expert in adapted}
        given = LowRankUpdates(name, updates, weights)
        return LoadedTensor({base.name: tensor}, partial(self._merge_updates, given, base.name))

    def _merge_updates(self, given: LowRankUpdates, base_name: str, moved: Mapping[str, Tensor]) -> Tensor:
        return merge_low_rank(
            moved[base_name],
            given,
            self._used_options,
            route=self.lora,
            base_label=f"the base model {base_name!r}",
            watch=watcher(self._used_options, list(self._used_weights)),
            as_adapter=None if self._adapter is None else self._adapter.part(given.name),
        )

    def merge(self, name: str, base: tuple[str, Tensor] | None, experts: Mapping[str, Tensor]) -> Tensor:
        assert base is not None
        roles = self._roles
        return merge_tensor(
            name,
            base[1],
            {_label(expert): tensor for expert, tensor in experts.items()},
            {_label(expert): self._used_weights[expert] for expert in roles.experts},
            self._used_options,
            base_label=f"the base model {base[0]!r}",
            roles=roles.renamed(_label),
            watch=watcher(self._used_options, roles.experts),
            rounding=self._rounding,
        )


def _label(model: str) -> str:
    """What errors call a model of the pool."""
    return f"model {model!r}"


def expert_roles(role: Any, models: Sequence[str]) -> Roles:
    """The role of each model from a mapping; those not named are merged."""
    given = role if isinstance(role, Mapping) else {}
    for name in given:
        if name not in models:
            raise OptionError(f"option 'role': the pool has no model {name!r} to merge; {did_you_mean(name, models)}")
    return roles_of({name: given.get(name, "expert") for name in models})


def expert_weights(weight: Any, experts: Sequence[str]) -> dict[str, float]:
    """The weight of each expert from a number, a list in the pool's order, or a mapping from names."""
    if isinstance(weight, Mapping):
        for name in weight:
            if name not in experts:
                raise OptionError(f"option 'weight': the pool has no model {name!r}; {did_you_mean(name, experts)}")
        default = ExpertOptions.model_fields["weight"].default
        return {name: _number(weight.get(name, default)) for name in experts}
    if isinstance(weight, list | tuple):
        if len(weight) != len(experts):
            raise OptionError(
                f"option 'weight': got {len(weight)} numbers for {len(experts)} models; expected one each for "
                f"{list(experts)}"
            )
        return {name: _number(value) for name, value in zip(experts, weight, strict=True)}
    return dict.fromkeys(experts, _number(weight))


_OF_THE_HOST = ("lora", "adapter_save_path", "adapter_rank", "memory_gb", "model_save_path")


def _adapters(experts: Sequence[OpenModel]) -> list[AdaptedModel] | None:
    """The experts, if all of them are adapters."""
    adapted = [expert for expert in experts if isinstance(expert, AdaptedModel)]
    return adapted if len(adapted) == len(experts) else None


def _require_adapter_rank(rank: Any, path: str | None) -> None:
    if rank is None:
        return
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise OptionError(f"option 'adapter_rank': got {rank!r}; expected a whole number from 1 on")
    if path is None:
        raise OptionError(f"option 'adapter_rank': got {rank}, but no adapter is written; name adapter_save_path too")


def _require_apart(adapter: str, model: str | None) -> None:
    """transformers takes a folder with an adapter for that adapter, whatever else is in it."""
    if model is not None and Path(adapter).expanduser().resolve() == Path(model).expanduser().resolve():
        raise OptionError(
            f"option 'adapter_save_path': got {adapter!r}, where model_save_path saves the whole model; name a folder "
            "of its own"
        )


def _require_weights(weight: Any) -> None:
    many = isinstance(weight, Mapping | list | tuple)
    for value in (list(weight.values()) if isinstance(weight, Mapping) else weight) if many else [weight]:
        _number(value)


def _require_roles(role: Any) -> None:
    if not isinstance(role, Mapping) and role != "expert":
        raise OptionError(f"option 'role': got {role!r}; expected a mapping from names of the pool's models to roles")
    for value in role.values() if isinstance(role, Mapping) else ():
        checked(ExpertOptions, "role", value)


def _require_route(lora: Any) -> None:
    routes = get_args(Route)
    if lora not in routes:
        raise OptionError(f"option 'lora': got {lora!r}; expected one of {', '.join(routes)}")


def _number(value: Any) -> float:
    return checked(ExpertOptions, "weight", value)


def class_name(method: str) -> str:
    """What the class of a method is called in this module."""
    return registry.method(method).__name__


_made: dict[str, type[SpectralAlgorithm]] = {}
_making = threading.Lock()


def __getattr__(name: str) -> type[SpectralAlgorithm]:
    method = None if name.startswith("_") else _method_of_class(name)
    if method is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with _making:
        if name not in _made:
            about = f"{method.title}, {method.paper}; its options are those of ``{method.__module__}.{name}``."
            names = {"method": method, "__module__": __name__, "__doc__": about}
            _made[name] = type(name, (SpectralAlgorithm,), names)
        return _made[name]


def _method_of_class(name: str) -> type[SpectralMethod] | None:
    return next((method for method in registry.methods().values() if method.__name__ == name), None)
