"""Tensors on their way through a device: order, what overlaps, what is there at once, and memory that runs out."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mergekit_3h.errors import DeviceMemoryError, TensorError
from mergekit_3h.kernels import conveyor as conveyors
from mergekit_3h.kernels.conveyor import MOST_ABOARD, USED_SHARE, Conveyor, conveyor_on, has_conveyor
from mergekit_3h.kernels.loads import Load
from mergekit_3h.kernels.passages import PASSAGES, CudaPassage, Passage, Stage

CPU = torch.device("cpu")
PATIENCE = 20
"""Seconds after which something that is to happen never will."""


class Watched(Passage):
    """The CPU as the device, which notes what comes and goes, and what is there at once."""

    def __init__(self, free: int | None = None) -> None:
        super().__init__(CPU)
        self.free, self.emptied = free, 0
        self.there = self.most_there = 0
        self.came: list[float] = []
        self.went: list[float] = []
        self.threads: dict[Stage, set[str]] = {}
        self._lock = threading.Lock()

    @contextmanager
    def stage(self, stage: Stage) -> Generator[None]:
        self.threads.setdefault(stage, set()).add(threading.current_thread().name)
        yield

    def upload(self, tensor: Tensor) -> Tensor:
        there = tensor.clone()
        self.take(there)
        self.came.append(float(tensor.flatten()[0]))
        return there

    def download(self, tensor: Tensor) -> Tensor:
        self.went.append(float(tensor.flatten()[0]))
        return tensor.clone()

    def take(self, tensor: Tensor) -> Tensor:
        """Count a tensor as the device's for as long as it lives."""
        self._count(tensor.nbytes)
        weakref.finalize(tensor, self._count, -tensor.nbytes)
        return tensor

    def _count(self, size: int) -> None:
        with self._lock:
            self.there += size
            self.most_there = max(self.most_there, self.there)

    def free_bytes(self) -> int | None:
        return self.free

    def empty_cache(self) -> None:
        self.emptied += 1


def load(number: float, merge: Callable[[Tensor], Tensor] | None = None, size: int = 4, working: int = 16) -> Load:
    """A tensor of so many float32 numbers, all alike."""

    def merged(there: dict[Any, Tensor]) -> Tensor:
        return there["w"] * 10 if merge is None else merge(there["w"])

    return Load(f"tensor {number:g}", {"w": torch.full((size,), float(number))}, merged, working, 4 * size)


ROOM = 1 << 30


def test_results_come_in_their_order_from_one_thread_a_stage() -> None:
    passage = Watched()
    results = list(Conveyor(passage).carry((load(i) for i in range(20)), ROOM))
    assert [(name, float(tensor[0])) for name, tensor in results if tensor is not None] == [
        (f"tensor {i}", 10.0 * i) for i in range(20)
    ]
    assert passage.came == list(range(20)) and passage.went == [10.0 * i for i in range(20)]
    names = [name for stage in passage.threads.values() for name in stage]
    assert len(names) == len(set(names)) == 3 and threading.current_thread().name not in names


def test_reading_bringing_merging_fetching_and_saving_overlap() -> None:
    """While one tensor is merged the next has come, the one before has gone and is saved, and another one is read."""
    has_come, is_saved, is_read = (threading.Event() for _ in range(3))

    class Telling(Watched):
        def upload(self, tensor: Tensor) -> Tensor:
            there = super().upload(tensor)
            if there[0] == 2:
                has_come.set()
            return there

    def waits(tensor: Tensor) -> Tensor:
        assert all(event.wait(PATIENCE) for event in (has_come, is_saved, is_read))
        return tensor

    conveyor = Conveyor(Telling())
    before, merging = conveyor.begin(load(0), ROOM), conveyor.begin(load(1, waits), ROOM)
    after = conveyor.begin(load(2), ROOM)
    assert float(before.result()[0]) == 0.0
    is_saved.set()
    last = conveyor.begin(load(3), ROOM)
    is_read.set()
    assert [float(each.result()[0]) for each in (merging, after, last)] == [1.0, 20.0, 30.0]


