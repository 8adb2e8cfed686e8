"""``rtsvm``: Reweighted TSVM (also called RESM), arXiv 2502.06876.

An option that a preset sets has the default ``None``, which means "what the preset says": so ``preset: paper`` changes
what nobody set, and every single option can still be given its own value.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from mergekit_3h.kernels.settings import Settings
from mergekit_3h.spectral.method import RankedMethod
from mergekit_3h.spectral.tsvm import TSVM

PRESETS: dict[str, dict[str, Any]] = {
    "default": {
        "order": "truncate_first",
        "rank_budget": "shared",
        "rank_selection": "sparsity",
        "gamma": 0.2,
        "epsilon_mode": "relative",
        "epsilon": 0.3,
        "outlier_weighting": "paper",
        "alpha_scale": "mean",
        "outlier_strength": 1.0,
        "noise_floor": "auto",
    },
    # Algorithm 1 to the letter. The paper gives no value for gamma, so it keeps ours.
    "paper": {
        "order": "orthogonalize_first",
        "rank_budget": "per_task",
        "rank_selection": "sparsity",
        "gamma": 0.2,
        "epsilon_mode": "absolute",
        "epsilon": 0.1,
        "outlier_weighting": "paper",
        "alpha_scale": "sum",
        "outlier_strength": 1.0,
        "noise_floor": "off",
    },
}


def _preset_field(description: str, **constraints: Any) -> Any:
    return Field(None, description=description, **constraints)


class RTSVM(TSVM):
    """TSVM with outlier-aware weights and sparsity-adaptive ranks. Options without a value take the preset's."""

    name = "rtsvm"
    title = "Reweighted Task Singular Vector Merging (R-TSVM)"
    paper = "https://arxiv.org/abs/2502.06876"

    preset: Literal["default", "paper"] = Field(
        "default",
        description="Values for the options that are not set. paper is Algorithm 1 to the letter, which on square "
        "matrices only scales down task arithmetic.",
    )
    order: Literal["truncate_first", "orthogonalize_first"] | None = _preset_field(
        "truncate_first cuts each task to its rank and then decorrelates the tasks, as TSVM does; orthogonalize_first "
        "(the paper's) decorrelates full-rank factors, which removes no interference on square matrices."
    )
    rank_budget: Literal["shared", "per_task"] | None = _preset_field(
        "shared: the tasks divide the rank k_l of Eq. 10 among them; per_task: each gets all of k_l (the paper's)."
    )
    rank_selection: Literal["sparsity", "none"] | None = _preset_field(
        "sparsity: k_l = floor(d (1 - gamma Omega)), Eq. 10; none: the full rank d (the paper's ablation)."
    )
    gamma: float | None = _preset_field(
        "How strongly sparsity lowers the rank, Eq. 10: 0 not at all, 1 in proportion.", ge=0.0, le=1.0
    )
    epsilon_mode: Literal["absolute", "relative"] | None = _preset_field(
        "absolute: updates under epsilon count as sparse, Eq. 9; relative: under epsilon times the rms update of the "
        "layer. Fine-tuning updates are so small that the paper's absolute 0.1 makes every layer fully sparse."
    )
    epsilon: float | None = _preset_field("Threshold of the sparsity Omega, Eq. 9.", ge=0.0, allow_inf_nan=False)
    outlier_weighting: Literal["paper", "inverse", "none"] | None = _preset_field(
        "paper: experts with more mass beyond 3 sigma weigh more, Eq. 8; inverse: less, as appendix A.1 says; none: "
        "all alike (the paper's ablation). In the toy laboratory (docs/lab.md) none kept 0.08 to 0.44 more of the "
        "experts' gain, in nine kinds of experts out of ten."
    )
    alpha_scale: Literal["sum", "mean"] | None = _preset_field(
        "sum: the outlier weights add up to 1, Eq. 8; mean: they average 1, which keeps TSVM's magnitude."
    )
    outlier_strength: float | None = _preset_field(
        "Between no outlier weighting (0) and the whole of it (1).", ge=0.0, le=1.0
    )
    noise_floor: Literal["auto", "off"] | None = _preset_field(  # type: ignore[assignment]
        RankedMethod.model_fields["noise_floor"].description or ""
    )

    def in_effect(self, option: str, experts: int) -> Any:
        value = super().in_effect(option, experts)
        return PRESETS[self.preset].get(option) if value is None else value

    def settings(self) -> Settings:
        given = {name: getattr(self, name) for name in PRESETS[self.preset]}
        chosen = {name: PRESETS[self.preset][name] if value is None else value for name, value in given.items()}
        return Settings(**{**self._of_every_method(), **chosen})


METHOD = RTSVM
