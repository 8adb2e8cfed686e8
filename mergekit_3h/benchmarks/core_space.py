"""LoRA adapters merged in their core space, and with their updates multiplied out: time, memory and difference.

python -m mergekit_3h.benchmarks.core_space --shape 4096x4096 --rank 16 -n 3 --method tsvm
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter, process_time

import click
import torch
from torch import Tensor

from mergekit_3h.benchmarks.memory import PeakMemory
from mergekit_3h.benchmarks.tables import seconds_text
from mergekit_3h.kernels.core_space import LowRank
from mergekit_3h.kernels.memory import return_large_blocks_when_freed
from mergekit_3h.spectral.literal import relative_error
from mergekit_3h.spectral.low_rank import LowRankUpdates, Route, merge_low_rank, require_route
from mergekit_3h.spectral.method import SpectralMethod
from mergekit_3h.spectral.registry import parse_options

UPDATE = 1e-3
"""Root mean square entry of an update."""


@dataclass(frozen=True)
class RouteRun:
    """One merge of one matrix."""

    merged: Tensor
    seconds: float
    cpu_seconds: float
    """Of all threads: what else the machine does hardly changes it."""
    extra_bytes: int
    """Of the peak, beyond the base and the factors."""


def random_adapters(rows: int, columns: int, rank: int, experts: int) -> LowRankUpdates:
    """Adapters whose updates have singular values that fall tenfold, of the same size."""
    updates: dict[str, LowRank] = {}
    for i in range(experts):
        generator = torch.Generator().manual_seed(i)
        left = torch.randn(rows, rank, generator=generator) * torch.logspace(0, -1, rank)
        right = torch.randn(rank, columns, generator=generator)
        updates[f"adapter {i}"] = LowRank(left, right, UPDATE / float(left.square().sum(1).mean().sqrt()))
    return LowRankUpdates("weight", updates, dict.fromkeys(updates, 1.0))


def measured(given: LowRankUpdates, method: SpectralMethod, route: Route, shape: tuple[int, int]) -> RouteRun:
    """A merge onto a base of zeros, so that nothing but the update is rounded, to float32."""
    base = torch.zeros(shape)
    with PeakMemory(base.device) as peak:
        began, cpu_began = perf_counter(), process_time()
        merged = merge_low_rank(base, given, method, route=route)
        seconds, cpu_seconds = perf_counter() - began, process_time() - cpu_began
    return RouteRun(merged, seconds, cpu_seconds, peak.extra)


@click.command()
@click.option("--shape", default="4096x4096", show_default=True, metavar="ROWSxCOLUMNS")
@click.option("--rank", type=click.IntRange(1), default=16, show_default=True, help="Of each adapter.")
@click.option("-n", "--experts", type=click.IntRange(1), default=3, show_default=True)
@click.option("--method", "methods", multiple=True, default=("tsvm",), show_default=True)
def main(shape: str, rank: int, experts: int, methods: tuple[str, ...]) -> None:
    """Merge the same adapters on both routes, one after the other in this process."""
    rows, columns = (int(side) for side in shape.split("x"))
    return_large_blocks_when_freed()
    given = random_adapters(rows, columns, rank, experts)
    for name in methods:
        method = parse_options(name, {})
        require_route(method, "core")
        measured(given, method, "core", (rows, columns))  # torch and BLAS set themselves up
        core = measured(given, method, "core", (rows, columns))
        dense = measured(given, method, "dense", (rows, columns))
        apart = relative_error(core.merged, dense.merged)
        click.echo(f"{name}, {experts} adapters of rank {rank} on {rows} x {columns}:")
        for route, run in (("core space", core), ("dense", dense)):
            clock, cpu = seconds_text(run.seconds), seconds_text(run.cpu_seconds)
            click.echo(f"  {route:<10}  {clock:>8}, {cpu:>8} of CPU time, {run.extra_bytes / 1e6:6.0f} MB")
        click.echo(f"  {dense.cpu_seconds / core.cpu_seconds:.0f} times less CPU time, relative difference {apart:.1e}")


if __name__ == "__main__":
    main()