def test_one_is_merged_at_a_time_and_few_are_there() -> None:
    passage, running, most = Watched(), [0], [0]

    def counts(tensor: Tensor) -> Tensor:
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.002)
        running[0] -= 1
        return tensor

    list(Conveyor(passage).carry((load(i, counts) for i in range(30)), ROOM))
    gc.collect()
    assert most == [1] and passage.there == 0
    assert passage.most_there <= (MOST_ABOARD + 2) * 16  # of 16 bytes each, with one that is fetched and one let go


@pytest.mark.parametrize("is_tight", [True, False])
def test_what_is_there_at_once_fits_the_memory_of_the_device(is_tight: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs of all, the workspace of the one that is merged, and results that leave."""
    monkeypatch.setattr(conveyors, "UNCOUNTED_BYTES", 0)
    inputs, working = 4000, 8000
    room = inputs + working + (inputs // 2 if is_tight else inputs)
    passage = Watched(free=int(room / USED_SHARE) + 1)

    def merges(tensor: Tensor) -> Tensor:
        workspace = passage.take(torch.empty(working - 16, dtype=torch.uint8))
        time.sleep(0.005)
        return passage.take(tensor[:4] + workspace[0].float() * 0)

    results = list(Conveyor(passage).carry((load(i, merges, inputs // 4, working) for i in range(12)), ROOM))
    assert len(results) == 12
    assert passage.most_there <= room
    # A second one comes while the first is merged where there is room for it, and only there.
    assert (passage.most_there > inputs + working) is not is_tight


def test_a_tensor_that_is_too_large_beside_others_goes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conveyors, "UNCOUNTED_BYTES", 0)
    passage = Watched(free=1000)
    seen: list[int] = []

    def looks(tensor: Tensor) -> Tensor:
        time.sleep(0.01)
        seen.append(passage.there)
        return tensor[:4]

    loads = [load(0), load(1, looks, size=5000), load(2)]
    assert len(list(Conveyor(passage).carry(loads, ROOM))) == 3
    assert seen == [20000]


def test_the_host_reads_no_more_than_its_memory_holds() -> None:
    gate, returned = threading.Event(), threading.Event()

    def waits(tensor: Tensor) -> Tensor:
        assert gate.wait(PATIENCE)
        return tensor

    conveyor = Conveyor(Watched())
    begun = [conveyor.begin(load(i, waits), room=64) for i in range(2)]  # 16 bytes of inputs and of result each

    def one_more() -> None:
        begun.append(conveyor.begin(load(2), room=64))
        returned.set()

    caller = threading.Thread(target=one_more)
    caller.start()
    assert not returned.wait(0.2)
    gate.set()
    assert returned.wait(PATIENCE)
    caller.join()
    assert [float(each.result()[0]) for each in begun] == [0.0, 1.0, 20.0]


def test_an_error_names_its_tensor_and_stops_no_other() -> None:
    def fails(tensor: Tensor) -> Tensor:
        raise ValueError("the algorithm failed to converge")

    def refuses(tensor: Tensor) -> Tensor:
        raise TensorError("holds NaN")

    conveyor = Conveyor(Watched())
    begun = [conveyor.begin(each, ROOM) for each in (load(0, fails), load(1), load(2, refuses), load(3))]
    with pytest.raises(RuntimeError, match="cannot merge tensor 'tensor 0': ValueError: the algorithm failed"):
        begun[0].result()
    with pytest.raises(TensorError, match=r"^holds NaN$"):
        begun[2].result()
    assert [float(begun[i].result()[0]) for i in (1, 3)] == [10.0, 30.0]


@pytest.mark.parametrize("method", ["upload", "download"])
def test_an_error_on_the_way_names_its_tensor(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Passage, tensor: Tensor) -> Tensor:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(Watched, method, fails)
    with pytest.raises(RuntimeError, match="cannot merge tensor 'tensor 7': RuntimeError: an illegal memory access"):
        list(Conveyor(Watched()).carry([load(7)], ROOM))


def test_what_nobody_waits_for_is_not_merged() -> None:
    gate, merged = threading.Event(), []

    def waits(tensor: Tensor) -> Tensor:
        assert gate.wait(PATIENCE)
        merged.append(float(tensor[0]))
        return tensor

    conveyor = Conveyor(Watched())
    begun = [conveyor.begin(load(i, waits), ROOM) for i in range(6)]
    del begun[MOST_ABOARD:-1]
    gc.collect()
    gate.set()
    for each in begun:
        each.result()
    assert merged == [0.0, 1.0, 2.0, 5.0]


def test_after_an_error_what_waits_is_left_though_the_error_is_kept() -> None:
    merged: list[float] = []

    def merges(tensor: Tensor) -> Tensor:
        time.sleep(0.01)
        merged.append(float(tensor[0]))
        if tensor[0] == 1:
            raise ValueError("the algorithm failed to converge")
        return tensor

    conveyor = Conveyor(Watched())
    with pytest.raises(RuntimeError, match="'tensor 1'") as kept:
        list(conveyor.carry((load(i, merges) for i in range(50)), ROOM))
    conveyor.begin(load(99), ROOM).result()  # comes after all that was begun
    assert len(merged) < 40 and kept.value is not None  # the rest would take 0.4 s; dropping it, some 10 ms


class Shortage:
    """A device whose memory is full at certain merges."""

    def __init__(self, passage: Watched, failures: int) -> None:
        self.passage, self.left, self.there_at_last = passage, failures, -1

    def __call__(self, tensor: Tensor) -> Tensor:
        if self.left:
            self.left -= 1
            workspace = self.passage.take(torch.empty(1000, dtype=torch.uint8))
            raise torch.cuda.OutOfMemoryError(f"CUDA out of memory. Tried {workspace.nbytes} bytes")
        self.there_at_last = self.passage.there
        return tensor * 10


def test_a_tensor_without_memory_beside_others_is_merged_again_alone() -> None:
    """The inputs of the next ones leave, the cache is emptied, what the first try had made is gone, and all come in
    the same order."""
    passage = Watched()
    short = Shortage(passage, failures=1)

    def waits_for_the_next(tensor: Tensor) -> Tensor:
        while len(passage.came) < 2 + MOST_ABOARD - 1:
            time.sleep(0.001)
        return short(tensor)

    loads = [load(0), load(1, waits_for_the_next), load(2), load(3), load(4)]
    results = list(Conveyor(passage).carry(loads, ROOM))
    assert [float(tensor[0]) for _, tensor in results if tensor is not None] == [0.0, 10.0, 20.0, 30.0, 40.0]
    assert passage.emptied == 1 and short.there_at_last == 16
    assert passage.came.count(1.0) == 2 and passage.came.count(2.0) == 2


def test_inputs_that_find_no_memory_are_brought_in_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    upload, failures = Watched.upload, iter([True])

    def fails_once(self: Watched, tensor: Tensor) -> Tensor:
        if tensor[0] == 1 and next(failures, False):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return upload(self, tensor)

    monkeypatch.setattr(Watched, "upload", fails_once)
    passage = Watched()
    results = list(Conveyor(passage).carry((load(i) for i in range(4)), ROOM))
    assert [float(tensor[0]) for _, tensor in results if tensor is not None] == [0.0, 10.0, 20.0, 30.0]
    assert passage.emptied == 0


def test_a_tensor_that_does_not_fit_alone_is_told_in_one_line() -> None:
    passage = Watched(free=3_000_000_000)
    short = Shortage(passage, failures=2)
    conveyor = Conveyor(passage)
    begun = [conveyor.begin(each, ROOM) for each in (load(0), load(1, short, working=5_000_000_000), load(2))]
    with pytest.raises(DeviceMemoryError) as told:
        begun[1].result()
    assert str(told.value) == (
        "tensor 'tensor 1' does not fit into the memory of cpu, alone there: merging it takes about 5.0 GB; 3.0 GB are "
        "free (CUDA out of memory). End other programs that use the device, take one with more memory, or merge on "
        "the CPU"
    )
    assert [float(begun[i].result()[0]) for i in (0, 2)] == [0.0, 20.0]
    assert passage.emptied == 1


def test_the_interpreter_ends_while_tensors_are_under_way(tmp_path: Path) -> None:
    """After an interrupt, with results that nobody fetches and a thousand tensors that wait."""
    script = tmp_path / "script.py"
    script.write_text(
        "import signal, time, torch\n"
        "from mergekit_3h.kernels.conveyor import Conveyor, Load\n"
        "from mergekit_3h.kernels.passages import Passage\n"
        "def slow(there):\n"
        "    time.sleep(0.2)\n"
        "    return there['w']\n"
        "conveyor = Conveyor(Passage(torch.device('cpu')))\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.3)\n"
        "signal.signal(signal.SIGALRM, signal.default_int_handler)\n"
        "begun = [conveyor.begin(Load(str(i), {'w': torch.ones(2)}, slow, 8, 8), 1 << 30) for i in range(1000)]\n"
        "begun[-1].result()\n"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert "KeyboardInterrupt" in done.stderr and "RecursionError" not in done.stderr
    assert done.stderr.count("Traceback") == 1
    assert time.monotonic() - began < 30  # a thousand tensors would take 200 s


@pytest.fixture
def as_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(PASSAGES, "cpu", Passage)
    yield


def test_only_accelerators_have_a_conveyor_and_it_stays(as_device: None) -> None:
    assert conveyor_on(CPU) is conveyor_on(CPU) is not None
    assert has_conveyor(torch.device("cuda", 7)) and not has_conveyor(torch.device("mps"))
    assert conveyor_on(torch.device("meta")) is None


@pytest.mark.only_on("cuda")
def test_a_gpu_copies_merges_and_says_what_is_free() -> None:
    conveyor = conveyor_on(torch.device("cuda"))
    assert conveyor is not None and conveyor.device == torch.device("cuda", 0)
    passage = CudaPassage(torch.device("cuda"))
    for shape in ((0,), (), (3, 5), (5000, 4000)):
        for dtype in (torch.bfloat16, torch.float64, torch.int64):
            tensor = torch.arange(int(torch.tensor(shape).prod()), dtype=torch.float64).view(shape).to(dtype)
            there = passage.upload(tensor)
            assert there.is_cuda and torch.equal(passage.download(there), tensor)
    tall = torch.arange(12.0).view(3, 4).T  # not contiguous
    assert torch.equal(passage.download(passage.upload(tall)), tall)
    free = passage.free_bytes()
    held = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    assert 1 << 27 < free - passage.free_bytes() < 1 << 29
    del held
    passage.empty_cache()


@pytest.mark.only_on("cuda")
def test_a_gpu_that_is_full_is_told_and_goes_on() -> None:
    conveyor = conveyor_on(torch.device("cuda"))
    assert conveyor is not None

    def too_much(tensor: Tensor) -> Tensor:
        return torch.empty(1 << 42, dtype=torch.uint8, device=tensor.device)

    begun = [conveyor.begin(each, ROOM) for each in (load(0), load(1, too_much), load(2))]
    with pytest.raises(DeviceMemoryError, match="'tensor 1' does not fit into the memory of cuda:0"):
        begun[1].result()
    assert [float(begun[i].result()[0]) for i in (0, 2)] == [0.0, 20.0]
