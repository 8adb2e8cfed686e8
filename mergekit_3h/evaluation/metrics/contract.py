"""What every metric is: settings that can say, before a model is loaded, whether they can be measured, and measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mergekit_3h.evaluation.items import Measured
from mergekit_3h.evaluation.journal import Journal, Step
from mergekit_3h.evaluation.local_rows import Keep
from mergekit_3h.evaluation.subject import EvaluatedModel

if TYPE_CHECKING:
    from mergekit_3h.evaluation.judges import Judge


@dataclass(frozen=True)
class Surroundings:
    """What a metric finds around it: the suite's files and judges, and where it keeps what it has computed."""

    file: Callable[[str], Path]
    """The path of a metric's ``data``: one of the suite's files by its name, or a path beside the suite."""
    judges: Mapping[str, Judge] = field(default_factory=dict)
    seed: int = 0
    keep: Keep | None = None
    """Whether an item is measured at all; none: every item is."""
    runs_code: bool = False
    """Whether the user allows tasks that run what a model writes."""


class MetricKind(Protocol):
    """The contract of the settings' classes in this folder."""

    weight: float

    def require_ready(self, name: str, around: Surroundings) -> None:
        """Raise, in one line, unless the metric can be measured; nothing is loaded."""
        ...

    def depends_on(self, around: Surroundings) -> list[str]:
        """Digests of everything outside the suite's file that the numbers depend on."""
        ...

    def measure(
        self, name: str, subject: EvaluatedModel, journal: Journal, around: Surroundings, done: Step
    ) -> Measured:
        """The items of this metric for one model; ``done`` hears of each."""
        ...
