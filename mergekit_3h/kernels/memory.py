"""What a merge needs of memory, and keeping what one stage needed from staying resident through the next."""

from __future__ import annotations

import ctypes
import sys

STORED_ASPECT = 3
"""U is stored where the matrix is at most this many times taller than wide, and made twice where it is taller."""

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


def working_bytes(rows: int, columns: int, width: int) -> int:
    """What merging matrices of this shape takes at most beyond its inputs, on one thread, its result included.

    In float64 and on the smaller side: Gram matrices and the workspace of an eigendecomposition, the factors of all
    tasks, ``width`` columns together; U where it is stored; the result.
    """
    tall, side = max(rows, columns), min(rows, columns)
    stored = tall * width if tall <= STORED_ASPECT * side else 0
    return 8 * (3 * side * side + 2 * side * width + stored) + 4 * tall * side
