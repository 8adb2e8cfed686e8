"""The worker of a merge on a Ray cluster: a process that plans the whole merge and makes pieces of it."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mergekit.io.tasks import LoaderCache
from mergekit.options import MergeOptions
from torch import Tensor

from mergekit_3h.errors import OptionError
from mergekit_3h.kernels.card_memory import keep_to_share
from mergekit_3h.methods.adapter_experts import LoraRoute, adapters_on_their_base
from mergekit_3h.methods.memory_merge import parsed_config
from mergekit_3h.methods.merging.folder import read_shared
from mergekit_3h.methods.merging.identity import contents_of, environment_of
from mergekit_3h.methods.merging.journal import FinishedPiece
from mergekit_3h.methods.merging.local import devices_of, scan
from mergekit_3h.methods.merging.pieces import PieceWriter, write_piece
from mergekit_3h.methods.merging.random_states import DrawWatch
from mergekit_3h.methods.merging.run import assembled
from mergekit_3h.methods.merging.tasks import MergeTasks


class RandomMethodError(OptionError):
    """A worker has seen its merge method draw random numbers."""


@dataclass(frozen=True)
class MergeWorkerReport:
    """What a worker has planned, and where."""

    contents: dict[str, str]
    """Digests of the models as it sees them."""
    tensors: frozenset[str]
    environment: tuple[str, ...]
    host: str
    pid: int


@dataclass(frozen=True)
class MadePiece:
    """A piece that a worker has written; None if all of its tensors are such as models may lack."""

    piece: FinishedPiece | None
    seconds: dict[str, float]
    """That each tensor took."""
    shapes: dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class MergeJob:
    """What is merged, as it travels to the workers."""

    config: Mapping[str, Any]
    options: MergeOptions
    lora: LoraRoute


class MergeWorker:
    """The actor: a process that has planned the merge."""

    def __init__(self, job: MergeJob, folder: Path, threads: int, gpus: float, allow_non_finite: bool) -> None:
        torch.set_num_threads(threads)
        keep_to_share(gpus)
        self._job, self._options, self._folder = job, job.options, folder
        self._threads, self._allow_non_finite = threads, allow_non_finite
        self._devices = devices_of(job.options)

    def open(self) -> MergeWorkerReport:
        from mergekit_3h.lint.host_plan import save_tasks

        LoaderCache().setup(self._options)
        parsed = parsed_config(self._job.config)
        self._adapters = adapters_on_their_base(parsed, self._job.lora, self._options)  # as long as the process lives
        self._adapters.__enter__()
        self._tasks = MergeTasks(save_tasks(parsed_config(self._job.config), self._options))
        self._tasks.shared = read_shared(self._folder)
        environment = environment_of(self._options)
        return MergeWorkerReport(
            contents_of(parsed, self._options),
            frozenset(self._tasks.saves),
            (f"torch {torch.__version__}", str(environment["device"]), f"{self._threads} threads"),
            platform.node(),
            os.getpid(),
        )

    def make(self, names: list[str], file: str) -> MadePiece:
        """Merge these tensors into a file."""
        made = MadePiece(None, {}, {})
        pieces: list[FinishedPiece] = []
        last = time.monotonic()

        def saved(name: str, tensor: Tensor) -> None:
            nonlocal last
            scan(name, tensor, allow=self._allow_non_finite)
            made.shapes[name] = tuple(tensor.shape)
            made.seconds[name], last = time.monotonic() - last, time.monotonic()

        def flush(tensors: dict[str, Tensor], _: str | None) -> None:
            pieces.append(write_piece(tensors, self._folder, file, is_safe=self._options.safe_serialization))

        writer = PieceWriter(0, flush, saved)
        for done in self._tasks.run(names, writer, self._devices, DrawWatch()):
            if done.has_drawn:
                raise RandomMethodError(
                    f"the merge method {self._job.config['merge_method']!r} draws random numbers, each tensor from "
                    "where the one before has left the generator, so its tensors cannot be merged side by side with "
                    "mergekit's result; leave --ray out: such a merge can be interrupted and continued as well"
                )
        writer.flush()
        return MadePiece(pieces[0] if pieces else None, made.seconds, made.shapes)

    def assemble(self, sources: dict[str, str], file: str) -> FinishedPiece:
        """Put a shard together."""
        return assembled(self._folder, sources, file, is_safe=self._options.safe_serialization)
