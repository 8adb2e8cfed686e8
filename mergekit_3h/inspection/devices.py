"""What computes here: torch's build, the processor and the accelerators, with their rate in float64."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mergekit_3h.inspection.packages import version_of


@dataclass(frozen=True)
class Device:
    name: str
    kind: str
    memory_bytes: int | None
    float64: str


def device_problem(name: str) -> str | None:
    """Why torch cannot compute on this device; None if it can."""
    import torch

    try:
        torch.ones(1, dtype=torch.float64, device=name).sum().item()
    except (RuntimeError, TypeError, AssertionError) as error:
        return f"{name!r} cannot compute in float64 here: {str(error).splitlines()[0]}"
    return None


def torch_facts() -> dict[str, Any]:
    try:
        import torch
    except (ImportError, OSError) as error:
        return {"version": version_of("torch"), "problem": str(error), "advice": "pip install --force-reinstall torch"}
    return {"version": torch.__version__, "cuda": torch.version.cuda, "threads": torch.get_num_threads()}


def devices() -> list[Device]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    processor = Device(f"{platform.machine()}, {os.cpu_count()} cores", "cpu", memory, "half the float32 rate")
    try:
        return [processor, *_accelerators()]
    except (ImportError, OSError):  # torch_facts says why
        return [processor]


def _accelerators() -> Iterator[Device]:
    import torch

    from mergekit_3h.kernels.devices import float64_rate

    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        facts = torch.cuda.get_device_properties(index)
        name = f"cuda:{index}"
        yield Device(facts.name, name, facts.total_memory, float64_rate(torch.device(name)))
    if torch.backends.mps.is_available():
        yield Device("Apple GPU", "mps", None, "none at all, use the cpu")
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        for index in range(torch.xpu.device_count()):
            yield Device(torch.xpu.get_device_name(index), f"xpu:{index}", None, "depends on the model")
