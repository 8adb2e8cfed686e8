"""mergekit's schedule of a whole merge, of which any part can be run, in the same order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mergekit.graph import ExecutionSchedule, Executor, Task, TaskHandle
from mergekit.io.tasks import FinalizeModel, SaveTensor, TensorWriterTask
from mergekit.tokenizer import BuildTokenizer

from mergekit_3h.methods.merging.random_states import DrawWatch


@dataclass(frozen=True)
class Done:
    """A task that has just been executed."""

    place: int
    """Its place in the schedule of the whole merge."""
    task: Task[Any]
    value: Any
    has_drawn: bool
    """Random numbers."""


class MergeTasks:
    """Everything that mergekit has planned. ``saves`` are the tensors of the result in the order it writes them."""

    def __init__(self, targets: Sequence[Task[Any]]) -> None:
        whole = Executor(list(targets))
        self._schedule = [handle for handle in whole.schedule.tasks if not isinstance(handle.task(), FinalizeModel)]
        self._place = {handle: place for place, handle in enumerate(self._schedule)}
        self._writer = next(handle for handle in self._schedule if isinstance(handle.task(), TensorWriterTask))
        saves = [handle for handle in self._schedule if isinstance(handle.task(), SaveTensor)]
        self._saves = {_saved(handle).tensor_name: handle for handle in saves}
        self._shared = [handle for handle in self._schedule if isinstance(handle.task(), BuildTokenizer)]
        self.shared: list[Any] | None = None
        """Values that all tensors are made with, and that no two processes make alike: the tokenizer that is built."""

    @property
    def saves(self) -> list[str]:
        return list(self._saves)

    @property
    def optional(self) -> set[str]:
        """Tensors that may come to nothing: the models may lack them."""
        return {name for name, handle in self._saves.items() if _saved(handle).optional}

    @cached_property
    def order(self) -> str:
        """A digest of what is merged when. It is the same in every process, unless models are listed twice."""
        lines = (f"{self._place[handle]} {name}" for name, handle in self._saves.items())
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def place(self, name: str) -> int:
        """Of the task that saves a tensor."""
        return self._place[self._saves[name]]

    def needed_for(self, names: Iterable[str], before: int) -> list[int]:
        """Places of the tasks that these tensors need, as far as they come before a place."""
        needed = _with_arguments((self._saves[name] for name in names), self._given(None))
        return sorted(place for place in (self._place[handle] for handle in needed) if place < before)

    def run(self, names: Sequence[str], writer: Any, devices: tuple[Any, Any], watch: DrawWatch) -> Iterator[Done]:
        """Make these tensors and hand them to ``writer``. ``devices``: the one that computes, the one that stores."""
        yield from self._run([self._saves[name] for name in names], writer, devices, watch)

    def make_shared(self, devices: tuple[Any, Any]) -> list[Any]:
        """The values that are made once for the whole merge."""
        return [done.value for done in self._run(self._shared, None, devices, DrawWatch())]

    def shared_values(self) -> Iterator[tuple[Task[Any], Any]]:
        """As mergekit expects them of an executor."""
        for handle, value in zip(self._shared, self.shared or [], strict=True):
            yield handle.task(), value

    def _given(self, writer: Any) -> dict[TaskHandle, Any]:
        return {self._writer: writer, **dict(zip(self._shared, self.shared or [], strict=False))}

    def _run(self, wanted: list[TaskHandle], writer: Any, devices: tuple[Any, Any], watch: DrawWatch) -> Iterator[Done]:
        given = self._given(writer)
        places = sorted(self._place[handle] for handle in _with_arguments(wanted, given))
        part = Executor(wanted, *devices, cached_values=given)
        # A schedule of its own would break ties otherwise than that of the whole, so the order is taken from there.
        part.schedule = _scheduled([self._schedule[place] for place in places], given)
        part.targets = set(part.schedule.tasks)  # type: ignore[assignment]  # so that it tells of every task
        results = part.run(quiet=True)
        for place in places:
            watch.before(place)
            task, value = next(results)
            yield Done(place, task, value, watch.after(place))
            del task, value
        next(results, None)  # lets go of the last value


def _saved(handle: TaskHandle) -> SaveTensor:
    task = handle.task()
    assert isinstance(task, SaveTensor)
    return task


def _with_arguments(handles: Iterable[TaskHandle], given: Mapping[TaskHandle, Any]) -> set[TaskHandle]:
    """These tasks and all that they need, but for those whose values are there."""
    found: set[TaskHandle] = set()
    waiting = list(handles)
    while waiting:
        handle = waiting.pop()
        if handle not in found and handle not in given:
            found.add(handle)
            waiting += handle.arguments().values()
    return found


def _scheduled(tasks: list[TaskHandle], given: Iterable[TaskHandle]) -> ExecutionSchedule:
    """Values are dropped after their last use; those that are given stay."""
    last_use: dict[TaskHandle, int] = {}
    for index, handle in enumerate(tasks):
        last_use[handle] = index
        last_use.update(dict.fromkeys(handle.arguments().values(), index))
    last_use.update(dict.fromkeys(given, len(tasks)))
    return ExecutionSchedule(tasks=tasks, last_use_index=last_use)
