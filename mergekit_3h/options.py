"""Every option of ``tsvm`` and ``rtsvm``: its one name, default, validation and description.

mergekit YAML, Hydra YAML, the command line and Python all read these declarations. An option that a preset sets
has the default ``None``, which means "what the preset says": so ``preset: paper`` changes what nobody set, and
every single option can still be given its own value.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from mergekit_3h.errors import OptionError
from mergekit_3h.kernels.settings import Settings

PAPER_URLS = {
    "tsvm": "https://arxiv.org/abs/2412.00081",
    "rtsvm": "https://arxiv.org/abs/2502.06876",
}


class ModelOptions(BaseModel):
    """Options that each expert may have for itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: float = Field(
        1.0,
        allow_inf_nan=False,
        description="Factor on this expert's singular values (and on its share of the mean, for tensors that are "
        "averaged). An expert of weight 0 adds nothing but still takes part in the decorrelation.",
    )


class TSVMOptions(BaseModel):
    """Options of ``tsvm``; the last four of them limit or speed up the decomposition and are shared by ``rtsvm``."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)
    method: ClassVar[str] = "tsvm"
    pretty_name: ClassVar[str] = "Task Singular Vector Merging (TSVM)"

    lambda_: float = Field(
        1.0,
        alias="lambda",
        allow_inf_nan=False,
        description="Factor on the merged update before it is added to the base.",
    )
    exclude: str = Field(
        "",
        description="Tensors merged by the plain weighted mean of their updates instead: comma-separated patterns; one "
        "with * or ? must match the whole tensor name, any other is looked for inside it.",
    )
    noise_floor: Literal["auto", "off"] = Field(
        "auto",
        description="auto drops singular values that bf16/fp16 rounding of the checkpoints alone explains "
        "(Marchenko-Pastur edge); float32 checkpoints are not affected.",
    )
    energy: float = Field(
        1.0,
        gt=0.0,
        le=1.0,
        description="Keep no more singular values than this share of their summed squares needs; 1 sets no limit.",
    )
    decomposition: Literal["exact", "krylov", "auto"] = Field(
        "auto",
        description="exact: full symmetric eigendecomposition in float64. krylov: block Krylov for small ranks, "
        "approximate, residuals logged. auto: krylov where its result is certified to the tolerance, else exact.",
    )
    tolerance: float = Field(
        1e-6,
        gt=0.0,
        lt=1.0,
        description="Largest sine of the angle between the found and the true singular subspace that decomposition: "
        "auto accepts from the Krylov method; the merge is then exact to about ten times that.",
    )

    @field_validator("noise_floor", mode="before")
    @classmethod
    def _yaml_reads_off_as_false(cls, value: Any) -> Any:
        return "off" if value is False else value

    def settings(self) -> Settings:
        """What the kernel computes under these options. TSVM is R-TSVM without its two reweightings."""
        return Settings(
            **self._shared(),
            order="truncate_first",
            rank_budget="shared",
            rank_selection="none",
            gamma=0.0,
            epsilon_mode="relative",
            epsilon=0.0,
            outlier_weighting="none",
            alpha_scale="mean",
            outlier_strength=0.0,
        )

    def _shared(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("noise_floor", "energy", "decomposition", "tolerance")}


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


class RTSVMOptions(TSVMOptions):
    """Options of ``rtsvm`` (also called RESM). Those without a value take the preset's."""

    method: ClassVar[str] = "rtsvm"
    pretty_name: ClassVar[str] = "Reweighted Task Singular Vector Merging (R-TSVM)"

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
        "all alike (the paper's ablation)."
    )
    alpha_scale: Literal["sum", "mean"] | None = _preset_field(
        "sum: the outlier weights add up to 1, Eq. 8; mean: they average 1, which keeps TSVM's magnitude."
    )
    outlier_strength: float | None = _preset_field(
        "Between no outlier weighting (0) and the whole of it (1).", ge=0.0, le=1.0
    )
    noise_floor: Literal["auto", "off"] | None = _preset_field(  # type: ignore[assignment]
        TSVMOptions.model_fields["noise_floor"].description or ""
    )

    def settings(self) -> Settings:
        given = {name: getattr(self, name) for name in PRESETS[self.preset]}
        chosen = {name: PRESETS[self.preset][name] if value is None else value for name, value in given.items()}
        return Settings(**{**self._shared(), **chosen})


METHODS: dict[str, type[TSVMOptions]] = {cls.method: cls for cls in (TSVMOptions, RTSVMOptions)}


def option_names(method: str) -> list[str]:
    """Every option of a method under the name that users write, the per-expert ones last."""
    own = [field.alias or name for name, field in METHODS[method].model_fields.items()]
    return own + list(ModelOptions.model_fields)


def parse_options(method: str, given: Mapping[str, Any]) -> TSVMOptions:
    """Options of ``method`` from plain values; the error names the option, its value and what it may be."""
    for name in given:
        require_known(method, name)
    values = {name: checked(METHODS[method], name, value) for name, value in given.items()}
    return METHODS[method](**values)


def require_known(method: str, name: str) -> None:
    """Raise with a suggestion unless ``method`` has an option ``name``."""
    known = option_names(method)
    if name not in known:
        close = get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"it has: {', '.join(known)}"
        raise OptionError(f"{method} has no option {name!r}; {hint}")


def checked(declaration: type[BaseModel], name: str, value: Any) -> Any:
    """``value`` as ``declaration`` stores its option ``name``, or an error in one sentence."""
    field_name = next(key for key, field in declaration.model_fields.items() if name in (key, field.alias))
    field = declaration.model_fields[field_name]
    is_number = "float" in str(field.annotation)
    try:
        if is_number and isinstance(value, bool):
            raise OptionError(f"option {name!r}: got {value!r}, expected a number")
        parsed = declaration.model_validate({name: value})
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise OptionError(f"option {name!r}: got {value!r}; {reason[0].lower()}{reason[1:]}") from None
    return getattr(parsed, field_name)
