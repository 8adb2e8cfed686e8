"""The merging methods of the 3H paper by name, as mergekit configs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations_with_replacement
from typing import Any

PAPER_METHODS: dict[str, dict[str, Any]] = {
    "weight_average": {"method": "linear", "parameters": {"weight": 1.0, "normalize": True}},
    "rewarded_soup": {"method": "linear", "parameters": {"normalize": True}, "preference": "sweep"},
    "model_stock": {"method": "model_stock", "parameters": {}},
    "task_arithmetic": {"method": "task_arithmetic", "parameters": {"weight": 1.0}},
    "ties": {"method": "ties", "parameters": {"weight": 1.0, "density": 0.5, "normalize": True}},
    "dare_linear": {"method": "dare_linear", "parameters": {"weight": 1.0, "density": 0.5}},
    "dare_ties": {"method": "dare_ties", "parameters": {"weight": 1.0, "density": 0.5, "normalize": True}},
    "della_linear": {"method": "della_linear", "parameters": {"weight": 1.0, "density": 0.5, "epsilon": 0.1}},
    "della": {"method": "della", "parameters": {"weight": 1.0, "density": 0.5, "epsilon": 0.1, "normalize": True}},
    "breadcrumbs": {"method": "breadcrumbs", "parameters": {"weight": 1.0, "density": 0.9, "gamma": 0.01}},
    "breadcrumbs_ties": {"method": "breadcrumbs_ties", "parameters": {"weight": 1.0, "density": 0.9, "gamma": 0.01}},
    "tsvm": {"method": "tsvm", "parameters": {}},
    "rtsvm": {"method": "rtsvm", "parameters": {}},
    "rtsvm_without_outliers": {"method": "rtsvm", "parameters": {"outlier_weighting": "none"}},
    "rtsvm_without_ranks": {"method": "rtsvm", "parameters": {"rank_selection": "none"}},
}
"""Every update is merged whole (weight 1) and scaled afterwards by the trials' scale, so that all methods are tuned
alike. Densities are those of mergekit's examples; each can be set in the sweep's file."""

WITHOUT_BASE = ("linear", "karcher")
"""Methods that average models: the base is no input of theirs."""


def merge_config(
    method: str,
    base: str,
    models: Mapping[str, str],
    parameters: Mapping[str, Any],
    own: Mapping[str, Mapping[str, Any]],
    preference: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """A config of mergekit; ``own``: parameters of one model, by its name. Weights of a preference are the models'."""
    entries: list[dict[str, Any]] = []
    for name, path in models.items():
        given = {**own.get(name, {}), **({"weight": preference[name]} if preference is not None else {})}
        entries.append({"model": path, **({"parameters": given} if given else {})})
    shared = {name: value for name, value in parameters.items() if not (preference is not None and name == "weight")}
    config: dict[str, Any] = {"merge_method": method, "models": entries, "parameters": shared}
    return config if method in WITHOUT_BASE else {**config, "base_model": base}


def preferences(names: Sequence[str], count: int) -> list[dict[str, float]]:
    """``count`` weightings of the models: equal weights first, then evenly spread over all weightings."""
    size, parts = len(names), 1
    while len(_weightings(size, parts)) < count:
        parts += 1
    grid = [one for one in _weightings(size, parts) if len(set(one)) > 1] or _weightings(size, parts)
    spread = [grid[place * len(grid) // max(count - 1, 1)] for place in range(count - 1)]
    chosen = [tuple(1 / size for _ in names), *spread]
    return [dict(zip(names, one, strict=True)) for one in chosen[:count]]


def _weightings(size: int, parts: int) -> list[tuple[float, ...]]:
    """All ways to divide 1 among ``size`` models in steps of 1 / ``parts``."""
    return [
        tuple(chosen.count(place) / parts for place in range(size))
        for chosen in combinations_with_replacement(range(size), parts)
    ]
