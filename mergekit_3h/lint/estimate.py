"""What a merge will cost: output size, bytes read, peak memory and time. An estimate, and its text says so."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from mergekit_3h.checkpoints.headers import DTYPE_BYTES
from mergekit_3h.inspection.throughput import Throughput, measure_throughput
from mergekit_3h.kernels.devices import float64_rate
from mergekit_3h.lint.at_once import (
    AtOnce,
    Need,
    allowed_at_once,
    carried_at_once,
    is_carried,
    largest_at_once,
    workers_on,
)
from mergekit_3h.lint.models import NamedModel
from mergekit_3h.lint.parameters import plain_options
from mergekit_3h.lint.planned import PlannedTensor, source_tensors
from mergekit_3h.spectral import registry
from mergekit_3h.spectral.method import SpectralMethod
from mergekit_3h.spectral.tensors import matrix_bytes, merges_as_matrices

# mergekit collects tensors up to this size before it writes a shard (its --out-shard-size).
SHARD_BYTES = 5_000_000_000
# Python with torch, transformers and mergekit loaded, without mapped libraries; seen with torch 2.13 on Linux.
_PROCESS_BYTES = 350_000_000
_DTYPE_CODES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}
_WIDTH_ORDER = ("BF16", "F16", "F32", "F64")
# Passes over each input, a heuristic: methods that trim by magnitude sort every tensor.
_PLAIN_PASSES, _SORTING_PASSES = 8, 30
# Methods that go from input to input with one sum of float32 and its copy in the result's dtype.
_SUMMING_METHODS = ("linear", "passthrough")
_SORTING_METHODS = ("ties", "breadcrumbs", "breadcrumbs_ties", "della", "della_linear", "sce", "ram", "ramplus_tl")


@dataclass(frozen=True)
class Estimate:
    """Bytes and seconds of the merge itself.

    Python's start is not in the seconds. ``peak_bytes`` is what the process needs for itself; ``mapped_bytes`` of
    weight files are mapped beside it, which tools that show the resident set count too, and which the system drops
    when it needs the space. Of the peak, ``at_once.own`` are what is being merged, ``collected_bytes`` the output that
    waits to be written. ``device_bytes`` are those of a GPU's memory for the tensor that takes most, if it goes through
    there while others are read and written.
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
    device: str
    basis: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def estimate_merge(config: Any, plan: list[PlannedTensor], models: list[NamedModel], device: str = "cpu") -> Estimate:
    """From the tensors' shapes and a calibration of this machine."""
    files = [file for model in models if model.checkpoint for file in model.checkpoint.files]
    sample = max(files, key=lambda file: file.stat().st_size, default=None)
    speed = measure_throughput(sample, device)
    method = config.merge_method
    plan = [tensor for tensor in plan if tensor.shape] + source_tensors(plan, models)
    matrices = set(decomposed(config, plan))
    options, workers = plain_options(config), workers_on(device)
    compute = 0.0
    for tensor in plan:
        inputs = sum(given.stored is not None for given in tensor.inputs)
        own = options if tensor.name in matrices else None
        compute += tensor_seconds(method, tensor.shape if inputs else (), inputs, own, speed, workers)
    output = sum(output_bytes(config, tensor) for tensor in plan)
    read = sum(given.stored.nbytes for tensor in plan for given in tensor.inputs if given.stored)
    needs = [_need(config, tensor, options if tensor.name in matrices else None) for tensor in plan]
    allowed, passes = allowed_at_once(config, device), is_carried(config, device)
    if passes and allowed is not None:
        at_once = carried_at_once([_inputs(config, t) for t in plan], [output_bytes(config, t) for t in plan], allowed)
    else:
        at_once = largest_at_once(needs, allowed, workers)
    collected = min(output, SHARD_BYTES)
    sizes = {file: file.stat().st_size for file in files}
    mapped = sum(size for file, size in sizes.items() if file.suffix == ".safetensors")
    pickles = sum(sizes.values()) - mapped
    stages = (compute, read / speed.read, output / speed.write)
    what = "float64 eigendecompositions and products" if method in registry.names() else "element-wise passes"
    return Estimate(
        tensors=len(plan),
        parameters=sum(_elements(tensor) for tensor in plan),
        output_bytes=output,
        read_bytes=read,
        peak_bytes=_PROCESS_BYTES + collected + at_once.own + pickles,
        at_once=at_once,
        device_bytes=max((need.own + need.mapped for need in needs), default=0) if passes else None,
        collected_bytes=collected,
        mapped_bytes=mapped,
        seconds=max(stages) if passes else sum(stages),
        compute_seconds=compute,
        device=device,
        basis=f"scaled from short runs of {what} on {device}, and of reading and writing, on this machine"
        + _slow_float64(method, device),
    )


