"""Synthetic checkpoints of one matrix: a base and experts whose updates have the spectra of real fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

UpdateKind = Literal["flat", "decaying", "lora"]
UPDATE_KINDS: tuple[str, ...] = get_args(UpdateKind)

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}

WEIGHT_RMS = 0.02
"""Root mean square of the base's weights, the initialisation of Llama and Qwen. Trained, those of a small model are ten
times as large (SmolLM2-135M: 0.07 to 0.4), so that 16 bits take more of an update."""

UPDATE_RMS = 3e-4
"""Root mean square of an update, within what supervised and preference tuning of 7B models leave (1e-4 to 1e-3)."""

LORA_RANK = 16
DECAY = -0.7
"""The j-th singular value of a ``decaying`` update goes like j ** DECAY: a heavy tail."""
SHARED_PART = 0.3
"""Share of the squared norm of a ``decaying`` update that all experts have in common."""


def is_told_from_unrounded(update: str, dtype: str) -> bool:
    """Whether results are compared with the merge of what training did, before it was rounded to the dtype."""
    return update == "lora" or DTYPES[dtype].itemsize == 2


@dataclass(frozen=True)
class MatrixProblem:
    """What determines a synthetic matrix and its experts to the last bit, on one device."""

    rows: int
    columns: int
    experts: int
    dtype: str
    update: UpdateKind
    seed: int = 0
    weights: float = WEIGHT_RMS
    """Root mean square of the base's weights."""

    @property
    def input_bytes(self) -> int:
        """Bytes of the experts' tensors, the base left out."""
        return self.experts * self.rows * self.columns * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Inputs:
    base: Tensor
    experts: list[Tensor]

    def updates(self, dtype: torch.dtype) -> list[Tensor]:
        """The task matrices, subtracted in ``dtype``."""
        base = self.base.to(dtype)
        return [expert.to(dtype) - base for expert in self.experts]


def make_inputs(problem: MatrixProblem, device: torch.device) -> Inputs:
    """Base and experts as checkpoints hold them: every expert is rounded to the dtype after its update was added."""
    dtype = DTYPES[problem.dtype]
    base = (_normal(problem, device, (problem.rows, problem.columns), "base").mul_(problem.weights)).to(dtype)
    return Inputs(base, [update.add_(base).to(dtype) for update in unrounded_updates(problem, device)])


def unrounded_updates(problem: MatrixProblem, device: torch.device) -> Iterator[Tensor]:
    """What training did, before the expert was rounded to its dtype; float32."""
    shared = _product(problem, device, "shared") if problem.update == "decaying" else None
    for i in range(problem.experts):
        update = _own_update(problem, device, i)
        if shared is not None:
            update = update.mul_(math.sqrt(1 - SHARED_PART)).add_(shared, alpha=math.sqrt(SHARED_PART))
        yield update


def _own_update(problem: MatrixProblem, device: torch.device, i: int) -> Tensor:
    if problem.update == "flat":
        return _normal(problem, device, (problem.rows, problem.columns), f"expert {i}").mul_(UPDATE_RMS)
    return _product(problem, device, f"expert {i}")


def _product(problem: MatrixProblem, device: torch.device, part: str) -> Tensor:
    """A random matrix of root mean square ``UPDATE_RMS``, by two factors whose inner size bounds its rank."""
    full = min(problem.rows, problem.columns)
    rank = min(LORA_RANK, full) if problem.update == "lora" else full
    left = _normal(problem, device, (problem.rows, rank), f"{part} left")
    right = _normal(problem, device, (rank, problem.columns), f"{part} right")
    if problem.update == "decaying":
        right *= torch.arange(1, rank + 1, dtype=torch.float32, device=device).pow(DECAY)[:, None]
    product = left @ right
    return product.mul_(UPDATE_RMS * math.sqrt(product.numel()) / float(torch.linalg.vector_norm(product)))


def _normal(problem: MatrixProblem, device: torch.device, size: tuple[int, int], part: str) -> Tensor:
    """Standard normal numbers that depend on the seed, the part and the place in it."""
    seed = problem.seed
    for letter in part:
        seed = (seed * 131 + ord(letter)) % (1 << 62)
    generator = torch.Generator(device=device).manual_seed(seed)
    return torch.randn(size, generator=generator, device=device)
