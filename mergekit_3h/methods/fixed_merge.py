"""Merging with fixed weights, one tensor at a time, exactly as mergekit would by the static config.

mergekit's own planner lays the merge out: so filters, layer gradients, defaults and the methods' bookkeeping are its
own, and what is computed here for a tensor is what ``mergekit-yaml static.yml`` computes for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, cast

from mergekit import merge_methods
from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.merge_methods import ParameterScope
from mergekit.merge_methods.base import MergeMethodSpec
from mergekit.merge_methods.task_adapter import ExecuteMergeMethodTask
from mergekit.options import MergeOptions
from torch import Tensor

from mergekit_3h.errors import OptionError, ThreeHError
from mergekit_3h.lint.host_plan import save_tasks
from mergekit_3h.methods.groups import MeasuredMethod
from mergekit_3h.methods.safety_request import SafetyRequest
from mergekit_3h.safety.candidates import NO_OPTIONS, candidate_parameters


class MergekitFixedMerge:
    """All tensors of the merge under one set of weights, given as ``weight`` parameters by the experts' labels."""

    def __init__(self, request: SafetyRequest, weights: Mapping[str, Any], options: MergeOptions) -> None:
        self.request = request
        self.config = request.static(weights)
        try:
            self._tasks = _planned(self.config, options)
        except ThreeHError:
            raise
        except Exception as error:
            raise OptionError(f"mergekit cannot plan the merge: {type(error).__name__}: {error}") from error

    def merged(self, name: str, tensors: Mapping[ModelReference, Tensor]) -> Tensor | None:
        """The tensor that mergekit calls ``name``, from those of all models."""
        return self._tasks[name].execute(dict(tensors))

    def bytes_to_merge(self, name: str, tensors: Sequence[Tensor]) -> int:
        """What that takes of memory, of a method that says it (``groups.MeasuredMethod``)."""
        task = self._tasks[name]
        method = cast("MeasuredMethod", merge_methods.get(task.method_name))
        return method.bytes_to_merge(task.output_weight.name, tensors, dict(task.parameters.items()))

    @property
    def spec(self) -> MergeMethodSpec:
        return merge_methods.get(self.config["merge_method"]).spec

    def combine(
        self,
        name: str,
        base: Tensor,
        experts: Sequence[Tensor],
        weights: Sequence[float] | None,
        options: Mapping[str, float] = NO_OPTIONS,
    ) -> Tensor:
        """The tensor of a candidate, whose experts have other weights, and the method other options, than those that
        were planned."""
        task = self._by_any_name[name]
        models = list(self.request.experts.values())
        parameters = candidate_parameters(self.spec, _own_parameters(task, models), models, weights, options)
        return merge_methods.merge_tensors(
            [*experts, base],
            task.method_name,
            parameters=parameters,
            ids=[*models, self.request.base],
            base_index=len(models),
            name=task.output_weight.name,
        )

    def not_merged(self, names: Sequence[str]) -> list[str]:
        """Which of these tensors of the model mergekit does not merge."""
        return [name for name in names if name not in self._by_any_name]

    def samples(self) -> Iterator[str]:
        """A tensor for every different set of parameters."""
        models = list(self.request.experts.values())
        seen: list[dict[str, Any]] = []
        for name, task in self._tasks.items():
            parameters = _own_parameters(task, models)
            if parameters not in seen:
                seen.append(parameters)
                yield name

    @cached_property
    def _by_any_name(self) -> dict[str, ExecuteMergeMethodTask]:
        """Tasks by every name that a checkpoint may have for their tensor."""
        named: dict[str, ExecuteMergeMethodTask] = {}
        for task in self._tasks.values():
            weight = task.output_weight
            for alias in (*(weight.aliases or ()), *(weight.tied_names or ())):
                named.setdefault(alias, task)
        return {**named, **self._tasks}


def _planned(config: Mapping[str, Any], options: MergeOptions) -> dict[str, ExecuteMergeMethodTask]:
    parsed = MergeConfiguration.model_validate(config)
    LoaderCache().setup(options)
    saved = save_tasks(parsed, options)
    return {
        task.tensor_name: task.tensor_task for task in saved if isinstance(task.tensor_task, ExecuteMergeMethodTask)
    }


def _own_parameters(task: ExecuteMergeMethodTask, models: Sequence[ModelReference]) -> dict[str, Any]:
    """Everything as mergekit has resolved it for this tensor."""
    spec = merge_methods.get(task.method_name).spec
    parameters = dict(task.parameters.items())
    for parameter in spec.input_parameters:
        if parameter.scope == ParameterScope.NON_BASE:
            parameters[parameter.name] = {model: task.input_parameters[model][parameter.name] for model in models}
    return parameters
