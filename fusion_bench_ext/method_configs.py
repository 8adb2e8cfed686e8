"""A Hydra config for every spectral method, made from the declaration of its options."""

from __future__ import annotations

from typing import Any

from hydra.core.config_store import ConfigStore

from mergekit_3h.spectral import registry
from mergekit_3h.spectral.method import ExpertOptions, SpectralMethod

_ALGORITHMS = "fusion_bench_ext.algorithms.spectral"


def store_method_configs(provider: str) -> None:
    """Have ``method=NAME`` find every method, ours and other packages'. A second call changes nothing."""
    for name, method in registry.methods().items():
        ConfigStore.instance().store(name, method_config(method), group="method", provider=provider)


def method_config(method: type[SpectralMethod]) -> dict[str, Any]:
    """All keys with their defaults; None is what the method's own description says it is."""
    options = {field.alias or key: field.default for key, field in method.model_fields.items()}
    own = {key: field.default for key, field in ExpertOptions.model_fields.items()}
    adapters = {"lora": "auto", "adapter_save_path": None, "adapter_rank": None}
    hosts = {**adapters, "memory_gb": None, "model_save_path": None}
    return {"_target_": f"{_ALGORITHMS}.{method.__name__}", **own, **options, **hosts}
