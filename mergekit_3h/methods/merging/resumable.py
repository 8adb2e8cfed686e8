"""mergekit's ``run_merge`` with an executor that writes down what is finished, and goes on from there."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mergekit.graph import Task
from mergekit.io.tasks import LoaderCache
from mergekit.options import MergeOptions

from mergekit_3h.cluster.connection import require_ray
from mergekit_3h.cluster.options import ClusterOptions
from mergekit_3h.diagnostics.record import continued_record
from mergekit_3h.errors import ModelError, OptionError, ThreeHError
from mergekit_3h.methods.adapter_experts import LoraRoute, adapters_on_their_base
from mergekit_3h.methods.memory_merge import explained, parsed_config
from mergekit_3h.methods.merging.endings import ended_in_words
from mergekit_3h.methods.merging.folder import UnfinishedMerge, require_usable
from mergekit_3h.methods.merging.identity import contents_of, environment_of, request_of
from mergekit_3h.methods.merging.layout import index_name, index_text
from mergekit_3h.methods.merging.local import merge_here
from mergekit_3h.methods.merging.pieces import FullDiskError, is_full
from mergekit_3h.methods.merging.progress import ExpectedTensor, MergeProgress
from mergekit_3h.methods.merging.run import RunningMerge, assembled
from mergekit_3h.methods.merging.tasks import MergeTasks
from mergekit_3h.safety.traces import trace_kept_in

log = logging.getLogger(__name__)

_DISK_IS_FULL = (
    "the disk of {} is full; make space and run the same command again: it goes on from the files that are finished"
)
_LEAST_LEFT = 1 << 16
"""Bytes that are free when everything has been written, if nothing has failed for want of them."""

Devices = tuple[Any, Any]
"""The one that computes and the one that keeps what is computed, as mergekit names them."""


@dataclass(frozen=True)
class ResumableMerge:
    """Merges as ``mergekit-yaml`` does under these options, and continues what an earlier run has begun."""

    options: MergeOptions
    cluster: ClusterOptions | None = None
    """Where to merge; None: in this process."""
    start_over: bool = False
    allow_non_finite: bool = False
    quiet: bool = False
    lora: LoraRoute = "auto"
    """How experts that are adapters on the base are merged by a spectral method."""

    def write(self, config: Mapping[str, Any], out: Path, source: str) -> None:
        """The whole model in ``out``. ``source`` is the config's text, which the model card quotes."""
        require_usable(out)
        _require_one_at_a_time(self.options)
        if self.cluster is not None:
            from mergekit_3h.methods.merging.on_ray import require_divisible

            require_divisible(config)
            require_ray()  # it takes SIGTERM for itself when it is imported, so that has to be before we do
        if self.options.num_threads is not None:
            torch.set_num_threads(self.options.num_threads)
        parsed = parsed_config(config)
        loaders = LoaderCache()
        loaders.loaders.clear()  # of a merge before in this process: its files may be others by now
        loaders.setup(self.options)
        with explained("the merge"), adapters_on_their_base(parsed, self.lora, self.options) as experts:
            request = request_of(parsed, self.options)
            if experts is not None:
                request["--lora"] = experts.route
            self._continue(
                config, source, UnfinishedMerge(out, request, environment_of(self.options), start_over=self.start_over)
            )

    def _continue(self, config: Mapping[str, Any], source: str, folder: UnfinishedMerge) -> None:
        try:
            with ended_in_words(folder):
                _keep_environment(folder.environment, environment_of(self.options), self.options)
                _Execution(self, folder, config).run(source)
        except Exception as error:
            if isinstance(error, ThreeHError) or not is_full(error):
                raise
            raise FullDiskError(_DISK_IS_FULL.format(folder.out)) from error
        finally:
            folder.close()


