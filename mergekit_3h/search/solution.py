"""What a search found, and what it should be compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergekit_3h.search.axes import Axis
from mergekit_3h.search.layout import Layout
from mergekit_3h.search.options import SearchOptions
from mergekit_3h.search.runner import Measurement
from mergekit_3h.search.scoring import Scoring, pareto_front
from mergekit_3h.search.search import Point
from mergekit_3h.search.tuning import FACTOR
from mergekit_3h.spectral.block_weights import block_weights_text

_MOST_NAMED = 5


@dataclass(frozen=True)
class Solution:
    """The best candidate, with the losses of the base, of every expert and of the uniform merge beside it."""

    options: SearchOptions
    layout: Layout
    scoring: Scoring
    best: Point
    uniform: Point | None
    """None if it was not evaluated: the budget ended first."""
    models: Mapping[str, Measurement]
    points: tuple[Point, ...]
    stopped: str
    held: Point | None = None
    """The best candidate as it was searched, where a part of the method was held at the start; ``best`` is what it
    merges to with nothing held."""

    @property
    def coefficients(self) -> tuple[float, ...]:
        return self.best.coefficients

    @property
    def passes(self) -> int:
        """Passes over the data by all candidates: a forward pass counts 1, a backward pass 2."""
        return sum(point.measured.passes for point in self.points)

    def of_tensor(self, tensor: str) -> dict[str, float]:
        """The coefficient of every expert, or block of one, for one tensor."""
        return dict(zip(self.layout.columns, self.layout.of_tensor(self.coefficients, tensor), strict=True))

    def mergekit_weights(self) -> dict[str, float | list[dict[str, float | str]]]:
        """Each expert's ``weight`` parameter in a mergekit config that reproduces the merge; none where the weights
        were not searched."""
        return self.layout.mergekit_weights(self.coefficients)

    def option_values(self) -> dict[str, Any]:
        """The options of the method that were searched, as they were found and as a mergekit config takes them."""
        found: dict[str, Any] = dict(self.layout.option_values(self.coefficients))
        if self.layout.blocks:
            found["block_weights"] = self._block_weights()
        return found

    def _block_weights(self) -> str | list[dict[str, str]]:
        conditions: list[dict[str, str]] = []
        for group, factors in self.layout.by_block(self.coefficients):
            text = block_weights_text(factors)
            conditions += [{"filter": pattern, "value": text} for pattern in group.filters]
            if not group.filters:
                conditions.append({"value": text})
        return conditions[0]["value"] if len(self.layout.groups) == 1 else conditions

    @property
    def merges(self) -> int:
        """How often the models were merged where options are searched: anew wherever anything but lambda changes."""
        settings = [
            tuple(v for n, v in zip(self.layout.names(), p.coefficients, strict=True) if n != FACTOR)
            for p in self.points
        ]
        return sum(i == 0 or settings[i - 1] != setting for i, setting in enumerate(settings))

    def on_bounds(self) -> dict[float, list[str]]:
        """The coefficients that ended on a bound, by the bound: better values may lie beyond it."""
        values = list(zip(self.layout.names(), self.coefficients, strict=True))[: self.layout.weights]
        found = {bound: [name for name, value in values if value == bound] for bound in self.options.bounds()}
        if self.layout.blocks:
            found.pop(0.0, None)  # leaving a block out is what the search is for
        return {bound: there for bound, there in found.items() if there}

    def remarks(self) -> list[str]:
        """What the user should know of the coefficients, in sentences that say what to do."""
        found = self.option_values()
        ended = [
            axis for axis in self.layout.options if axis.is_limited and found[axis.name] in (axis.lower, axis.upper)
        ]
        return [
            *(_bound_remark(bound, names, self.options) for bound, names in self.on_bounds().items()),
            *(_end_remark(axis, found[axis.name]) for axis in ended),
        ]

    def pareto(self) -> list[Point]:
        """Evaluated points that no other one beats in every loss."""
        return [self.points[i] for i in pareto_front([point.measured.losses for point in self.points])]

    def relative(self, losses: Mapping[str, float]) -> dict[str, float]:
        """Each set's loss divided by the best single model's."""
        best = {name: min(model.losses[name] for model in self.models.values()) for name in losses}
        return {name: loss / best[name] if best[name] else float("nan") for name, loss in losses.items()}

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {
            "options": self.options.model_dump(),
            "coefficients": self.layout.by_group(self.coefficients),
            "on_bounds": [{"bound": bound, "coefficients": names} for bound, names in self.on_bounds().items()],
            "found_options": self.option_values(),
            "merges": self.merges if self.layout.options else None,
            "filters": {group.name: list(group.filters) for group in self.layout.groups},
            "score": self.best.score,
            "losses": self._losses(self.best.measured),
            "held": {"score": self.held.score, "losses": self._losses(self.held.measured)} if self.held else None,
            "uniform": self._losses(self.uniform.measured) if self.uniform else None,
            "models": {label: self._losses(measured) for label, measured in self.models.items()},
            "safety_limit": self.scoring.safety_limit,
            "satisfied": self.best.satisfies,
            "pareto": [point.index for point in self.pareto()],
            "evaluations": len(self.points),
            "failed": sum(bool(point.measured.failure) for point in self.points),
            "passes": self.passes,
            "seconds": sum(point.measured.seconds for point in self.points),
            "stopped": self.stopped,
        }

    def _losses(self, measured: Measurement) -> dict[str, Any]:
        if measured.failure:
            return {"failure": measured.failure}
        relative = self.relative(measured.losses)
        return {
            name: {"loss": loss, "relative": relative[name] if relative[name] == relative[name] else None}
            for name, loss in measured.losses.items()
        }


def _end_remark(axis: Axis, value: float) -> str:
    return (
        f"{axis.name} ended at {value:g}, where the search ends ({axis.lower:g} to {axis.upper:g}): better values may "
        "lie beyond. Start again from there, by giving the config this value"
    )


def _bound_remark(bound: float, names: Sequence[str], options: SearchOptions) -> str:
    whose = "coefficient of " if len(names) == 1 else "coefficients of "
    shown = (
        whose
        + ", ".join(names[:_MOST_NAMED])
        + (f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else "")
    )
    if bound == 0.0:
        return (
            f"the {shown} ended on the lower bound 0: the merge takes nothing from there. Leave such an "
            "expert out, or set allow_negative if the merge may go the other way"
        )
    return (
        f"the {shown} ended on the bound {bound:g}: better values may lie beyond it. Raise "
        f"max_coefficient ({options.max_coefficient:g}); if it then ends on the new bound too, the records hardly "
        "depend on this expert: add some that do"
    )
