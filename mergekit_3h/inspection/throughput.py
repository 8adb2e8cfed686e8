"""How fast this machine reads, writes and computes, from samples that take about a second together."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_READ_SAMPLE, _READ_PIECE = 64 << 20, 4 << 20
_WRITE_SAMPLE = 16 << 20
_MATRIX_SIDE = 512
_LONG = 1 << 24  # entries, more than caches hold
_TOKENS, _LAYER_WIDTH = 512, 1024
_SECONDS_PER_SAMPLE = 0.25


@dataclass(frozen=True)
class Throughput:
    """Bytes per second for files and element-wise work; ``eigh_unit`` times n^3 is a float64 eigh of size n,
    on one thread."""

    read: float
    write: float
    elementwise: float
    gemm_flops: float
    eigh_unit: float


def measure_throughput(sample: Path | None, device: str = "cpu") -> Throughput:
    """``sample`` is a file to read from; the operating system may have it in memory already."""
    import torch

    from mergekit_3h.kernels.dense import eigh_in_place

    matrix = torch.randn(_MATRIX_SIDE, _MATRIX_SIDE, dtype=torch.float64, device=device)
    symmetric = matrix @ matrix.T
    long = torch.randn(_LONG, device=device)
    there = torch.empty_like(long)  # what new memory costs depends on the process's allocator
    return Throughput(
        read=_read_rate(sample),
        write=_write_rate(),
        elementwise=long.nbytes / _seconds(lambda: torch.mul(long, 2.0, out=there), device),
        gemm_flops=2 * _MATRIX_SIDE**3 / _seconds(lambda: matrix @ matrix, device),
        eigh_unit=_on_one_thread(lambda: _seconds(lambda: eigh_in_place(symmetric.clone()), device)) / _MATRIX_SIDE**3,
    )


def _on_one_thread(work: Callable[[], float]) -> float:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return work()
    finally:
        torch.set_num_threads(threads)


def product_rate(dtype: torch.dtype, device: str) -> float:
    """Floating-point operations per second of a language model's products, here: some hundred tokens by a layer."""
    import torch

    tokens = torch.randn(_TOKENS, _LAYER_WIDTH, device=device).to(dtype)
    weight = torch.randn(_LAYER_WIDTH, _LAYER_WIDTH, device=device).to(dtype)
    return 2 * _TOKENS * _LAYER_WIDTH**2 / _seconds(lambda: tokens @ weight.mT, device)


def _seconds(work: Callable[[], object], device: str) -> float:
    """The best run after a first one that warms up; what else runs on the machine disturbs some of them."""
    import torch

    times: list[float] = []
    while len(times) < 4 or (sum(times) < _SECONDS_PER_SAMPLE and len(times) < 100):
        start = perf_counter()
        work()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
        times.append(perf_counter() - start)
    return max(min(times[1:]), 1e-7)


def _read_rate(sample: Path | None) -> float:
    if sample is None:
        return 1e9
    buffer, count = bytearray(_READ_PIECE), 0
    start = perf_counter()
    with sample.open("rb", buffering=0) as stream:
        while count < _READ_SAMPLE and (read := stream.readinto(buffer)):
            count += read
    return max(count, 1) / max(perf_counter() - start, 1e-7)


def _write_rate() -> float:
    block = bytes(_WRITE_SAMPLE)
    with tempfile.TemporaryFile() as stream:
        start = perf_counter()
        stream.write(block)
        stream.flush()
        return _WRITE_SAMPLE / max(perf_counter() - start, 1e-7)
