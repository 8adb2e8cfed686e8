"""Random draws that disturb nobody else's."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def drawing_from(seed: int, device: torch.device) -> Generator[None]:
    """Within, torch draws from this seed on the CPU and on ``device``; afterwards it goes on as if it had not.

    Generators of other devices are left alone. ``torch.manual_seed`` would set those of all GPUs, and nobody set them
    back: a merge that draws on a GPU would draw otherwise after it.
    """
    untyped: Any = torch
    is_cuda = device.type == "cuda"
    with untyped.random.fork_rng(devices=[device] if is_cuda else []):
        untyped.default_generator.manual_seed(seed)
        if is_cuda:
            with untyped.cuda.device(device):
                untyped.cuda.manual_seed(seed)
        yield
