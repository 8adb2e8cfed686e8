"""Giving memory back between the stages of a merge."""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache
from typing import Any

WORTH_TRIMMING = 512
"""Columns from which a stage leaves megabytes behind."""


def release_freed_memory(columns: int) -> None:
    """Return what a stage over matrices with so many columns has freed to the system.

    glibc keeps freed blocks of up to 32 MB in an arena for each thread. A stage's workspaces would stay resident there
    while the next stage, in other threads or with other sizes, allocates its own.
    """
    trim = _malloc_trim()
    if trim is not None and columns >= WORTH_TRIMMING:
        trim(0)


@lru_cache(maxsize=1)
def _malloc_trim() -> Any:
    """glibc's ``malloc_trim``, or ``None`` on other systems, whose allocators return memory by themselves."""
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
