"""The pieces of a merge made in this process, one after the other; written by other threads if asked for."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from mergekit.options import MergeOptions
from torch import Tensor

from mergekit_3h.errors import TensorError
from mergekit_3h.methods.merging.layout import working_names
from mergekit_3h.methods.merging.pieces import PieceWriter, require_finite, write_piece
from mergekit_3h.methods.merging.random_states import DrawWatch
from mergekit_3h.methods.merging.run import RunningMerge

log = logging.getLogger(__name__)


def merge_here(run: RunningMerge, devices: tuple[Any, Any]) -> None:
    """Make everything that is not finished."""
    with _Writing(run.options.write_threads if run.options.async_write else 0) as writing:
        for gap in run.gaps():
            _Gap(run, gap, writing).fill(devices)


class _Gap:
    """Tensors that follow each other in mergekit's order, on their way into shards."""

    def __init__(self, run: RunningMerge, names: list[str], writing: _Writing) -> None:
        self._run, self._names, self._writing = run, names, writing
        self._watch = DrawWatch(run.tasks.order, run.random_before(names[0]))
        self._number = len(run.shards(before=names[0]))
        self._place = 0

    def fill(self, devices: tuple[Any, Any]) -> None:
        writer = PieceWriter(self._run.options.out_shard_size, self._flush, self._saved)
        for done in self._run.tasks.run(self._names, writer, devices, self._watch):
            self._place = done.place
        writer.flush()
        self._writing.wait()  # the next gap draws from where this one has come to

    def _saved(self, name: str, tensor: Tensor) -> None:
        scan(name, tensor, allow=self._run.allow_non_finite)
        self._run.progress.merged(name, tuple(tensor.shape))

    def _flush(self, tensors: dict[str, Tensor], following: str | None) -> None:
        run = self._run
        self._number += 1
        stem, ending = working_names(run.is_safe)
        file = f"{run.name}/{stem}-{self._number}.{ending}"
        rest = self._names[self._names.index(following) :] if following is not None else []
        place = run.tasks.place(following) if following is not None else self._place
        random = self._watch.cut(place, lambda: run.tasks.needed_for(rest, before=place))

        def write() -> None:
            piece = write_piece(tensors, run.folder.pieces_folder, file, is_safe=run.is_safe)
            run.folder.add(replace(piece, random=random))

        self._writing.do(write)


def devices_of(options: MergeOptions) -> tuple[Any, Any]:
    """The device that computes and the one that keeps what is computed, as mergekit chooses them."""
    return options.device, options.device if options.low_cpu_memory else "cpu"


def scan(name: str, tensor: Tensor, *, allow: bool) -> None:
    """Refuse numbers that are not finite, or tell of them."""
    try:
        require_finite(name, tensor)
    except TensorError as error:
        if not allow:
            raise
        log.warning("%s", str(error).partition(":")[0])


class _Writing:
    """Does what it is given at once, or in threads: then at most as much waits as there are threads."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads) if threads else None
        self._running: deque[Future[None]] = deque()

    def do(self, write: Callable[[], None]) -> None:
        if self._pool is None:
            write()
            return
        while len(self._running) >= self._threads:
            self._running.popleft().result()
        self._running.append(self._pool.submit(write))

    def wait(self) -> None:
        """Until everything is on the disk."""
        while self._running:
            self._running.popleft().result()

    def __enter__(self) -> _Writing:
        return self

    def __exit__(self, *_: object) -> None:
        """What is being written is finished even after an error: it need not be merged again."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)
