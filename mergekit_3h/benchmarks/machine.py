"""What the numbers were measured on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Machine:
    processor: str
    cores: int
    memory_bytes: int | None
    system: str
    python: str
    torch: str
    blas: str
    gpu: str | None
    packages: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def this_machine(device: str) -> Machine:
    names = ("mergekit-3h", "mergekit", "fusion-bench")
    return Machine(
        processor=_processor(),
        cores=_usable_cores(),
        memory_bytes=_memory(),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        torch=torch.__version__,
        blas=_blas(),
        gpu=_gpu(device),
        packages={name: found for name in names if (found := _version(name)) is not None},
    )


def _processor() -> str:
    if platform.system() == "Linux":
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if match:
            return match[1].strip()
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.stdout.strip():
            return done.stdout.strip()
    return platform.processor() or platform.machine()


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> int | None:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None


def _blas() -> str:
    """The line of torch's build that names its BLAS, without the hardware it is meant for."""
    built_with = torch.__config__.show()
    mkl = re.search(r"(oneAPI )?Math Kernel Library Version (\S+)", built_with)
    if mkl:
        return f"MKL {mkl[2]}"
    named = re.search(r"BLAS_INFO=(\w+)", built_with)
    return named[1] if named else "unknown"


def _gpu(device: str) -> str | None:
    if torch.device(device).type != "cuda":
        return None
    facts = torch.cuda.get_device_properties(device)
    return f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
