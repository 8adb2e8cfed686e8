"""Merging with fixed weights, one tensor at a time, exactly as mergekit would by the static config.

mergekit's own planner lays the merge out: so filters, layer gradients, defaults and the methods' bookkeeping are its
own, and what is computed here for a tensor is what ``mergekit-yaml static.yml`` computes for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from mergekit import merge_methods
from mergekit.architecture import get_architecture_info
from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache, SaveTensor
from mergekit.merge import _model_out_config
from mergekit.merge_methods import ParameterScope
from mergekit.merge_methods.task_adapter import ExecuteMergeMethodTask
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner
from torch import Tensor

from mergekit_3h.errors import ModelError, OptionError, ThreeHError
from mergekit_3h.lint.findings import shortened
from mergekit_3h.losses.draws import drawing_from
from mergekit_3h.methods.safety.request import Request


class StaticMerge:
    """All tensors of the merge under one set of weights, given as ``weight`` parameters by the experts' labels."""

    def __init__(self, request: Request, weights: Mapping[str, Any], options: MergeOptions) -> None:
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

    def combine(self, name: str, base: Tensor, experts: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """The tensor of a candidate: the experts have other weights than those that were planned."""
        task = self._by_any_name[name]
        models = list(self.request.experts.values())
        parameters = {**_own_parameters(task, models), "weight": dict(zip(models, weights, strict=True))}
        return merge_methods.merge_tensors(
            [*experts, base],
            task.method_name,
            parameters=parameters,
            ids=[*models, self.request.base],
            base_index=len(models),
            name=task.output_weight.name,
        )

    def require_all(self, names: Sequence[str]) -> None:
        """Raise unless mergekit merges each of these tensors of the model."""
        missing = [name for name in names if name not in self._by_any_name]
        if missing:
            raise ModelError(
                f"mergekit does not merge {len(missing)} of the model's {len(names)} tensors ({shortened(missing)}), "
                "so what is searched would not be what is written"
            )

    def try_parameters(self) -> None:
        """Raise if the method rejects its parameters, by merging a small tensor with each different set of them."""
        models = list(self.request.experts.values())
        tried: list[dict[str, Any]] = []
        for name, task in self._tasks.items():
            parameters = _own_parameters(task, models)
            if parameters in tried:
                continue
            tried.append(parameters)
            with drawing_from(0, torch.device("cpu")):
                tensors = [torch.randn(8, 8) for _ in (*models, self.request.base)]
                try:
                    self.combine(name, tensors[-1], tensors[:-1], [1.0] * len(models))
                except Exception as error:
                    raise OptionError(f"{task.method_name} rejects its options for {name}: {error}") from error

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
    architecture = get_architecture_info(parsed, options)
    outputs = _model_out_config(parsed, architecture, options.trust_remote_code)
    planner = MergePlanner(parsed, architecture, options, outputs)
    # Planning writes nothing: the output folder is made when the tasks are executed.
    saved = [task for task in planner.plan_to_disk(out_path="") if isinstance(task, SaveTensor)]
    return {
        task.tensor_name: task.tensor_task for task in saved if isinstance(task.tensor_task, ExecuteMergeMethodTask)
    }


def _own_parameters(task: ExecuteMergeMethodTask, models: Sequence[ModelReference]) -> dict[str, Any]:
    """Everything but the weights, as mergekit has resolved it for this tensor."""
    spec = merge_methods.get(task.method_name).spec
    parameters = dict(task.parameters.items())
    for parameter in spec.input_parameters:
        if parameter.name != "weight" and parameter.scope == ParameterScope.NON_BASE:
            parameters[parameter.name] = {model: task.input_parameters[model][parameter.name] for model in models}
    return parameters
