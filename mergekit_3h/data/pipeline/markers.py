"""A small file beside each result that says what it was made from and what came of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from mergekit_3h.data.generation.reports import StepReport


class Marker(BaseModel):
    """Written when a part is finished. It holds as long as settings and inputs are still the same."""

    model_config = ConfigDict(extra="forbid")

    settings: dict[str, Any]
    inputs: dict[str, str]
    report: StepReport


def read_marker(path: Path) -> Marker | None:
    """The marker in a file; None if there is none that can be read."""
    try:
        return Marker.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def digests(paths: Iterable[Path], folder: Path) -> dict[str, str]:
    """SHA-256 of each file, by its name inside ``folder``."""
    return {os.path.relpath(path, folder): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
