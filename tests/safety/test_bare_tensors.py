"""safety_merge where there is no config: tensors merged from Python."""

from __future__ import annotations

import logging

import pytest
import torch
from mergekit.merge_methods import merge_tensors


def test_without_data_the_experts_are_merged_alike_and_a_warning_says_so(caplog: pytest.LogCaptureFixture) -> None:
    base = torch.randn(12, 8)
    experts = [base + 0.1 * torch.randn(12, 8) for _ in range(2)]
    with caplog.at_level(logging.WARNING, "mergekit_3h"):
        parameters = {"combine": "task_arithmetic"}
        merged = merge_tensors([base, *experts], "safety_merge", base_index=0, parameters=parameters)
    expected = merge_tensors([base, *experts], "task_arithmetic", base_index=0, parameters={"weight": 0.5})
    assert torch.equal(merged, expected)
    assert "no data" in caplog.text
