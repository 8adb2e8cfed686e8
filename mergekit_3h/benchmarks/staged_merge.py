"""A merge by mergekit's own graph, whole or in its stages, one after the other.

``python -m mergekit_3h.benchmarks.staged_merge PROFILE.json CONFIG.yml OUT DEVICE MODE SHARD_BYTES``, a process of its
own: what a merge before it has left in memory does not count. The modes are ``whole``, as mergekit-yaml does it;
``in-turn``, without the conveyor around the device; and ``alone``, all reading, then all merging, then all writing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from mergekit_3h.benchmarks.memory import high_water_mark
from mergekit_3h.kernels.conveyor import conveyor_on
from mergekit_3h.kernels.loads import Load
from mergekit_3h.kernels.passages import PASSAGES, Passage

_PAGE = 4096
_WARMING_SIDE = 64


def main() -> None:
    """Plan, warm up, merge, and write down what it took."""
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.io.tasks import LoaderCache
    from mergekit.options import MergeOptions

    from mergekit_3h.lint.host_plan import merge_tasks

    profile, config_file, out, device, mode, shard = sys.argv[1:]
    content = yaml.safe_load(Path(config_file).read_text())
    options = MergeOptions(device=device, out_shard_size=int(shard), quiet=True)
    place = torch.device(device)
    PASSAGES.setdefault(place.type, Passage)  # the CPU stands in for a device that has a way to and from it
    if mode != "whole":
        del PASSAGES[place.type]
    LoaderCache().setup(options)
    targets = merge_tasks(MergeConfiguration.model_validate(content), options, out)
    _drop_pages([*content["models"], {"model": content["base_model"]}])
    _warm_up(place)
    measured = _alone(targets, place, out, int(shard)) if mode == "alone" else _whole(targets, place)
    Path(profile).write_text(json.dumps({**measured, "peak_rss": high_water_mark()}))


def _whole(targets: Sequence[Any], device: torch.device) -> dict[str, Any]:
    from mergekit.graph import Executor

    conveyor = conveyor_on(device)
    before = dict(conveyor.seconds) if conveyor is not None else {}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with _utilisation(device) as busy:
        seconds = _timed(device, Executor(list(targets), device, torch.device("cpu")).execute)
    found: dict[str, Any] = {"seconds": seconds, "utilisation": busy()}
    if conveyor is not None:
        found["stages"] = {stage: conveyor.seconds[stage] - before[stage] for stage in conveyor.seconds}
        found["room"] = conveyor.room
    if device.type == "cuda":
        found["peak_allocated"] = torch.cuda.max_memory_allocated(device)
        found["peak_reserved"] = torch.cuda.max_memory_reserved(device)
    return found


def _alone(targets: Sequence[Any], device: torch.device, out: str, shard: int) -> dict[str, float]:
    from mergekit.io.tasks import SaveTensor
    from mergekit.io.tensor_writer import TensorWriter

    saves = [task for task in targets if isinstance(task, SaveTensor)]
    gathers = [task.tensor_task.gather_tensors for task in saves]  # type: ignore[attr-defined]
    loads = [gather.arguments() for gather in gathers]
    seconds = {"reading": 0.0, "merging": 0.0, "writing": 0.0}
    for each in loads:
        seconds["reading"] += _timed(device, lambda each=each: [_touched(load.execute()) for load in each.values()])
    results: dict[str, Tensor] = {}
    for save, gather, each in zip(saves, gathers, loads, strict=True):
        tensors = gather.execute(**{key: load.execute() for key, load in each.items()})
        moved = {model: tensor.to(device) for model, tensor in tensors.items()}
        made: list[Tensor] = []
        merge: Callable[..., Tensor] = save.tensor_task.execute
        seconds["merging"] += _timed(device, lambda merge=merge, moved=moved, made=made: made.append(merge(moved)))
        results[save.tensor_name] = made[0].cpu()
        del tensors, moved, made

    def write() -> None:
        writer = TensorWriter(out, max_shard_size=shard)
        for name, tensor in results.items():
            writer.save_tensor(name, tensor)
        writer.finalize()

    seconds["writing"] = _timed(device, write)
    return seconds


def _touched(tensor: Tensor) -> None:
    """A mapped file is read when its pages are."""
    tensor.reshape(-1).view(torch.uint8)[::_PAGE].sum()


def _timed(device: torch.device, work: Callable[[], object]) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter() - began


def _drop_pages(models: Sequence[dict[str, str]]) -> None:
    """Have the system forget the weight files, as far as it lets them go: they are to be read."""
    if not hasattr(os, "posix_fadvise"):
        return
    for file in (file for model in models for file in Path(model["model"]).glob("*.safetensors")):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _warm_up(device: torch.device) -> None:
    """A GPU's libraries set themselves up in the thread that uses them first."""
    from mergekit_3h.spectral.registry import parse_options
    from mergekit_3h.spectral.tensors import merge_tensor

    base, expert = torch.randn(2, _WARMING_SIDE, _WARMING_SIDE)

    def merge(there: dict[Any, Tensor]) -> Tensor:
        experts = {"1": there["expert"], "2": there["expert"].T.contiguous()}
        return merge_tensor("w", there["base"], experts, dict.fromkeys(experts, 1.0), parse_options("tsvm", {}))

    inputs = {"base": base, "expert": expert}
    conveyor = conveyor_on(device)
    if conveyor is None:
        merge({name: tensor.to(device) for name, tensor in inputs.items()})
    else:
        conveyor.begin(Load("w", inputs, merge, 0, base.nbytes), base.nbytes).result()


@contextmanager
def _utilisation(device: torch.device) -> Iterator[Callable[[], float | None]]:
    """The share of time in which the card was busy, as its driver has it; None where nobody can be asked."""
    program, found = shutil.which("nvidia-smi"), list[float]()
    if device.type != "cuda" or program is None:
        yield lambda: None
        return
    card = str(getattr(torch.cuda.get_device_properties(device), "uuid", device.index or 0))
    which = card if card.isdigit() or card.startswith("GPU-") else f"GPU-{card}"
    command = [program, "-i", which, "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            yield lambda: sum(found) / len(found) if found else None
        finally:
            process.terminate()
            lines = process.communicate()[0].split()
            found += [float(line) / 100 for line in lines if line.isdigit()]


if __name__ == "__main__":
    main()
