"""Experts of a mergekit config that are LoRA adapters on its base, merged as the products they are.

mergekit adds an adapter to its base first and writes a whole model, rounded to 16 bits. Here it loads the base in the
adapter's place, and the merge method asks, by the tensor's name, for what the adapters change.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.merge_methods.base import TensorGroup
from mergekit.options import MergeOptions

from mergekit_3h.checkpoints.adapted_base import AdaptedBase, PlacedAdapter, require_trained_on
from mergekit_3h.checkpoints.adapters import open_adapter
from mergekit_3h.checkpoints.loading import LoadedNames, empty_module
from mergekit_3h.checkpoints.locations import locate
from mergekit_3h.diagnostics.record import watcher
from mergekit_3h.errors import ModelError, OptionError, TensorError, ThreeHError
from mergekit_3h.lint.host_plan import save_tasks
from mergekit_3h.lint.parameters import plain_options
from mergekit_3h.lint.roles import compared_models
from mergekit_3h.spectral import registry
from mergekit_3h.spectral.low_rank import LowRankUpdates, Route, bytes_to_merge_low_rank, merge_low_rank, require_route
from mergekit_3h.spectral.method import SpectralMethod

log = logging.getLogger(__name__)

LoraRoute = Literal["auto", "core", "dense", "merged"]
"""A ``Route``, or mergekit's own way: each adapter merged into its base, in a folder, before anything else."""

Taker = Callable[[str, LowRankUpdates, SpectralMethod, torch.device], None]
"""Takes the updates of a parameter, and the device to merge on, in place of merging them into the base."""


class AdapterExperts:
    """The adapters that a config merges, each on the same base."""

    def __init__(self, config: MergeConfiguration, route: Route, cache: str | None = None) -> None:
        self.route: Route = route
        self.take: Taker | None = None
        self.reference = _base_of(config)
        self.folder = _fetched(self.reference.model, cache)
        module = empty_module(self.folder)
        if module is None:
            raise ModelError(
                f"transformers cannot build {self.reference} from its config.json, which says where the modules of its "
                "adapters are; --lora merged with --lora-merge-cache leaves them to peft"
            )
        self.base = AdaptedBase(f"the base model {self.reference}", module)
        self._names = LoadedNames(module)
        self.adapters = {model: self._opened(model, cache) for model in _adapted(config)}
        self.adapted = {parameter for adapter in self.adapters.values() for parameter in adapter.places}

    def _opened(self, model: ModelReference, cache: str | None) -> PlacedAdapter:
        assert model.lora is not None
        adapter = open_adapter(_fetched(model.lora, cache), str(model.lora))
        require_trained_on(adapter, self.reference.model.path, self.folder)
        return PlacedAdapter(adapter, self.base)

    def parameter(self, name: str) -> str:
        """What transformers calls a tensor that mergekit names."""
        known = self._names.parameters_of(name)
        return known[0] if len(known) == 1 else name

    def require_all_merged(self, planned: Iterable[str]) -> None:
        """Raise unless everything that an adapter changes is among the tensors of the merge."""
        missing = self.adapted - {self.parameter(name) for name in planned}
        for model, adapter in self.adapters.items():
            for parameter in missing & adapter.places.keys():
                raise TensorError(
                    f"the adapter of {model} changes {parameter!r}, which mergekit does not merge for this "
                    "architecture: it would be lost. Leave the module out of the adapter, or merge in FusionBench."
                )

    def merge(self, group: TensorGroup, method: SpectralMethod, weights: Mapping[str, float]) -> torch.Tensor:
        """One tensor. ``weights`` are keyed as the errors call the experts."""
        base = group.base
        assert base is not None
        name = group.metadata.name or "unnamed"
        parameter = self.parameter(name)
        if parameter not in self.adapted:
            return base.tensor.clone()
        updates = {str(entry.id): self._of(entry.id).update(parameter, base.tensor) for entry in group.non_base}
        given = LowRankUpdates(name, updates, weights)
        if self.take is not None:
            self.take(parameter, given, method, base.tensor.device)
            return base.tensor
        return merge_low_rank(
            base.tensor,
            given,
            method,
            route=self.route,
            base_label=f"the base model {base.id}",
            watch=watcher(method, list(updates)),
        )

    def bytes_to_merge(self, name: str, base: torch.Tensor, method: SpectralMethod) -> int:
        """What ``merge`` takes of memory, the base included."""
        parameter = self.parameter(name)
        if parameter not in self.adapted:
            return 2 * base.nbytes
        ranks = [adapter.rank(parameter) for adapter in self.adapters.values()]
        rows, columns = base.shape
        return base.nbytes + bytes_to_merge_low_rank((rows, columns), base.itemsize, ranks, method, self.route)

    def _of(self, model: Any) -> PlacedAdapter:
        return self.adapters[model]


