"""The hosts' real commands, and reading what they wrote."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner
from safetensors.torch import load_file
from tiny_models import Family
from torch import Tensor

from mergekit_3h.testing import updates

OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def run(
    *command: str | Path, check: bool = True, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command of this environment's ``bin`` folder."""
    program = Path(sys.executable).with_name(str(command[0]))
    done = subprocess.run(
        [str(program), *map(str, command[1:])],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **OFFLINE, **environment},
        timeout=300,
    )
    if check and done.returncode:
        raise AssertionError(f"{command} failed:\n{done.stdout}\n{done.stderr}")
    return done


def merge_config(family: Family, method: str, *, weights: list[float] | None = None, **extra: Any) -> dict[str, Any]:
    """A mergekit config that merges the experts of a family into its base."""
    models = [{"model": str(path)} for path in family.experts]
    for model, weight in zip(models, weights or [], strict=False):
        model["parameters"] = {"weight": weight}  # type: ignore[assignment]
    return {"merge_method": method, "base_model": str(family.base), "models": models, **extra}


def mergekit_yaml(
    config: dict[str, Any], out: Path, *flags: str, check: bool = True, process: bool = False
) -> subprocess.CompletedProcess[str]:
    """The command ``mergekit-yaml`` on a config, in this process or in one of its own; the result is in ``out``.

    It merges on the device that the tests are run on, as FusionBench does without being told.
    """
    if updates.place.type == "cuda" and not {"--cuda", "--device", "--multi-gpu"} & set(flags):
        flags = (*flags, "--cuda")
    file = out.with_suffix(".yml")
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    if process:
        return run("mergekit-yaml", file, out, *flags, check=check)
    from mergekit.scripts.run_yaml import main

    result = CliRunner().invoke(main, [str(file), str(out), *flags])
    stderr = result.stderr
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        stderr += "".join(traceback.format_exception(result.exception))
    if check and result.exit_code:
        raise AssertionError(f"mergekit-yaml failed:\n{result.stdout}\n{stderr}")
    return subprocess.CompletedProcess(["mergekit-yaml"], result.exit_code, result.stdout, stderr)


def read_model(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}
