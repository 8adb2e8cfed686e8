"""What methods have in common that change another method's merge."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
import yaml
from pydantic import Field, ValidationInfo, field_validator, model_validator
from torch import Tensor
from typing_extensions import Self

from mergekit_3h.errors import OptionError
from mergekit_3h.kernels.memory import summing_bytes
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.kernels.truncations import Truncations
from mergekit_3h.options import is_alone, option_names, parsed, require_known
from mergekit_3h.spectral import registry
from mergekit_3h.spectral.elementwise import SPARSE
from mergekit_3h.spectral.method import SpectralMethod

PLAIN_SUM = "task_arithmetic"

COMBINED = (
    "task_arithmetic, the weighted sum of the updates; ties, dare_ties or dare_linear; or a spectral method, but not "
    "one with singular values alike (iso_c, iso_cts, boost), nor svc."
)
"""What ``combine`` may be, in its description."""


class CombiningMethod(SpectralMethod):
    """Another method's merge, taken in float64 before it is decomposed again."""

    is_linear = False

    combine: str = PLAIN_SUM
    combine_options: str = Field(
        "",
        description="Options of what combine names, as density=0.3, normalize=false. Unset: its defaults. In Hydra and "
        "Python a mapping too.",
    )

    @field_validator("combine")
    @classmethod
    def _is_there_to_be_changed(cls, value: str) -> str:
        if value not in (PLAIN_SUM, *SPARSE) and not (value in registry.names() and has_directions(value)):
            raise OptionError(f"option 'combine': got {value!r}; {cls.name} takes {', '.join(combined_methods())}")
        return value

    @field_validator("combine_options", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            value = ", ".join(f"{name}={own}" for name, own in value.items())
        if isinstance(value, str):
            parse_combine_options(value)
        return value

    @model_validator(mode="after")
    def _are_its_options(self, info: ValidationInfo) -> Self:
        if not is_alone(info):
            self.inner()
        return self

    @property
    def is_equivariant(self) -> bool:
        inner = self.inner()
        return inner is None or inner.is_equivariant

    def inner(self) -> SpectralMethod | None:
        """The method that merges, with its options; there is none for the plain sum."""
        return _inner(self.combine, self.combine_options)

    def combined(self, tasks: TaskMatrices, weights: Sequence[float]) -> tuple[Tensor, Any]:
        """The merge to be changed, in float64, and its report; None for the plain sum."""
        exact, inner = tasks.with_exact_result(), self.inner()
        if inner is None:
            return Truncations(exact, [None] * len(tasks)).weighted_sum(weights), None
        return inner.merge(exact, weights)

    def combined_bytes(self, rows: int, columns: int, experts: int, result_itemsize: int, changing: int) -> int:
        """``working_bytes``, if changing the merge takes ``changing`` beyond its decomposition."""
        own, inner = 2 * 8 * rows * columns, self.inner()  # before and after it, in float64
        whole = own + summing_bytes(rows, columns, result_itemsize) + changing
        if inner is None:
            return whole
        return max(whole, inner.working_bytes(rows, columns, experts, result_itemsize) + own // 4)

    def work(self, experts: int) -> tuple[float, float]:
        inner = self.inner()
        decompositions, products = (0, 0) if inner is None else inner.work(experts)
        return decompositions + 1, products + experts + 2

    def require_experts(self, experts: int) -> None:
        inner = self.inner()
        if inner is not None:
            with _as_combine_options(self.combine):
                inner.require_experts(experts)

    def combined_remarks(self, report: Any) -> Iterator[tuple[int, str]]:
        inner = self.inner()
        if inner is not None:
            yield from inner.remarks(report)

    def combined_literally(self, updates: Sequence[Tensor], weights: Sequence[float], report: Any) -> Tensor | None:
        inner = self.inner()
        if inner is None:
            return torch.stack([w * u for w, u in zip(weights, updates, strict=True)]).sum(0)
        return inner.literally(updates, weights, report)


def parse_combine_options(text: str) -> dict[str, Any]:
    """Options and their values, as YAML reads them."""
    found: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (side.strip() for side in part.partition("="))
        if not equals or not name or not value:
            raise OptionError(
                f"option 'combine_options': got {text!r}; expected options and their values, as density=0.3, "
                f"normalize=false, but {part!r} is none"
            )
        if name in found:
            raise OptionError(f"option 'combine_options': got {text!r}, where {name} is there twice")
        found[name] = _as_yaml_reads_it(value)
    return found


def _as_yaml_reads_it(value: str) -> Any:
    try:
        read = yaml.safe_load(value)
    except yaml.YAMLError:
        return value
    return read if isinstance(read, bool | int | float) else value


@lru_cache(maxsize=16)
def _inner(combine: str, text: str) -> SpectralMethod | None:
    given = parse_combine_options(text)
    if combine == PLAIN_SUM:
        if given:
            raise OptionError(
                f"option 'combine_options': got {text!r}, but combine: {PLAIN_SUM}, the weighted sum, has no options"
            )
        return None
    declaration: type[SpectralMethod] = SPARSE.get(combine) or registry.method(combine)
    shared = option_names(SpectralMethod)
    own = [name for name in option_names(declaration) if name not in shared]
    for name in given:
        if name in shared:
            raise OptionError(
                f"option 'combine_options': {name} is an option of the whole merge; set it beside combine"
            )
        require_known(f"option 'combine_options': {combine}", name, own)
    with _as_combine_options(combine):
        return parsed(declaration, given, combine)


@contextmanager
def _as_combine_options(combine: str) -> Generator[None]:
    """Errors within say where the user set the option that is wrong."""
    try:
        yield
    except OptionError as error:
        raise OptionError(f"option 'combine_options', for {combine}: {error}") from None


def has_directions(name: str) -> bool:
    """Whether a method's merges have singular vectors that are defined, and it is not one of ours that needs them."""
    method = registry.method(name)
    return not (method.is_isotropic or issubclass(method, CombiningMethod))


def combined_methods() -> list[str]:
    """What ``combine`` may be."""
    return [PLAIN_SUM, *SPARSE, *(name for name in registry.methods() if has_directions(name))]
