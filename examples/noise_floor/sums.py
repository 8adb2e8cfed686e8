"""T of the sum of three experts: where it is near 1, nothing but rounding lies under the edge, and ``iso_c`` cuts.

python examples/noise_floor/sums.py
"""

from __future__ import annotations

import torch

from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.spectral.registry import parse_options

SHAPES = [(256, 256), (384, 256), (192, 384)]
UPDATES = [("rank 4", 4, 0.0), ("rank 16", 16, 0.0), ("rank 64", 64, 0.0)]
UPDATES += [(f"full, j^-{decay}", None, decay) for decay in (0.5, 0.7, 1.0)]
SIZES = (2.4e-3, 6e-4, 2.8e-4, 1e-4)


def experts(shape: tuple[int, int], rank: int | None, decay: float, size: float, seed: int) -> TaskMatrices:
    """bfloat16 checkpoints whose updates have this rank, root mean square, and decay of their singular values."""
    generator = torch.Generator().manual_seed(seed)
    base = (0.02 * torch.randn(shape, generator=generator)).bfloat16()
    inner = rank or min(shape)
    found = []
    for _ in range(3):
        left, right = (
            torch.randn(shape[0], inner, generator=generator),
            torch.randn(inner, shape[1], generator=generator),
        )
        update = left @ (right * torch.arange(1, inner + 1)[:, None] ** -decay)
        found.append((base.float() + update * size / update.square().mean().sqrt()).bfloat16())
    return TaskMatrices(found, base)


def main() -> None:
    print(f"{'update':12} {'rms':>8}  T and directions kept, for {', '.join(f'{m} x {d}' for m, d in SHAPES)}")
    for name, rank, decay in UPDATES:
        for size in SIZES:
            cells = []
            for seed, shape in enumerate(SHAPES):
                _, report = parse_options("iso_c", {}).merge(experts(shape, rank, decay, size, seed), [1.0] * 3)
                cells.append(f"{report.under_edge:5.2f} {report.ranks[0]:4}")
            print(f"{name:12} {size:8.1e}  {'   '.join(cells)}")


if __name__ == "__main__":
    main()
