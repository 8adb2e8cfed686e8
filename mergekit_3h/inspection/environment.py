"""Everything ``mergekit-3h doctor`` shows, in one object."""

from __future__ import annotations

import platform
import sys
from dataclasses import asdict, dataclass
from typing import Any

from mergekit_3h.inspection.devices import Device, devices, torch_facts
from mergekit_3h.inspection.hosts import Hook, Host, fusion_bench, mergekit, startup_hook
from mergekit_3h.inspection.packages import PACKAGE, Extra, extras, version_of


@dataclass(frozen=True)
class Environment:
    """What is installed on this machine and what works together."""

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
        package=version_of(PACKAGE) or "not installed",
        torch=torch_facts(),
        mergekit=mergekit(),
        fusion_bench=fusion_bench(),
        hook=startup_hook(),
        devices=devices(),
        extras=extras(),
    )
