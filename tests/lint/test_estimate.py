"""What check says that a merge takes: by shapes, options and devices, and beside what a process needs."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from lint.workshop import Workshop

from mergekit_3h.benchmarks.end_to_end import run_process
from mergekit_3h.cli import main
from mergekit_3h.inspection.throughput import Throughput
from mergekit_3h.kernels.passages import PASSAGES, Passage
from mergekit_3h.lint import examine
from mergekit_3h.lint.at_once import AtOnce, Need, carried_at_once, largest_at_once
from mergekit_3h.lint.trials import Trials


def test_estimate_follows_the_output_dtype(llamas: Workshop) -> None:
    full = examine(llamas.write(llamas.config())).estimates[0]
    half = examine(llamas.write(llamas.config(out_dtype="bfloat16"))).estimates[0]
    assert half.output_bytes * 2 == full.output_bytes and half.read_bytes == full.read_bytes


def test_inputs_take_what_the_dtype_says_whatever_the_result_is_saved_in(llamas: Workshop) -> None:
    full = examine(llamas.write(llamas.config("tsvm", dtype="float32"))).estimates[0]
    half = examine(llamas.write(llamas.config("tsvm", dtype="float32", out_dtype="bfloat16"))).estimates[0]
    # Not what they are allowed: without memory_gb that is the memory which is free while it is asked.
    assert (half.at_once.tensors, half.at_once.own) == (full.at_once.tensors, full.at_once.own)
    assert half.collected_bytes * 2 == full.collected_bytes


def test_the_estimate_says_what_is_merged_at_once(llamas: Workshop) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        many, one, plain = (
            examine(llamas.write(llamas.config(method, parameters=parameters))).estimates[0]
            for method, parameters in [("tsvm", {}), ("tsvm", {"memory_gb": 1e-6}), ("linear", {"weight": 1.0})]
        )
    finally:
        torch.set_num_threads(threads)
    assert (many.at_once.tensors, one.at_once.tensors, plain.at_once.tensors) == (2, 1, 1)
    assert (one.at_once.allowed, plain.at_once.allowed) == (1000, None)
    assert many.at_once.own > one.at_once.own
    assert many.peak_bytes - one.peak_bytes == many.at_once.own - one.at_once.own


def test_models_that_the_gate_compares_with_are_not_counted_as_merged(
    llamas: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are read and held, and that is all that they add to two experts beside what telling the cosines takes. By
    the shapes alone: no matrix is tried."""
    monkeypatch.setattr("mergekit_3h.lint.estimate.trials_of", lambda *_: Trials({}))
    fast = Throughput(read=1e9, write=1e9, elementwise=1e30, gemm_flops=1e30, eigh_unit=1e-9)
    monkeypatch.setattr("mergekit_3h.lint.estimate.measure_throughput", lambda *_: fast)
    roles = {role: shutil.copytree(llamas.experts[0], llamas.folder / role) for role in ("unaligned", "safety")}
    compared = [{"model": str(path), "parameters": {"role": role}} for role, path in roles.items()]
    plain = llamas.config("tsvm", parameters={"memory_gb": 1e-6})
    gated = {**plain, "models": [*plain["models"], *compared]}
    without, within = (examine(llamas.write(config)).estimates[0] for config in (plain, gated))
    assert within.read_bytes == 5 / 3 * without.read_bytes
    assert within.compute_seconds == pytest.approx(without.compute_seconds, rel=1e-9)
    assert (within.at_once.own, within.peak_bytes) == (without.at_once.own, without.peak_bytes)
    monkeypatch.setattr("mergekit_3h.lint.estimate.measure_throughput", lambda *_: replace(fast, gemm_flops=1e9))
    without, within = (examine(llamas.write(config)).estimates[0] for config in (plain, gated))
    assert without.compute_seconds < within.compute_seconds < 3 * without.compute_seconds


def test_a_group_of_a_large_model_stays_within_what_it_may_take() -> None:
    """Llama-70B's matrices with three experts: on paper, for a machine with 16 cores."""
    needs = [Need(own=5 << 30, mapped=2 << 30)] * 240 + [Need(own=3 << 30, mapped=1 << 30)] * 320
    assert largest_at_once(needs, 100 << 30, workers=16) == AtOnce(11, 55 << 30, 100 << 30)
    assert largest_at_once(needs, 20 << 30, workers=16) == AtOnce(4, 12 << 30, 20 << 30)
    assert largest_at_once(needs, 10 << 30, workers=16) == AtOnce(1, 5 << 30, 10 << 30)
    assert largest_at_once(needs, None, workers=16) == AtOnce(1, 5 << 30, None)
    assert largest_at_once([], 10 << 30, workers=16).own == 0


