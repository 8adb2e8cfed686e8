"""Where a merge is computed, and that the kernels make no tensor elsewhere."""

from __future__ import annotations

import logging

import pytest
import torch
from kernels.oracle import random_delta, settings

from mergekit_3h.kernels.assembly import merge
from mergekit_3h.kernels.devices import computing_device, float64_fraction, float64_rate
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.lint.estimate import _slow_float64


def test_a_device_without_float64_is_left_for_the_cpu(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "mergekit_3h"):
        assert computing_device(torch.device("mps")) == torch.device("cpu")
    assert "has no float64" in caplog.text
    assert computing_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "capability", "fraction", "said"),
    [
        ("Tesla V100", (7, 0), 2, "fast"),
        ("NVIDIA A100", (8, 0), 2, "fast"),
        ("NVIDIA H200", (9, 0), 2, "fast"),
        ("NVIDIA B200", (10, 0), 2, "fast"),
        ("NVIDIA B300", (10, 3), 64, "1/64"),
        ("Tesla T4", (7, 5), 32, "1/32"),
        ("NVIDIA GeForce RTX 3090", (8, 6), 64, "1/64"),
        ("NVIDIA GeForce RTX 4090", (8, 9), 64, "1/64"),
        ("NVIDIA GeForce RTX 5090", (12, 0), 64, "1/64"),
        ("a card of tomorrow", (99, 0), None, "not known"),
    ],
)
def test_weak_float64_is_told_once(
    name: str,
    capability: tuple[int, int],
    fraction: int | None,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By doctor, by check's estimate, and by a line in the log of the merge; the card stays what merges."""
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device=None: capability)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device=None: name)
    card = torch.device("cuda", 0)
    assert float64_fraction(capability) == fraction
    assert said in float64_rate(card)
    computing_device.cache_clear()
    with caplog.at_level(logging.WARNING, "mergekit_3h"):
        assert [computing_device(card) for _ in range(3)] == [card] * 3
    computing_device.cache_clear()
    told = [record.getMessage() for record in caplog.records]
    is_slow = fraction is not None and fraction > 2
    line = f"{name} computes float64 at 1/{fraction} of its float32 rate: the merge is exact but slower"
    assert told == ([line] if is_slow else [])
    in_check = _slow_float64("tsvm", "cuda:0")
    assert (f"1/{fraction} of float32" in in_check) if is_slow else in_check == ""
    assert _slow_float64("linear", "cuda:0") == _slow_float64("tsvm", "cpu") == ""


@pytest.mark.only_on("cuda")
@pytest.mark.parametrize("options", [{}, {"preset": "paper"}, {"rank_budget": "per_task"}, {"decomposition": "krylov"}])
def test_cuda_gives_the_cpu_result_and_stays_on_the_device(options: dict[str, str]) -> None:
    deltas = [random_delta((300, 200), "decaying", seed).cpu() for seed in range(3)]
    expected, _ = merge(TaskMatrices(deltas), [1.0] * 3, settings("rtsvm", **options))
    merged, _ = merge(TaskMatrices([delta.cuda() for delta in deltas]), [1.0] * 3, settings("rtsvm", **options))
    assert merged.is_cuda
    assert torch.allclose(merged.cpu(), expected, rtol=1e-5, atol=1e-9)
