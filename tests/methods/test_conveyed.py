"""Merges through a device: mergekit and FusionBench read and write while it merges, and the files are the CPU's."""

from __future__ import annotations

import gc
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hosts import merge_config, mergekit_yaml, read_model
from mergekit.io.tasks import LoadTensor
from mergekit.io.tensor_writer import TensorWriter
from methods.there import conveyed, merged_by_fusion_bench, merged_by_mergekit
from pools.conftest import named_experts, pool_of
from tiny_models import Family

from mergekit_3h.kernels import conveyor as conveyors
from mergekit_3h.kernels.conveyor import MOST_ABOARD, conveyor_on
from mergekit_3h.kernels.passages import PASSAGES, CudaPassage, Passage
from mergekit_3h.methods.spectral import SpectralMergeMethod
from mergekit_3h.spectral.tsvm import TSVM

PATIENCE = 30
ALONE = 1e-6
"""``memory_gb`` with which one tensor goes after the other."""
SHARDED = ("--out-shard-size", "60000")


@pytest.fixture(scope="module")
def process() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.fixture
def through_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU stands in for a device with a way to and from it. No merge on the cores is left."""
    monkeypatch.setitem(PASSAGES, "cpu", Passage)


def weights(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.safetensors*"))}


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("llama", {}, {}),
    "float32 of bfloat16": ("llama", {"dtype": torch.bfloat16}, {"dtype": "float32"}),
    "tied": ("llama-tied", {"dtype": torch.bfloat16}, {}),
    "fused experts": ("mixtral", {}, {}),
    "drawn at random": ("llama", {}, {"method": "svc", "parameters": {"combine": "dare_ties"}}),
    "filters": ("llama", {}, {"parameters": {"lambda": [{"filter": "mlp", "value": 0.4}, {"value": 1.0}]}}),
}


@pytest.mark.parametrize("case", CASES)
def test_mergekit_writes_the_files_of_the_cpu(
    case: str, family: Callable[..., Family], absolute: Path, process: ProcessPoolExecutor
) -> None:
    """On a device that refuses to mix, as a GPU does."""
    architecture, choices, extra = CASES[case]
    extra = dict(extra)
    config = merge_config(family(architecture, **choices), extra.pop("method", "rtsvm"), **extra)
    mergekit_yaml(config, absolute / "here", *SHARDED)
    process.submit(merged_by_mergekit, config, absolute / "there", *SHARDED).result()
    assert process.submit(conveyed).result()
    assert weights(absolute / "there") == weights(absolute / "here")


def test_fusion_bench_writes_the_files_of_the_cpu(
    family: Callable[..., Family], absolute: Path, process: ProcessPoolExecutor
) -> None:
    from fusion_bench_ext.algorithms import spectral

    models = family("llama-tied", dtype=torch.bfloat16)
    spectral.RTSVM(gamma=0.4, model_save_path=str(absolute / "here")).run(pool_of(models, lazy=True))
    named = {"_pretrained_": str(models.base), **named_experts(models)}
    process.submit(merged_by_fusion_bench, "RTSVM", {"gamma": 0.4}, named, absolute / "there").result()
    here, there = read_model(absolute / "here"), read_model(absolute / "there")
    assert here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)


@pytest.mark.usefixtures("through_the_cpu")
def test_the_graph_reads_merges_and_writes_at_once(
    llama: Family, absolute: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tensor in the middle waits until a shard of what came before it is written, and the two after it are read.
    Neither would happen if the graph waited for it."""
    written, read, merged = threading.Event(), set[str](), list[str]()
    write, load, merge = TensorWriter._write_shard_task, LoadTensor.execute, SpectralMergeMethod.merge_group

    def writes(self: TensorWriter, *arguments: Any, **named: Any) -> None:
        write(self, *arguments, **named)
        written.set()

    def loads(self: LoadTensor) -> torch.Tensor | None:
        read.add(self.tensor)
        return load(self)

    def merges(self: SpectralMergeMethod, group: Any, /, **parameters: Any) -> torch.Tensor:
        merged.append(threading.current_thread().name)
        if len(merged) == 14:
            assert written.wait(PATIENCE)
            wait_until(lambda: len(read) >= 16)
        return merge(self, group, **parameters)

    monkeypatch.setattr(TensorWriter, "_write_shard_task", writes)
    monkeypatch.setattr(LoadTensor, "execute", loads)
    monkeypatch.setattr(SpectralMergeMethod, "merge_group", merges)
    # Inputs of 300 kB at once, of which those of the embedding are 200 and of a layer's matrices 16 to 48 each.
    config = merge_config(llama, "tsvm", parameters={"memory_gb": 0.0004})
    mergekit_yaml(config, absolute / "out", "--out-shard-size", "9000")
    assert len(merged) == 21 and set(merged) == {"mergekit-3h-merging_0"}
    monkeypatch.undo()
    mergekit_yaml(config, absolute / "cores", "--out-shard-size", "9000")
    assert weights(absolute / "out") == weights(absolute / "cores")


