"""What a spectral merge method is: its options, and what it makes of the updates of one matrix.

The class is the declaration of the options; an instance holds their values. Hosts, search, benchmarks, lint and docs
read nothing else, so a method is one file with one class.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from mergekit_3h.errors import OptionError
from mergekit_3h.kernels.tasks import TaskMatrices

Role = Literal["expert", "unaligned", "safety"]


class ExpertOptions(BaseModel):
    """Options that each expert may have for itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: float = Field(
        1.0,
        allow_inf_nan=False,
        description="Factor on this expert's update, on its singular values where a method decorrelates the experts; "
        "there one of weight 0 adds nothing but still takes part. Tensors that are averaged take it as a factor too.",
    )
    role: Role = Field(
        "expert",
        description="expert: merged. unaligned: the model that the base was aligned from, against which the layer gate "
        "measures the experts; safety: the model whose update a gated update is mixed with. Neither of these two is "
        "merged itself.",
    )


def without_expert_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a method alone, of values that a config has for all experts."""
    return {name: value for name, value in given.items() if name not in ExpertOptions.model_fields}


class RunningOptions(BaseModel):
    """Options that change how a merge runs, and no bit of its result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    memory_gb: float | None = Field(
        None,
        gt=0.0,
        allow_inf_nan=False,
        description="Gigabytes of memory that the tensors merged side by side on a CPU, or on their way to a GPU and "
        "back, may take at once; unset, a quarter of the memory that is free when the merge begins, and 1 GiB at "
        "least. A tensor too large for it is merged alone.",
    )


