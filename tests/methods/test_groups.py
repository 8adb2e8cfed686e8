"""Groups of tensors in mergekit's graph: the files of a merge one tensor after the other, within the memory."""

from __future__ import annotations

import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hosts import merge_config, mergekit_yaml, read_model
from mergekit.config import MergeConfiguration
from mergekit.graph import Executor
from mergekit.io.tasks import LoadTensor
from mergekit.merge_methods.task_adapter import ExecuteMergeMethodTask
from mergekit.options import MergeOptions
from tiny_models import Family

from mergekit_3h.kernels.jobs import WAITING_SHARE
from mergekit_3h.lint.host_plan import save_tasks
from mergekit_3h.methods.groups import AwaitedMerge, Lookahead
from mergekit_3h.spectral.tsvm import TSVM

ALONE = 1e-6
"""``memory_gb`` in which no two tensors fit: one after the other, each with all threads."""


@pytest.fixture(autouse=True)
def four_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def merging_threads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the threads that merged a matrix."""
    seen: list[str] = []
    merge = TSVM.merge

    def noted(self: TSVM, *arguments: Any) -> Any:
        seen.append(threading.current_thread().name)
        return merge(self, *arguments)

    monkeypatch.setattr(TSVM, "merge", noted)
    return seen


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.safetensors*"))}


def merged_both_ways(config: dict[str, Any], folder: Path, *flags: str) -> tuple[Path, Path]:
    """In groups, and one tensor after the other."""
    parameters = config.get("parameters", {})
    mergekit_yaml(config, folder / "grouped", *flags)
    mergekit_yaml({**config, "parameters": {**parameters, "memory_gb": ALONE}}, folder / "alone", *flags)
    return folder / "grouped", folder / "alone"


CASES = {
    "llama": {},
    "sharded": {"max_shard_size": "40KB"},
    "llama-tied": {},
    "mixtral": {},
    "bfloat16": {"dtype": torch.bfloat16},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", ["tsvm", "rtsvm"])
def test_a_merge_in_groups_writes_the_same_files(
    case: str, method: str, family: Callable[..., Family], absolute: Path
) -> None:
    architecture = case if case in ("llama-tied", "mixtral") else "llama"
    models = family(architecture, **CASES[case])
    grouped, alone = merged_both_ways(merge_config(models, method), absolute, "--out-shard-size", "60000")
    assert len(files(grouped)) > 2
    assert files(grouped) == files(alone)


def test_matrices_are_merged_by_the_workers_unless_they_are_too_large(
    llama: Family, absolute: Path, merging_threads: list[str]
) -> None:
    mergekit_yaml(merge_config(llama, "tsvm"), absolute / "grouped")
    by_workers = [name for name in merging_threads if name.startswith("mergekit-3h")]
    assert len(merging_threads) == len(by_workers) == 16
    merging_threads.clear()
    mergekit_yaml(merge_config(llama, "tsvm", parameters={"memory_gb": ALONE}), absolute / "alone")
    assert set(merging_threads) == {threading.main_thread().name}


def test_filters_gradients_and_output_dtypes_in_groups(llama: Family, absolute: Path) -> None:
    parameters = {"lambda": [{"filter": "mlp", "value": [0.3, 0.9]}, {"value": 1.0}], "exclude": "up_proj"}
    config = merge_config(llama, "tsvm", weights=[2.0], parameters=parameters, out_dtype="bfloat16")
    grouped, alone = merged_both_ways(config, absolute)
    assert files(grouped) == files(alone)
    mergekit_yaml(merge_config(llama, "tsvm"), absolute / "plain")
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(read_model(grouped)[name], read_model(absolute / "plain")[name].bfloat16())


def test_models_whose_sizes_are_not_known_are_merged_in_groups_too(
    llama: Family, absolute: Path, merging_threads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those with adapters, which mergekit merges into files of its own."""
    monkeypatch.setattr("mergekit_3h.methods.planning.check_models", lambda *_: [])
    mergekit_yaml(merge_config(llama, "tsvm"), absolute / "grouped")
    assert sum(name.startswith("mergekit-3h") for name in merging_threads) > 7
    mergekit_yaml(merge_config(llama, "tsvm", parameters={"memory_gb": ALONE}), absolute / "alone")
    assert files(absolute / "grouped") == files(absolute / "alone")