def wait_until(is_so: Callable[[], bool]) -> None:
    for _ in range(PATIENCE * 100):
        if is_so():
            return
        time.sleep(0.01)
    raise AssertionError("what was waited for did not happen")


@pytest.mark.usefixtures("through_the_cpu")
def test_one_after_the_other_gives_the_same_files(llama: Family, absolute: Path) -> None:
    """As with too little memory for two."""
    for name, parameters in {"together": {}, "alone": {"memory_gb": ALONE}}.items():
        mergekit_yaml(merge_config(llama, "tsvm", parameters=parameters), absolute / name, *SHARDED)
    assert weights(absolute / "together") == weights(absolute / "alone")


def fail(monkeypatch: pytest.MonkeyPatch, error: Exception, times: int) -> list[int]:
    """Have the merges of square matrices fail so often; the numbers of rows of those that did not."""
    merge, left, merged = TSVM.merge, [times], []

    def fails(self: TSVM, tasks: Any, weights: Any) -> Any:
        if tasks.rows == tasks.columns and left[0]:
            left[0] -= 1
            raise error
        merged.append(tasks.rows)
        return merge(self, tasks, weights)

    monkeypatch.setattr(TSVM, "merge", fails)
    return merged


@pytest.mark.usefixtures("through_the_cpu")
def test_a_tensor_that_fails_is_named_and_the_rest_is_left(
    llama: Family, absolute: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(monkeypatch, RuntimeError("linalg.eigh: the algorithm failed to converge"), 1000)
    done = mergekit_yaml(merge_config(llama, "tsvm"), absolute / "out", check=False)
    assert done.returncode == 1
    assert "cannot merge tensor 'model.layers.0.self_attn.o_proj.weight': RuntimeError: linalg.eigh" in done.stderr
    assert not (absolute / "out" / "model.safetensors").exists()
    gc.collect()
    conveyor = conveyor_on(torch.device("cpu"))
    assert conveyor is not None
    monkeypatch.undo()
    monkeypatch.setitem(PASSAGES, "cpu", Passage)
    mergekit_yaml(merge_config(llama, "tsvm"), absolute / "again")
    assert (absolute / "again" / "model.safetensors").exists()


@pytest.mark.usefixtures("through_the_cpu")
def test_a_full_card_is_tried_again_and_then_told_in_one_line(
    llama: Family, absolute: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    with monkeypatch.context() as patched:
        fail(patched, full, 1)
        mergekit_yaml(merge_config(llama, "tsvm"), absolute / "retried")
    mergekit_yaml(merge_config(llama, "tsvm"), absolute / "plain")
    assert weights(absolute / "retried") == weights(absolute / "plain")
    fail(monkeypatch, full, 2)
    done = mergekit_yaml(merge_config(llama, "tsvm"), absolute / "told", check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "tensor 'model.layers.0.self_attn.o_proj.weight' does not fit into the memory of cpu, alone" in done.stderr


@pytest.mark.usefixtures("through_the_cpu")
def test_mergekit_3h_merge_goes_the_same_way(llama: Family, absolute: Path) -> None:
    import yaml
    from click.testing import CliRunner

    from mergekit_3h.cli import main

    (absolute / "merge.yml").write_text(yaml.safe_dump(merge_config(llama, "tsvm")))
    threads = torch.get_num_threads()
    conveyor = conveyor_on(torch.device("cpu"))
    assert conveyor is not None
    before = conveyor.seconds["merging"]
    result = CliRunner().invoke(main, ["merge", str(absolute / "merge.yml"), str(absolute / "ours"), *SHARDED])
    torch.set_num_threads(threads)
    assert result.exit_code == 0, result.output
    assert conveyor.seconds["merging"] > before
    mergekit_yaml(merge_config(llama, "tsvm"), absolute / "mergekit", *SHARDED)
    assert weights(absolute / "ours") == weights(absolute / "mergekit")


@pytest.mark.usefixtures("through_the_cpu")
def test_fusion_bench_reads_on_while_a_tensor_is_merged(llama: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    from fusion_bench_ext.algorithms import spectral
    from fusion_bench_ext.lazy_models import LazyModel

    expected = spectral.TSVM().run(pool_of(llama, lazy=True)).state_dict()
    read, merged = set[str](), list[str]()
    load, merge = LazyModel._read, spectral.TSVM.merge

    def reads(self: LazyModel, name: str) -> torch.Tensor:
        read.add(name)
        return load(self, name)

    def merges(self: Any, name: str, *arguments: Any) -> torch.Tensor:
        merged.append(name)
        if len(merged) == 8:
            wait_until(lambda: len(read) >= 10)
        return merge(self, name, *arguments)

    monkeypatch.setattr(LazyModel, "_read", reads)
    monkeypatch.setattr(spectral.TSVM, "merge", merges)
    found = spectral.TSVM(memory_gb=0.0004).run(pool_of(llama, lazy=True)).state_dict()
    assert len(merged) == 21
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.usefixtures("through_the_cpu")
def test_fusion_bench_tells_of_a_full_card(llama: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    from fusion_bench_ext.algorithms import spectral
    from fusion_bench_ext.errors import HydraError

    fail(monkeypatch, torch.cuda.OutOfMemoryError("CUDA out of memory."), 2)
    with pytest.raises(HydraError, match="does not fit into the memory of cpu, alone there"):
        spectral.TSVM().run(pool_of(llama, lazy=True))


@pytest.mark.only_on("cuda")
@pytest.mark.parametrize("flags", [(), ("--low-cpu-memory",), ("--read-to-gpu",), ("--async-write",)])
def test_a_gpu_writes_the_files_of_one_tensor_after_the_other(
    flags: tuple[str, ...], family: Callable[..., Family], absolute: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = family("llama", dtype=torch.bfloat16, num_hidden_layers=8)
    config = merge_config(models, "tsvm")
    mergekit_yaml(config, absolute / "conveyed", "--cuda", *flags, *SHARDED)
    monkeypatch.delitem(PASSAGES, "cuda")
    mergekit_yaml(config, absolute / "alone", "--cuda", *SHARDED)
    assert weights(absolute / "conveyed") == weights(absolute / "alone")


@pytest.mark.only_on("cuda")
def test_peak_memory_of_a_gpu_stays_within_what_is_reckoned(
    family: Callable[..., Family], absolute: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = family("llama", num_hidden_layers=8)
    monkeypatch.setattr(CudaPassage, "free_bytes", lambda self: 1 << 30)
    torch.cuda.reset_peak_memory_stats()
    mergekit_yaml(merge_config(models, "tsvm"), absolute / "out", "--cuda")
    assert torch.cuda.max_memory_allocated() < 1 << 30
    assert MOST_ABOARD == 3 and conveyors.USED_SHARE < 1
