"""How much memory the matrices that are merged at once may take together."""

from __future__ import annotations

import os
from pathlib import Path

FREE_SHARE = 0.25
"""Of the memory that is free. The rest is for the output that a host collects, for the pages of files, for others."""

LEAST_MEMORY = 1 << 30
"""Bytes that matrices side by side may take, however little is free."""

_MEMORY_INFO = Path("/proc/meminfo")
_GROUP_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""Of a container or a batch job, in both versions of Linux' control groups."""


def allowed_bytes(memory_gb: float | None = None) -> int:
    """``memory_gb`` in bytes; without it a quarter of the memory that is free now, ``LEAST_MEMORY`` at least."""
    return int(memory_gb * 1e9) if memory_gb is not None else max(LEAST_MEMORY, int(FREE_SHARE * free_bytes()))


def free_bytes() -> int:
    """What this process may still take of memory: free on the machine, and under the limit of its control group."""
    return max(0, min([_free_on_the_machine(), *_free_in_groups()]))


def _free_on_the_machine() -> int:
    try:
        for line in _MEMORY_INFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return whole // 2  # not Linux: nobody says how much of it is free


def _free_in_groups() -> list[int]:
    found: list[int] = []
    for limit, used in _GROUP_LIMITS:
        try:
            found.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return found
