"""From coefficients to a merged model on disk, through mergekit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from language import DOMAINS
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from safetensors.torch import load_file

from mergekit_3h.search import Solution


def static_config(models: Mapping[str, Path], weights: Mapping[str, Any]) -> dict[str, Any]:
    """An ordinary mergekit config: these experts with these weights."""
    experts = [{"model": str(models[name]), "parameters": {"weight": weight}} for name, weight in weights.items()]
    return {"merge_method": "task_arithmetic", "base_model": str(models["base"]), "models": experts}


def uniform(models: Mapping[str, Path]) -> dict[str, float]:
    """The same weight for every expert."""
    experts = [name for name in models if name != "base"]
    return dict.fromkeys(experts, 1.0 / len(experts))


def merge(models: Mapping[str, Path], found: Solution | None, folder: Path) -> Path:
    """Merge with the weights that a search found, or uniformly."""
    config = static_config(models, found.mergekit_weights() if found else uniform(models))
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.with_suffix(".yml").write_text(yaml.safe_dump(config, sort_keys=False))
    run_merge(MergeConfiguration.model_validate(config), str(folder), MergeOptions(quiet=True))
    return folder


def safety_merge_config(folder: Path, options: Mapping[str, Any]) -> Path:
    """A config that searches and merges in one go, with the models and data of a run."""
    config = {
        "merge_method": "safety_merge",
        "base_model": str(folder / "models" / "base"),
        "models": [{"model": str(folder / "models" / expert)} for expert in DOMAINS],
        "parameters": {"data": str(folder / "data.jsonl"), "report": str(folder / "report"), **options},
    }
    path = folder / "safety_merge.yml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def merge_by_command(config: Path, folder: Path) -> None:
    """``mergekit-yaml`` of this Python environment; its output is shown only if it fails."""
    command = [shutil.which("mergekit-yaml", path=str(Path(sys.executable).parent)) or "mergekit-yaml"]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # as here: on a CPU the last bits depend on it
    done = subprocess.run(
        [*command, str(config), str(folder), "--quiet"], capture_output=True, text=True, env=one_thread, check=False
    )
    if done.returncode:
        sys.exit(f"mergekit-yaml failed:\n{done.stdout}\n{done.stderr}")


def differing_tensors(one: Path, other: Path) -> list[str]:
    """Names of tensors that are not the same to the last bit."""
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    return [name for name in {**first, **second} if not _equal(first.get(name), second.get(name))]


def _equal(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is not None and other is not None and torch.equal(one, other)
