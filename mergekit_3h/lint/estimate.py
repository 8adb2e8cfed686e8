"""What a merge will cost: output size, bytes read, peak memory and time. An estimate, and its text says so."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from mergekit_3h.inspection.throughput import Throughput, measure_throughput
from mergekit_3h.kernels.devices import float64_rate
from mergekit_3h.lint.at_once import (
    AtOnce,
    allowed_at_once,
    carried_at_once,
    is_carried,
    largest_at_once,
    merged_alone,
    workers_on,
)
from mergekit_3h.lint.models import NamedModel
from mergekit_3h.lint.planned import PlannedTensor, source_tensors
from mergekit_3h.lint.planned_merge import PlannedMerge, elements
from mergekit_3h.lint.trials import Trials, trials_of
from mergekit_3h.spectral import registry
from mergekit_3h.spectral.gate import gate_products
from mergekit_3h.spectral.method import SpectralMethod

# mergekit collects tensors up to this size before it writes a shard (its --out-shard-size).
SHARD_BYTES = 5_000_000_000
# Python with torch, transformers and mergekit loaded, without mapped libraries; seen with torch 2.13 on Linux.
_PROCESS_BYTES = 330_000_000
# What a host's own work on the same cores makes of the time of the matrices: a heuristic, 1.1 to 1.3 in merges of three
# experts of 60 to 135 M parameters on two cores. Beside a GPU that work is a stage of its own.
_HOSTS_WORK = 1.15
# Passes over each input, a heuristic: linear took 16 to 22 for 103 M parameters, ties, which sorts every tensor by
# magnitude, 580 for SmolLM2-135M; both with two threads.
_PLAIN_PASSES, _SORTING_PASSES = 20, 500
_SORTING_METHODS = ("ties", "breadcrumbs", "breadcrumbs_ties", "della", "della_linear", "sce", "ram", "ramplus_tl")


@dataclass(frozen=True)
class Estimate:
    """Bytes and seconds of the merge itself.

    Python's start is not in the seconds. ``peak_bytes`` is what the process needs for itself; ``mapped_bytes`` of
    weight files are mapped beside it, which tools that show the resident set count too, and which the system drops
    when it needs the space. Of the peak, ``at_once.own`` are what is being merged, ``collected_bytes`` the output that
    waits to be written. ``device_bytes`` are those of a GPU's memory for the tensor that takes most, if it goes through
    there while others are read and written. ``tried_whole`` matrices were merged to know the time, and parts of
    ``tried_parts``.
    """

    tensors: int
    parameters: int
    output_bytes: int
    read_bytes: int
    peak_bytes: int
    at_once: AtOnce
    device_bytes: int | None
    collected_bytes: int
    mapped_bytes: int
    seconds: float
    compute_seconds: float
    tried_whole: int
    tried_parts: int
    device: str
    basis: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def estimate_merge(config: Any, plan: list[PlannedTensor], models: list[NamedModel], device: str = "cpu") -> Estimate:
    """From the tensors' shapes and a calibration of this machine. Of a search, the merge that writes what it found."""
    config = _written(config)
    files = [file for model in models if model.checkpoint for file in model.checkpoint.files]
    sample = max(files, key=lambda file: file.stat().st_size, default=None)
    speed = measure_throughput(sample, device)
    merge, method = PlannedMerge(config, plan + source_tensors(plan, models)), config.merge_method
    tensors, workers = merge.plan, workers_on(device)
    costs = _Costs(merge, speed, workers, _HOSTS_WORK if torch.device(device).type == "cpu" else 1.0)
    trials = trials_of(merge, models, costs.of_matrix, device)
    output = sum(map(merge.output_bytes, tensors))
    read = sum(given.stored.nbytes for tensor in tensors for given in tensor.inputs if given.stored)
    needs = list(map(merge.need, tensors))
    allowed, passes = allowed_at_once(config, device), is_carried(config, device)
    if passes and allowed is not None:
        at_once = carried_at_once(list(map(merge.inputs, tensors)), list(map(merge.output_bytes, tensors)), allowed)
    else:
        at_once = largest_at_once(needs, allowed, workers)
    alone = merged_alone(needs, allowed, workers)
    compute = sum(costs.seconds(t, trials, is_alone=is_alone) for t, is_alone in zip(tensors, alone, strict=True))
    collected = min(output, SHARD_BYTES)
    sizes = {file: file.stat().st_size for file in files}
    mapped = sum(size for file, size in sizes.items() if file.suffix == ".safetensors")
    pickles = sum(sizes.values()) - mapped
    stages = (compute, read / speed.read, output / speed.write)
    what = "float64 eigendecompositions and products" if method in registry.names() else "element-wise passes"
    return Estimate(
        tensors=len(tensors),
        parameters=sum(map(elements, tensors)),
        output_bytes=output,
        read_bytes=read,
        peak_bytes=_PROCESS_BYTES + collected + at_once.own + pickles,
        at_once=at_once,
        device_bytes=max((need.own + need.mapped for need in needs), default=0) if passes else None,
        collected_bytes=collected,
        mapped_bytes=mapped,
        seconds=max(stages) if passes else sum(stages),
        compute_seconds=compute,
        tried_whole=trials.whole,
        tried_parts=trials.parts,
        device=device,
        basis=f"scaled from {_on_trial(trials)}short runs of {what} on {device}, and of reading and writing, on this "
        "machine" + _slow_float64(method, device),
    )


