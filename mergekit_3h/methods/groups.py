"""Tensors of one merge side by side on all cores, or one after the other through a GPU, within mergekit's graph.

mergekit's executor runs one task after the other, and a tensor's merge is one task. Here it is two: ``BegunMerge``
takes the inputs and hands the work to the cores or to the GPU's conveyor, and the task that mergekit made itself, which
becomes an ``AwaitedMerge``, fetches the result. Between the two the executor begins the tensors that come next in its
order, as many as fit into the memory: they are the group. mergekit loads, aligns, saves and frees as ever, in its own
order, while the cores or the GPU are at work.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast

import torch
from mergekit import merge_methods
from mergekit.graph import Task
from mergekit.merge_methods.task_adapter import ExecuteMergeMethodTask
from pydantic import PrivateAttr, SkipValidation
from torch import Tensor

from mergekit_3h.errors import about_tensor
from mergekit_3h.kernels.conveyor import INPUTS_SHARE, MOST_ABOARD, Conveyor, Load, conveyor_on, has_conveyor
from mergekit_3h.kernels.jobs import WAITING_SHARE, Begun, flow_on, last_begun, room_within, runs_alone
from mergekit_3h.kernels.pages import read_ahead
from mergekit_3h.kernels.room import allowed_bytes
from mergekit_3h.methods.host_errors import shown_by_mergekit

_CPU = torch.device("cpu")
_AFTER_LOADING = -2000  # mergekit's own tasks have priorities from 10000 down to -1000, that of loading
_UNKNOWN_AHEAD = 2
"""Tensors a worker, or one that is on the way through a GPU, that begin ahead of one where the models' headers do not
say how large they are."""


class MeasuredMethod(Protocol):
    """A merge method that can say what a tensor takes of memory."""

    def bytes_to_merge(self, name: str, tensors: Sequence[Tensor], parameters: Mapping[str, Any]) -> int: ...


@dataclass(frozen=True)
class Turn:
    """When a tensor's result is fetched: with the tensor of this label, after everything that begins with it."""

    position: int
    label: str
    share: float
    """Of the bytes of the whole merge."""


class Lookahead:
    """The tensors of one plan in the order in which mergekit comes to them. They gather while it plans.

    ``device`` is where they are merged; None where mergekit's own tasks do that.
    """

    def __init__(self, sizes: Mapping[str, int], device: torch.device | None = _CPU) -> None:
        self.device = device
        self._sizes = dict(sizes)
        self._members: dict[str, Task[Any]] = {}
        self._memory_gb: float | None = None
        self._allowed: int | None = None
        self._turns: dict[str, Turn] | None = None

    def add(self, name: str, inputs: Task[Any], memory_gb: float | None) -> None:
        """One more tensor. Of different ``memory_gb`` the smallest counts."""
        self._members[name] = inputs
        self._allowed = self._turns = None
        if memory_gb is not None:
            self._memory_gb = min(memory_gb, self._memory_gb or memory_gb)

    @property
    def room(self) -> int:
        """Bytes for what is merged at once: of a merge on a device for its inputs, which the host keeps until then."""
        return int(INPUTS_SHARE * self._bytes) if self.is_on_device else room_within(self._bytes)

    @property
    def is_on_device(self) -> bool:
        return self.device is not None and has_conveyor(self.device)

    @property
    def _bytes(self) -> int:
        if self._allowed is None:
            self._allowed = allowed_bytes(self._memory_gb)
        return self._allowed

    def turn(self, name: str) -> Turn | None:
        """None for a tensor that mergekit makes of others, which has no place in its order. mergekit-pytorch gives no
        tensor a place, and holds all results to the end: there all begin before the first is fetched."""
        if self._turns is None:
            self._turns = self._arranged()
        return self._turns.get(name)

    def _arranged(self) -> dict[str, Turn]:
        ordered = sorted((inputs.group_label() or "", name) for name, inputs in self._members.items())
        if any(label for label, _ in ordered):
            ordered = [(label, name) for label, name in ordered if label]
        most = self._bytes - self.room if self.is_on_device else int(WAITING_SHARE * self.room)
        unknown = most // (_UNKNOWN_AHEAD * (MOST_ABOARD if self.is_on_device else torch.get_num_threads()))
        sizes = [self._sizes.get(name, unknown) for _, name in ordered]
        whole, last = max(1, sum(sizes)), last_begun(sizes, most)
        return {name: Turn(i, ordered[last[i]][0], sizes[i] / whole) for i, (_, name) in enumerate(ordered)}


