"""The models that an audit looks at: named one by one, or those of a config."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mergekit.common import ModelReference

from mergekit_3h.lint.roles import compared_models
from mergekit_3h.methods.safety_request import BASE_LABEL, folder_of, labelled_models, read_config


def audited_models(
    given: Sequence[str], lora_cache: str | None, trust_remote_code: bool, *, merged_only: bool = False
) -> tuple[dict[str, Path], str]:
    """Folders by label, and the data files that the config names, if it is one. ``merged_only`` leaves out what a layer
    gate only compares the experts with."""
    if len(given) == 1 and Path(given[0]).is_file():
        config = read_config(Path(given[0]))
        data = (config.parameters or {}).get("data", "")
        compared = compared_models(config) if merged_only else set[str]()
        models = sorted((model for model in config.referenced_models() if str(model) not in compared), key=str)
        references = labelled_models([model for model in models if model != config.base_model])
        if config.base_model is not None:
            references = {BASE_LABEL: config.base_model, **references}
        return _folders(references, lora_cache, trust_remote_code), data if isinstance(data, str) else ""
    return _folders(labelled_models([ModelReference.parse(name) for name in given]), lora_cache, trust_remote_code), ""


def _folders(models: dict[str, ModelReference], lora_cache: str | None, trust_remote_code: bool) -> dict[str, Path]:
    return {label: folder_of(model, None, lora_cache, trust_remote_code) for label, model in models.items()}
