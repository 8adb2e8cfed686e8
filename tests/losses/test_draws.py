"""Draws of a search, which nobody else may notice."""

from __future__ import annotations

import pytest
import torch

from mergekit_3h.losses.draws import drawing_from


def test_the_same_draws_again_and_no_trace() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with drawing_from(11, torch.device("cpu")):
        first = torch.rand(4)
    assert torch.equal(torch.rand(4), expected)
    with drawing_from(11, torch.device("cpu")):
        assert torch.equal(torch.rand(4), first)


def test_draws_on_the_cpu_leave_the_seed_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """safety_merge tries its method's options on the CPU while mergekit plans, after it has seeded all GPUs."""
    seeds: list[int] = []
    monkeypatch.setattr("torch.cuda.manual_seed_all", seeds.append)
    with drawing_from(11, torch.device("cpu")):
        torch.rand(4)
    assert not seeds


@pytest.mark.only_on("cuda")
def test_draws_on_a_gpu_leave_no_trace_there(device: torch.device) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4, device=device)
    torch.manual_seed(3)
    with drawing_from(11, device):
        first = torch.rand(4, device=device)
    assert torch.equal(torch.rand(4, device=device), expected)
    with drawing_from(11, device):
        assert torch.equal(torch.rand(4, device=device), first)
