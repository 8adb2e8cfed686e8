"""Where a model that a config names is: a local folder, the Hugging Face cache, on the hub, or nowhere."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

# One or two parts of letters, digits, dot, dash and underscore: what the hub accepts as a repository.
_HUB_ID = re.compile(r"^[\w.-]{1,96}(/[\w.-]{1,96})?$")


@dataclass(frozen=True)
class Location:
    """``local`` and ``cached`` models have a ``path``."""

    status: Literal["local", "cached", "hub", "missing"]
    path: Path | None = None


def locate(name: str, revision: str | None = None, cache: str | None = None) -> Location:
    """Find a model without any network access; ``cache`` is another folder than Hugging Face's usual one."""
    if os.path.exists(name):
        return Location("local", Path(name))
    if name.startswith((".", "/", "~")) or not _HUB_ID.match(name):
        return Location("missing")
    cached = _in_hub_cache(name, revision, cache)
    return Location("cached", cached) if cached else Location("hub")


def _in_hub_cache(name: str, revision: str | None, cache: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    for file in ("config.json", "adapter_config.json"):
        found = try_to_load_from_cache(name, file, cache_dir=cache, revision=revision)
        if isinstance(found, str):
            return Path(found).parent
    return None


def hub_is_offline() -> bool:
    """Whether the environment forbids asking the hub."""
    values = (os.environ.get(name, "") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return any(value.upper() in ("1", "ON", "YES", "TRUE") for value in values)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object, or an empty one if the file is missing or is something else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def config_problem(folder: Path) -> str | None:
    """Why a model's ``config.json`` is none, in a sentence that names the file."""
    file = folder / "config.json"
    if not file.exists():
        return f"{file} is missing"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"{file} cannot be read as JSON: {error}"
    return None if isinstance(content, dict) else f"{file} is no JSON object"


def layer_count(config: dict[str, Any]) -> int | None:
    """Number of layers by a ``config.json``, under the names that architectures use for it."""
    for part in (config, config.get("text_config") or {}):
        for key in ("num_hidden_layers", "n_layer", "num_layers", "n_layers"):
            if isinstance(part.get(key), int):
                return part[key]
    return None
