"""mergekit, as the lint asks it: its methods, its config classes, and its planner, which says what a merge combines.

No other file of this room imports mergekit, and no other file of the package drives its planner.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any

from mergekit._data import chat_templates
from mergekit.architecture import get_architecture_info
from mergekit.architecture.conversion import can_convert_checkpoint_keys
from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration
from mergekit.io import LazyTensorLoader, ShardedTensorIndex
from mergekit.io.lazy_tensor_loader import ShardInfo
from mergekit.io.tasks import LoaderCache, SaveTensor
from mergekit.merge import _model_out_config
from mergekit.merge_methods import BasePolicy, MergeMethod, registered_methods
from mergekit.merge_methods.base import MergeMethodSpec, ParameterSpec
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner
from mergekit.scripts.merge_raw_pytorch import RawPyTorchMergeConfig

from mergekit_3h.checkpoints.headers import Checkpoint
from mergekit_3h.checkpoints.loading import layer_number
from mergekit_3h.lint.findings import Finding
from mergekit_3h.lint.models import NamedModel
from mergekit_3h.lint.planned import PlannedInput, PlannedTensor, ResolvedTensor, tensors_of_files

__all__ = [
    "BasePolicy",
    "Config",
    "MergeConfiguration",
    "MergeMethod",
    "MergeMethodSpec",
    "ParameterSpec",
    "RawPyTorchMergeConfig",
    "builtin_templates",
    "merge_tasks",
    "methods_by_name",
    "planned_tensors",
    "resolved_tensors",
    "save_tasks",
]
Config = MergeConfiguration | RawPyTorchMergeConfig


def methods_by_name() -> dict[str, MergeMethod]:
    """Every merge method that is registered with mergekit, this package's and others' included."""
    return {method.spec.name: method for method in registered_methods()}


def builtin_templates() -> list[str]:
    """The chat templates that mergekit knows by name."""
    names = (entry.name for entry in resources.files(chat_templates).iterdir())
    return sorted(name.removesuffix(".jinja") for name in names if name.endswith(".jinja"))


def planned_tensors(config: Any, models: list[NamedModel]) -> tuple[list[PlannedTensor], list[Finding]]:
    """All tensors of the merge, whatever its method and options; or why mergekit cannot lay them out."""
    if not isinstance(config, MergeConfiguration):
        return tensors_of_files(models), []
    neutral = config.model_dump(mode="json")
    _drop_parameters(neutral)
    # linear accepts any number of inputs with or without a base, so this asks for the layout alone.
    neutral |= {"merge_method": "linear", "parameters": {"weight": 1.0}, "tokenizer": None, "tokenizer_source": None}
    plan, findings = _run_planner(neutral, models)
    return [_planned(task, models) for task in plan], findings


def resolved_tensors(config: Any, models: list[NamedModel]) -> tuple[list[ResolvedTensor], list[Finding]]:
    """The config as it stands, planned with all of its options; or what the planner stops at first."""
    if not isinstance(config, MergeConfiguration):
        return [], []
    tasks, findings = _run_planner(config.model_dump(mode="json"), models)
    merges: list[Any] = [task.tensor_task for task in tasks]
    return [
        ResolvedTensor(
            merge.output_weight.name,
            dict(merge.parameters.items()),
            {str(model): dict(values.items()) for model, values in merge.input_parameters.items()},
        )
        for merge in merges
    ], findings


def save_tasks(config: MergeConfiguration, options: MergeOptions) -> list[SaveTensor]:
    """mergekit's own plan of a merge, a task for each tensor of the result; no tensor is read, and nothing written."""
    return [task for task in merge_tasks(config, options) if isinstance(task, SaveTensor)]


def merge_tasks(config: MergeConfiguration, options: MergeOptions, out: str = "") -> list[Any]:
    """The same with all that mergekit executes to have the result's weights in a folder."""
    architecture = get_architecture_info(config, options)
    with _silenced([logging.getLogger("transformers.configuration_utils")]):  # mergekit still says torch_dtype
        outputs = _model_out_config(config, architecture, options.trust_remote_code)
    # Planning writes nothing: the output folder is made when the tasks are executed.
    return list(MergePlanner(config, architecture, options, outputs).plan_to_disk(out_path=out))


