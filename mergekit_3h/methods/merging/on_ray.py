"""The pieces of a merge made by the workers of a Ray cluster, each from and to a file system that all share.

What travels are names of tensors and what is written down of a finished piece. A worker plans the whole merge itself
and runs a part of it; the same tasks give the same bits wherever they run. A piece is a shard where there are enough of
them, else a part of one; then the shards are put together from their parts at the end, by the workers as well.
"""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mergekit.io.tasks import LoaderCache
from mergekit.options import MergeOptions
from torch import Tensor

from mergekit_3h.cluster.connection import connect, require_ray, room
from mergekit_3h.cluster.options import ClusterOptions
from mergekit_3h.cluster.pool import RayPool
from mergekit_3h.errors import ModelError, OptionError
from mergekit_3h.lint.estimate import process_bytes
from mergekit_3h.methods.adapter_experts import LoraRoute, adapters_on_their_base
from mergekit_3h.methods.memory_merge import parsed_config
from mergekit_3h.methods.merging.folder import read_shared
from mergekit_3h.methods.merging.identity import contents_of, environment_of
from mergekit_3h.methods.merging.journal import FinishedPiece
from mergekit_3h.methods.merging.layout import divided, working_names
from mergekit_3h.methods.merging.local import devices_of, scan
from mergekit_3h.methods.merging.pieces import PieceWriter, write_piece
from mergekit_3h.methods.merging.random_states import DrawWatch
from mergekit_3h.methods.merging.run import RunningMerge, assembled
from mergekit_3h.methods.merging.tasks import MergeTasks
from mergekit_3h.methods.safety_request import METHOD_NAME

log = logging.getLogger(__name__)

_PIECES_A_WORKER = 4
"""Pieces that differ in what they cost keep workers busy if each has several; a heuristic."""
_SMALLEST_PIECE = 32_000_000
"""Bytes below which a piece is not divided further: opening files would cost more than it gains."""
_LARGEST_PIECE = 2_000_000_000
_LEAST_GB = 0.1
"""For tensors side by side, where all of them are tiny."""
_ADVICE = "or --ray-memory-per-worker. What is finished is kept; the same command goes on from there"


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

    def __init__(self, job: MergeJob, folder: Path, threads: int, allow_non_finite: bool) -> None:
        torch.set_num_threads(threads)
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


@dataclass(frozen=True)
class _PlannedPiece:
    names: list[str]
    file: str
    bytes: int
    """As expected."""


def merge_on_ray(run: RunningMerge, job: MergeJob, contents: Mapping[str, str], given: ClusterOptions) -> None:
    """Make everything that is not finished."""
    if not run.gaps() and not run.unlike():
        return
    is_ours = connect(given)
    try:
        pieces = _pieces(run, min(given.workers or room(given), max(1, room(given))))
        scale, job = _with_memory(given, job, pieces)
        workers = max(1, min(scale.workers or room(scale), room(scale), len(pieces)))
        log.info("a merge on %d Ray workers, in %d pieces", workers, len(pieces))
        run.progress.shared_by(workers)
        start, accept = _starting(run, job, scale), _Acceptance(run, contents)
        pool = RayPool(start, workers, scale, accept, advice=_ADVICE)
        try:
            _make(run, pool, pieces)
            _assemble(run, pool)
        except RandomMethodError:
            run.folder.forget()  # nobody can tell any more from where its other tensors are to be drawn
            raise
        finally:
            pool.close()
    finally:
        if is_ours:
            require_ray().shutdown()


def require_divisible(config: Mapping[str, Any]) -> None:
    """Raise if the merge is of a kind whose tensors are not merged one by one."""
    if config["merge_method"] == METHOD_NAME:
        raise OptionError(
            "safety_merge searches its weights once for the whole model: search them with mergekit-3h search, on a "
            "cluster if you like (--runner ray), and merge the config that it writes with --ray"
        )
    if any(key == "record" for key in _parameters(config)):
        raise OptionError("option 'record': its file has one writer, so a merge with --ray leaves none; leave one out")


