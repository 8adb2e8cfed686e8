"""What a model computes in where ``dtype: auto`` leaves it open: one rule for all that evaluate or answer.

On a GPU that is the checkpoint's own format. A CPU without instructions for bfloat16 only emulates it, forward and
backward at a twentieth of float32's speed; so there it is float32, unless a short trial finds bfloat16 faster.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import thread_time
from typing import Any

import torch

from mergekit_3h.checkpoints.headers import read_checkpoint
from mergekit_3h.checkpoints.locations import read_json

log = logging.getLogger(__name__)

_CLEARLY_FASTER = 1.25
"""A heuristic: below, the choice could differ from one start to the next, and float32 is the more exact one."""
_TOKENS, _WIDTH, _TRIALS = 128, 512, 3
_HEADER_NAMES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}


@dataclass(frozen=True)
class Precision:
    """A data type as the options name it (auto: whatever the checkpoint says), and why it is this one."""

    dtype: str
    reason: str

    def as_torch(self) -> Any:
        """As ``from_pretrained`` takes it."""
        return self.dtype if self.dtype == "auto" else getattr(torch, self.dtype)


def settled_precision(wanted: str, stored: torch.dtype | None, device: str | torch.device) -> Precision:
    """What a model stored as ``stored`` (None: unknown) computes in on ``device``; the log says what, and why."""
    chosen = _settled(wanted, stored, torch.device(device).type)
    log.info("computing in %s: %s", chosen.dtype, chosen.reason)
    return chosen


def _settled(wanted: str, stored: torch.dtype | None, kind: str) -> Precision:
    if wanted != "auto":
        return Precision(wanted, "as asked for")
    if kind != "cpu":
        return Precision("auto", f"dtype auto, the checkpoint's own on {kind}")
    if stored is torch.float64:
        return Precision("auto", "dtype auto, the checkpoint's own")
    if stored is torch.float32:
        return Precision("float32", "dtype auto, the checkpoint's own")
    if stored is not torch.bfloat16:
        return Precision("float32", "dtype auto, and this is a CPU")
    gain = bfloat16_gain()
    if gain >= _CLEARLY_FASTER:
        return Precision("bfloat16", f"dtype auto, {gain:.1f} times as fast as float32 on this CPU")
    return Precision("float32", f"dtype auto, on this CPU bfloat16 has {gain:.2g} times the speed of float32")


def stored_dtype(folder: Path) -> torch.dtype | None:
    """What transformers takes ``auto`` for: the config's word, or the data type of most of the weights."""
    config = read_json(folder / "config.json")
    named = config.get("dtype") or config.get("torch_dtype")
    if isinstance(named, str):
        found = getattr(torch, named.removeprefix("torch."), None)
        return found if isinstance(found, torch.dtype) else None
    sizes: dict[str, int] = {}
    for tensor in read_checkpoint(folder).tensors.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.elements
    return _HEADER_NAMES.get(max(sizes, key=lambda name: sizes[name], default=""))


@cache
def bfloat16_gain() -> float:
    """How many times as fast as in float32 a layer goes forward and back in bfloat16, in CPU time of one thread.

    Time on the clock would be that of whatever else runs on the machine.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        best = dict.fromkeys((torch.float32, torch.bfloat16), float("inf"))
        operands = {dtype: _operands(dtype) for dtype in best}
        for _ in range(_TRIALS + 1):  # the first one warms up
            for dtype in best:
                best[dtype] = min(best[dtype], _seconds(*operands[dtype]))
        return best[torch.float32] / max(best[torch.bfloat16], 1e-9)
    finally:
        torch.set_num_threads(threads)


def _operands(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(_TOKENS, _WIDTH, generator=generator).to(dtype)
    return tokens, torch.randn(_WIDTH, _WIDTH, generator=generator).to(dtype)


def _seconds(tokens: torch.Tensor, weight: torch.Tensor) -> float:
    """The three products of a layer: its output, and the derivatives by its input and by its weight."""
    started = thread_time()
    output = tokens @ weight.mT
    _ = output @ weight, output.mT @ tokens
    return thread_time() - started