def _run_planner(raw: dict[str, Any], models: list[NamedModel]) -> tuple[list[SaveTensor], list[Finding]]:
    references = {model.name: model.reference for model in models}
    config = MergeConfiguration.model_validate(_on_this_disk(raw, references))
    loggers = [logging.getLogger(name) for name in ("mergekit.architecture", "transformers")]
    try:
        with _known_indices(models), _silenced(loggers):
            return save_tasks(config, MergeOptions()), []
    except Exception as error:
        return [], [Finding("error", "plan", f"mergekit cannot plan this merge: {_in_one_line(error)}")]


def _in_one_line(error: Exception) -> str:
    """Without the whole config of a model, which mergekit and transformers put into some messages."""
    text = re.sub(r"\{.{80,}\}", "{...}", " ".join(str(error).split()))
    return f"{type(error).__name__}: {text}"


def _on_this_disk(raw: Any, references: dict[str, str]) -> Any:
    """The config with cached models named by their folders, so that nothing asks the hub for them."""
    if isinstance(raw, list):
        return [_on_this_disk(entry, references) for entry in raw]
    if isinstance(raw, dict):
        return {key: _on_this_disk(entry, references) for key, entry in raw.items()}
    return references.get(raw, raw) if isinstance(raw, str) else raw


def _drop_parameters(raw: Any) -> None:
    for value in raw.values() if isinstance(raw, dict) else raw if isinstance(raw, list) else ():
        _drop_parameters(value)
    if isinstance(raw, dict) and "parameters" in raw:
        raw["parameters"] = None


@contextmanager
def _known_indices(models: list[NamedModel]) -> Iterator[None]:
    """Give mergekit's loader cache our indices, so that it neither reads files nor merges adapters."""
    cache = LoaderCache()
    before = dict(cache.loaders)
    for model in models:
        if model.checkpoint is not None:
            cache.loaders[ModelReference.parse(model.reference)] = LazyTensorLoader(_index(model.checkpoint))
    try:
        yield
    finally:
        cache.loaders.clear()
        cache.loaders.update(before)


@contextmanager
def _silenced(loggers: list[logging.Logger]) -> Iterator[None]:
    root = logging.getLogger()
    levels = [(logger, logger.level) for logger in (*loggers, root)]
    for logger, _ in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)


def _index(checkpoint: Checkpoint) -> ShardedTensorIndex:
    paths = {tensor.name: tensor.file.name for tensor in checkpoint.tensors.values()}
    shards = [ShardInfo(file.name, [n for n, f in paths.items() if f == file.name]) for file in checkpoint.files]
    safe = all(file.suffix == ".safetensors" for file in checkpoint.files)
    return ShardedTensorIndex(str(checkpoint.path), safe, paths, shards)


def _planned(task: Any, models: list[NamedModel]) -> PlannedTensor:
    by_reference = {model.reference: model for model in models}
    merge = task.tensor_task
    weight = merge.output_weight
    needed = merge.gather_tensors.weight_info
    inputs = tuple(_input(by_reference[str(model)], needed[model]) for model in merge.model_order)
    return PlannedTensor(weight.name, inputs, weight.vocabulary_axis, weight.optional)


def _input(model: NamedModel, needed: Any) -> PlannedInput:
    assert model.checkpoint is not None
    aliases, tied = tuple(needed.aliases or ()), tuple(needed.tied_names or ())
    names = (needed.name, *aliases, *tied)
    stored = next((model.checkpoint.tensors[name] for name in names if name in model.checkpoint.tensors), None)
    made = stored is None and any(_can_be_made(model, name) for name in (needed.name, *aliases))
    missing = stored is None and not made and not needed.optional
    return PlannedInput(model.name, needed.name, stored, missing, made, (*aliases, *tied))


def _can_be_made(model: NamedModel, name: str) -> bool:
    """Whether mergekit finds transformers' way from stored tensors to this one: first looked for in its own layer.

    It matches every stored name with every pattern; with 128 experts in a layer that takes minutes for all of them.
    """
    assert model.checkpoint is not None
    model_type, stored = model.settings.get("model_type"), model.checkpoint.tensors
    own_layer = {other for other in stored if layer_number(other) == layer_number(name)}
    return any(can_convert_checkpoint_keys(model_type, keys, name) for keys in (own_layer, set(stored)) if keys)
