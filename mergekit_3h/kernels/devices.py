"""What the kernels need of a device: float64."""

from __future__ import annotations

import logging
from functools import lru_cache

import torch

log = logging.getLogger(__name__)

FULL_RATE_CAPABILITIES = {(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)}
"""P100, V100, A100, H100 and H200, B200: float64 at half the float32 rate. All others have a 32nd or a 64th."""


@lru_cache(maxsize=8)
def computing_device(device: torch.device) -> torch.device:
    """Where matrices on ``device`` are merged: there, or on the CPU where the device has no float64 at all.

    A consumer GPU is kept, with a word in the log: its slow float64 is still faster than most CPUs, and float32 would
    cost three digits.
    """
    if device.type in ("mps", "xla"):
        log.warning("%s has no float64, which the merge needs for its accuracy: merging on the CPU", device)
        return torch.device("cpu")
    if device.type == "cuda" and torch.cuda.get_device_capability(device) not in FULL_RATE_CAPABILITIES:
        name = torch.cuda.get_device_name(device)
        log.warning("%s computes float64 at a 32nd of its float32 rate or less: the merge is exact but slower", name)
    return device
