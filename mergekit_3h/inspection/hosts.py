"""The merge frameworks that are installed: do they work, and do they know the methods of this package.

Each is asked in a fresh process, as users run it; nothing here imports mergekit or FusionBench itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergekit_3h.inspection.packages import PACKAGE, is_supported, supported, version_of
from mergekit_3h.registration import own_methods
from mergekit_3h.spectral import registry

_SECONDS_TO_ANSWER = 180
_ASK_MERGEKIT = """
import json, mergekit.merge_methods as m
print(json.dumps(sorted(method.spec.name for method in m.registered_methods())))
"""
# Composes the way `fusion_bench method=...` does, and imports the class that each config would build.
_ASK_FUSION_BENCH = """
import json, sys
from hydra import compose, initialize_config_dir
from hydra.utils import get_class
from fusion_bench.utils.hydra_utils import get_default_config_path
found = {}
with initialize_config_dir(version_base=None, config_dir=get_default_config_path()):
    for name in sys.argv[1:]:
        try:
            target = compose("fabric_model_fusion", overrides=[f"method={name}"]).method.get("_target_")
            found[name] = get_class(target) and target
        except Exception as error:
            found[name] = {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
print(json.dumps(found))
"""


def _names() -> list[str]:
    """The methods that each host should see: our own, and those that other packages add to ours."""
    return list(dict.fromkeys([*(point.name for point in own_methods()), *registry.names()]))


@dataclass(frozen=True)
class Host:
    """A merge framework: is it there, is its version supported, does it know our methods, what to do if not."""

    name: str
    version: str | None
    required: str
    sees: dict[str, bool] = field(default_factory=dict)
    problem: str = ""
    advice: str = ""

    @property
    def works(self) -> bool:
        return self.version is not None and bool(self.sees) and all(self.sees.values()) and not self.problem


@dataclass(frozen=True)
class Hook:
    """The start-up file that makes mergekit load entry points."""

    armed: bool
    files: list[str]
    switch: str | None
    advice: str = ""


def mergekit() -> Host:
    required, version = supported("mergekit"), version_of("mergekit")
    if version is None:
        return Host("mergekit", None, required, problem="not installed", advice="pip install mergekit-3h")
    if not is_supported(version, required):
        advice = f'pip install "mergekit{required}"'
        return Host("mergekit", version, required, problem="version not supported", advice=advice)
    answer, problem, log = _ask(_ASK_MERGEKIT)
    if problem:
        return Host("mergekit", version, required, problem=problem, advice=f"pip install --force-reinstall {PACKAGE}")
    sees = {name: name in answer for name in _names()}
    if all(sees.values()):
        return Host("mergekit", version, required, sees)
    warnings = [line for line in log if PACKAGE in line]
    return Host("mergekit", version, required, sees, " ".join(warnings[:1]), "see the start-up hook below")


def fusion_bench() -> Host:
    required, version = supported("fusion-bench"), version_of("fusion-bench")
    install = f'pip install "{PACKAGE}[fusion-bench]"'
    if version is None:
        return Host("fusion-bench", None, required, problem="not installed (optional)", advice=install)
    if not is_supported(version, required):
        return Host("fusion-bench", version, required, problem="version not supported", advice=install)
    answer, problem, _ = _ask(_ASK_FUSION_BENCH, *_names(), "mergekit")
    if problem:
        return Host("fusion-bench", version, required, problem=problem, advice=install)
    sees = {name: str(target).startswith("fusion_bench_ext.") for name, target in answer.items()}
    errors = [value["error"] for value in answer.values() if isinstance(value, dict)]
    hidden = [name for name, seen in sees.items() if not seen]
    advice = _advice_on_hidden_configs() if hidden else ""
    problem = f"{', '.join(hidden)} not found: {errors[0]}" if errors else ""
    return Host("fusion-bench", version, required, sees, problem, advice)


def _advice_on_hidden_configs() -> str:
    for name in ("config", "fusion_bench_config"):
        if Path(name).is_dir():
            return f"FusionBench takes all its configs from {Path(name).resolve()}: run it from another folder"
    return f"pip install --force-reinstall --no-deps {PACKAGE}"


def _ask(program: str, *arguments: str) -> tuple[Any, str, list[str]]:
    """The JSON that a fresh Python process prints last, what went wrong, and the lines it logged."""
    quiet = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            capture_output=True,
            text=True,
            timeout=_SECONDS_TO_ANSWER,
            env=quiet,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, f"no answer within {_SECONDS_TO_ANSWER} s", []
    log = [line for line in done.stderr.splitlines() if line.strip()]
    if done.returncode != 0:
        return None, f"does not start: {log[-1] if log else f'exit status {done.returncode}'}", log
    return json.loads(done.stdout.strip().splitlines()[-1]), "", log


def startup_hook() -> Hook:
    switch = os.environ.get("MERGEKIT_3H_AUTOLOAD")
    files = [str(path) for folder in sys.path for path in _startup_files(Path(folder or "."))]
    off = switch == "0"
    if off:
        advice = "unset MERGEKIT_3H_AUTOLOAD"
    else:
        advice = "" if files else f"pip install --force-reinstall --no-deps {PACKAGE}"
    return Hook(bool(files) and not off, files, switch, advice)


def _startup_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for name in ("mergekit_3h.pth", "mergekit_3h.start") if (path := folder / name).is_file()]
