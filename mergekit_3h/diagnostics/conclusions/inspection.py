"""What the questions are asked of, and what an answer is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from mergekit_3h.diagnostics.rows import ExpertMeasures, PairMeasures, TensorMeasures, all_pairs

if TYPE_CHECKING:
    from mergekit_3h.diagnostics.gradients import GradientCosine
    from mergekit_3h.kernels.settings import Settings
    from mergekit_3h.lint import Finding

Verdict = Literal["fine", "note", "warning", "error", "unknown"]


@dataclass(frozen=True)
class Conclusion:
    """One thing that is said in answer to a question."""

    rule: str
    question: str
    verdict: Verdict
    text: str
    """What was found, with its numbers."""
    advice: str = ""
    basis: str = ""
    """How it is known: counted, or a threshold that is a heuristic, and what nobody has validated."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    """Suggested options of the merge; ``weights`` maps experts to their weights."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Inspection:
    """Everything measured of one base and its experts."""

    base: str
    experts: Sequence[str]
    rows: Sequence[TensorMeasures]
    settings: Settings
    """What the R-TSVM measures were taken for."""
    method: str = ""
    """The config's merge method, if there is a config."""
    findings: Sequence[Finding] = ()
    tied: Sequence[bool | None] = ()
    gradients: Sequence[GradientCosine] = ()
    asked_for_gradients: bool = False
    record: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What a merge of these experts left, by tensor."""

    @cached_property
    def measured(self) -> list[TensorMeasures]:
        return [row for row in self.rows if not row.problem]

    @cached_property
    def matrices(self) -> list[TensorMeasures]:
        """The measured tensors that a spectral method merges as matrices."""
        return [row for row in self.measured if row.matrix is not None]

    def pairs(self) -> Iterator[tuple[int, int]]:
        yield from all_pairs(len(self.experts))

    def named_pair(self, first: int, second: int) -> str:
        return f"{self.experts[first]} and {self.experts[second]}"

    def typical(self, expert: int, measure: Callable[[ExpertMeasures], float | None]) -> float:
        """The median over the matrices, or over all tensors where there is no matrix; 0 where nothing was measured."""
        return _median(measure(row.experts[expert]) for row in self.matrices or self.measured)

    def typical_of_pair(self, first: int, second: int, measure: Callable[[PairMeasures], float | None]) -> float:
        return _median(measure(pair_of(row, first, second)) for row in self.matrices or self.measured)


def pair_of(row: TensorMeasures, first: int, second: int) -> PairMeasures:
    return next(pair for pair in row.pairs if (pair.first, pair.second) == (first, second))


def _median(values: Iterator[float | None]) -> float:
    present = [value for value in values if value is not None]
    return median(present) if present else 0.0


def listed(names: Sequence[str], limit: int = 3) -> str:
    """The first names, and how many more there are."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")
