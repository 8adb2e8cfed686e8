"""The memory that a matrix is said to need bounds what a process really takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from mergekit_3h.kernels.memory import stores_left, working_bytes

MEASURE = """
import json, sys
import torch
torch.set_num_threads(1)
from mergekit_3h.benchmarks.memory import PeakMemory
from mergekit_3h.kernels.assembly import merge
from mergekit_3h.kernels.memory import return_large_blocks_when_freed
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.spectral.tensors import matrix_bytes
from mergekit_3h.spectral.registry import parse_options

return_large_blocks_when_freed()
rows, columns, experts, options = json.loads(sys.argv[1])
options = parse_options("rtsvm", options)
generator = torch.Generator().manual_seed(0)
base = torch.randn(rows, columns, generator=generator)
tensors = [base + 1e-3 * torch.randn(rows, columns, generator=generator) for _ in range(experts)]
small = [tensor[:64, :64] for tensor in tensors]
merge(TaskMatrices(small, base[:64, :64]), [1.0] * experts, options.settings())  # what libraries allocate once
with PeakMemory(torch.device("cpu")) as peak:
    merged, _ = merge(TaskMatrices(tensors, base), [1.0] * experts, options.settings())
print(json.dumps([peak.extra, matrix_bytes(base.shape, base.dtype, experts, options)]))
"""

BLAS_BUFFERS = 8e6
"""What BLAS allocates at its first large product and keeps: it belongs to no matrix."""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak cannot be reset")
@pytest.mark.parametrize(
    ("rows", "columns", "experts", "options"),
    [
        (1024, 1024, 2, {}),
        (1024, 1024, 3, {}),
        (3200, 640, 5, {"rank_budget": "per_task"}),
        (1920, 640, 3, {"order": "orthogonalize_first"}),
        (640, 3200, 3, {}),
        (640, 1280, 3, {"preset": "paper"}),
    ],
)
def test_a_merge_takes_no_more_memory_than_it_says(
    rows: int, columns: int, experts: int, options: dict[str, str]
) -> None:
    command = [sys.executable, "-c", MEASURE, json.dumps([rows, columns, experts, options])]
    taken, said = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert taken < said + BLAS_BUFFERS
    assert said < 3 * taken  # a bound that is far off would keep matrices from being merged side by side


SPY = """
import ctypes, sys
calls = []
class Library(ctypes.CDLL):
    def mallopt(self, *arguments): calls.append(arguments)
ctypes.CDLL = Library
import mergekit_3h.kernels.assembly, mergekit_3h.kernels.workers, mergekit_3h.spectral.tensors, mergekit_3h
from mergekit_3h.kernels.memory import return_large_blocks_when_freed
assert not calls, calls
return_large_blocks_when_freed()
print(calls)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone has the setting")
@pytest.mark.parametrize(("set_by_user", "calls"), [(False, "[(-3, 4194304), (-1, 4194304)]"), (True, "[]")])
def test_importing_leaves_the_allocator_alone_and_a_merge_asks_the_environment(set_by_user: bool, calls: str) -> None:
    environment = {**os.environ, **({"MALLOC_MMAP_THRESHOLD_": "131072"} if set_by_user else {})}
    program = [sys.executable, "-c", SPY]
    ran = subprocess.run(program, capture_output=True, text=True, check=False, env=environment)
    assert ran.stdout.strip() == calls, ran.stderr


@pytest.mark.parametrize("aspect", [3.1, 3.5, 4, 6, 12])
def test_a_small_rank_takes_no_more_than_the_full_one_though_it_is_stored(aspect: float) -> None:
    """What is said of a matrix before its ranks are known is said of the full one."""
    side = 640
    rows = round(aspect * side)
    width = max(width for width in range(side) if stores_left(rows, side, width))
    assert width > 0
    assert working_bytes(rows, side, width, 4) <= working_bytes(rows, side, side, 4)
