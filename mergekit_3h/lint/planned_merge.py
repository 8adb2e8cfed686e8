"""A merge with its plan: which tensors go through singular vectors, which of their inputs are merged, what all of them
take."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from mergekit_3h.checkpoints.headers import DTYPE_BYTES
from mergekit_3h.lint.at_once import Need
from mergekit_3h.lint.parameters import plain_options
from mergekit_3h.lint.planned import PlannedInput, PlannedTensor
from mergekit_3h.lint.roles import roles_by_model
from mergekit_3h.spectral.method import Role, SpectralMethod
from mergekit_3h.spectral.tensors import matrix_bytes, merges_as_matrices

_DTYPE_CODES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}
_WIDTH_ORDER = ("BF16", "F16", "F32", "F64")
# Methods that go from input to input with one sum of float32 and its copy in the result's dtype.
_SUMMING_METHODS = ("linear", "passthrough")


@dataclass
class PlannedMerge:
    """A config and the tensors that it makes. Bytes are reckoned from shapes and dtypes, nothing is read."""

    config: Any
    plan: list[PlannedTensor]
    options: SpectralMethod | None = field(init=False)
    """Those of our own methods, as far as they are the same for all tensors."""
    roles: dict[str, Role] = field(init=False)
    _matrices: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        self.plan = [tensor for tensor in self.plan if tensor.shape]
        self.options = plain_options(self.config)
        self.roles = roles_by_model(self.config)
        shapes = {tensor.name: torch.empty(tensor.shape, device="meta") for tensor in self.plan}
        own = self.options
        by_vectors = [] if own is None else [n for n, shape in shapes.items() if merges_as_matrices(n, shape, own)]
        self._matrices = frozenset(by_vectors)

    def options_of(self, tensor: PlannedTensor) -> SpectralMethod | None:
        """Of our own methods, where the tensor goes through singular vectors."""
        return self.options if tensor.name in self._matrices else None

    def role(self, given: PlannedInput) -> Role:
        return self.roles.get(given.model, "expert")

    def experts(self, tensor: PlannedTensor) -> int:
        """Models that are merged, as far as they have the tensor; neither the base, nor what the layer gate compares
        them with."""
        stored = [given for given in tensor.inputs if given.stored]
        return max(1, sum(self.role(given) == "expert" for given in stored) - 1)

    def is_gated(self, tensor: PlannedTensor) -> bool:
        """Whether its experts are compared with other models."""
        return any(self.role(given) == "unaligned" for given in tensor.inputs if given.stored)

    def output_bytes(self, tensor: PlannedTensor) -> int:
        return output_bytes(self.config, tensor)

    def held_bytes(self, tensor: PlannedTensor) -> int:
        """What a tensor's inputs and its result take while they are in memory."""
        given = self.inputs(tensor)
        return given.own + given.mapped + self.output_bytes(tensor)

    def inputs(self, tensor: PlannedTensor) -> Need:
        """What a tensor's inputs take of the host's memory: pages of files, or copies in another dtype."""
        stored = [given.stored for given in tensor.inputs if given.stored]
        wanted = _code(self.config.dtype) if self.config.dtype else None
        copied = [each for each in stored if wanted not in (None, each.dtype)]
        own = DTYPE_BYTES[wanted] * sum(each.elements for each in copied) if wanted else 0
        return Need(own, sum(each.nbytes for each in stored if each not in copied))

    def need(self, tensor: PlannedTensor) -> Need:
        """What merging a tensor takes, its inputs included."""
        given = self.inputs(tensor)
        return Need(given.own + self.working_bytes(tensor), given.mapped)

    def working_bytes(self, tensor: PlannedTensor) -> int:
        """Beyond the inputs."""
        options, experts = self.options_of(tensor), self.experts(tensor)
        if options is None:
            copies = 2 if self.config.merge_method in _SUMMING_METHODS else 2 * experts
            return copies * 4 * elements(tensor)
        whole_result = 4 * elements(tensor) if len(tensor.shape) > 2 else 0
        return whole_result + matrix_bytes(tensor.shape, torch.float32, experts, options)


def output_bytes(config: Any, tensor: PlannedTensor) -> int:
    """What a tensor of the result takes on the disk."""
    chosen = getattr(config, "out_dtype", None) or config.dtype
    if chosen:
        return elements(tensor) * _width(chosen)
    width = DTYPE_BYTES.get(_widest(given.stored.dtype for given in tensor.inputs if given.stored), 4)
    return elements(tensor) * width


def elements(tensor: PlannedTensor) -> int:
    return next((given.stored.elements for given in tensor.inputs if given.stored), 0)


def _width(dtype: str) -> int:
    return DTYPE_BYTES[_code(dtype)]


def _code(dtype: str) -> str:
    """Of a dtype as a config names it, what headers call it."""
    return _DTYPE_CODES.get(dtype.removeprefix("torch."), "F32")


def _widest(dtypes: Iterable[str]) -> str:
    found = set(dtypes)
    if {"BF16", "F16"} <= found:
        return "F32"  # what torch promotes the two to
    return max(found, key=lambda name: _WIDTH_ORDER.index(name) if name in _WIDTH_ORDER else -1, default="F32")
