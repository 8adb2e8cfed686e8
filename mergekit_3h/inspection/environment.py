"""What is installed here and what works together: hosts, the start-up hook, devices, optional extras.

Hosts are asked in a fresh process each, as users run them; nothing here imports mergekit or FusionBench itself.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from mergekit_3h.options import METHODS

PACKAGE = "mergekit-3h"
_SECONDS_TO_ANSWER = 180
_ASK_MERGEKIT = """
import json, mergekit.merge_methods as m
print(json.dumps(sorted(method.spec.name for method in m.registered_methods())))
"""
# Composes the way `fusion_bench method=...` does, and looks which class each config would build.
_ASK_FUSION_BENCH = """
import json, sys
from hydra import compose, initialize_config_dir
from fusion_bench.utils.hydra_utils import get_default_config_path
found = {}
with initialize_config_dir(version_base=None, config_dir=get_default_config_path()):
    for name in sys.argv[1:]:
        try:
            found[name] = compose("fabric_model_fusion", overrides=[f"method={name}"]).method.get("_target_")
        except Exception as error:
            found[name] = {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
print(json.dumps(found))
"""


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


@dataclass(frozen=True)
class Device:
    name: str
    kind: str
    memory_bytes: int | None
    float64: str


@dataclass(frozen=True)
class Extra:
    name: str
    missing: list[str]
    advice: str


@dataclass(frozen=True)
class Environment:
    """Everything ``mergekit-3h doctor`` shows."""

    python: str
    executable: str
    package: str
    torch: dict[str, Any]
    mergekit: Host
    fusion_bench: Host
    hook: Hook
    devices: list[Device]
    extras: list[Extra]

    @property
    def works(self) -> bool:
        return self.mergekit.works

    def as_dict(self) -> dict[str, Any]:
        hosts = {"mergekit": self.mergekit, "fusion_bench": self.fusion_bench}
        return {**asdict(self), **{key: {**asdict(host), "works": host.works} for key, host in hosts.items()}}


def read_environment() -> Environment:
    return Environment(
        python=platform.python_version(),
        executable=sys.executable,
        package=_version(PACKAGE) or "not installed",
        torch=_torch_facts(),
        mergekit=_mergekit(),
        fusion_bench=_fusion_bench(),
        hook=_hook(),
        devices=_devices(),
        extras=_extras(),
    )


def usable_device(name: str) -> str | None:
    """Why torch cannot compute on this device; None if it can."""
    import torch

    try:
        torch.ones(1, dtype=torch.float64, device=name).sum().item()
    except (RuntimeError, TypeError, AssertionError) as error:
        return f"{name!r} cannot compute in float64 here: {str(error).splitlines()[0]}"
    return None


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _requirements() -> list[Any]:
    """What this package declares to need; empty where that cannot be read, as in a half-removed installation."""
    try:
        from packaging.requirements import Requirement

        return [Requirement(text) for text in metadata.requires(PACKAGE) or []]
    except (ImportError, metadata.PackageNotFoundError):
        return []


def _supported(distribution: str) -> str:
    """The version range that this package declares for another."""
    return next((str(r.specifier) for r in _requirements() if r.name == distribution), "")


def _is_supported(version: str, required: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(required).contains(version, prereleases=True)


def _mergekit() -> Host:
    required, version = _supported("mergekit"), _version("mergekit")
    if version is None:
        return Host("mergekit", None, required, problem="not installed", advice="pip install mergekit-3h")
    if not _is_supported(version, required):
        advice = f'pip install "mergekit{required}"'
        return Host("mergekit", version, required, problem="version not supported", advice=advice)
    answer, problem = _ask(_ASK_MERGEKIT)
    if problem:
        return Host("mergekit", version, required, problem=problem, advice=f"pip install --force-reinstall {PACKAGE}")
    sees = {name: name in answer for name in METHODS}
    advice = "" if all(sees.values()) else "see the start-up hook below"
    return Host("mergekit", version, required, sees, advice=advice)


def _fusion_bench() -> Host:
    required, version = _supported("fusion-bench"), _version("fusion-bench")
    install = f'pip install "{PACKAGE}[fusion-bench]"'
    if version is None:
        return Host("fusion-bench", None, required, problem="not installed (optional)", advice=install)
    if not _is_supported(version, required):
        return Host("fusion-bench", version, required, problem="version not supported", advice=install)
    answer, problem = _ask(_ASK_FUSION_BENCH, *METHODS, "mergekit")
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


def _ask(program: str, *arguments: str) -> tuple[Any, str]:
    """The JSON that a fresh Python process prints last, and what went wrong."""
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
        return None, f"no answer within {_SECONDS_TO_ANSWER} s"
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return None, f"does not start: {lines[-1]}"
    return json.loads(done.stdout.strip().splitlines()[-1]), ""


def _hook() -> Hook:
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


def _torch_facts() -> dict[str, Any]:
    try:
        import torch
    except (ImportError, OSError) as error:
        return {"version": _version("torch"), "problem": str(error), "advice": "pip install --force-reinstall torch"}
    return {"version": torch.__version__, "cuda": torch.version.cuda, "threads": torch.get_num_threads()}


def _devices() -> list[Device]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    processor = Device(f"{platform.machine()}, {os.cpu_count()} cores", "cpu", memory, "half the float32 rate")
    try:
        return [processor, *_accelerators()]
    except (ImportError, OSError):  # torch_facts says why
        return [processor]


def _accelerators() -> Iterator[Device]:
    import torch

    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        facts = torch.cuda.get_device_properties(index)
        yield Device(facts.name, f"cuda:{index}", facts.total_memory, _float64_rate(facts.name))
    if torch.backends.mps.is_available():
        yield Device("Apple GPU", "mps", None, "none at all, use the cpu")
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        for index in range(torch.xpu.device_count()):
            yield Device(torch.xpu.get_device_name(index), f"xpu:{index}", None, "depends on the model")


def _float64_rate(name: str) -> str:
    """Data-centre GPUs compute float64 at half the float32 rate or better, the others at 1/32 to 1/64."""
    full = re.search(r"\b(P100|V100|A100|A800|H100|H200|H800|GH200|B100|B200|GB200|MI\d+)", name)
    return "fast" if full else "slow (1/32 to 1/64 of float32): exact decompositions may be faster on the cpu"


def _extras() -> list[Extra]:
    names = metadata.metadata(PACKAGE).get_all("Provides-Extra") or [] if _version(PACKAGE) else []
    missing = {name: _missing_of_extra(name) for name in names}
    return [Extra(name, lacks, f'pip install "{PACKAGE}[{name}]"' if lacks else "") for name, lacks in missing.items()]


def _missing_of_extra(extra: str) -> list[str]:
    wanted = [r for r in _requirements() if r.marker and r.marker.evaluate({"extra": extra})]
    return [r.name for r in wanted if not _is_met(r)]


def _is_met(requirement: Any) -> bool:
    version = _version(requirement.name)
    return version is not None and requirement.specifier.contains(version, prereleases=True)
