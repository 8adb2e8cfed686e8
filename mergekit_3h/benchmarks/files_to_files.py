"""A whole merge on a device from files to files, beside its stages alone and one tensor after the other."""

from __future__ import annotations

import filecmp
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit_3h.benchmarks.checkpoints import LlamaSize, write_checkpoints
from mergekit_3h.benchmarks.end_to_end import run_process
from mergekit_3h.benchmarks.problems import DTYPES
from mergekit_3h.errors import OptionError

_SHARDS = 8
"""Of the result: some are written while there is still something to merge."""


@dataclass(frozen=True)
class FilesPlan:
    """What is merged, and where."""

    size: LlamaSize
    experts: int
    dtype: str
    method: str
    device: str
    memory_gb: float | None

    @property
    def model_bytes(self) -> int:
        return self.size.parameters * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class FilesToFiles:
    """Seconds and bytes."""

    parameters: int
    read_bytes: int
    written_bytes: int
    whole: float
    """With reading, merging and writing at once."""
    in_turn: float
    alone: Mapping[str, float]
    """Reading, merging and writing, each with nothing else going on."""
    stages: Mapping[str, float]
    """Of the whole merge, the seconds in which the conveyor's stages had something to do."""
    has_same_files: bool
    utilisation: float | None
    """Of the card during the whole merge, as its driver has it."""
    room: int | None
    """Bytes of the card that the merge may take."""
    peak_allocated: int | None
    peak_reserved: int | None
    peak_rss: int

    @property
    def ratio(self) -> float:
        """Of the whole merge to the longest of its stages alone."""
        return self.whole / max(self.alone.values())

    @property
    def merging_share(self) -> float:
        """Of the time of the whole merge, in which a tensor was merged."""
        return self.stages["merging"] / self.whole


def files_to_files(plan: FilesPlan, folder: Path, say: Callable[[str], None]) -> FilesToFiles:
    """Three merges in processes of their own, of random checkpoints that are written first."""
    import torch

    _require_space(plan, folder)
    say(f"writing {plan.experts + 1} checkpoints of {plan.model_bytes / 1e9:.2f} GB to {folder}")
    paths = write_checkpoints(folder, plan.size, plan.experts, plan.dtype, "decaying", device=torch.device(plan.device))
    base, *experts = map(str, paths)
    config: dict[str, Any] = {
        "merge_method": plan.method,
        "base_model": base,
        "models": [{"model": expert} for expert in experts],
        "parameters": {} if plan.memory_gb is None else {"memory_gb": plan.memory_gb},
    }
    (folder / "merge.yml").write_text(json.dumps(config))  # JSON is YAML
    found = {mode: _measured(plan, folder, mode, say) for mode in ("alone", "whole", "in-turn")}
    whole, alone = found["whole"], found["alone"]
    return FilesToFiles(
        parameters=plan.size.parameters,
        read_bytes=(plan.experts + 1) * plan.model_bytes,
        written_bytes=plan.model_bytes,
        whole=whole["seconds"],
        in_turn=found["in-turn"]["seconds"],
        alone={stage: alone[stage] for stage in ("reading", "merging", "writing")},
        stages=whole["stages"],
        has_same_files=_same_files(folder / "whole", folder / "in-turn"),
        utilisation=whole["utilisation"],
        room=whole["room"],
        peak_allocated=whole.get("peak_allocated"),
        peak_reserved=whole.get("peak_reserved"),
        peak_rss=whole["peak_rss"],
    )


def _require_space(plan: FilesPlan, folder: Path) -> None:
    needed, free = (plan.experts + 4) * plan.model_bytes, shutil.disk_usage(folder).free
    if needed > free:
        raise OptionError(
            f"{folder}: {needed / 1e9:.1f} GB are to be written there, and {free / 1e9:.1f} GB are free; name another "
            "--folder, or fewer --layers"
        )


def _measured(plan: FilesPlan, folder: Path, mode: str, say: Callable[[str], None]) -> dict[str, Any]:
    say({"alone": "reading, merging, writing, one after the other", "whole": "all at once"}.get(mode, "in turn"))
    profile, shard = folder / f"{mode}.json", max(1, plan.model_bytes // _SHARDS)
    arguments = [str(profile), str(folder / "merge.yml"), str(folder / mode), plan.device, mode, str(shard)]
    run_process([sys.executable, "-m", "mergekit_3h.benchmarks.staged_merge", *arguments], plan.method)
    return json.loads(profile.read_text())


def _same_files(first: Path, second: Path) -> bool:
    names = sorted(file.name for file in first.glob("model*"))
    others = sorted(file.name for file in second.glob("model*"))
    _, differing, lacking = filecmp.cmpfiles(first, second, names, shallow=False)
    return bool(names) and names == others and not differing and not lacking
