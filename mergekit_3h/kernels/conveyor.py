"""Tensors on their way through an accelerator: while one is merged there, the next are brought and results fetched.

A GPU is busy with one merge, so tensors do not share it; what can overlap is everything around it. Three threads have a
stage each, and hand a tensor on from one to the next in the order in which it came. So the numbers, and what is drawn
at random, are those of one tensor after the other. The thread that begins them, a host's, meanwhile reads and writes.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from mergekit_3h.errors import DeviceMemoryError, about_tensor
from mergekit_3h.kernels.jobs import Begun
from mergekit_3h.kernels.loads import CarriedTensor, Load
from mergekit_3h.kernels.passages import PASSAGES, STAGES, Passage, Stage, is_out_of_memory

log = logging.getLogger(__name__)

MOST_ABOARD = 3
"""Tensors that have come to the device and are not merged yet: one is merged, one is there, one comes."""

USED_SHARE = 0.9
"""Of the device's free memory: its allocator loses some between blocks of different sizes."""

UNCOUNTED_BYTES = 512 << 20
"""Beyond what methods count: on a GPU a block of an update has 2^24 entries, 128 MB in float64 with parts of the same
size in float32, and its libraries have workspaces. One H200 took 1.25 GiB where the methods count 1.2."""

INPUTS_SHARE = 0.75
"""Of the host's memory for a merge, for inputs that are under way or wait; the rest is for results that wait to be
saved. The working memory is the device's, so they may have more than beside a merge on the cores."""


Work = Callable[[CarriedTensor], Callable[[], None]]
"""What a stage does with a tensor. It returns what follows when that is done."""


