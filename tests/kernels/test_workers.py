"""Pieces of work side by side: what the caller may rely on when one of them fails."""

from __future__ import annotations

import time

import pytest
import torch

from mergekit_3h.kernels.workers import run_all


def test_an_error_is_raised_when_nothing_is_running_any_more() -> None:
    """Else a caller that frees memory and tries again would share it with the rest of what failed."""
    finished: list[bool] = []

    def fail() -> None:
        raise MemoryError("too large")

    def work() -> None:
        time.sleep(0.2)
        finished.append(True)

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(MemoryError, match="too large"):
            run_all(torch.device("cpu"), [fail, work])
    finally:
        torch.set_num_threads(threads)
    assert finished == [True]
