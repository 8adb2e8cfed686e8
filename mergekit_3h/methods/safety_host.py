"""mergekit as the host of a safety merge: models are references of a config, and its planner lays the merge out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from mergekit.options import MergeOptions
from torch import nn

from mergekit_3h.checkpoints.headers import read_checkpoint
from mergekit_3h.checkpoints.locations import config_problem
from mergekit_3h.checkpoints.opening import empty_model, load_model, require_same_architecture
from mergekit_3h.checkpoints.precision import stored_dtype
from mergekit_3h.checkpoints.sources import CheckpointSource
from mergekit_3h.checkpoints.tokenizers import load_tokenizer
from mergekit_3h.errors import ModelError
from mergekit_3h.methods.fixed_merge import MergekitFixedMerge
from mergekit_3h.methods.safety_request import BASE_LABEL, SafetyRequest, folder_of, read_config, read_request
from mergekit_3h.safety.combination import Combination
from mergekit_3h.safety.port import OpenedModels


class MergekitHost:
    """A request under mergekit's options."""

    def __init__(self, request: SafetyRequest, options: MergeOptions) -> None:
        self.request, self._options = request, options

    @property
    def combination(self) -> Combination:
        return self.request.combination

    @property
    def names(self) -> dict[str, str]:
        return {label: str(model) for label, model in self.request.models.items()}

    @property
    def device(self) -> str:
        return str(self._options.device or "cpu")

    @property
    def silent(self) -> bool:
        return bool(self._options.quiet)

    @cached_property
    def folders(self) -> dict[str, Path]:
        """Where the models are, by label; adapters are merged, and models of the hub fetched."""
        options = self._options
        where = (options.transformers_cache, options.lora_merge_cache, options.trust_remote_code)
        return {label: folder_of(model, *where) for label, model in self.request.models.items()}

    def opened(self) -> OpenedModels:
        trust = self._options.trust_remote_code
        for label, folder in self.folders.items():
            damage = [*filter(None, [config_problem(folder)]), *read_checkpoint(folder).damage]
            if damage:
                raise ModelError(f"model {label!r}: {'; '.join(damage)}; download or save the model again")
        base, *experts = [CheckpointSource(folder, label) for label, folder in self.folders.items()]
        require_same_architecture([base, *experts], trust)
        tokenizers = {label: load_tokenizer(folder, trust) for label, folder in self.folders.items()}
        module = empty_model(base.folder, trust)
        return OpenedModels(base, tuple(experts), tokenizers, module, stored_dtype(base.folder))

    def searched_module(self, device: Any, dtype: str) -> nn.Module:
        return load_model(self.folders[BASE_LABEL], dtype, device, self._options.trust_remote_code)

    def fixed(self, weights: Mapping[str, Any], options: Mapping[str, Any]) -> MergekitFixedMerge:
        return MergekitFixedMerge(self.request.with_options(options), weights, self._options)

    def static(self, weights: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        return self.request.with_options(options).static(weights)

    def report_folder(self) -> Path | None:
        return self.combination.given.run.folder()

    def reopening(self) -> Callable[[], MergekitHost]:
        return partial(MergekitHost, self.request, self._options)


def host_of(config: Path, overrides: Mapping[str, Any], how: Mapping[str, Any]) -> MergekitHost:
    """mergekit on the config in a file. ``overrides`` are options that go before those of the config, ``how`` are
    mergekit's own."""
    return MergekitHost(read_request(read_config(config), overrides), MergeOptions(**how))
