"""What a search will cost: time of an evaluation, and peak memory. An estimate, and its text says so."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from mergekit_3h.inspection.throughput import Throughput, measure_throughput, product_rate
from mergekit_3h.lint.at_once import workers_on
from mergekit_3h.lint.estimate import tensor_seconds
from mergekit_3h.losses.answers import Batch, batched
from mergekit_3h.search.candidate_model import merged_parameters
from mergekit_3h.search.combinations import is_held, is_linear
from mergekit_3h.search.options import SearchOptions
from mergekit_3h.search.problem import Problem
from mergekit_3h.search.runner import FORWARD_PASSES, GRADIENT_PASSES
from mergekit_3h.search.tuned_families import Tuning
from mergekit_3h.search.tuning import FACTOR
from mergekit_3h.spectral.tensors import matrix_bytes, merges_as_matrices

# Python with torch, transformers and mergekit loaded; seen with torch 2.13 on Linux.
_PROCESS_BYTES = 600_000_000
# Values of the hidden size that a layer keeps for its backward pass, for each token: seen on Llamas.
_KEPT_VALUES = 24
_FLOAT32 = 4


@dataclass(frozen=True)
class SearchEstimate:
    """Of a search in one process. Most solvers end before ``evaluations``, which are all that they may make."""

    parameters: int
    records: int
    tokens: int
    """Of all records, with the padding of their batches."""
    dtype: str
    device: str
    seconds_models: float
    """For the losses of the base and of every expert by itself."""
    seconds_each: float
    """For the losses of a candidate whose tensors are merged."""
    evaluations: int
    seconds_merge: float
    """For all tensors merged, or decomposed into what candidates are sums of."""
    merges: int
    """How often that happens, about: another lambda needs no merge."""
    peak_bytes: int

    @property
    def seconds_most(self) -> float:
        candidates = self.evaluations * self.seconds_each + self.merges * self.seconds_merge
        return self.seconds_models + candidates

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "seconds_most": self.seconds_most}


def estimate_search(problem: Problem, device: str) -> SearchEstimate:
    """From the model's shapes, the records' tokens, and short runs on this device."""
    options, experts = problem.options, len(problem.experts)
    batches = batched(problem.answers, options.batch_size)
    dtype = torch.float32 if options.dtype == "auto" and device == "cpu" else _dtype(problem)
    parameters = sum(parameter.numel() for parameter in problem.model.parameters())
    forward = _forward_flops(problem.model, batches) / product_rate(dtype, device)
    has_gradient = options.solver == "gradient"
    passes = GRADIENT_PASSES if has_gradient else FORWARD_PASSES
    mixing = _mixing_passes(experts, has_gradient) * _FLOAT32 * parameters
    speed = measure_throughput(None, device)
    merges, merging = _merges(problem), _Merging.of(problem, speed, device)
    return SearchEstimate(
        parameters=parameters,
        records=sum(len(batch.order) for batch in batches),
        tokens=sum(batch.ids.numel() for batch in batches),
        dtype=str(dtype).removeprefix("torch."),
        device=device,
        seconds_models=(1 + experts) * forward,
        seconds_each=passes * forward + mixing / speed.elementwise,
        evaluations=options.max_evaluations,
        seconds_merge=merging.seconds if merges else 0.0,
        merges=merges,
        peak_bytes=_PROCESS_BYTES
        + parameters * dtype.itemsize
        + _component_bytes(problem, parameters)
        + (merging.largest if merges else 0)
        + _batch_bytes(problem.model, batches, dtype, has_gradient),
    )


@dataclass(frozen=True)
class _Merging:
    """Of all tensors of a candidate, one after the other, in float32."""

    seconds: float = 0.0
    largest: int = 0
    """Bytes that the tensor takes that takes most, with copies of it from all models."""

    @classmethod
    def of(cls, problem: Problem, speed: Throughput, device: str) -> _Merging:
        method, experts, workers = problem.method, len(problem.experts), workers_on(device)
        seconds, largest = 0.0, 0
        for name in merged_parameters(problem.model, problem.base.names()):
            shape = problem.base.shape(name)
            by_vectors = method is not None and merges_as_matrices(name, torch.empty(shape, device="meta"), method)
            own = method if by_vectors else None
            seconds += tensor_seconds(problem.options.combine, shape, experts + 1, own, speed, workers)
            working = 0 if own is None else matrix_bytes(shape, torch.float32, experts, own)
            largest = max(largest, (experts + 2) * _FLOAT32 * math.prod(shape) + working)
        return cls(seconds, largest)


def _merges(problem: Problem) -> int:
    """How often the tensors are merged, or decomposed."""
    options = problem.options
    if problem.tuning is not None:
        return _merges_of_options(problem.tuning, options)
    if options.combine == "task_arithmetic":
        return 0
    if is_linear(options.combine):
        return 1
    # With a part held it is decomposed once, and what was found is merged once more.
    return 2 if is_held(options.combine, options.solver) else options.max_evaluations


def _merges_of_options(tuning: Tuning, options: SearchOptions) -> int:
    has_factor = tuning.scales and FACTOR in [axis.name for axis in tuning.axes]
    if has_factor and len(tuning.axes) == 1 and not options.finds_weights:
        return 1
    # A climb looks at two values of lambda at least while it has a merge at hand.
    return math.ceil(options.max_evaluations / 2) if has_factor else options.max_evaluations


def _dtype(problem: Problem) -> torch.dtype:
    if problem.options.dtype != "auto":
        return getattr(torch, problem.options.dtype)
    return problem.base.tensor(_smallest(problem)).dtype


def _smallest(problem: Problem) -> str:
    def size(name: str) -> int:
        return torch.Size(problem.base.shape(name)).numel()

    return min(problem.base.names(), key=size)


def _mixing_passes(experts: int, has_gradient: bool) -> int:
    """Over every weight: the base read and the result written, each expert read and added, and its inner product."""
    return 2 + 2 * experts + (2 * experts if has_gradient else 0)


def _forward_flops(model: nn.Module, batches: Sequence[Batch]) -> float:
    """Two for each weight of a product and token; embeddings are looked up, and the head is for what it predicts."""
    untied: Any = model
    embeddings = (untied.get_input_embeddings(), untied.get_output_embeddings())
    ends = {each.weight: each.weight.numel() for each in embeddings if each is not None}
    weights = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim > 1) - sum(ends.values())
    head = 0 if embeddings[1] is None else embeddings[1].weight.numel()
    layers, hidden = _layers(model), _hidden(model)
    attention = sum(4 * layers * hidden * batch.ids.shape[0] * batch.ids.shape[1] ** 2 for batch in batches)
    return (
        2.0 * (weights * sum(batch.ids.numel() for batch in batches) + head * sum(map(_predicting, batches)))
        + attention
    )


def _component_bytes(problem: Problem, parameters: int) -> int:
    """The base and the experts as their checkpoints have them, or whole components in float32; where options are
    searched the merged update beside them."""
    width = problem.base.tensor(_smallest(problem)).element_size()
    if problem.tuning is not None:
        return parameters * (width * (1 + len(problem.experts)) + _FLOAT32)
    combine, solver = problem.options.combine, problem.options.solver
    is_decomposed = (is_linear(combine) and combine != "task_arithmetic") or is_held(combine, solver)
    return parameters * (width + len(problem.experts) * (_FLOAT32 if is_decomposed else width))


def _batch_bytes(model: nn.Module, batches: Sequence[Batch], dtype: torch.dtype, has_gradient: bool) -> int:
    """The logits of the largest batch, those of its answers, the gradients of both, and what the backward pass needs
    of every layer."""
    tokens = max(batch.ids.numel() for batch in batches)
    untied: Any = model
    vocabulary = int(getattr(untied.config.get_text_config(), "vocab_size", 0))
    logits = max(map(_predicting, batches)) * vocabulary * dtype.itemsize * (4 if has_gradient else 2)
    kept = _KEPT_VALUES * _hidden(model) * (_layers(model) if has_gradient else 1)
    largest = max(parameter.numel() for parameter in model.parameters()) if has_gradient else 0
    return logits + tokens * kept * dtype.itemsize + 3 * _FLOAT32 * largest


def _predicting(batch: Batch) -> int:
    """Places that logits are made for, in models that can leave the others out."""
    return batch.ids.shape[0] * len(batch.places)


def _layers(model: nn.Module) -> int:
    untied: Any = model
    return int(getattr(untied.config.get_text_config(), "num_hidden_layers", 1))


def _hidden(model: nn.Module) -> int:
    untied: Any = model
    return int(getattr(untied.config.get_text_config(), "hidden_size", 1))
