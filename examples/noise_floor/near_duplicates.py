"""What merging by singular vectors makes of two experts that are nearly the same.

TSVM replaces the experts' singular vectors by the nearest orthonormal ones. Directions that two experts share exactly
are one direction; directions that differ by a hair are two, and what they differ by becomes as large as the rest.

    python examples/noise_floor/near_duplicates.py
"""

from __future__ import annotations

import torch
from noise_floor import full_update

from mergekit_3h.kernels.assembly import Report, merge
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.spectral.registry import parse_options

SIZE = 1e-3
DISTANCES = [0.0, 1e-6, 1e-4, 1e-2, 1e-1, 1.0]


def main() -> None:
    torch.manual_seed(0)
    one = full_update(SIZE)
    draws = [full_update(SIZE) for _ in range(2)]
    equal, _ = merged(one, one)
    print("distance of the experts   from the merge of equal ones   two draws of it   condition")
    for distance in DISTANCES:
        (first, report), (second, _) = (merged(one, one + distance * draw) for draw in draws)
        print(f"{distance:23.0e}{apart(first, equal):31.2f}{apart(first, second):18.2f}{max(report.conditions):12.0e}")
    updates = [full_update(SIZE) for _ in range(3)]
    nudged = [update + 0.01 * full_update(SIZE) for update in updates]
    (before, report), (after, _) = merged(*updates), merged(*nudged)
    print(f"three experts of their own, moved by 1 %: the merge by {apart(after, before):.1%}", report.conditions)


def merged(*updates: torch.Tensor) -> tuple[torch.Tensor, Report]:
    return merge(TaskMatrices(updates), [1.0] * len(updates), parse_options("tsvm", {}).settings())


def apart(first: torch.Tensor, second: torch.Tensor) -> float:
    """Relative Frobenius distance."""
    return float((first - second).norm() / second.norm())


if __name__ == "__main__":
    main()