def test_the_estimate_of_a_merge_through_a_gpu(llamas: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest of reading, merging and writing; the working memory is the card's, what waits the host's. The CPU
    stands in for the card."""
    slow_disk = Throughput(read=1e3, write=1e9, elementwise=1e9, gemm_flops=1e10, eigh_unit=1e-9)
    monkeypatch.setattr("mergekit_3h.lint.estimate.measure_throughput", lambda *_: slow_disk)
    config = llamas.write(llamas.config("tsvm", parameters={"memory_gb": 0.5}))
    on_the_cores = examine(config).estimates[0]
    monkeypatch.setitem(PASSAGES, "cpu", Passage)
    through = examine(config).estimates[0]
    assert through.seconds == through.read_bytes / 1e3 and on_the_cores.device_bytes is None
    assert on_the_cores.seconds > through.read_bytes / 1e3 + on_the_cores.compute_seconds
    assert through.device_bytes is not None and through.device_bytes > 4 * 4 * 384 * 32
    assert through.at_once.tensors == through.tensors and through.at_once.own == 2 * through.output_bytes
    said = CliRunner().invoke(main, ["check", str(config)]).output
    assert f"{through.tensors} tensors on their way to cpu and back within 500.0 MB, which memory_gb lowers" in said
    assert "of the memory of cpu, " in said


def test_what_waits_for_a_gpu_stays_within_what_it_may_take() -> None:
    inputs, results = [Need(own=0, mapped=400)] * 10 + [Need(own=300, mapped=0)] * 2, [100] * 12
    assert carried_at_once(inputs, results, 2000) == AtOnce(3, (300 + 100) * 2 + 100 + 500, 2000)
    assert carried_at_once(inputs, results, 10) == AtOnce(1, 300 + 100 + 3, 10)
    assert carried_at_once([], [], 10).own == 0


def test_estimate_follows_the_options(llamas: Workshop) -> None:
    """Wider factors need more memory; an option that differs by layer does not stop the estimate."""
    shared, per_task, by_layer = (
        examine(llamas.write(llamas.config("rtsvm", parameters={"rank_budget": value, "gamma": gamma}))).estimates[0]
        for value, gamma in (("shared", 0.2), ("per_task", 0.2), ("shared", [0.0, 0.4]))
    )
    assert per_task.peak_bytes > shared.peak_bytes == by_layer.peak_bytes


@pytest.mark.parametrize("method", ["tsvm", "ties"])
def test_a_search_writes_what_its_method_merges(llamas: Workshop, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """By the shapes alone, at one speed for both."""
    monkeypatch.setattr("mergekit_3h.lint.estimate.trials_of", lambda *_: Trials({}))
    speed = Throughput(read=1e9, write=1e9, elementwise=1e9, gemm_flops=1e10, eigh_unit=1e-9)
    monkeypatch.setattr("mergekit_3h.lint.estimate.measure_throughput", lambda *_: speed)
    data = llamas.folder / "safety.jsonl"
    records = [{"id": kind, "set": kind, "prompt": "Say.", "response": "No."} for kind in ("safety", "domain")]
    data.write_text("\n".join(map(json.dumps, records)))
    own = {"memory_gb": 0.5} if method == "tsvm" else {"density": 0.5}
    searched = {"data": str(data), "combine": method, "solver": "cmaes", **own}
    plain, found = (
        examine(llamas.write(llamas.config(name, parameters=parameters)))
        for name, parameters in ((method, {**own, "weight": 1.0}), ("safety_merge", searched))
    )
    assert found.findings == [] and found.estimates == plain.estimates


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="what a process needs for itself is read from /proc")
@pytest.mark.parametrize("method", ["linear", "tsvm"])
def test_the_estimated_peak_is_what_the_process_needs_for_itself(
    workshop: Callable[..., Workshop], method: str
) -> None:
    """On models whose weights (25 MB each) are more than the limits' slack but for Python itself."""
    models = workshop("llama", hidden_size=256, intermediate_size=1024, num_hidden_layers=6)
    path = models.write(models.config(method, parameters={"weight": 1.0}))
    estimate = examine(path).estimates[0]
    assert estimate.mapped_bytes == sum(f.stat().st_size for f in models.folder.glob("*/model.safetensors"))
    arguments = [str(models.folder / "profile.json"), str(path), str(models.folder / "out"), "--no-copy-tokenizer"]
    peak = run_process([sys.executable, "-m", "mergekit_3h.benchmarks.profiled_merge", *arguments], method)
    assert peak is not None and 0.5 * estimate.peak_bytes < peak < 1.1 * estimate.peak_bytes