class AwaitedMerge(ExecuteMergeMethodTask):
    """mergekit's task for one tensor, which fetches what ``BegunMerge`` began."""

    _ahead: Lookahead = PrivateAttr()

    def arguments(self) -> dict[str, Task[Any]]:
        return {"tensors": BegunMerge(merge=self)}

    def execute(self, tensors: Any, **_: Any) -> Tensor | None:
        """What was begun; who executes the task outside of the graph gives it the models' tensors, as mergekit's."""
        if isinstance(tensors, dict):
            return self._merged(tensors)
        with shown_by_mergekit():
            return tensors.result() if isinstance(tensors, Begun) else tensors

    def group_label(self) -> str | None:
        turn = self._turn
        return super().group_label() if turn is None else turn.label

    def priority(self) -> int:
        turn = self._turn
        return super().priority() if turn is None else _AFTER_LOADING - turn.position

    def uses_accelerator(self) -> bool:
        return False  # the result stays where mergekit stores results

    @property
    def is_carried(self) -> bool:
        """To a device, by a conveyor: the inputs stay where they are until it is their turn."""
        return self._ahead.is_on_device

    @property
    def _turn(self) -> Turn | None:
        return self._ahead.turn(self.output_weight.name)

    def begin(self, tensors: dict[Any, Tensor]) -> Begun | Tensor | None:
        """Hand the merge on, or do it now with all cores: a tensor that is too large to share them."""
        conveyor = conveyor_on(self._ahead.device) if self._ahead.device is not None else None
        if not tensors:
            return self._merged(tensors)
        need = self._bytes_to_merge(list(tensors.values()))
        return self._beside(tensors, need) if conveyor is None else self._carried(conveyor, tensors, need)

    def _carried(self, conveyor: Conveyor, tensors: dict[Any, Tensor], need: int) -> Begun:
        """Through the device, which merges one tensor after the other."""
        sizes = [tensor.nbytes for tensor in tensors.values()]
        read_ahead(tensors.values())
        load = Load(self.output_weight.name, tensors, self._merged_by_mergekit, need - sum(sizes), max(sizes))
        return conveyor.begin(load, self._ahead.room)

    def _beside(self, tensors: dict[Any, Tensor], need: int) -> Begun | Tensor | None:
        """On the cores, beside other tensors."""
        inputs, turn, flow, room = list(tensors.values()), self._turn, flow_on(_CPU), self._ahead.room
        if flow is None or any(tensor.device != _CPU for tensor in inputs):
            return self._merged(tensors)
        if turn is None or runs_alone(need, turn.share, room, flow.workers):
            flow.wait_for_room(need, room)
            return self._merged(tensors)
        read_ahead(inputs)
        return flow.begin(partial(self._merged, tensors), need, room, held=sum(tensor.nbytes for tensor in inputs))

    def _bytes_to_merge(self, inputs: Sequence[Tensor]) -> int:
        method = cast(MeasuredMethod, merge_methods.get(self.method_name))
        return method.bytes_to_merge(self.output_weight.name, inputs, dict(self.parameters.items()))

    def _merged_by_mergekit(self, tensors: dict[Any, Tensor]) -> Tensor | None:
        return super().execute(tensors)

    def _merged(self, tensors: dict[Any, Tensor]) -> Tensor | None:
        try:
            return self._merged_by_mergekit(tensors)
        except Exception as error:
            told = about_tensor(self.output_weight.name, error)
            raise told from told.__cause__


class BegunMerge(Task[Any], frozen=True):
    """Hands the merge of one tensor to the cores, and what it gives to the tasks after it is no tensor yet."""

    merge: SkipValidation[AwaitedMerge]

    def arguments(self) -> dict[str, Task[Any]]:
        return {"tensors": self.merge.gather_tensors}

    def execute(self, **arguments: dict[Any, Tensor]) -> Begun | Tensor | None:
        return self.merge.begin(arguments["tensors"])

    def group_label(self) -> str | None:
        return self.merge.gather_tensors.group_label()

    def uses_accelerator(self) -> bool:
        return not self.merge.is_carried and ExecuteMergeMethodTask.uses_accelerator(self.merge)


def begin_ahead(ahead: Lookahead, memory_gb: float | None = None) -> None:
    """Have the task that asks a method to validate its inputs right now begin before its result is needed.

    mergekit makes its tasks itself, and this is the moment at which it shows a method one: the frame that calls
    ``validate_inputs``. Its task stays the same object with the same fields, and gets the two methods above. Where
    nothing is gained, with one thread on a CPU, or models lie on the accelerator, tasks stay as they are.
    ``memory_gb`` is for a method without an option of that name.
    """
    task = sys._getframe(2).f_locals.get("self")
    if type(task) is not ExecuteMergeMethodTask or not (ahead.is_on_device or _has_cores(ahead.device)):
        return
    given = dict(task.parameters.items()).get("memory_gb", memory_gb)
    ahead.add(task.output_weight.name, task.gather_tensors, given)
    object.__setattr__(task, "__class__", AwaitedMerge)
    object.__setattr__(task, "__pydantic_private__", {"_ahead": ahead})


def _has_cores(device: torch.device | None) -> bool:
    """More than one, which merge side by side."""
    return device == _CPU and flow_on(_CPU) is not None
