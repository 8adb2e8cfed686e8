"""What merging a matrix really takes of memory, measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from typing import Any

BLAS_BUFFERS = 8e6
"""What BLAS allocates at a large product and keeps: it belongs to no matrix. What a library takes to be loaded is
left out by a first matrix that needs it."""

_MEASURED_SHAPES = [(512, 512), (1536, 384), (384, 1152)]


@cache
def memory_taken(asked: str) -> dict[str, Any]:
    """Of methods by name with their options, in a process of its own: shape, bytes taken, bytes said; or what went
    wrong."""
    command = [sys.executable, "-c", _MEASURE, asked, json.dumps(_MEASURED_SHAPES)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


_MEASURE = """
import json, sys, traceback
import torch
torch.set_num_threads(1)
from mergekit_3h.benchmarks.memory import PeakMemory
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.spectral.registry import parse_options
from mergekit_3h.spectral.tensors import matrix_bytes

def measured(method):
    for rows, columns in [(192, 192), *json.loads(sys.argv[2])]:
        base = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
        experts = [base + 1e-3 * torch.randn(rows, columns) for _ in range(3)]
        with PeakMemory(torch.device("cpu")) as peak:
            merged, _ = method.merge(TaskMatrices(experts, base), [1.0] * 3)
        yield [[rows, columns], peak.extra, matrix_bytes(base.shape, base.dtype, 3, method)]

found = {}
for name, options in json.loads(sys.argv[1]).items():
    try:
        found[name] = list(measured(parse_options(name, options)))[1:]
    except Exception:
        found[name] = traceback.format_exc()
print(json.dumps(found))
"""
