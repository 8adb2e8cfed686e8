"""What an evaluation on several workers is divided into.

The batches are those of the undivided objective and their sums are exactly rounded, so that neither the number of
pieces nor the order in which they arrive changes a bit of the result.
"""

from __future__ import annotations


def shards(batches: int, count: int) -> list[list[int]]:
    """Batch numbers in ``count`` pieces of like work: batches come sorted by length, so they are dealt out in turn."""
    return [list(range(first, batches, count)) for first in range(min(count, batches))]