def route_of(config: MergeConfiguration, wanted: LoraRoute) -> Route | None:
    """How the config's experts are merged if they are adapters; None where mergekit merges them into their bases first.

    auto leaves to mergekit what cannot be merged as adapters; where core or dense is asked for it is an error.
    """
    has_adapters = any(model.lora for model in config.referenced_models())
    if wanted == "merged" or (wanted == "auto" and not has_adapters):
        return None
    if not has_adapters:
        raise OptionError(f"--lora {wanted}: no model of the config is an adapter; write BASE+ADAPTER for its models")
    reason = _why_not(config)
    if reason is None:
        return wanted
    if wanted != "auto":
        raise OptionError(f"--lora {wanted}: {reason}")
    log.warning("the adapters are merged into their bases first: %s", reason)
    return None


def require_adapters(config: MergeConfiguration, wanted: LoraRoute, purpose: str) -> None:
    """Raise unless the experts are merged as adapters."""
    if wanted == "merged":
        raise OptionError(f"{purpose}: with --lora merged the adapters become whole models; leave it out")
    if not any(model.lora for model in config.referenced_models()):
        raise OptionError(f"{purpose}: no model of the config is an adapter; write BASE+ADAPTER for its models")
    reason = _why_not(config)
    if reason is not None:
        raise OptionError(f"{purpose}: {reason}")


def _why_not(config: MergeConfiguration) -> str | None:
    """What keeps the experts from being merged as adapters."""
    if config.merge_method not in registry.names():
        return f"{config.merge_method} is no spectral method ({', '.join(registry.names())})"
    if config.modules or config.slices:
        return "with slices or modules layers may change their places, and those of the adapters with them"
    compared = compared_models(config)
    if compared:
        return f"the layer gate compares the experts with {' and '.join(sorted(compared))}, which takes whole updates"
    base = config.base_model
    if base is None or base.lora is not None:
        return "the base model is not named, or an adapter itself"
    for model in config.referenced_models():
        if model != base and (model.lora is None or model.model != base.model):
            return f"{model} is no adapter on the base model {base}"
    return None


def _base_of(config: MergeConfiguration) -> ModelReference:
    assert config.base_model is not None
    return config.base_model


def _adapted(config: MergeConfiguration) -> list[ModelReference]:
    return [model for model in config.referenced_models() if model.lora is not None]


def _fetched(place: Any, cache: str | None) -> Path:
    """The folder of a model or an adapter; one of the hub is fetched."""
    found = locate(place.path, place.revision, cache)
    if found.status == "local" and found.path is not None:
        return found.path
    if found.status == "missing":
        raise ModelError(f"there is no model or adapter at {place.path}")
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.safetensors", "*.bin"]
        return Path(snapshot_download(place.path, revision=place.revision, cache_dir=cache, allow_patterns=patterns))
    except Exception as error:
        raise ModelError(f"{place.path} cannot be fetched: {type(error).__name__}: {error}") from error


_current: AdapterExperts | None = None


def current_experts() -> AdapterExperts | None:
    """The adapters of the merge that is running, if they are merged as such."""
    return _current


@contextmanager
def adapters_on_their_base(
    config: MergeConfiguration, wanted: LoraRoute, options: MergeOptions
) -> Iterator[AdapterExperts | None]:
    """While it lasts, mergekit's loaders give the base for an adapter, and our methods ask ``current_experts``."""
    global _current
    route = route_of(config, wanted)
    if route is None:
        yield None
        return
    experts = AdapterExperts(config, route, options.transformers_cache)
    _require_route(config, route)
    loaders = LoaderCache().loaders
    before = dict(loaders)
    try:
        base = experts.reference.lazy_loader(options.transformers_cache, options.lazy_unpickle)
        loaders.update(dict.fromkeys([experts.reference, *experts.adapters], base))
        # The planner rewrites the config that it is given.
        planned = save_tasks(config.model_copy(deep=True), options)
        experts.require_all_merged(task.tensor_name for task in planned)
        _current = experts
        yield experts
    finally:
        _current = None
        loaders.clear()
        loaders.update(before)


def _require_route(config: MergeConfiguration, route: Route) -> None:
    """The options that hold for all tensors; those of single tensors are looked at as they are merged."""
    try:
        method = plain_options(config)
    except ThreeHError:
        return  # mergekit's planner says what is wrong with them, and where
    assert method is not None  # only spectral methods merge adapters as such
    require_route(method, route, f"--lora {route}")
    if not method.is_equivariant:
        log.warning("%s with these options has no core space: the adapters are multiplied out", method.name)
