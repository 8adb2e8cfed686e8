"""What a merge needs of memory, and keeping what one stage needed from staying resident through the next."""

from __future__ import annotations

import ctypes
import os
import sys

STORED_ASPECT = 3
"""U is stored where the matrix is at most this many times taller than wide, and made twice where it is taller."""

STORED_SQUARES = 2
"""It is stored too where it has no more entries than so many squares of the shorter side: then the ranks are small, and
so is all that is there beside it."""

PASSING_BYTES = 160
"""Of a block, of the survey of the weights, and of what is freed and kept, for each entry of a small matrix .."""

MOST_PASSING_BYTES = 24 << 20
""".. and for a large one, of which they take a part at a time."""

LARGE_BLOCK = 4 << 20
FREE_AT_MOST = 4 << 20
THRESHOLD_VARIABLE = "MALLOC_MMAP_THRESHOLD_"
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def return_large_blocks_when_freed() -> None:
    """Have glibc give every freed block of four megabytes and more back to the system at once.

    glibc raises that threshold by itself up to 32 MB, and keeps what is freed below it in an arena for each thread. The
    stages of a merge run in several threads with workspaces of 1 to 30 MB, so some of the peak would be memory that
    nobody uses (docs/performance.md). Smaller blocks are kept, up to ``FREE_AT_MOST`` at the end of an arena: to ask
    for them again and again takes a seventh of the processor time of small matrices.

    This is the whole process's affair: a host calls it when a merge begins, before it reads any tensor, since holes
    left in the heap earlier stay resident. Nothing is done elsewhere than in glibc, nor where the environment sets the
    threshold itself.
    """
    if sys.platform.startswith("linux") and THRESHOLD_VARIABLE not in os.environ:
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK)
            mallopt(_M_TRIM_THRESHOLD, FREE_AT_MOST)


def stores_left(rows: int, columns: int, width: int) -> bool:
    """Whether U, rows x width of a matrix with at least as many rows as columns, is stored."""
    return rows <= STORED_ASPECT * columns or rows * width <= STORED_SQUARES * columns**2


def working_bytes(rows: int, columns: int, width: int, result_itemsize: int) -> int:
    """What merging matrices of this shape takes at most beyond its inputs, on one thread, its result included.

    ``width`` is the number of singular vectors of all tasks together. The larger of two stages counts: decomposing the
    tasks, with a Gram matrix, the workspace of its decomposition and the vectors; and whitening, with all vectors, U
    where it is stored, and both Gram matrices. A block of rows and the survey of the weights come on top.
    """
    tall, side = max(rows, columns), min(rows, columns)
    left, right = min(width, tall), min(width, side)
    decomposing = 3 * side * side + 2 * side * width
    stored = tall * width if stores_left(tall, side, width) else 0
    panel = 2 * tall * width if width > tall else 0
    whitening = side * width + stored + panel + 4 * left * left + 2 * right * right
    passing = min(tall * side * PASSING_BYTES, MOST_PASSING_BYTES)
    return 8 * max(decomposing, whitening) + passing + result_itemsize * tall * side


def summing_bytes(rows: int, columns: int, result_itemsize: int) -> int:
    """The same for a merge of the sum of the updates: one Gram matrix, its decomposition with workspace, and what of
    the sum goes into it at once."""
    tall, side = max(rows, columns), min(rows, columns)
    panel = min(tall, max(side, 1024)) * side
    passing = min(tall * side * PASSING_BYTES, MOST_PASSING_BYTES)
    return 8 * max(4 * side * side, side * side + panel) + passing + result_itemsize * tall * side


def truncating_bytes(rows: int, columns: int, experts: int, result_itemsize: int) -> int:
    """The same for a merge of truncations: their vectors are held while the next one is decomposed."""
    side = min(rows, columns)
    return 8 * experts * side * side + summing_bytes(rows, columns, result_itemsize)