class SpectralMethod(BaseModel, ABC):
    """A method under its ``name``. What it does to a matrix it does to each matrix of a tensor of fused experts."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    """Address of the paper that defines it."""
    is_linear: ClassVar[bool] = True
    """Whether the merged update is linear in the experts' weights, with the ``components`` as coefficients."""
    has_blocks: ClassVar[bool] = False
    """Whether an option ``block_weights`` has a factor for each block of every expert's singular components, in which
    the merged update is linear, with the ``block_components`` as coefficients; of a method that is not linear in the
    weights, once what depends on them is held."""
    has_held_components: ClassVar[bool] = False
    """Of a method that is not linear: whether it is once a factor that depends on the weights is held at some of them,
    with the ``held_components`` as coefficients. The gradient solver then searches its weights too."""
    is_isotropic: ClassVar[bool] = False
    """Whether the merged update may have all singular values alike, so that it has no directions of its own."""

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
    keep_base: str = Field(
        "",
        description="Tensors that stay as the base has them: patterns like those of exclude, or presets. vlm: vision "
        "tower, projector, embeddings, head and norms of a vision-language model, so that the language tower is "
        "merged. router: the gates of a mixture that choose experts.",
    )
    record: str = Field(
        "",
        description="Folder in which the merge leaves a line of JSON for each tensor: ranks, weights, what is left of "
        "each expert's update, what rounding took. mergekit-3h inspect shows it.",
    )

    gate_threshold: float | None = Field(
        None,
        ge=0.0,
        le=1.0,
        description="Layer gate of SafeMERGE: an expert's update of a matrix whose cosine with its projection on what "
        "alignment changed is below this is gated. 0 gates none. Unset: 0.35 where a model has role: unaligned, and "
        "else there is no gate.",
    )
    gate_share: float = Field(
        0.2,
        gt=0.0,
        le=1.0,
        description="A gated update is this share of the safety model's, and the rest its own; without a safety model "
        "it is only made smaller. 1 replaces it.",
    )

    @property
    def is_equivariant(self) -> bool:
        """Whether the merge turns with its inputs: merge(P D_i Q^T) = P merge(D_i) Q^T for orthogonal P and Q. What it
        takes from shapes has to be from the tasks' ``full_shape``, from single entries from their ``entry_blocks``.
        Updates of low rank are then merged in the small space that they share."""
        return False

    @abstractmethod
    def merge(self, tasks: TaskMatrices, weights: Sequence[float]) -> tuple[Tensor, Any]:
        """The merged update in the checkpoint's orientation, before the factor lambda, and a report how it came about.

        The report is a dataclass of plain values. Where it says something that ``kernels.assembly.Report`` says too,
        the field has the same name.
        """

    def in_effect(self, option: str, experts: int) -> Any:
        """The value that an option has for so many experts, also where it is not set; None if it has none then."""
        field = next(key for key, field in type(self).model_fields.items() if option in (key, field.alias))
        return getattr(self, field)

    def components(self, tasks: TaskMatrices) -> list[tuple[Tensor, Tensor]]:
        """Factors left @ right of every expert's share C_i of the merged update, if that is sum_i w_i C_i."""
        raise OptionError(f"{self.name} is not linear in the weights, so it has no components")

    def block_components(
        self, tasks: TaskMatrices, blocks: int, weights: Sequence[float]
    ) -> list[list[tuple[Tensor, Tensor]]]:
        """The ``components`` of every expert, each divided into so many blocks of singular components; what is not
        linear is held as it is at these ``weights``."""
        raise OptionError(f"{self.name} does not merge singular components of every expert, so they have no blocks")

    def held_components(self, tasks: TaskMatrices, weights: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
        """Like ``components``, with what is not linear held as it is at ``weights``; there sum_i w_i C_i is the merged
        update."""
        raise OptionError(f"{self.name} has no part that could be held to make it linear in the weights")

    @abstractmethod
    def working_bytes(self, rows: int, columns: int, experts: int, result_itemsize: int) -> int:
        """What merging a matrix takes at most beyond its inputs, its result included."""

    def require_experts(self, experts: int) -> None:
        """Raise if an option is not for so many experts."""

    def work(self, experts: int) -> tuple[float, float]:
        """About what a matrix takes, for estimates of time: symmetric eigendecompositions of its shorter side, and
        products of the matrix with something of that side. Unless a method says otherwise, what TSVM takes."""
        # One decomposition an expert, and two for the polar factors; two experts need one of half the size instead.
        # All pairs of Gram matrices in the first pass, one product an expert in the second.
        return experts + (2 if experts > 2 else 0.25), experts * (experts + 1) / 2 + experts

    def remarks(self, report: Any) -> Iterator[tuple[int, str]]:
        """What the user should know of a tensor's merge: levels of ``logging``, and sentences."""
        yield from ()

    def literally(self, updates: Sequence[Tensor], weights: Sequence[float], report: Any) -> Tensor | None:
        """The same update by the paper's formulas written out with full decompositions, for float64 ``updates``.

        The oracle of benchmarks and tests; choices that depend on more than the formula (ranks, weights) are those of
        the ``report``. None: there is no such thing for these options.
        """
        return None


def off_as_yaml_reads_it(value: Any) -> Any:
    """YAML takes a bare ``off`` for False."""
    return "off" if value is False else value


class TruncatingMethod(SpectralMethod):
    """A method that keeps some singular values of every expert, none that rounding alone explains."""

    noise_floor: Literal["auto", "off"] = Field(
        "auto",
        description="auto drops singular values that bf16/fp16 rounding of the checkpoints alone explains; float32 "
        "checkpoints are not affected.",
    )

    _as_yaml_reads_it = field_validator("noise_floor", mode="before")(off_as_yaml_reads_it)


class RankedMethod(TruncatingMethod):
    """A method with a rank for every expert: options that limit it further or find it faster."""

    energy: float = Field(
        1.0,
        gt=0.0,
        le=1.0,
        description="Keep no more singular values than this share of their summed squares needs; 1 sets no limit.",
    )
    decomposition: Literal["exact", "krylov", "auto"] = Field(
        "auto",
        description="exact: full symmetric eigendecomposition in float64. krylov: block Krylov for small ranks, "
        "approximate, residuals logged. auto: the cheapest of those whose result is certified (tolerance), else exact.",
    )
    tolerance: float | None = Field(
        None,
        gt=0.0,
        lt=1.0,
        description="Largest sine of the angle between the found and the true singular subspace that decomposition: "
        "auto accepts; the merge is then exact to about ten times that. Unset: 1e-6, but where the noise floor finds "
        "an edge, what is exact for an update that differs from the expert's by 2 % of this edge.",
    )


class FlooredMethod(SpectralMethod):
    """A method that decomposes the sum of the updates, and can tell what of it is rounding alone."""

    noise_floor: Literal["auto", "on", "off"] = Field(
        "auto",
        description="on drops directions of the sum that bf16/fp16 rounding of the checkpoints explains; auto drops "
        "them where rounding is all that is under its edge, as with merged LoRA updates; off keeps them.",
    )

    @field_validator("noise_floor", mode="before")
    @classmethod
    def _yaml_reads_on_and_off_as_booleans(cls, value: Any) -> Any:
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

    def floor_remarks(self, under_edge: float | None, rank: int) -> Iterator[tuple[int, str]]:
        """What T was, where there is a rounding edge."""
        if under_edge is not None:
            yield logging.INFO, f"T = {under_edge:.2f} under the rounding edge; {rank} directions are kept"