def test_raw_files_are_merged_in_groups(llama: Family, absolute: Path, merging_threads: list[str]) -> None:
    import yaml
    from click.testing import CliRunner
    from mergekit.scripts.merge_raw_pytorch import main

    paths = [str(path / "model.safetensors") for path in (llama.base, *llama.experts)]
    config = {"merge_method": "tsvm", "base_model": paths[0], "models": [{"model": path} for path in paths[1:]]}
    (absolute / "raw.yml").write_text(yaml.safe_dump(config))
    CliRunner().invoke(main, [str(absolute / "raw.yml"), str(absolute / "raw")], catch_exceptions=False)
    assert sum(name.startswith("mergekit-3h") for name in merging_threads) == 16
    mergekit_yaml(merge_config(llama, "tsvm", parameters={"memory_gb": ALONE}), absolute / "alone")
    raw, alone = read_model(absolute / "raw"), read_model(absolute / "alone")
    assert raw.keys() == alone.keys() and all(torch.equal(raw[name], alone[name]) for name in raw)


def test_inputs_alive_at_once_stay_within_the_memory(
    family: Callable[..., Family], absolute: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bfloat16 checkpoints read as float32 are copies in memory, of which mergekit and the workers hold some."""
    models = family("llama", dtype=torch.bfloat16, num_hidden_layers=30)
    alive = {"now": 0, "most": 0, "all": 0}
    load = LoadTensor.execute

    def counted(task: LoadTensor) -> torch.Tensor | None:
        tensor = load(task)
        assert tensor is not None
        alive["now"] += tensor.nbytes
        alive["all"] += tensor.nbytes
        alive["most"] = max(alive["most"], alive["now"])
        weakref.finalize(tensor, lambda size: alive.update(now=alive["now"] - size), tensor.nbytes)
        return tensor

    monkeypatch.setattr(LoadTensor, "execute", counted)
    memory = 2_000_000
    config = merge_config(models, "tsvm", dtype="float32", parameters={"memory_gb": memory / 1e9})
    mergekit_yaml(config, absolute / "out")
    largest = 4 * 4 * 384 * 32  # the embedding of four models
    assert alive["now"] == 0
    assert largest < alive["most"] < memory < alive["all"] / 2


def test_a_tensor_that_fails_says_which_it_is(llama: Family, absolute: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merge, calls = TSVM.merge, []

    def fails(self: TSVM, tasks: Any, weights: Any) -> Any:
        calls.append(tasks)
        if tasks.rows == tasks.columns:
            raise RuntimeError("linalg.eigh: the algorithm failed to converge")
        return merge(self, tasks, weights)

    monkeypatch.setattr(TSVM, "merge", fails)
    done = mergekit_yaml(merge_config(llama, "tsvm"), absolute / "out", check=False)
    assert done.returncode == 1
    named = "cannot merge tensor 'model.layers.0.self_attn.o_proj.weight': RuntimeError: linalg.eigh: the algorithm"
    assert named in done.stderr
    assert not (absolute / "out" / "model.safetensors").exists()


def test_a_tensor_with_nan_is_refused_in_one_line(family: Callable[..., Family], absolute: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    models, broken = family("llama"), absolute / "broken"
    shutil.copytree(models.experts[1], broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.1.mlp.gate_proj.weight"][3, 4] = float("nan")
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    config = merge_config(Family(models.base, [models.experts[0], broken]), "tsvm")
    refused = mergekit_yaml(config, absolute / "out", check=False)
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert f"tensor 'model.layers.1.mlp.gate_proj.weight' of {broken} holds NaN or infinity" in refused.stderr


@pytest.mark.parametrize("value", [0, -1, "much", [1, 2]])
def test_memory_that_is_no_size(value: object, llama: Family, absolute: Path) -> None:
    parameters = {"memory_gb": value}
    refused = mergekit_yaml(merge_config(llama, "tsvm", parameters=parameters), absolute / "out", check=False)
    if value == [1, 2]:  # a gradient over the layers, of which the smallest counts
        assert refused.returncode == 0
    else:
        assert refused.returncode == 1 and "option 'memory_gb': got" in refused.stderr


def planned(family: Family, **options: Any) -> list[Any]:
    config = MergeConfiguration.model_validate(merge_config(family, "tsvm"))
    return [task.tensor_task for task in save_tasks(config, MergeOptions(**options))]


def test_tasks_stay_mergekits_own_where_nothing_runs_side_by_side(llama: Family) -> None:
    assert {type(task) for task in planned(llama)} == {AwaitedMerge}
    on_the_card = ({"multi_gpu": True}, {"low_cpu_memory": True}, {"read_to_gpu": True}, {"gpu_rich": True})
    for options in ({"device": "mps"}, *({"cuda": True, **kept} for kept in on_the_card)):
        assert {type(task) for task in planned(llama, **options)} == {ExecuteMergeMethodTask}
    torch.set_num_threads(1)
    for options in ({"cuda": True}, {"device": "cuda:1"}):
        assert {type(task) for task in planned(llama, **options)} == {AwaitedMerge}
    assert {type(task) for task in planned(llama)} == {ExecuteMergeMethodTask}


def test_tasks_travel_and_can_be_executed_in_part(llama: Family) -> None:
    """As a cluster's workers get some of them, pickled."""
    tasks = planned(llama)
    some = tasks[3:12:4]
    travelled = pickle.loads(pickle.dumps(some))
    values = {task.output_weight.name: value for task, value in Executor(travelled).run(quiet=True)}
    whole = {task.output_weight.name: value for task, value in Executor(tasks).run(quiet=True)}
    assert len(values) == 3 and all(torch.equal(values[name], whole[name]) for name in values)


class Labelled:
    def __init__(self, label: str | None) -> None:
        self.label = label

    def group_label(self) -> str | None:
        return self.label


def arranged(sizes: dict[str, int], memory: float, labels: dict[str, str | None] | None = None) -> Lookahead:
    ahead = Lookahead(sizes)
    for name in labels or sizes:
        ahead.add(name, Labelled(labels[name] if labels else name), memory / 1e9)  # type: ignore[arg-type]
    return ahead


def test_a_result_is_fetched_when_the_next_would_not_fit() -> None:
    sizes = {"a": 30, "b": 30, "c": 30, "d": 90, "e": 10}
    ahead = arranged(sizes, memory=1000)
    assert ahead.room == 800 and ahead.room * WAITING_SHARE == 100
    turns = {name: ahead.turn(name) for name in sizes}
    assert {name: turn.label for name, turn in turns.items() if turn} == {
        "a": "c", "b": "c", "c": "c", "d": "e", "e": "e"
    }  # fmt: skip
    assert [turn.position for turn in turns.values() if turn] == [0, 1, 2, 3, 4]
    assert sum(turn.share for turn in turns.values() if turn) == pytest.approx(1.0)


def test_what_mergekit_makes_of_other_tensors_has_no_turn() -> None:
    ahead = arranged({"made": 1, "read": 1}, 100, {"made": None, "read": "read"})
    assert ahead.turn("made") is None and ahead.turn("read") is not None


def test_the_smallest_memory_of_a_merge_counts() -> None:
    ahead = Lookahead({})
    for memory_gb in (None, 4.0, 2.0, 3.0):
        ahead.add(str(memory_gb), Labelled("a"), memory_gb)  # type: ignore[arg-type]
    assert ahead.room == int(2e9 / (1 + 2 * WAITING_SHARE))
