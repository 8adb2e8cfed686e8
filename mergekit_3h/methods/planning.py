"""A look at the whole merge while mergekit plans it, before any tensor is read.

mergekit hands a method one tensor's options at a time and drops the names it does not know, so a misspelt option would
silently run on its default; and a tensor that one model lacks, or a shard that is cut off, stops a merge only when its
turn comes. The planner's frame is the only place from which the whole config can be seen. Where there is no planner
(merges from Python), nothing is checked here, and mergekit's own checks stand.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from mergekit.merge_methods.base import MergeMethodSpec

from mergekit_3h.errors import ModelError, OptionError
from mergekit_3h.lint.findings import Finding
from mergekit_3h.methods.groups import Lookahead

if TYPE_CHECKING:
    from mergekit_3h.lint.models import NamedModel
    from mergekit_3h.lint.planned import PlannedTensor

_FRAMES_UP_TO_THE_PLANNER = 8
_CONFIGS = ("MergeConfiguration", "RawPyTorchMergeConfig")
_LISTED_PATTERNS = [("list-of-strings", f"parameters.{option}") for option in ("exclude", "keep_base")]


@dataclass(frozen=True, eq=False)
class CheckedMerge:
    """A merge that passed."""

    config: Any
    ahead: Lookahead


_checked: deque[CheckedMerge] = deque(maxlen=4)
"""The last merges that passed: mergekit asks again for every tensor."""


def checked_merge(spec: MergeMethodSpec) -> CheckedMerge | None:
    """The merge being planned; None where there is no planner.

    Raises if it has a bad option, or models whose tensors do not fit together.
    """
    config, options = planned_merge()
    if config is None:
        return None
    for passed in _checked:
        if passed.config is config:
            return passed
    from mergekit_3h.lint import parameter_findings

    _refuse(OptionError, spec, parameter_findings(config, spec))
    plan = check_models(spec, config, options)
    _checked.append(CheckedMerge(config, lookahead(config, plan, options)))
    return _checked[-1]


def lookahead(config: Any, plan: Sequence[PlannedTensor], options: Any) -> Lookahead:
    """For the tensors of a merge, which begin ahead of their turn where mergekit's options allow that."""
    from mergekit_3h.lint.planned_merge import output_bytes

    return Lookahead({tensor.name: output_bytes(config, tensor) for tensor in plan}, _merging_device(options))


def _merging_device(options: Any) -> torch.device | None:
    """The one device that merges tensors out of the host's memory; None where several do, or they are kept there."""
    device = torch.device(getattr(options, "device", None) or "cpu")
    stays = device.type != "cpu" and any(getattr(options, name, False) for name in ("low_cpu_memory", "read_to_gpu"))
    return None if stays or getattr(options, "multi_gpu", False) else device


def check_models(spec: MergeMethodSpec, config: Any, options: Any) -> list[PlannedTensor]:
    """Raise if the models' files are damaged, do not fit together, or would lose tensors in mergekit's hands.

    Returns the tensors of the merge, none where not all models are on this machine.
    """
    from mergekit_3h.lint.host_plan import planned_tensors
    from mergekit_3h.lint.models import named_models

    models = named_models(config, cache=getattr(options, "transformers_cache", None))
    _refuse(ModelError, spec, _damage(models))
    rules = {"missing-tensor", "listed-tensor", "lost-tensor", "shape"}
    if getattr(options, "unsafe_truncate_embeddings", False):
        rules.remove("shape")
    plan = planned_tensors(config, models)[0] if all(model.is_whole for model in models) else []
    _refuse(ModelError, spec, _misfits(config, plan, models, rules))
    return plan


def planned_merge() -> tuple[Any | None, Any]:
    """Config and options of the merge that a caller of this function is planning."""
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_FRAMES_UP_TO_THE_PLANNER):
        if frame is None:
            break
        planner, config = frame.f_locals.get("self"), frame.f_locals.get("config")
        if type(getattr(planner, "config", None)).__name__ in _CONFIGS:
            return getattr(planner, "config", None), getattr(planner, "options", None)
        if type(config).__name__ in _CONFIGS:
            return config, frame.f_locals.get("options")
        frame = frame.f_back
    return None, None


def _damage(models: Sequence[NamedModel]) -> list[Finding]:
    """Shards that are truncated or not there: mergekit would meet them in the middle of the merge.

    Those of the hub are left out, as mergekit may keep them in another cache than the one looked into.
    """
    advice = "download or save the model again"
    return [
        Finding("error", "weight-files", problem, advice=advice, model=model.name)
        for model in models
        if model.checkpoint is not None and model.location.status == "local"
        for problem in model.checkpoint.damage
    ]


def _misfits(config: Any, plan: list[PlannedTensor], models: list[NamedModel], rules: set[str]) -> list[Finding]:
    """Findings of these rules on the tensors, from the headers of the files."""
    from mergekit_3h.lint.tensors import tensor_findings

    found = [f for f in tensor_findings(config, plan, models) if f.rule in rules] if plan else []
    # The planner has rewritten the config: its place for a model is none that the user wrote.
    return [replace(f, where="") for f in found]


def _refuse(error: type[Exception], spec: MergeMethodSpec, findings: list[Finding]) -> None:
    # A list of patterns would give each layer one of them, which nobody means; a list of choices may be meant.
    found = [str(f) for f in findings if f.severity == "error" or (f.rule, f.where) in _LISTED_PATTERNS]
    if found:
        listed = found[0] if len(found) == 1 else "".join(f"\n  - {message}" for message in found)
        raise error(f"{spec.name} cannot run this merge: {listed}")