def _written(config: Any) -> Any:
    """The config of the merge that makes the files: safety_merge's has the method whose weights it finds."""
    combined = (config.parameters or {}).get("combine") if config.merge_method == "safety_merge" else None
    return config.model_copy(update={"merge_method": combined}) if isinstance(combined, str) else config


def _on_trial(trials: Trials) -> str:
    counts = ((trials.whole, ""), (trials.parts, "parts of "))
    tried = [f"{what}{count} {'matrices' if count > 1 else 'matrix'}" for count, what in counts if count]
    return f"merging {' and '.join(tried)}, " if tried else ""


def _slow_float64(method: str, device: str) -> str:
    """What is to be said of a card that was not made for what a spectral method computes in."""
    if method not in registry.names() or torch.device(device).type != "cuda":
        return ""
    rate = float64_rate(torch.device(device))
    return f". Its float64 is {rate}" if rate.startswith("slow") else ""


def process_bytes(config: Any, plan: list[PlannedTensor], piece: int) -> tuple[int, int]:
    """Memory of a process that merges tensors up to so many bytes, or one that is larger, and then writes them: what
    it is without merging, and what merging one tensor takes at most."""
    merge = PlannedMerge(config, plan)
    working = [merge.held_bytes(tensor) + merge.need(tensor).own for tensor in merge.plan]
    sizes = list(map(merge.output_bytes, merge.plan))
    return _PROCESS_BYTES + min(sum(sizes), max([piece, *sizes])), max(working, default=0)


@dataclass(frozen=True)
class _Costs:
    """Of the tensors of one merge, on this machine."""

    merge: PlannedMerge
    speed: Throughput
    workers: int
    beside: float
    """What is done beside merging on the same cores makes of the time."""

    def of_matrix(self, tensor: PlannedTensor, shape: Sequence[int]) -> float:
        """By the operations of this shape, the seconds of one core for a matrix of the tensor."""
        experts, method = self.merge.experts(tensor), self.merge.config.merge_method
        own = tensor_seconds(method, shape, experts + 1, self.merge.options_of(tensor), self.speed, self.workers)
        return self.workers * (own + (gate_seconds(shape, experts, self.speed) if self.merge.is_gated(tensor) else 0.0))

    def seconds(self, tensor: PlannedTensor, trials: Trials, *, is_alone: bool) -> float:
        """Of all cores for a tensor, by what trials took."""
        inputs = sum(given.stored is not None for given in tensor.inputs)
        if not inputs:
            return 0.0
        if self.merge.options_of(tensor) is None:
            method = self.merge.config.merge_method
            return tensor_seconds(method, tensor.shape, inputs, None, self.speed, self.workers)
        *batch, rows, columns = tensor.shape
        of_one = math.prod(batch) * trials.factor(tensor) * self.of_matrix(tensor, (rows, columns))
        return self.beside * of_one / (self._cores_of_one(tensor) if is_alone else self.workers)

    def _cores_of_one(self, tensor: PlannedTensor) -> float:
        """That a tensor merged alone keeps busy: its experts are decomposed side by side, and all wait for the last."""
        experts = self.merge.experts(tensor)
        return experts / math.ceil(experts / self.workers)


def gate_seconds(shape: Sequence[int], experts: int, speed: Throughput) -> float:
    """What comparing the experts' updates of one tensor with what alignment changed takes."""
    *batch, rows, columns = shape
    flops = 2 * max(rows, columns) * min(rows, columns) ** 2 * gate_products(experts)
    return math.prod(batch) * flops / speed.gemm_flops


def tensor_seconds(
    method: str,
    shape: Sequence[int],
    inputs: int,
    options: SpectralMethod | None,
    speed: Throughput,
    workers: int,
) -> float:
    """What merging one tensor of ``inputs`` models takes; ``options`` of our own methods where it goes through
    singular vectors."""
    passes = _SORTING_PASSES if method in _SORTING_METHODS else _PLAIN_PASSES
    passing = passes * inputs * 4 * math.prod(shape) / speed.elementwise if inputs else 0.0
    if options is None:
        return passing
    *batch, rows, columns = shape
    decompositions, products = options.work(max(1, inputs - 1))
    short, flops = min(rows, columns), 2 * max(rows, columns) * min(rows, columns) ** 2 * products
    each = decompositions * speed.eigh_unit * short**3 / workers + flops / speed.gemm_flops
    return passing + math.prod(batch) * each
