"""What rounding a checkpoint to bfloat16 does to a merge by singular vectors, measured and drawn.

Three updates of rank 16, as LoRA training makes them, are added to bfloat16 weights, which rounds them. TSVM then
takes floor(512 / 3) = 170 singular values of each delta: 16 of the update, and 154 of rounding noise that turn the
polar factors. ``noise_floor: auto`` finds the edge of the noise and keeps what is above it. Beside them updates of full
rank, whose singular values fall like j^-0.7, as full fine-tuning makes them: much of what they change lies under the
edge, and no floor brings it back.

    python examples/noise_floor/noise_floor.py --out docs/images/noise_floor.png
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from mergekit_3h.kernels.assembly import merge
from mergekit_3h.kernels.noise import rounding_edge
from mergekit_3h.kernels.rounding import rounding_toll
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.spectral.registry import parse_options

SIDE, RANK, EXPERTS = 512, 16, 3
UPDATE_SIZES = [1e-3, 3e-4, 1e-4, 3e-5, 1e-5]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "run" / "noise_floor.png")
    out = parser.parse_args().out
    torch.manual_seed(0)
    base = (0.02 * torch.randn(SIDE, SIDE)).bfloat16()
    rows = [measure(base, low_rank_update, size) for size in UPDATE_SIZES]
    show("rank 16", rows)
    show("full rank", [measure(base, full_update, size) for size in UPDATE_SIZES])
    out.parent.mkdir(parents=True, exist_ok=True)
    draw(base, rows, out)
    print(out)


@dataclass(frozen=True)
class Row:
    """What rounding did to three updates of one size, and to their merge."""

    size: float
    changed: float
    lost: float
    """Distance of a saved update from the one before rounding, as the kernel estimates it."""
    ranks: list[int]
    with_floor: float
    """Distance of the merge from that of the updates before rounding."""
    without: float
    plain_sum: float
    """The same for the sum of the updates, which decorrelates nothing."""


def show(kind: str, rows: list[Row]) -> None:
    print(f"{kind}\n update rms   changed   update lost   rank with floor   error with floor   without   plain sum")
    for row in rows:
        print(
            f"{row.size:11.0e}{row.changed:10.0%}{row.lost:14.0%}{row.ranks!s:>18}"
            f"{row.with_floor:19.1%}{row.without:10.1%}{row.plain_sum:12.1%}"
        )


def low_rank_update(size: float) -> torch.Tensor:
    """A rank-16 update with the given root mean square."""
    product = torch.randn(SIDE, RANK) @ torch.randn(RANK, SIDE)
    return product * (size / product.square().mean().sqrt())


def full_update(size: float) -> torch.Tensor:
    """An update of full rank with the given root mean square, whose j-th singular value is like j^-0.7."""
    u, _, vh = torch.linalg.svd(torch.randn(SIDE, SIDE), full_matrices=False)
    product = u * torch.arange(1, SIDE + 1) ** -0.7 @ vh
    return product * (size / product.square().mean().sqrt())


def measure(base: torch.Tensor, update: Callable[[float], torch.Tensor], size: float) -> Row:
    """Merge three updates of one size, before and after they were rounded."""
    updates = [update(size) for _ in range(EXPERTS)]
    experts = [(base.float() + one).bfloat16() for one in updates]
    unrounded, _ = merge(TaskMatrices(updates), [1.0] * EXPERTS, parse_options("tsvm", {}).settings())
    errors, ranks = [], []
    for floor in ("auto", "off"):
        settings = parse_options("tsvm", {"noise_floor": floor}).settings()
        merged, report = merge(TaskMatrices(experts, base), [1.0] * EXPERTS, settings)
        errors.append(float((merged - unrounded).norm() / unrounded.norm()))
        ranks.append(report.ranks)
    toll = rounding_toll(experts[0], base)
    total = sum(update.double() for update in updates)
    lost = sum(expert.double() - base.double() for expert in experts) - total
    return Row(size, toll.changed_share, toll.distance, ranks[0], *errors, plain_sum=float(lost.norm() / total.norm()))


def draw(base: torch.Tensor, rows: list[Row], out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.8))
    one = low_rank_update(3e-4)
    expert = (base.float() + one).bfloat16()
    values = torch.linalg.svdvals(expert.double() - base.double())
    left.semilogy(range(1, SIDE + 1), values, ".", markersize=3, label="delta of the bfloat16 checkpoints")
    left.semilogy(range(1, RANK + 1), torch.linalg.svdvals(one.double())[:RANK], "x", markersize=5, label="true update")
    left.axhline(rounding_edge(expert, base), color="tab:red", linewidth=1, label="edge of the rounding noise")
    left.axvspan(RANK, SIDE // EXPERTS, color="grey", alpha=0.2, label="noise that a fixed rank of 170 takes in")
    left.set_xlabel("singular value")
    left.set_ylim(1e-4)
    left.legend(frameon=False, fontsize=8)
    right.loglog(UPDATE_SIZES, [row.without for row in rows], "o-", label="noise_floor: off")
    right.loglog(UPDATE_SIZES, [row.with_floor for row in rows], "o-", label="noise_floor: auto")
    right.set_xlabel("root mean square of the update (one unit in the last place: 1e-4)")
    right.set_ylabel("distance from the unrounded merge")
    right.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(out, dpi=130)


if __name__ == "__main__":
    main()