class Conveyor:
    """The way through one device. ``seconds`` are those in which each stage had something to do."""

    def __init__(self, passage: Passage) -> None:
        self.device = passage.device
        self.seconds: dict[Stage, float] = dict.fromkeys(STAGES, 0.0)
        self._passage = passage
        self._threads = {stage: ThreadPoolExecutor(1, f"mergekit-3h-{stage}") for stage in STAGES}
        self._changed = threading.Condition()
        self._unfinished: list[CarriedTensor] = []
        self._waiting: deque[CarriedTensor] = deque()
        self._aboard: list[CarriedTensor] = []
        self._leaving: list[CarriedTensor] = []
        self._room: int | None = None
        self._is_uploading = self._is_closed = False

    def begin(self, load: Load, room: int) -> Begun:
        """Take a tensor when the host's memory for it and all that is under way is within ``room``, or it is alone."""
        piece = CarriedTensor(load)
        with self._changed:
            self._changed.wait_for(lambda: not self._unfinished or self._held + piece.in_host_memory <= room)
            self._unfinished.append(piece)
            self._waiting.append(piece)
            self._board()
        return Begun(piece.future)

    def carry(self, loads: Iterable[Load], room: int) -> Iterator[tuple[str, Tensor | None]]:
        """Merge all of these, each asked for when there is room for it; the results come in the same order. After an
        error, or if nobody wants the rest, what has not begun is left."""
        begun: deque[tuple[str, Begun]] = deque()
        try:
            for load in loads:
                begun.append((load.name, self.begin(load, room)))
                del load
                while begun and begun[0][1].is_done:
                    name, first = begun.popleft()
                    yield name, first.result()
            while begun:
                name, first = begun.popleft()
                yield name, first.result()
        finally:
            begun.clear()

    @property
    def room(self) -> int | None:
        """Bytes that it may take of the device, by what was free when nothing was there; None where nobody says."""
        return self._room

    @property
    def _held(self) -> int:
        return sum(piece.in_host_memory for piece in self._unfinished)

    def _board(self) -> None:
        """Have come what there is room for; to be called with the lock held."""
        while self._waiting and self._fits(self._waiting[0]):
            piece = self._waiting.popleft()
            self._aboard.append(piece)
            self._hand_on("uploading", self._upload, piece)
        self._changed.notify_all()

    def _fits(self, piece: CarriedTensor) -> bool:
        if self._is_closed or len(self._aboard) >= MOST_ABOARD:
            return False
        if not self._aboard and not self._leaving:
            free = self._passage.free_bytes()
            self._room = None if free is None else int(USED_SHARE * free) - UNCOUNTED_BYTES
            return True
        together = [*self._aboard, piece]
        taken = sum(each.inputs for each in together) + max(each.working for each in together)
        return self._room is None or taken + sum(each.result for each in self._leaving) <= self._room

    def _hand_on(self, stage: Stage, work: Work, piece: CarriedTensor) -> None:
        try:
            self._threads[stage].submit(partial(self._timed, stage, work, piece))
        except RuntimeError:  # the interpreter is ending, and nobody will ask
            self._forget(piece)
            if not piece.future.cancel():
                piece.future.set_exception(CancelledError())

    def _timed(self, stage: Stage, work: Work, piece: CarriedTensor) -> None:
        began = time.perf_counter()
        with self._passage.stage(stage), torch.no_grad():
            follow = work(piece)
        self.seconds[stage] += time.perf_counter() - began
        follow()

    def _upload(self, piece: CarriedTensor) -> Callable[[], None]:
        if not piece.future.set_running_or_notify_cancel():
            return partial(self._leave, piece)
        with self._changed:
            self._is_uploading = not self._is_closed
        try:
            if self._is_uploading:
                piece.there = self._brought(piece)
        except BaseException as error:
            if not is_out_of_memory(error):
                return partial(self._fail, piece, error)
        finally:
            with self._changed:
                self._is_uploading = False
                self._changed.notify_all()
        # Without its inputs there they are brought in its turn.
        return partial(self._hand_on, "merging", self._merge, piece)

    def _brought(self, piece: CarriedTensor) -> dict[Any, Tensor]:
        assert piece.load is not None
        return {key: self._passage.upload(tensor) for key, tensor in piece.load.inputs.items()}

    def _merge(self, piece: CarriedTensor) -> Callable[[], None]:
        try:
            piece.merged = self._merged(piece)
        except BaseException as error:
            return partial(self._fail, piece, error)
        with self._changed:
            piece.load = None
            self._aboard.remove(piece)
            self._leaving.append(piece)
            self._board()
        return partial(self._hand_on, "downloading", self._download, piece)

    def _merged(self, piece: CarriedTensor) -> Tensor | None:
        try:
            return self._tried(piece)
        except BaseException as error:
            if not is_out_of_memory(error):
                raise
        # After the handler: the error's traceback held what the first try had made.
        log.info("%s: no memory on %s beside other tensors; merged again alone", piece.name, self.device)
        with self._alone(piece):
            try:
                return self._tried(piece)
            except BaseException as error:
                if not is_out_of_memory(error):
                    raise
                said = str(error)
            free = self._passage.free_bytes()
        raise DeviceMemoryError(piece.no_memory(self.device, free, said))

    def _tried(self, piece: CarriedTensor) -> Tensor | None:
        assert piece.load is not None
        there, piece.there = piece.there, None
        if there is None:
            there = self._brought(piece)
        try:
            return piece.load.merge(there)
        finally:
            self._passage.settle()

    @contextmanager
    def _alone(self, piece: CarriedTensor) -> Generator[None]:
        """Nothing else is on the device: results have left, and what was there already will be brought again."""
        with self._changed:
            self._is_closed = True
            self._changed.wait_for(lambda: not self._is_uploading and not self._leaving)
            for other in self._aboard:
                other.there = None
        self._passage.empty_cache()
        try:
            yield
        finally:
            with self._changed:
                self._is_closed = False
                self._board()

    def _download(self, piece: CarriedTensor) -> Callable[[], None]:
        merged, piece.merged = piece.merged, None
        try:
            here = None if merged is None else self._passage.download(merged)
        except BaseException as error:
            return partial(self._fail, piece, error)
        del merged
        self._leave(piece)
        return partial(piece.future.set_result, here)

    def _fail(self, piece: CarriedTensor, error: BaseException) -> None:
        self._leave(piece)
        piece.future.set_exception(about_tensor(piece.name, error))

    def _leave(self, piece: CarriedTensor) -> None:
        with self._changed:
            self._forget(piece)
            self._board()

    def _forget(self, piece: CarriedTensor) -> None:
        with self._changed:
            for pieces in (self._unfinished, self._aboard, self._leaving):
                if piece in pieces:
                    pieces.remove(piece)


def has_conveyor(device: torch.device) -> bool:
    """Whether tensors are merged on this device while others come and go. Nothing is asked of the device itself."""
    return device.type in PASSAGES


def conveyor_on(device: torch.device) -> Conveyor | None:
    """The conveyor of this process through a device; None where it has none."""
    return _conveyor(device, os.getpid(), PASSAGES[device.type]) if has_conveyor(device) else None


@lru_cache(maxsize=8)
def _conveyor(device: torch.device, _process: int, passage: Callable[[torch.device], Passage]) -> Conveyor:
    return Conveyor(passage(device))
