"""Matrices that come one after the other: order, room in memory, reading ahead, and work that nobody waits for."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mergekit_3h.kernels import room
from mergekit_3h.kernels.jobs import WAITING_SHARE, Flow, flow_on
from mergekit_3h.kernels.pages import read_ahead

CPU = torch.device("cpu")


@pytest.fixture
def flow() -> Iterator[Flow]:
    """Of two workers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    found = flow_on(CPU)
    assert found is not None and found.workers == 2
    yield found
    torch.set_num_threads(threads)


class Gate:
    """Pieces of work that end when the gate opens, and a note of which began."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.began: list[str] = []

    def piece(self, name: str) -> Callable[[], str]:
        def work() -> str:
            self.began.append(name)
            assert self.open.wait(20)
            return name

        return work

    def has_begun(self, *names: str) -> bool:
        """Whether these and no others begin, within a moment."""
        for _ in range(100):
            if sorted(self.began) == sorted(names):
                break
            time.sleep(0.01)
        time.sleep(0.03)
        return sorted(self.began) == sorted(names)


def test_work_begins_in_its_order_as_workers_and_memory_allow(flow: Flow) -> None:
    gate = Gate()
    begun = [flow.begin(gate.piece(name), need, room=10) for name, need in [("a", 6), ("b", 6), ("c", 1)]]
    assert gate.has_begun("a")  # b does not fit beside it, and c does not overtake b
    gate.open.set()
    assert [each.result() for each in begun] == ["a", "b", "c"]
    assert gate.began == ["a", "b", "c"]


def test_a_piece_larger_than_the_room_runs_by_itself(flow: Flow) -> None:
    gate = Gate()
    begun = [flow.begin(gate.piece(name), need, room=10) for name, need in [("large", 50), ("small", 1)]]
    assert gate.has_begun("large")
    gate.open.set()
    assert [each.result() for each in begun] == ["large", "small"]


def test_begin_returns_when_what_waits_holds_little(flow: Flow) -> None:
    """Else a host that reads faster than it merges would have the whole model in memory."""
    gate, most, returned = Gate(), int(WAITING_SHARE * 100), threading.Event()
    begun = [flow.begin(gate.piece(name), 1, room=100, held=most) for name in ("a", "b", "waits")]

    def one_more() -> None:
        begun.append(flow.begin(gate.piece("late"), 1, room=100, held=1))
        returned.set()

    caller = threading.Thread(target=one_more)
    caller.start()
    assert not returned.wait(0.2)
    gate.open.set()
    assert returned.wait(20)
    caller.join()
    assert [each.result() for each in begun] == ["a", "b", "waits", "late"]


def test_an_error_is_raised_where_the_result_is_fetched(flow: Flow) -> None:
    def fail() -> None:
        raise ValueError("no such matrix")

    failed, fine = flow.begin(fail, 1, room=10), flow.begin(lambda: "fine", 1, room=10)
    assert fine.result() == "fine"
    for _ in range(2):
        with pytest.raises(ValueError, match="no such matrix"):
            failed.result()


def test_work_that_nobody_waits_for_does_not_begin(flow: Flow) -> None:
    """After an error, or an interrupt, the tensors that were to come next are not merged."""
    gate = Gate()
    begun = [flow.begin(gate.piece(name), 1, room=10) for name in ("a", "b", "dropped", "last")]
    assert gate.has_begun("a", "b")
    del begun[2]
    gc.collect()
    gate.open.set()
    assert [each.result() for each in begun] == ["a", "b", "last"]
    assert sorted(gate.began) == ["a", "b", "last"]


def test_the_inputs_are_freed_when_a_piece_ends(flow: Flow) -> None:
    freed = threading.Event()

    class Inputs:
        def __del__(self) -> None:
            freed.set()

    def begin() -> object:
        inputs = Inputs()
        return flow.begin(lambda: (inputs, None)[1], 1, room=10)

    held = begin()
    assert freed.wait(10)
    del held


def test_a_worker_has_no_flow_of_its_own(flow: Flow) -> None:
    assert flow.begin(lambda: flow_on(CPU), 1, room=10).result() is None
    assert flow_on(torch.device("meta")) is None


def test_the_default_is_a_quarter_of_what_is_free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def written(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    info = written("meminfo", "MemTotal: 90000000 kB\nMemAvailable:   64000000 kB\n")
    monkeypatch.setattr(room, "_MEMORY_INFO", info)
    monkeypatch.setattr(room, "_GROUP_LIMITS", ())
    assert room.allowed_bytes() == 16_000_000 * 1024
    assert room.allowed_bytes(2.5) == 2_500_000_000
    used = str(written("current", f"{4 << 30}\n"))
    for limit, expected in {"max": 16_000_000 * 1024, str(12 << 30): 2 << 30, str(5 << 30): room.LEAST_MEMORY}.items():
        monkeypatch.setattr(room, "_GROUP_LIMITS", ((str(written("max", f"{limit}\n")), used),))
        assert room.allowed_bytes() == expected


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="a file's pages cannot be dropped from memory here")
def test_reading_ahead_brings_a_mapped_tensor_into_memory(tmp_path: Path) -> None:
    file, size = tmp_path / "w.safetensors", 4 << 20
    save_file({"w": torch.ones(size, dtype=torch.uint8)}, file)
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with safe_open(file, "pt") as opened:
        tensor = opened.get_tensor("w")
        if _resident_share(tensor) > 0.5:
            pytest.skip("this file system keeps the pages in memory")
        read_ahead([tensor])
        for _ in range(500):
            if _resident_share(tensor) == 1.0:
                break
            time.sleep(0.01)
        assert _resident_share(tensor) == 1.0


def test_reading_ahead_leaves_other_tensors_alone() -> None:
    tensors = [torch.ones(3, 5).T, torch.empty(0), torch.ones(2, device="meta"), torch.arange(4)]
    read_ahead(tensors)
    assert torch.equal(tensors[3], torch.arange(4)) and torch.equal(tensors[0], torch.ones(5, 3))


def _resident_share(tensor: torch.Tensor) -> float:
    """Of the pages wholly inside the tensor."""
    assert sys.platform != "win32"
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    pages = (tensor.data_ptr() + tensor.nbytes - start) // mmap.PAGESIZE
    found = (ctypes.c_ubyte * pages)()
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(start), ctypes.c_size_t(pages * mmap.PAGESIZE), found) == 0
    return sum(page & 1 for page in found) / pages
