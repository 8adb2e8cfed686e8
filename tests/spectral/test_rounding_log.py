"""A merge says once for each expert what rounding did to it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hosts import merge_config, mergekit_yaml
from tiny_models import Family

from mergekit_3h.spectral.registry import parse_options
from mergekit_3h.spectral.rounding_log import MATRICES, RoundingLog
from mergekit_3h.spectral.tensors import merge_tensor


def told(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if "away from the trained one" in record.getMessage()]


def merge_matrices(
    caplog: pytest.LogCaptureFixture,
    rms: float,
    dtype: torch.dtype = torch.bfloat16,
    method: str = "tsvm",
    **options: object,
) -> list[logging.LogRecord]:
    """Merge more matrices than the log waits for, of two experts whose updates have this size."""
    caplog.clear()
    generator = torch.Generator().manual_seed(0)
    rounding, weights = RoundingLog(), {"a": 1.0, "b": 1.0}
    with caplog.at_level("INFO", "mergekit_3h"):
        for i in range(MATRICES + 3):
            base, *updates = (torch.randn(40, 30, generator=generator) for _ in range(3))
            base = (0.05 * base).to(dtype)
            experts = {
                label: (base.double() + rms * update).to(dtype) for label, update in zip("ab", updates, strict=True)
            }
            merge_tensor(f"layer{i}", base, experts, weights, parse_options(method, options), rounding=rounding)
    return told(caplog)


def test_each_expert_has_one_line(caplog: pytest.LogCaptureFixture) -> None:
    said = merge_matrices(caplog, 2e-3)
    assert [record.getMessage()[:2] for record in said] == ["a:", "b:"]
    assert {record.levelname for record in said} == {"INFO"}


def test_under_half_of_the_weights_changed_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    said = merge_matrices(caplog, 1e-4)
    assert {record.levelname for record in said} == {"WARNING"}
    assert "save float32 checkpoints or adapters" in said[0].getMessage()
    assert "outlier" not in said[0].getMessage()


def test_outlier_weights_of_rounded_updates_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    assert "outlier_weighting: none" in merge_matrices(caplog, 3e-4, method="rtsvm")[0].getMessage()
    assert "outlier" not in merge_matrices(caplog, 3e-4, method="rtsvm", outlier_weighting="none")[0].getMessage()
    assert "outlier" not in merge_matrices(caplog, 5e-3, method="rtsvm")[0].getMessage()


def test_float32_checkpoints_have_no_line(caplog: pytest.LogCaptureFixture) -> None:
    assert merge_matrices(caplog, 1e-4, dtype=torch.float32) == []


def test_a_report_that_does_not_speak_of_rounding_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    rounding = RoundingLog()
    for _ in range(MATRICES):
        rounding.add(["a"], object())
    assert told(caplog) == []


def test_every_merge_of_mergekit_has_its_own_lines(
    family: Callable[..., Family], absolute: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two merges in one process: the first must not have said it for the second."""
    experts = family("llama", dtype=torch.bfloat16, update=2e-5)
    for out in ("first", "second"):
        mergekit_yaml(merge_config(experts, "tsvm"), absolute / out)
    assert len(told(caplog)) == 2 * len(experts.experts)
    assert {record.levelname for record in told(caplog)} == {"WARNING"}
    assert all(str(path) in caplog.text for path in experts.experts)
