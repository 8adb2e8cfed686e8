"""The base of our FusionBench algorithms: check everything, then merge one tensor at a time."""

from __future__ import annotations

import logging
import math
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from fusion_bench.method.base_algorithm import BaseAlgorithm
from fusion_bench.mixins.lightning_fabric import LightningFabricMixin
from fusion_bench.modelpool.base_pool import BaseModelPool
from torch import Tensor, nn
from tqdm.auto import tqdm

from fusion_bench_ext.agreement import names_to_merge
from fusion_bench_ext.assembly import build_module
from fusion_bench_ext.errors import shown_by_hydra
from fusion_bench_ext.models import OpenModel, TensorFacts
from fusion_bench_ext.pools import PoolModels
from fusion_bench_ext.saving import AdapterDestination, Destination
from mergekit_3h.errors import ModelError, TensorError
from mergekit_3h.kernels.conveyor import INPUTS_SHARE, Conveyor, Load, conveyor_on
from mergekit_3h.kernels.jobs import Job, run_jobs
from mergekit_3h.kernels.memory import return_large_blocks_when_freed
from mergekit_3h.kernels.pages import read_ahead
from mergekit_3h.kernels.room import allowed_bytes

log = logging.getLogger(__name__)

_COUNTERS = ("num_batches_tracked",)
"""Batch norm's count of training steps: it differs between any two trainings and means nothing after them."""


@dataclass(frozen=True)
class LoadedTensor:
    """A tensor of all models, by their names, and how it is merged on the device that they are moved to."""

    inputs: Mapping[str, Tensor]
    merge: Callable[[Mapping[str, Tensor]], Tensor]

    @property
    def places(self) -> set[int]:
        """Where the models keep it."""
        return {tensor.untyped_storage().data_ptr() for tensor in self.inputs.values()}


def _apart(tensor: Tensor, places: set[int]) -> Tensor:
    """A tensor of its own: one that a method hands through must not share memory with the pool's."""
    return tensor.clone() if tensor.untyped_storage().data_ptr() in places else tensor.contiguous()


