"""What the kernels need of a device: float64, or for less than their results products that are float32."""

from __future__ import annotations

import logging
from functools import lru_cache

import torch

log = logging.getLogger(__name__)

FLOAT64_FRACTION = {
    (5, 0): 32, (5, 2): 32, (5, 3): 32, (6, 0): 2, (6, 1): 32, (6, 2): 32, (7, 0): 2, (7, 5): 32,
    (8, 0): 2, (8, 6): 64, (8, 9): 64, (9, 0): 2, (10, 0): 2, (10, 3): 64, (12, 0): 64,
}  # fmt: skip
"""By CUDA compute capability, what a GPU's float32 rate is divided by in float64: from the table of throughput
in NVIDIA's CUDA programming guide. 6.0, 7.0, 8.0, 9.0 and 10.0 are P100, V100, A100, H100 or H200, and B200; 10.3 is
B300, the others are consumer and workstation cards."""

FULL_RATE = 2


def float64_fraction(capability: tuple[int, int]) -> int | None:
    """What a card's float32 rate is divided by in float64; None for one that is not in the table."""
    return FLOAT64_FRACTION.get(capability)


def float64_rate(device: torch.device) -> str:
    """A GPU's rate in float64, in words."""
    if torch.version.hip is not None:
        return "depends on the model"
    fraction = float64_fraction(torch.cuda.get_device_capability(device))
    if fraction is None:
        return "not known; `mergekit-3h bench --device` measures it"
    if fraction == FULL_RATE:
        return "fast (1/2 of float32)"
    return f"slow (1/{fraction} of float32): spectral merges may be faster on the cpu"


def has_float32(device: torch.device) -> bool:
    """Elsewhere its products may be TF32; with another precision than "highest" they are bfloat16 on some CPUs."""
    return device.type == "cpu" and torch.get_float32_matmul_precision() == "highest"


@lru_cache(maxsize=8)
def computing_device(device: torch.device) -> torch.device:
    """Where matrices on ``device`` are merged: there, or on the CPU where the device has no float64 at all.

    A consumer GPU is kept, with a word in the log: its slow float64 is still faster than most CPUs, and float32 would
    cost three digits.
    """
    if device.type in ("mps", "xla"):
        log.warning("%s has no float64, which the merge needs for its accuracy: merging on the CPU", device)
        return torch.device("cpu")
    if device.type == "cuda":
        _tell_of_slow_float64(device)
    return device


def _tell_of_slow_float64(device: torch.device) -> None:
    fraction = (
        FULL_RATE if torch.version.hip is not None else float64_fraction(torch.cuda.get_device_capability(device))
    )
    if fraction is not None and fraction > FULL_RATE:
        name = torch.cuda.get_device_name(device)
        log.warning("%s computes float64 at 1/%d of its float32 rate: the merge is exact but slower", name, fraction)
