"""What the kernels compute: one value per choice, no defaults. Defaults and presets are declared in the options."""

from __future__ import annotations

import math
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
    tolerance: float | None
    """Of the angle between subspaces. None: what rounding leaves of an angle where it limits the rank, else 1e-6."""
    decorrelation: float
    """tau of U (U^T U + tau I)^(-1/2) (1 + tau)^(1/2): 0 is the polar factor, infinity U itself."""
    decorrelation_sides: Literal["both", "output", "input"]
    core: Literal["block_diagonal", "dc", "score"]
    core_keep: float
    core_deviations: float

    @property
    def softness(self) -> tuple[float, float]:
        """tau of the output side (the checkpoint's rows) and of the input side."""
        output, input_ = (self.decorrelation_sides in ("both", side) for side in ("output", "input"))
        return self.decorrelation if output else math.inf, self.decorrelation if input_ else math.inf
