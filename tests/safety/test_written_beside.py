"""What a safety merge writes when its search is over goes the way of the method that it combines with: side by side on
the cores, or through a device; the bits are those of one tensor after the other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from hosts import mergekit_yaml

from mergekit_3h.kernels.conveyor import conveyor_on
from mergekit_3h.kernels.passages import PASSAGES, Passage
from mergekit_3h.safety.merge import SearchedMerge
from mergekit_3h.spectral.tsvm import TSVM

from .conftest import Trained
from .test_mergekit import same_bits

CPU = torch.device("cpu")
SEARCH = {"combine": "tsvm", "max_evaluations": 3}


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """Names of the threads that have searched, and of those that have merged since."""
    seen: dict[str, set[str]] = {"searched": set(), "merged": set()}
    solve, merge = SearchedMerge.solve, TSVM.merge

    def solves(self: Any, *arguments: Any, **named: Any) -> Any:
        seen["searched"].add(threading.current_thread().name)
        try:
            return solve(self, *arguments, **named)
        finally:
            seen["merged"].clear()

    def merges(self: Any, *arguments: Any) -> Any:
        seen["merged"].add(threading.current_thread().name)
        return merge(self, *arguments)

    monkeypatch.setattr(SearchedMerge, "solve", solves)
    monkeypatch.setattr(TSVM, "merge", merges)
    return seen


@pytest.fixture
def two_cores() -> Generator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def through_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU stands in for a device with a way to and from it."""
    monkeypatch.setitem(PASSAGES, "cpu", Passage)


def by_mergekit(trained: Trained, out: Path, **parameters: Any) -> None:
    mergekit_yaml(trained.config(**SEARCH, **parameters), out)


def by_fusion_bench(trained: Trained, out: Path, **parameters: Any) -> None:
    pytest.importorskip("fusion_bench")
    from fusion_bench_ext.algorithms import SafetyMerge

    from .test_fusion_bench import pool_of

    given: dict[str, Any] = {"data": str(trained.data), "parameters": parameters, "model_save_path": str(out), **SEARCH}
    SafetyMerge(**given).run(pool_of(trained))


HOSTS = {"mergekit": by_mergekit, "fusion_bench": by_fusion_bench}
Host = Callable[..., None]


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> Host:
    return HOSTS[request.param]


@pytest.mark.usefixtures("two_cores")
def test_tensors_side_by_side(host: Host, trained: Trained, absolute: Path, threads: dict[str, set[str]]) -> None:
    host(trained, absolute / "beside")
    assert threads["searched"] == {"MainThread"}
    assert len(threads["merged"]) == 2 and all(name.startswith("mergekit-3h") for name in threads["merged"])
    host(trained, absolute / "alone", memory_gb="1e-6")  # which YAML takes for a string
    assert threads["merged"] == {"MainThread"}
    assert same_bits(absolute / "beside", absolute / "alone")


@pytest.mark.usefixtures("two_cores")
def test_a_finished_search_is_kept_when_its_merge_is_to_take_less_memory(
    trained: Trained, absolute: Path, threads: dict[str, set[str]]
) -> None:
    report = absolute / "report"
    by_mergekit(trained, absolute / "much", report=str(report), memory_gb=2.0)
    trace = (report / "trace.jsonl").read_text()
    by_mergekit(trained, absolute / "little", report=str(report), memory_gb=1e-6)
    assert threads["merged"] == {"MainThread"}
    assert (report / "trace.jsonl").read_text() == trace and same_bits(absolute / "much", absolute / "little")


def test_tensors_through_a_device(
    host: Host, trained: Trained, absolute: Path, threads: dict[str, set[str]], request: pytest.FixtureRequest
) -> None:
    host(trained, absolute / "here")
    request.getfixturevalue("through_the_cpu")
    conveyor = conveyor_on(CPU)
    assert conveyor is not None
    before = dict(conveyor.seconds)
    host(trained, absolute / "through")
    assert threads["searched"] == {"MainThread"} and threads["merged"] == {"mergekit-3h-merging_0"}
    assert all(conveyor.seconds[stage] > before[stage] for stage in before)
    assert same_bits(absolute / "here", absolute / "through")


@pytest.mark.usefixtures("two_cores", "through_the_cpu")
def test_what_mergekit_merges_itself_goes_no_other_way(trained: Trained, absolute: Path) -> None:
    """Its methods say nothing of memory, and may draw at random, each tensor after the one before."""
    conveyor = conveyor_on(CPU)
    assert conveyor is not None
    before = dict(conveyor.seconds)
    options: dict[str, Any] = {"combine": "dare_ties", "solver": "grid", "max_evaluations": 3, "density": 0.5}
    for out in ("first", "second"):
        mergekit_yaml(trained.config(**options), absolute / out, "--random-seed", "7")
    assert conveyor.seconds == before and same_bits(absolute / "first", absolute / "second")
