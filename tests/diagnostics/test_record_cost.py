"""Writing the record costs a small part of a merge: processor time of one thread, on shapes of a small model."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from mergekit_3h.diagnostics.record import watcher
from mergekit_3h.spectral.registry import parse_options
from mergekit_3h.spectral.tensors import MergedTensor, merge_tensor

MOST = 0.02
"""0.6 to 1.1 % were measured."""


@pytest.mark.parametrize("shape", [(576, 576), (1536, 576), (4096, 576)])
@pytest.mark.slow
def test_share_of_the_merge(shape: tuple[int, int], tmp_path: Path) -> None:
    base = (0.02 * torch.randn(shape)).bfloat16()
    experts = {label: (base.float() + 3e-4 * torch.randn(shape)).bfloat16() for label in "abc"}
    method = parse_options("rtsvm", {"record": str(tmp_path)})
    write = watcher(method, list("abc"))
    assert write is not None
    merging, writing = [], []

    def timed(merged: MergedTensor) -> None:
        began = time.thread_time()
        write(merged)
        writing.append(time.thread_time() - began)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so that this thread does all of the work
    try:
        for run in range(3):
            began = time.thread_time()
            merge_tensor(f"run{run}", base, experts, dict.fromkeys("abc", 1.0), method, watch=timed)
            merging.append(time.thread_time() - began - writing[-1])
    finally:
        torch.set_num_threads(threads)
    assert min(writing) < MOST * min(merging)
