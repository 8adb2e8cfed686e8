"""Where a merge is computed, and that the kernels make no tensor elsewhere."""

from __future__ import annotations

import logging

import pytest
import torch
from kernels.oracle import random_delta, settings

from mergekit_3h.kernels.assembly import merge
from mergekit_3h.kernels.devices import computing_device
from mergekit_3h.kernels.tasks import TaskMatrices


def test_a_device_without_float64_is_left_for_the_cpu(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "mergekit_3h"):
        assert computing_device(torch.device("mps")) == torch.device("cpu")
    assert "has no float64" in caplog.text
    assert computing_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.only_on("cuda")
@pytest.mark.parametrize("options", [{}, {"preset": "paper"}, {"rank_budget": "per_task"}, {"decomposition": "krylov"}])
def test_cuda_gives_the_cpu_result_and_stays_on_the_device(options: dict[str, str]) -> None:
    deltas = [random_delta((300, 200), "decaying", seed).cpu() for seed in range(3)]
    expected, _ = merge(TaskMatrices(deltas), [1.0] * 3, settings("rtsvm", **options))
    merged, _ = merge(TaskMatrices([delta.cuda() for delta in deltas]), [1.0] * 3, settings("rtsvm", **options))
    assert merged.is_cuda
    assert torch.allclose(merged.cpu(), expected, rtol=1e-5, atol=1e-9)
