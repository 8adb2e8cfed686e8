"""How tensors come to a device and back: copies by way of staging buffers, and what says that memory is out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mergekit_3h.kernels.passages import Staging, is_out_of_memory


def test_what_libraries_say_when_memory_is_out() -> None:
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert is_out_of_memory(RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED"))
    wrapped = RuntimeError("cannot merge tensor")
    wrapped.__cause__ = torch.cuda.OutOfMemoryError("CUDA out of memory.")
    assert is_out_of_memory(wrapped)
    assert not is_out_of_memory(ValueError("out of memory")) and not is_out_of_memory(None)


class LateCopies:
    """Copies that a device makes by itself: as late as it may, when somebody waits for an event after them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._queue: list[tuple[Tensor, Tensor]] = []
        copy = Tensor.copy_
        self._copy = copy

        def queued(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
            if non_blocking:
                self._queue.append((target, source))
                return target
            return copy(target, source)

        monkeypatch.setattr(Tensor, "copy_", queued)

    def event(self) -> LateCopies.Event:
        return LateCopies.Event(self)

    class Event:
        def __init__(self, copies: LateCopies) -> None:
            self._copies, self._recorded = copies, 0

        def record(self) -> None:
            self._recorded = len(self._copies._queue)

        def synchronize(self) -> None:
            queue = self._copies._queue
            for at in range(min(self._recorded, len(queue))):
                target, source = queue[at]
                if target is not source:
                    self._copies._copy(target, source)
                    queue[at] = (target, target)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 100])
def test_staged_copies_arrive_whole(length: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many buffers' worth, though the device reads and writes them as late as it can."""
    copies = LateCopies(monkeypatch)
    staging = Staging([torch.zeros(64, dtype=torch.uint8) for _ in range(2)], [copies.event() for _ in range(2)])
    tensor = (torch.arange(1, length + 1) % 7).to(dtype)
    for move in (staging.send, staging.fetch, staging.send):
        arrived = torch.zeros_like(tensor)
        move(tensor, arrived)
        assert torch.equal(arrived, tensor)