class _Execution:
    """One call of ``run_merge``."""

    def __init__(self, merge: ResumableMerge, folder: UnfinishedMerge, config: Mapping[str, Any]) -> None:
        self._merge, self._folder, self._config = merge, folder, config
        self._run: RunningMerge | None = None

    def run(self, source: str) -> None:
        from mergekit.merge import run_merge

        with _executed_by(self._execute), trace_kept_in(self._folder.trace):
            out = str(self._folder.model_folder)
            run_merge(parsed_config(self._config), out, options=self._merge.options, config_source=source)
        if shutil.disk_usage(self._folder.out).free < _LEAST_LEFT:  # mergekit goes on without a tokenizer then
            raise FullDiskError(_DISK_IS_FULL.format(self._folder.out))
        run = self._run
        if run is None:
            raise ModelError("this version of mergekit merges otherwise than mergekit-3h expects; use mergekit-yaml")
        found = run.shards()
        index = (index_name(is_safe=run.is_safe), index_text(found)) if len(found) > 1 else None
        self._folder.publish(run.weights(), index)

    def _execute(self, targets: Sequence[Task[Any]], devices: Devices) -> Iterator[tuple[Task[Any], Any]]:
        tasks, expected = MergeTasks(targets), expected_tensors(self._config)
        waiting = {name: expected.get(name, ExpectedTensor((), 0)) for name in tasks.saves}
        progress = MergeProgress(waiting, disable=self._merge.quiet)
        run = RunningMerge(
            self._folder, tasks, self._merge.options, expected, progress, allow_non_finite=self._merge.allow_non_finite
        )
        try:
            self._folder.verify(run.final())
            progress.known(run.finished())
            run.require_room()
            tasks.shared = self._folder.shared(lambda: tasks.make_shared(devices))
            self._make(run, devices)
        finally:
            progress.close()
        yield from tasks.shared_values()
        self._run = run

    def _make(self, run: RunningMerge, devices: Devices) -> None:
        if self._merge.cluster is not None:
            from mergekit_3h.methods.merging.on_ray import merge_on_ray
            from mergekit_3h.methods.merging.ray_worker import MergeJob

            contents = contents_of(parsed_config(self._config), self._merge.options)
            merge_on_ray(
                run, MergeJob(self._config, self._merge.options, self._merge.lora), contents, self._merge.cluster
            )
            return
        with continued_record(run.finished()):
            merge_here(run, devices)
        for shard, file in run.unlike():
            sources = run.sources(shard)
            self._folder.add(assembled(self._folder.pieces_folder, sources, file, is_safe=run.is_safe))


def expected_tensors(config: Mapping[str, Any]) -> dict[str, ExpectedTensor]:
    """Shapes and sizes of the result by the headers of its inputs; empty where mergekit's plan cannot be foreseen."""
    from mergekit_3h.lint.host_plan import planned_tensors
    from mergekit_3h.lint.models import named_models
    from mergekit_3h.lint.planned_merge import output_bytes

    parsed = parsed_config(config)
    plan, _ = planned_tensors(parsed, named_models(parsed))
    return {tensor.name: ExpectedTensor(tensor.shape, output_bytes(parsed, tensor)) for tensor in plan}


def _require_one_at_a_time(options: MergeOptions) -> None:
    if options.multi_gpu:
        raise OptionError(
            "mergekit's threads on several GPUs finish tensors in no fixed order, so such a merge cannot be continued; "
            "use --ray --ray-gpus-per-worker 1, which uses all GPUs and can be"
        )


def _keep_environment(before: Mapping[str, Any], now: Mapping[str, Any], options: MergeOptions) -> None:
    """Continue under the conditions of the beginning, as far as they can be had, and say what cannot."""
    if options.num_threads is None and before["threads"] != now["threads"]:
        torch.set_num_threads(before["threads"])
    if before["device"] != now["device"]:
        log.warning(
            "the merge began on %s and goes on on %s: the last bits may differ from those of an undisturbed one",
            before["device"],
            now["device"],
        )


class SubstituteExecutor:
    """Takes what ``run_merge`` gives its executor, and hands it on."""

    def __init__(
        self, execute: Callable[..., Iterator[Any]], targets: Sequence[Task[Any]], math_device: Any, storage_device: Any
    ) -> None:
        self._execute, self._targets, self._devices = execute, targets, (math_device, storage_device)

    def run(self, quiet: bool = False) -> Iterator[tuple[Task[Any], Any]]:
        return self._execute(self._targets, self._devices)


@contextmanager
def _executed_by(execute: Callable[..., Iterator[Any]]) -> Generator[None]:
    """Everything that ``run_merge`` does around the graph stays mergekit's own: only its executor is another one."""
    from mergekit import merge

    before = merge.Executor
    merge.Executor = partial(SubstituteExecutor, execute)  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        merge.Executor = before  # type: ignore[misc]