class StreamingAlgorithm(BaseAlgorithm, LightningFabricMixin):
    """Takes one tensor of all models at a time, merges it on fabric's device and keeps it in the checkpoint's dtype.

    Works with lazy and eager pools of causal language models and with any pool of torch modules. A subclass says which
    model is the base (:meth:`base_name`), checks its own options against the pool (:meth:`check_pool`) and merges
    (:meth:`merge`).
    """

    _config_mapping = BaseAlgorithm._config_mapping | {"model_save_path": "model_save_path"}
    memory_gb: float | None = None
    """What the tensors being merged at once may take of memory, or on the way through a GPU of the host's; None: a
    quarter of what is free, 1 GiB at least."""
    title = "model merging"
    """What the progress bar and the model card call the method."""

    def __init__(self, *, model_save_path: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model_save_path = model_save_path

    @abstractmethod
    def base_name(self, modelpool: BaseModelPool) -> str | None:
        """The pool's model that the others are compared with, or None for a method without one."""

    @abstractmethod
    def check_pool(self, base: str | None, experts: Sequence[str]) -> None:
        """Raise if the options do not go with these models; nothing is loaded yet."""

    def arrange(self, names: list[str]) -> list[str]:
        """The order to merge the tensors in; called once, when everything is checked and the merge begins."""
        return names

    def check_models(self, base: OpenModel | None, experts: Sequence[OpenModel]) -> None:
        """Raise if the options do not go with the models, which are open; nothing is merged yet."""

    def bytes_to_merge(self, facts: TensorFacts, experts: int) -> int | None:
        """What merging a tensor takes of memory beyond the tensors themselves, for a :meth:`merge` that may run in
        several threads at once; None for one that may not."""
        return None

    def bytes_needed(self, name: str, reference: OpenModel, experts: Sequence[OpenModel]) -> int | None:
        """The same with the tensors, for those that :meth:`load` reads."""
        facts = reference.describe(name)
        own = self.bytes_to_merge(facts, len(experts))
        return None if own is None else own + (len(experts) + 1) * math.prod(facts.shape) * facts.dtype.itemsize

    @abstractmethod
    def merge(self, name: str, base: tuple[str, Tensor] | None, experts: Mapping[str, Tensor]) -> Tensor:
        """The tensor ``name`` merged; ``base`` is the base's name and tensor. Tensors are to be read only."""

    def expert_names(self, modelpool: BaseModelPool) -> list[str]:
        """All models of the pool that are neither special nor the base."""
        base = self.base_name(modelpool)
        return [name for name in modelpool.model_names if name != base]

    @torch.no_grad()
    def run(self, modelpool: BaseModelPool) -> nn.Module:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Merge the pool's models into a new one; the pool's own stay as they are."""
        with shown_by_hydra():
            base_name, expert_names = self.base_name(modelpool), self.expert_names(modelpool)
            if not expert_names:
                raise ModelError(f"the pool has no model to merge; it has: {modelpool.all_model_names}")
            self.check_pool(base_name, expert_names)
            return_large_blocks_when_freed()
            destinations = self.destinations(modelpool)
            models = PoolModels(modelpool)
            experts = [models.open(name) for name in expert_names]
            base = models.open(base_name) if base_name is not None else None
            self.check_models(base, experts)
            merged = self._merge_all(base, experts)
            for destination in destinations if self.fabric.is_global_zero else ():
                destination.save(merged, self.config, f"Merged by {self.title}.")
            return merged

    def destinations(self, modelpool: BaseModelPool) -> list[Destination | AdapterDestination]:
        """Where the merge is saved; an error now where that cannot be."""
        if self.model_save_path is None or not self.fabric.is_global_zero:
            return []
        return [Destination(self.model_save_path, modelpool)]

    def _merge_all(self, base: OpenModel | None, experts: list[OpenModel]) -> nn.Module:
        reference = base or experts[0]
        names = self.arrange(names_to_merge(reference, experts if base else experts[1:]))
        log.info("merging %d tensors of %d models by %s", len(names), len(experts), self.title)
        tensors = self._merged_tensors(names, reference, base, experts)
        covered = {alias for name in names for alias in (name, *reference.ties.get(name, ()))}
        kept = {name: reference.load(name).cpu().clone() for name in reference.facts if name not in covered}
        return build_module(reference, {**kept, **tensors})

    def _merged_tensors(
        self, names: list[str], reference: OpenModel, base: OpenModel | None, experts: Sequence[OpenModel]
    ) -> dict[str, Tensor]:
        """Every tensor at its final place: several side by side where the method and the memory allow it, or one after
        the other through a GPU while the next are read."""
        merged: dict[str, Tensor] = {}
        lock = threading.Lock()
        silent = None if self.fabric.is_global_zero else True  # None: shown on a terminal only
        with tqdm(total=len(names), desc=self.title, unit="tensor", disable=silent) as progress:

            def keep(name: str, tensor: Tensor) -> None:
                with lock:
                    merged[name] = tensor
                    progress.update()

            def begin(name: str) -> Callable[[], None]:
                loaded = self.load(name, base, experts)
                return lambda: keep(name, self._merged_here(loaded))

            needs = {name: self.bytes_needed(name, reference, experts) for name in names}
            known = {name: need for name, need in needs.items() if need is not None}
            conveyor = conveyor_on(self.fabric.device)
            if len(known) < len(names):
                for name in names:
                    begin(name)()
            elif conveyor is not None:
                for name, tensor in self._carried(conveyor, known, base, experts):
                    keep(name, tensor)
            else:
                jobs = [Job(need, partial(begin, name)) for name, need in known.items()]
                run_jobs(self.fabric.device, jobs, None if self.memory_gb is None else int(self.memory_gb * 1e9))
        return {name: merged[name] for name in names}

    def load(self, name: str, base: OpenModel | None, experts: Sequence[OpenModel]) -> LoadedTensor:
        """The tensor ``name`` of all models, read in the caller's thread, and the work to be done on it."""
        models = [*experts, base] if base else list(experts)
        inputs = {model.name: model.load(name) for model in models}
        return LoadedTensor(inputs, partial(self._merge_one, name, base or experts[0], base))

    def _merge_one(
        self, name: str, reference: OpenModel, base: OpenModel | None, moved: Mapping[str, Tensor]
    ) -> Tensor:
        """One tensor on the device, in the checkpoint's dtype. Uses nothing that merging another tensor changes."""
        if name.rpartition(".")[2] in _COUNTERS:
            return moved[reference.name]
        if not all(tensor.is_floating_point() for tensor in moved.values()):
            return _agreed_buffer(name, moved)
        experts = dict(moved)
        base_tensor = (base.name, experts.pop(base.name)) if base else None
        return self.merge(name, base_tensor, experts).to(reference.describe(name).dtype)

    def _merged_here(self, loaded: LoadedTensor) -> Tensor:
        """From the models' storage to the device and back, with nothing else on the way."""
        moved = {model: tensor.to(self.fabric.device) for model, tensor in loaded.inputs.items()}
        return _apart(loaded.merge(moved).cpu(), loaded.places)

    def _carried(
        self, conveyor: Conveyor, needs: Mapping[str, int], base: OpenModel | None, experts: Sequence[OpenModel]
    ) -> Iterator[tuple[str, Tensor]]:
        places: dict[str, set[int]] = {}

        def load(name: str) -> Load:
            loaded = self.load(name, base, experts)
            places[name] = loaded.places
            inputs = sum(tensor.nbytes for tensor in loaded.inputs.values())
            facts = (base or experts[0]).describe(name)
            result = math.prod(facts.shape) * facts.dtype.itemsize
            read_ahead(loaded.inputs.values())
            return Load(name, loaded.inputs, loaded.merge, max(0, needs[name] - inputs), result)

        for name, tensor in conveyor.carry(map(load, needs), int(INPUTS_SHARE * allowed_bytes(self.memory_gb))):
            assert tensor is not None
            yield name, _apart(tensor, places.pop(name))


def _agreed_buffer(name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """Integers and booleans cannot be averaged: all models must have the same ones."""
    (first_model, first), *others = tensors.items()
    for model, tensor in others:
        if tensor.dtype != first.dtype or not torch.equal(tensor, first):
            raise TensorError(
                f"tensor {name!r} holds {tensor.dtype} and differs between the models {first_model!r} and {model!r}; "
                "only floating-point tensors can be merged"
            )
    return first
