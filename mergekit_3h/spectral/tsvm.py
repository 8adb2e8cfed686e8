"""``tsvm``: Task Singular Vector Merging, arXiv 2412.00081."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import pad
from typing_extensions import Self

from mergekit_3h.errors import OptionError
from mergekit_3h.kernels import assembly
from mergekit_3h.kernels.blocks import block_slices, spread
from mergekit_3h.kernels.cores import Core
from mergekit_3h.kernels.memory import working_bytes
from mergekit_3h.kernels.settings import Settings
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.spectral.block_weights import BlockWeights, block_weights_field, blocks_of
from mergekit_3h.spectral.literal import merge_literally, merge_literally_with
from mergekit_3h.spectral.method import RankedMethod

_KERNEL_OPTIONS = (
    "noise_floor",
    "energy",
    "decomposition",
    "tolerance",
    "decorrelation",
    "decorrelation_sides",
    "core",
    "core_keep",
    "core_deviations",
)


_OF_OTHER_CORES = {
    "decorrelation": 0.0,
    "decorrelation_sides": "both",
    "order": "truncate_first",
    "rank_budget": "shared",
}
"""What the cores other than TSVM's are defined for."""


class TSVM(RankedMethod):
    """The leading singular vectors of every expert's update, decorrelated between the experts."""

    name = "tsvm"
    title = "Task Singular Vector Merging (TSVM)"
    paper = "https://arxiv.org/abs/2412.00081"
    has_blocks = True

    decorrelation: float = Field(
        0.0,
        ge=0.0,
        allow_inf_nan=False,
        description="tau of U (U^T U + tau I)^(-1/2) (1 + tau)^(1/2), which decorrelates the experts' singular "
        "vectors: 0 makes them orthogonal (the paper's); the larger, the more they stay as they are and the less "
        "noise in directions that they nearly share is magnified.",
    )
    decorrelation_sides: Literal["both", "output", "input"] = Field(
        "both",
        description="Which singular vectors are decorrelated: those of the output side (the matrix's rows), of the "
        "input side, or both (the paper's).",
    )
    core: Literal["block_diagonal", "dc", "score"] = Field(
        "block_diagonal",
        description="What stands between the decorrelated sides: block_diagonal, every expert's singular values "
        "(TSVM); dc, of what these sides see of the experts' truncations the largest entries, elected by sign "
        "(DC-Merge); score, all that they see of the whole updates, without outliers off the diagonal "
        "(SCORE).",
    )
    core_keep: float = Field(
        0.001,
        gt=0.0,
        le=1.0,
        description="core: dc keeps this share of the entries that the sides see of each expert, the largest.",
    )
    core_deviations: float = Field(
        1.96,
        ge=0.0,
        allow_inf_nan=False,
        description="core: score keeps entries off the diagonal up to this many times their root mean square.",
    )

    block_weights: BlockWeights = block_weights_field("kept singular components")

    @model_validator(mode="after")
    def _cores_need_orthonormal_sides(self) -> Self:
        settings = self.settings()
        if settings.core == "block_diagonal":
            return self
        if self.block_weights.strip():
            raise OptionError(
                f"option 'block_weights': got {self.block_weights!r}; core: {settings.core} has no singular components "
                "of single experts, so leave it out"
            )
        for name, needed in _OF_OTHER_CORES.items():
            value = getattr(settings, name)
            if value != needed:
                raise OptionError(
                    f"option {name!r}: got {value!r}; core: {settings.core} stands between orthonormal sides of the "
                    f"experts' truncations, so it needs {name}: {needed}"
                )
        return self

    def settings(self) -> Settings:
        """What the kernel computes under these options. TSVM is R-TSVM without its two reweightings."""
        return Settings(
            **self._of_every_method(),
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

    def _of_every_method(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _KERNEL_OPTIONS}

    @property
    def is_equivariant(self) -> bool:
        """orthogonalize_first takes its sides from the aspect of the matrix."""
        return self.settings().order == "truncate_first"

    def merge(self, tasks: TaskMatrices, weights: Sequence[float]) -> tuple[Tensor, assembly.Report]:
        return assembly.merge(tasks, weights, self.settings(), self._blocks(len(tasks)))

    def components(self, tasks: TaskMatrices) -> list[tuple[Tensor, Tensor]]:
        blocks = self._blocks(len(tasks))
        shares = assembly.components(tasks, self.settings(), is_decomposed=blocks is not None)
        if blocks is None:
            return shares
        return [
            (left * spread(own, left.shape[1], left), right) for own, (left, right) in zip(blocks, shares, strict=True)
        ]

    def block_components(
        self, tasks: TaskMatrices, blocks: int, weights: Sequence[float]
    ) -> list[list[tuple[Tensor, Tensor]]]:
        settings = self.settings()
        if settings.core != "block_diagonal":
            raise OptionError(f"core: {settings.core} has no singular components of single experts to search in blocks")
        shares = assembly.components(tasks, settings, is_decomposed=True)
        return [
            [(left[:, part], right[part]) for part in block_slices(left.shape[1], blocks)] for left, right in shares
        ]

    def _blocks(self, experts: int) -> list[list[float]] | None:
        """The factors of every expert's blocks, if there are any."""
        return blocks_of(self.block_weights, experts)

    def require_experts(self, experts: int) -> None:
        self._blocks(experts)

    def working_bytes(self, rows: int, columns: int, experts: int, result_itemsize: int) -> int:
        settings = self.settings()
        is_literal = settings.order == "orthogonalize_first" and rows != columns
        in_blocks = 8 * (rows + columns) * min(rows, columns) if self.block_weights.strip() else 0
        side = min(rows, columns)
        width = side * (experts if is_literal or settings.rank_budget == "per_task" else 1)
        cores = 0 if settings.core == "block_diagonal" else 8 * (experts + 2) * side * side
        return cores + 2 * in_blocks + working_bytes(rows, columns, width, result_itemsize)

    def remarks(self, report: assembly.Report) -> Iterator[tuple[int, str]]:
        if any(report.dependent):
            output, input_ = report.dependent
            yield (
                logging.INFO,
                f"{output} directions of the output side and {input_} of the input side are the same in several "
                "experts; they are merged as one",
            )
        if any(report.perturbations):
            yield (
                logging.INFO,
                f"the leading directions are exact for updates within {max(report.perturbations):.1%} of the rounding "
                "edge; a tolerance, as 1e-6, asks for more",
            )
        if report.omega is not None and report.omega > 0.99:
            yield (
                logging.WARNING,
                f"sparsity Omega = {report.omega:.3f}, so the rank is {report.budget} whatever the layer holds; "
                "epsilon_mode: relative adapts it",
            )

    def literally(self, updates: Sequence[Tensor], weights: Sequence[float], report: assembly.Report) -> Tensor:
        scales: list[float | Tensor] = [w * alpha for w, alpha in zip(weights, report.outlier_weights, strict=True)]
        settings = self.settings()
        for i, own in enumerate(self._blocks(len(updates)) or []):
            kept = spread(own, report.ranks[i], updates[i])
            is_cut = settings.order == "truncate_first"
            scales[i] = scales[i] * (kept if is_cut else pad(kept, (0, min(updates[i].shape) - kept.numel())))
        if settings.core != "block_diagonal":
            core = Core(settings.core, settings.core_keep, settings.core_deviations)
            return merge_literally_with(core, updates, report.ranks, scales)
        is_literal = settings.order == "orthogonalize_first"
        return merge_literally(
            updates, report.ranks, scales, orthogonalize_first=is_literal, softness=settings.softness
        )


METHOD = TSVM
