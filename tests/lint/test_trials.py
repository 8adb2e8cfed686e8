"""The matrices that check merges to know how long a merge takes. Their seconds are made up, but for one test."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from lint.workshop import Workshop
from safetensors.torch import load_file

from mergekit_3h.cli import main
from mergekit_3h.inspection.throughput import Throughput
from mergekit_3h.lint import examine, trials
from mergekit_3h.lint.at_once import workers_on
from mergekit_3h.lint.estimate import _HOSTS_WORK, Estimate
from mergekit_3h.lint.trials import Kind
from mergekit_3h.spectral.gate import Gate
from mergekit_3h.spectral.tsvm import TSVM

SLOW = Throughput(read=1e30, write=1e30, elementwise=1e30, gemm_flops=1e30, eigh_unit=1e-6)
"""By which every matrix is expected to take its shorter side cubed, times its decompositions, in microseconds."""


@pytest.fixture(autouse=True)
def made_up_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mergekit_3h.lint.estimate.measure_throughput", lambda *_: SLOW)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Has every trial take so many seconds, after its matrix was merged."""

    def set_to(seconds: float) -> None:
        def run(work: Callable[[], object]) -> float:
            work()
            return seconds

        monkeypatch.setattr(trials, "_thread_seconds", run)

    return set_to


def estimate_of(workshop: Workshop, method: str = "tsvm", **changes: Any) -> Estimate:
    config = workshop.config(method, parameters=changes.pop("parameters", {}), **changes)
    return examine(workshop.write(config)).estimates[0]


def test_a_merge_takes_what_its_matrices_took(llamas: Workshop, clock: Callable[[float], None]) -> None:
    """One core's seconds for every matrix of every layer, by all cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        clock(0.25)
        slow = estimate_of(llamas)
        clock(0.05)
        fast = estimate_of(llamas)
    finally:
        torch.set_num_threads(threads)
    assert slow.tried_whole > 5 and slow.tried_parts == 0
    assert slow.compute_seconds == pytest.approx(5 * fast.compute_seconds, rel=1e-6)
    matrices = 16  # of two layers, with the embedding and the head
    assert fast.compute_seconds == pytest.approx(_HOSTS_WORK * matrices * 0.05 / 2, rel=1e-6)


def test_matrices_that_would_take_long_are_tried_in_part(
    llamas: Workshop, clock: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mergekit_3h.lint.estimate.measure_throughput", lambda *_: Throughput(1e9, 1e9, 1e9, 1e9, 1.0))
    monkeypatch.setattr(trials, "SHORTEST", 8)
    seen: list[tuple[int, ...]] = []
    merge = TSVM.merge

    def watched(self: TSVM, tasks: Any, weights: Any) -> Any:
        seen.append((tasks.rows, tasks.columns))
        return merge(self, tasks, weights)

    monkeypatch.setattr(TSVM, "merge", watched)
    clock(1e9)
    estimate = estimate_of(llamas)
    sides = {shape for tensor in load_file(llamas.base / "model.safetensors").values() for shape in tensor.shape}
    assert estimate.tried_whole == 0 and estimate.tried_parts > 0
    assert all(min(shape) == 8 and min(shape) < min(sides) for shape in seen)
    # What a part took beside its own operations: all took the same, so the larger a matrix the more it is scaled.
    assert estimate.compute_seconds > 16 * 1e9 / torch.get_num_threads()


def test_what_cannot_be_tried_is_counted_by_its_shape(llamas: Workshop, clock: Callable[[float], None]) -> None:
    clock(1e6)
    by_shape = 16 * 2 * SLOW.eigh_unit * 32**3
    for expert in llamas.experts:
        weights = load_file(expert / "model.safetensors")
        torch.save(weights, expert / "pytorch_model.bin")
        (expert / "model.safetensors").unlink()
    estimate = estimate_of(llamas)
    assert estimate.tried_whole == estimate.tried_parts == 0
    assert estimate.compute_seconds < 10 * by_shape
    assert estimate_of(llamas, "linear", parameters={"weight": 1.0}).tried_whole == 0


def test_weights_that_no_merge_would_take_stop_no_estimate(llamas: Workshop, clock: Callable[[float], None]) -> None:
    def spoil(tensors: dict[str, Any]) -> None:
        for tensor in tensors.values():
            tensor[..., 0] = float("nan")

    clock(1.0)
    llamas.edit_weights(llamas.experts[0], spoil)
    estimate = estimate_of(llamas)
    assert estimate.tried_whole == 0 and estimate.seconds > 0


def test_trials_are_gated_like_the_merge(
    llamas: Workshop, clock: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, bool]] = []
    tasks = Gate.tasks

    def watched(self: Gate, name: str, base: Any, experts: Any, method: Any) -> Any:
        calls.append((len(experts), self.safety is not None))
        return tasks(self, name, base, experts, method)

    monkeypatch.setattr(Gate, "tasks", watched)
    clock(0.1)
    roles = {role: shutil.copytree(llamas.experts[0], llamas.folder / role) for role in ("unaligned", "safety")}
    models = [{"model": str(path)} for path in llamas.experts]
    models += [{"model": str(path), "parameters": {"role": role}} for role, path in roles.items()]
    beside = workers_on("cpu")  # on every core at once, as the merge has them
    assert estimate_of(llamas, models=models).tried_whole * beside == len(calls) > 0
    assert set(calls) == {(2, True)}


def test_check_says_what_was_tried(llamas: Workshop) -> None:
    config = llamas.write(llamas.config("tsvm", parameters={}))
    said = CliRunner().invoke(main, ["check", str(config)]).output
    count = examine(config).estimates[0].tried_whole
    assert f"scaled from merging {count} matrices, short runs of float64 eigendecompositions" in said


def test_what_small_parts_took_gives_way_to_what_larger_ones_take() -> None:
    kind = Kind()
    kind.add(expected=1.0, taken=5.0)
    assert kind.taken / kind.tried == 5.0
    kind.add(expected=8.0, taken=8.0)
    assert kind.taken / kind.tried == 1.0
    kind.add(expected=1.0, taken=5.0)  # of a kind of which a larger one was tried
    kind.add(expected=8.0, taken=24.0)
    assert kind.taken / kind.tried == 2.0


@pytest.mark.parametrize("length", [1, 5, 16, 100, 4096])
@pytest.mark.parametrize("part", [1, 3, 16, 17, 64])
def test_a_part_is_spread_over_the_whole(length: int, part: int) -> None:
    taken = [at for piece in trials._spread(length, part) for at in range(length)[piece]]
    assert len(taken) == len(set(taken)) == min(length, part) and taken == sorted(taken)
    assert max(taken, default=0) >= length * (1 - 2 / min(part, 16)) - 1


def test_the_part_that_fits() -> None:
    def seconds(shape: tuple[int, int]) -> float:
        return 1e-9 * max(shape) * min(shape) ** 2

    assert trials._part((500, 500), seconds, most=1.0) == (500, 500)
    assert trials._part((49152, 576), seconds, most=1.0) == (2304, 576)
    rows, columns = trials._part((8192, 28672), seconds, most=1.0)
    assert columns / rows == pytest.approx(3.5, rel=0.01) and 0.8 < seconds((rows, columns)) <= 1.0
    assert min(trials._part((1 << 20, 1 << 20), seconds, most=1e-9)) == trials.SHORTEST
