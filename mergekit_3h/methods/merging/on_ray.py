"""The pieces of a merge made by the workers of a Ray cluster, each from and to a file system that all share.

What travels are names of tensors and what is written down of a finished piece. A worker plans the whole merge itself
and runs a part of it; the same tasks give the same bits wherever they run. A piece is a shard where there are enough of
them, else a part of one; then the shards are put together from their parts at the end, by the workers as well.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from mergekit_3h.cluster.connection import connect, require_ray, room
from mergekit_3h.cluster.options import ClusterOptions
from mergekit_3h.cluster.pool import RayPool
from mergekit_3h.errors import ModelError, OptionError
from mergekit_3h.lint.estimate import process_bytes
from mergekit_3h.methods.memory_merge import parsed_config
from mergekit_3h.methods.merging.layout import divided, working_names
from mergekit_3h.methods.merging.ray_worker import (
    MadePiece,
    MergeJob,
    MergeWorker,
    MergeWorkerReport,
    RandomMethodError,
)
from mergekit_3h.methods.merging.run import RunningMerge
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
    sizes = {name: _expected_bytes(run, name) for gap in gaps for name in gap}
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


def _expected_bytes(run: RunningMerge, name: str) -> int:
    """A tensor that mergekit makes of others has no size in any header: it gets a piece of its own."""
    tensor = run.expected.get(name)
    return tensor.bytes if tensor is not None and tensor.bytes else _LARGEST_PIECE


def _starting(run: RunningMerge, job: MergeJob, scale: ClusterOptions) -> Callable[[], Any]:
    # Ray's own restarts would call a worker's methods before it has planned again; the pool does better.
    actor: Any = require_ray().remote(**scale.reserved(), max_restarts=0)(MergeWorker)
    threads = scale.threads or torch.get_num_threads()
    given = (job, run.folder.pieces_folder, threads, scale.gpus_per_worker, run.allow_non_finite)
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
