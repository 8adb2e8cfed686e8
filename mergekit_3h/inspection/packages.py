"""Installed packages against what this one declares to need: versions, supported ranges, extras."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from typing import Any

PACKAGE = "mergekit-3h"


@dataclass(frozen=True)
class Extra:
    name: str
    missing: list[str]
    advice: str


def version_of(distribution: str) -> str | None:
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


def supported(distribution: str) -> str:
    """The version range that this package declares for another."""
    return next((str(r.specifier) for r in _requirements() if r.name == distribution), "")


def is_supported(version: str, required: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(required).contains(version, prereleases=True)


def extras() -> list[Extra]:
    names = metadata.metadata(PACKAGE).get_all("Provides-Extra") or [] if version_of(PACKAGE) else []
    missing = {name: _missing_of_extra(name) for name in names}
    return [Extra(name, lacks, f'pip install "{PACKAGE}[{name}]"' if lacks else "") for name, lacks in missing.items()]


def _missing_of_extra(extra: str) -> list[str]:
    wanted = [r for r in _requirements() if r.marker and r.marker.evaluate({"extra": extra})]
    return [r.name for r in wanted if not _is_met(r)]


def _is_met(requirement: Any) -> bool:
    version = version_of(requirement.name)
    return version is not None and requirement.specifier.contains(version, prereleases=True)
