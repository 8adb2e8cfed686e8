"""What a process may take of a GPU's memory: all that is free, or its share of a card that others use too.

Workers of a cluster that share a card begin about the same time. Each finds the whole card free, and if each reckoned
with that, they would run out of memory together in the middle of their work.
"""

from __future__ import annotations

import torch

_share = 1.0


def keep_to_share(share: float) -> None:
    """Have this process keep to so much of each GPU that it sees, its allocator included; anything from 1 on is no
    limit. Ray's reservations are numbers only: a worker that has a quarter of a card sees all of it."""
    global _share
    _share = share if 0.0 < share < 1.0 else 1.0
    if _share < 1.0 and torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            torch.cuda.set_per_process_memory_fraction(_share, number)  # pyright: ignore[reportUnknownMemberType]


def free_on(device: torch.device) -> int:
    """Bytes of a GPU that this process may still take, those that its allocator keeps unused included."""
    free, whole = torch.cuda.mem_get_info(device)
    taken = torch.cuda.memory_allocated(device)
    reachable = free + torch.cuda.memory_reserved(device) - taken
    return reachable if _share == 1.0 else max(0, min(reachable, int(_share * whole) - taken))
