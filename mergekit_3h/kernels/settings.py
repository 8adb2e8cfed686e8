"""What the kernels compute: one value per choice, no defaults. Defaults and presets are declared in the options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A complete recipe for merging one matrix. Greek names and equation numbers are those of arXiv 2502.06876."""

    order: Literal["truncate_first", "orthogonalize_first"]
    rank_budget: Literal["shared", "per_task"]
    rank_selection: Literal["sparsity", "none"]
    gamma: float
    """Eq. 10: how strongly sparsity lowers the rank."""
    epsilon_mode: Literal["absolute", "relative"]
    epsilon: float
    """Eq. 9: entries below it count as sparse."""
    outlier_weighting: Literal["paper", "inverse", "none"]
    alpha_scale: Literal["sum", "mean"]
    outlier_strength: float
    noise_floor: Literal["auto", "off"]
    energy: float
    decomposition: Literal["exact", "krylov", "auto"]
    tolerance: float
