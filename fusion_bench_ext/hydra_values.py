"""Values out of a Hydra config, as plain Python."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf


def plain_value(value: Any) -> Any:
    """Lists and mappings of a config with everything in them resolved; any other value as it is."""
    return OmegaConf.to_container(value, resolve=True) if isinstance(value, DictConfig | ListConfig) else value