def _slow_float64(method: str, device: str) -> str:
    """What is to be said of a card that was not made for what a spectral method computes in."""
    if method not in registry.names() or torch.device(device).type != "cuda":
        return ""
    rate = float64_rate(torch.device(device))
    return f". Its float64 is {rate}" if rate.startswith("slow") else ""


def process_bytes(config: Any, plan: list[PlannedTensor], piece: int) -> tuple[int, int]:
    """Memory of a process that merges tensors up to so many bytes, or one that is larger, and then writes them: what
    it is without merging, and what merging one tensor takes at most."""
    plan = [tensor for tensor in plan if tensor.shape]
    matrices, options = set(decomposed(config, plan)), plain_options(config)
    working = [
        held_bytes(config, tensor) + _working_bytes(config, tensor, options if tensor.name in matrices else None)
        for tensor in plan
    ]
    sizes = [output_bytes(config, tensor) for tensor in plan]
    return _PROCESS_BYTES + min(sum(sizes), max([piece, *sizes])), max(working, default=0)


def decomposed(config: Any, plan: list[PlannedTensor]) -> list[str]:
    """Names of the tensors that go through singular vectors: none but those of our own methods."""
    import torch

    options = plain_options(config)
    if options is None:
        return []
    shapes = {tensor.name: torch.empty(tensor.shape, device="meta") for tensor in plan}
    return [name for name, shape in shapes.items() if merges_as_matrices(name, shape, options)]


def output_bytes(config: Any, tensor: PlannedTensor) -> int:
    """What a tensor of the result takes on the disk."""
    return _elements(tensor) * _output_width(config, tensor)


def _elements(tensor: PlannedTensor) -> int:
    return next((given.stored.elements for given in tensor.inputs if given.stored), 0)


def _output_width(config: Any, tensor: PlannedTensor) -> int:
    chosen = getattr(config, "out_dtype", None) or config.dtype
    if chosen:
        return _width(chosen)
    return DTYPE_BYTES.get(_widest(given.stored.dtype for given in tensor.inputs if given.stored), 4)


def _width(dtype: str) -> int:
    return DTYPE_BYTES[_DTYPE_CODES.get(dtype.removeprefix("torch."), "F32")]


def _widest(dtypes: Iterable[str]) -> str:
    found = set(dtypes)
    if {"BF16", "F16"} <= found:
        return "F32"  # what torch promotes the two to
    return max(found, key=lambda name: _WIDTH_ORDER.index(name) if name in _WIDTH_ORDER else -1, default="F32")


def _experts(tensor: PlannedTensor) -> int:
    return max(1, sum(given.stored is not None for given in tensor.inputs) - 1)


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


def held_bytes(config: Any, tensor: PlannedTensor) -> int:
    """What a tensor's inputs and its result take while they are in memory."""
    stored = [given.stored for given in tensor.inputs if given.stored]
    width = _width(config.dtype) if config.dtype else None
    inputs = sum(each.nbytes if width is None else each.elements * width for each in stored)
    return inputs + output_bytes(config, tensor)


def _need(config: Any, tensor: PlannedTensor, options: SpectralMethod | None) -> Need:
    stored = sum(given.stored.nbytes for given in tensor.inputs if given.stored)
    return Need(_working_bytes(config, tensor, options), 0 if config.dtype else stored)


def _inputs(config: Any, tensor: PlannedTensor) -> Need:
    """What a tensor's inputs take of the host's memory until they are on a GPU: pages of files, or copies in another
    dtype."""
    stored = [given.stored for given in tensor.inputs if given.stored]
    if config.dtype:
        return Need(_width(config.dtype) * sum(each.elements for each in stored), 0)
    return Need(0, sum(each.nbytes for each in stored))


def _working_bytes(config: Any, tensor: PlannedTensor, options: SpectralMethod | None) -> int:
    """Beyond the mapped inputs; ``options`` of our own methods where the tensor goes through singular vectors."""
    import torch

    width = _width(config.dtype) if config.dtype else 0
    cast = width * _elements(tensor) * sum(given.stored is not None for given in tensor.inputs)
    if options is None:
        copies = 2 if config.merge_method in _SUMMING_METHODS else 2 * _experts(tensor)
        return cast + copies * 4 * _elements(tensor)
    whole_result = 4 * _elements(tensor) if len(tensor.shape) > 2 else 0
    return cast + whole_result + matrix_bytes(tensor.shape, torch.float32, _experts(tensor), options)
