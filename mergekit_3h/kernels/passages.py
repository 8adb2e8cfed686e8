"""How tensors come to the device that merges and go back.

Around an accelerator a merge has three stages (``conveyor.py``): bringing a tensor there, merging it, fetching the
result. On a GPU each stage has a stream of its own, so copies and kernels of different tensors run side by side. A
stage ends when the host has waited for it: nothing that one stream still reads or writes is seen by another, or freed,
and memory that the allocator hands out again belongs to nobody. The stages share no memory but what is handed on, so a
merge's workspace is kept once, however many tensors are under way.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from mergekit_3h.kernels.card_memory import free_on
from mergekit_3h.kernels.workers import spans

Stage = Literal["uploading", "merging", "downloading"]
STAGES: tuple[Stage, ...] = ("uploading", "merging", "downloading")

STAGED_BYTES = 32 << 20
"""Of a pinned buffer: large enough for a bus's full speed. Pinning whole tensors would take longer than copying."""

_NO_MEMORY = ("out of memory", "STATUS_ALLOC_FAILED")
"""What CUDA's libraries say that ask for memory themselves."""


class Passage:
    """The way to a device that does everything at once, and says nothing of its memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @contextmanager
    def stage(self, stage: Stage) -> Generator[None]:
        """What is done within, by the thread that entered, belongs to this stage."""
        yield

    def upload(self, tensor: Tensor) -> Tensor:
        """The tensor on the device, when it is there."""
        return tensor.to(self.device)

    def download(self, tensor: Tensor) -> Tensor:
        """The tensor in the host's memory, when it is there."""
        return tensor.cpu()

    def settle(self) -> None:
        """Return when everything is done that this thread has asked the device for."""

    def free_bytes(self) -> int | None:
        """What of the device's memory may be taken; None where nobody says."""
        return None

    def empty_cache(self) -> None:
        """Give back what the allocator keeps."""


class CudaPassage(Passage):
    """The way to a GPU: a stream for each stage, and pinned memory to copy from and to."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(torch.empty(0, device=device).device)  # with its number
        self._streams = {stage: torch.cuda.Stream(self.device) for stage in STAGES}
        self._up, self._down = _pinned_staging(), _pinned_staging()

    @contextmanager
    def stage(self, stage: Stage) -> Generator[None]:
        with torch.cuda.stream(self._streams[stage]):
            yield

    def upload(self, tensor: Tensor) -> Tensor:
        if tensor.is_cuda:
            torch.cuda.default_stream(tensor.device).synchronize()  # where the host made it
        if tensor.device.type != "cpu" or not tensor.is_contiguous():
            return self._settled(tensor.to(self.device))
        there = torch.empty(tensor.shape, dtype=tensor.dtype, device=self.device)
        self._up.send(tensor.view(-1), there.view(-1))
        return there

    def download(self, tensor: Tensor) -> Tensor:
        if not tensor.is_cuda or not tensor.is_contiguous():
            return self._settled(tensor.cpu())
        here = torch.empty(tensor.shape, dtype=tensor.dtype)
        self._down.fetch(tensor.view(-1), here.view(-1))
        return here

    def _settled(self, tensor: Tensor) -> Tensor:
        self.settle()
        return tensor

    def settle(self) -> None:
        torch.cuda.current_stream(self.device).synchronize()

    def free_bytes(self) -> int:
        return free_on(self.device)

    def empty_cache(self) -> None:
        with torch.cuda.device(self.device):
            torch.cuda.synchronize()
            torch.cuda.empty_cache()


class Staging:
    """Two buffers that the device copies from and to by itself: one is filled or emptied while the other travels.

    ``events`` tell when the device is done with the buffer at the same place.
    """

    def __init__(self, buffers: Sequence[Tensor], events: Sequence[Any]) -> None:
        self._buffers, self._events = buffers, events
        self._lock = threading.Lock()

    def send(self, here: Tensor, there: Tensor) -> None:
        """Copy one-dimensional tensors, and return when that is done."""
        with self._lock:
            for i, part in enumerate(self._parts(here)):
                self._events[i % 2].synchronize()
                staged = self._buffer(i, here, part).copy_(here[part])
                there[part].copy_(staged, non_blocking=True)
                self._events[i % 2].record()
            for event in self._events:
                event.synchronize()

    def fetch(self, there: Tensor, here: Tensor) -> None:
        """The same in the other direction."""
        with self._lock:
            parts = self._parts(there)
            for i, part in enumerate([*parts, None]):
                if part is not None:
                    self._buffer(i, there, part).copy_(there[part], non_blocking=True)
                    self._events[i % 2].record()
                if i > 0:
                    last = parts[i - 1]
                    self._events[(i - 1) % 2].synchronize()
                    here[last].copy_(self._buffer(i - 1, here, last))

    def _parts(self, tensor: Tensor) -> list[slice]:
        return spans(tensor.numel(), self._buffers[0].nbytes // tensor.element_size())

    def _buffer(self, i: int, like: Tensor, part: slice) -> Tensor:
        return self._buffers[i % 2].view(like.dtype)[: part.stop - part.start]


def _pinned_staging() -> Staging:
    buffers = [torch.empty(STAGED_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
    return Staging(buffers, [torch.cuda.Event(blocking=True) for _ in range(2)])


PASSAGES: dict[str, Callable[[torch.device], Passage]] = {"cuda": CudaPassage}
"""By type of device, those around which reading, merging and writing overlap."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it came of, says that a device's memory is full."""
    while error is not None:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            return True
        if isinstance(error, RuntimeError) and any(sign in str(error) for sign in _NO_MEMORY):
            return True
        error = error.__cause__
    return False
