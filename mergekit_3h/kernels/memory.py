"""Keeping the memory of one stage of a merge from staying resident through the next."""

from __future__ import annotations

import ctypes
import sys

LARGE_BLOCK = 1 << 20
_M_MMAP_THRESHOLD = -3  # of mallopt(3)


def return_large_blocks_when_freed() -> None:
    """Have glibc give every freed block of a megabyte and more back to the system at once.

    glibc raises that threshold by itself up to 32 MB, and keeps what is freed below it in an arena for each thread. The
    stages of a merge run in several threads with workspaces of 1 to 30 MB, so half of the peak was seen to be memory
    that nobody used. Elsewhere than in glibc nothing is done.
    """
    if sys.platform.startswith("linux"):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK)
