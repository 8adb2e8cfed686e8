"""Updates and checkpoints of single matrices that methods are tested on; the same seed gives the same numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from mergekit_3h.kernels.core_space import LowRank

SHAPES = [(24, 24), (40, 16), (16, 40)]
"""Square, tall and wide."""

place = torch.device("cpu")
"""Where all of them are. Tests of a GPU set it before they begin; the numbers are the same everywhere."""


def update(shape: tuple[int, int], seed: int) -> Tensor:
    """A float32 update of full rank with a heavy-tailed spectrum, a part of it shared with the other seeds'."""
    u, s, vh = torch.linalg.svd(normal(shape, seed).double(), full_matrices=False)
    s = s[0] * torch.arange(1, s.numel() + 1, dtype=torch.float64, device=s.device) ** -0.7
    return (1e-3 * (u @ torch.diag(s) @ vh + 0.5 * normal(shape, 999))).float()


def factors(shape: tuple[int, int], rank: int, seed: int) -> LowRank:
    """An update as a LoRA adapter has it; those of seeds 0 and 3 have a direction of the input side in common."""
    right = normal((rank, shape[1]), 2 * seed + 1)
    if seed in (0, 3):
        right[0] = normal((1, shape[1]), 999)[0]
    return LowRank(normal((shape[0], rank), 2 * seed), right, 1e-3)


def low_rank(shape: tuple[int, int], rank: int, seed: int) -> Tensor:
    """A float32 update of less than full rank, but for its rounding."""
    return 1e-3 * normal((shape[0], rank), 2 * seed) @ normal((rank, shape[1]), 2 * seed + 1)


def checkpoints(shape: tuple[int, int], count: int, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
    """A base and its experts, keyed by their labels."""
    base = 0.02 * normal(shape, 77)
    experts = {f"expert{i}": (base + update(shape, i)).to(dtype) for i in range(count)}
    return base.to(dtype), experts


def normal(shape: tuple[int, int], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(place)