def _parameters(content: Any) -> Iterator[str]:
    """Names of all parameters anywhere in a config."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from (map(str, value) if key == "parameters" and isinstance(value, Mapping) else _parameters(value))
    elif isinstance(content, list):
        for value in content:
            yield from _parameters(value)


def _with_memory(scale: ClusterOptions, job: MergeJob, pieces: list[_PlannedPiece]) -> tuple[ClusterOptions, MergeJob]:
    """What Ray is to reserve, and a config that keeps to it: Ray puts no more workers on a node than it holds, and a
    worker merges no more tensors side by side."""
    from mergekit_3h.lint.host_plan import planned_tensors
    from mergekit_3h.lint.models import named_models

    parsed = parsed_config(job.config)
    plan, _ = planned_tensors(parsed, named_models(parsed))
    fixed, working = process_bytes(parsed, plan, max((piece.bytes for piece in pieces), default=0))
    if scale.memory_per_worker is None:
        scale = scale.model_copy(update={"memory_per_worker": (fixed + working) / 1e9})
    if room(scale) < 1:
        has = require_ray().cluster_resources().get("memory", 0) / 1e9
        raise OptionError(
            f"a worker of this merge needs {scale.needs}, and the cluster has {has:.3g} GB for workers: lower "
            "--out-shard-size, add nodes, or say what a worker gets with --ray-memory-per-worker"
        )
    parameters = dict(job.config.get("parameters") or {})
    if _takes(job.config["merge_method"], "memory_gb"):
        beside = (scale.memory_per_worker or 0) - fixed / 1e9
        parameters.setdefault("memory_gb", max(beside, working / 1e9, _LEAST_GB))
    return scale, replace(job, config={**job.config, "parameters": parameters})


def _takes(method: str, option: str) -> bool:
    from mergekit import merge_methods

    return any(parameter.name == option for parameter in merge_methods.get(method).spec.parameters)


def _pieces(run: RunningMerge, workers: int) -> list[_PlannedPiece]:
    """What is to be made: shards where they are many, else parts of them."""
    limit, gaps = run.options.out_shard_size, run.gaps()
    sizes = {name: max(1, run.expected[name].bytes) if name in run.expected else 1 for gap in gaps for name in gap}
    parts = [part for gap in gaps for part in divided({name: sizes[name] for name in gap}, limit)]
    if len(parts) < _PIECES_A_WORKER * workers:
        share = sum(sizes.values()) // (_PIECES_A_WORKER * workers)
        most = min(max(share, _SMALLEST_PIECE), _LARGEST_PIECE)
        parts = [part for names in parts for part in divided({name: sizes[name] for name in names}, most)]
    stem, ending = working_names(run.is_safe)
    return [
        _PlannedPiece(part, f"{run.name}/{stem}-{number}.{ending}", sum(sizes[name] for name in part))
        for number, part in enumerate(parts, start=1)
    ]


def _starting(run: RunningMerge, job: MergeJob, scale: ClusterOptions) -> Callable[[], Any]:
    # Ray's own restarts would call a worker's methods before it has planned again; the pool does better.
    actor: Any = require_ray().remote(**scale.reserved(), max_restarts=0)(MergeWorker)
    threads = scale.threads or torch.get_num_threads()
    given = (job, run.folder.pieces_folder, threads, run.allow_non_finite)
    return lambda: actor.remote(*given)


class _Acceptance:
    """Refuses a worker that merges something else; warns of one whose last bits may differ."""

    def __init__(self, run: RunningMerge, contents: Mapping[str, str]) -> None:
        self._tensors, self._contents = frozenset(run.tasks.saves), dict(contents)
        self._seen: set[tuple[str, ...]] = set()

    def __call__(self, report: MergeWorkerReport) -> None:
        different = [name for name, content in self._contents.items() if report.contents.get(name) != content]
        if different or report.tensors != self._tensors:
            what = " and ".join(different) or "another plan of the merge"
            raise ModelError(
                f"the worker on {report.host} sees other files of {what} than this process. Every node must see the "
                "same models under the same paths, and have the same versions of all packages."
            )
        if self._seen and report.environment not in self._seen:
            log.warning(
                "the worker on %s has %s, another one has %s: the last bits of a tensor may depend on who merges it",
                report.host,
                ", ".join(report.environment),
                ", ".join(next(iter(self._seen))),
            )
        self._seen.add(report.environment)
        log.info("worker on %s, process %d: %s", report.host, report.pid, ", ".join(report.environment))


def _make(run: RunningMerge, pool: RayPool, pieces: list[_PlannedPiece]) -> None:
    made: MadePiece
    for _, made in pool.run_unordered([("make", (piece.names, piece.file)) for piece in pieces]):
        if made.piece is not None:
            run.folder.add(made.piece)
        for name, seconds in made.seconds.items():
            run.progress.merged(name, made.shapes[name], seconds)


def _assemble(run: RunningMerge, pool: RayPool) -> None:
    calls = [("assemble", (run.sources(shard), file)) for shard, file in run.unlike()]
    for _, piece in pool.run_unordered(calls):
        run.folder.add(piece)
