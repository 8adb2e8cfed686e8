"""Random draws that disturb nobody else's."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def drawing_from(seed: int, device: torch.device) -> Generator[None]:
    """Within, torch draws from this seed; afterwards it goes on as if nothing had been drawn."""
    untyped: Any = torch
    with untyped.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        untyped.manual_seed(seed)
        yield
