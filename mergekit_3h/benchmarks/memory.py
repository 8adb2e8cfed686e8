"""The peak of memory during a piece of work: of the process on a CPU, of torch's allocator on CUDA."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

import torch


class PeakMemory:
    """``with PeakMemory(device) as peak: work()``, then ``peak.extra`` bytes beyond those in use at the start.

    On Linux the kernel's own high-water mark of the resident set is reset at the start. Elsewhere the mark of the whole
    process is read before and after, which misses what stays below an earlier peak.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.extra = 0

    def __enter__(self) -> PeakMemory:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._start = torch.cuda.memory_allocated(self.device)
        else:
            _return_freed_memory()
            self._start = resident_bytes() if _reset_high_water_mark() else high_water_mark()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            peak = torch.cuda.max_memory_allocated(self.device)
        else:
            peak = high_water_mark()
        self.extra = max(0, peak - self._start)


def resident_bytes() -> int:
    return _status("VmRSS")


def high_water_mark() -> int:
    """Peak resident set of this process since its start or the last reset."""
    if Path("/proc/self/status").exists():
        return _status("VmHWM")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return 0


def _reset_high_water_mark() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM
    except OSError:
        return False
    return True


def _return_freed_memory() -> None:
    """Give back what malloc keeps for later, or the work could use it unseen."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl has not
        if trim is not None:
            trim(0)
