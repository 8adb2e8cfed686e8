"""What a solver sees: a box of coefficient vectors, and a function that scores them until the budget is spent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from mergekit_3h.errors import ThreeHError
from mergekit_3h.search.axes import Axis
from mergekit_3h.search.layout import Layout
from mergekit_3h.search.options import SearchOptions
from mergekit_3h.search.runner import Measurement, Runner
from mergekit_3h.search.scoring import Scoring
from mergekit_3h.search.trace import Trace


class SearchError(ThreeHError):
    """The search has no result."""


@dataclass(frozen=True)
class Point:
    """An evaluated candidate. ``score`` is infinite if it failed; lower is better."""

    index: int
    coefficients: tuple[float, ...]
    measured: Measurement
    score: float
    violation: float
    """By how much the safety loss exceeds its limit; negative or zero where it does not."""
    is_recorded: bool = False
    """Whether it was measured before, by a search that this one continues."""

    @property
    def satisfies(self) -> bool:
        return not self.measured.failure and self.violation <= 0

    @property
    def rank(self) -> tuple[bool, float, int]:
        """Sorts points from the best: those that keep the constraint first, then by score, then by age."""
        return (not self.satisfies, self.score, self.index)


class Search:
    """Evaluates candidates for a solver, within the budget, and remembers all of them.

    A candidate that the trace knows is not evaluated again. As solvers are deterministic, an interrupted search that
    starts again takes the same way and goes on where it stopped.
    """

    def __init__(
        self,
        runner: Runner,
        layout: Layout,
        options: SearchOptions,
        scoring: Scoring,
        models: Mapping[str, Measurement],
        trace: Trace,
        on_point: Callable[[Point], None] | None = None,
    ) -> None:
        self.layout, self.options, self.scoring, self.models = layout, options, scoring, models
        self.lower, self.upper = options.bounds()
        self.axes = _axes(layout, options)
        self.points: list[Point] = []
        self._asked = 0
        self._runner, self._trace, self._on_point = runner, trace, on_point
        self._known: dict[tuple[tuple[float, ...], bool], Point] = {}

    @property
    def dimension(self) -> int:
        return self.layout.dimension

    @property
    def start(self) -> tuple[float, ...]:
        """The uniform merge, with the options of the method that are searched as they are."""
        return self.clipped([axis.start for axis in self.axes])

    @property
    def remaining(self) -> int:
        """How many more candidates may be asked for."""
        return self.options.max_evaluations - self._asked

    @property
    def set_weights(self) -> Mapping[str, float]:
        """The sum of the records' weights in each set."""
        return self._runner.set_weights

    @property
    def best(self) -> Point:
        """The best point seen. Raises if no candidate had a finite loss."""
        scored = [point for point in self.points if not point.measured.failure]
        if not scored:
            why = self.points[0].measured.failure if self.points else "none was evaluated"
            raise SearchError(
                f"none of {len(self.points)} candidates could be scored ({why}). Try a smaller start or "
                "max_coefficient, dtype float32, or look for the bad model among the single models' losses."
            )
        return min(scored, key=lambda point: point.rank)

    def clipped(self, coefficients: Sequence[float]) -> tuple[float, ...]:
        """The nearest vector within the bounds."""
        return tuple(axis.clipped(value) for axis, value in zip(self.axes, coefficients, strict=True))

    def evaluate(self, candidates: Sequence[Sequence[float]], *, gradient: bool = False) -> list[Point]:
        """Score candidates in order. Fewer points than candidates come back when the budget ends.

        Asking for a candidate again counts, but costs nothing.
        """
        wanted = [self._valid(candidate) for candidate in candidates[: max(0, self.remaining)]]
        self._asked += len(wanted)
        self._measure([c for c in dict.fromkeys(wanted) if (c, gradient) not in self._known], gradient)
        return [self._known[coefficients, gradient] for coefficients in wanted]

    def merged(self, point: Point) -> Point:
        """A candidate of a method of which a part was held, as it merges with nothing held. It is in no budget."""
        measured = self._trace.merged(point.coefficients)
        if measured is None:
            (measured,) = self._runner.evaluate_merged([point.coefficients])
            self._trace.add_merged(point.coefficients, measured)
        return replace(self._scored(point.coefficients, measured, is_recorded=False), index=point.index)

    def _measure(self, candidates: Sequence[tuple[float, ...]], gradient: bool) -> None:
        recorded = {c: self._trace.candidate(c, gradient) for c in candidates}
        results = iter(self._runner.evaluate([c for c in candidates if recorded[c] is None], gradient=gradient))
        for coefficients in candidates:
            known = recorded[coefficients]
            measured = known or next(results, None)
            if measured is None:
                raise SearchError("the runner returned fewer results than it was asked for; look at its own log")
            point = self._scored(coefficients, measured, is_recorded=known is not None)
            self._known[coefficients, gradient] = point
            self.points.append(point)
            if known is None:
                self._record(point, gradient)
            if self._on_point is not None:
                self._on_point(point)

    def _scored(self, coefficients: tuple[float, ...], measured: Measurement, is_recorded: bool) -> Point:
        score = violation = float("inf")
        if not measured.failure:
            score, violation = self.scoring.score(measured.losses), self.scoring.violation(measured.losses)
        return Point(len(self.points), coefficients, measured, score, violation, is_recorded)

    def _record(self, point: Point, gradient: bool) -> None:
        score = None if point.measured.failure else point.score
        notes = {"index": point.index, "score": score, "satisfies": point.satisfies}
        self._trace.add_candidate(point.coefficients, gradient, point.measured, **notes)

    def _valid(self, candidate: Sequence[float]) -> tuple[float, ...]:
        coefficients = tuple(float(value) for value in candidate)
        if len(coefficients) != self.dimension or coefficients != self.clipped(coefficients):
            raise ValueError(
                f"a solver asked for {coefficients}; expected {self.dimension} values from {self.lower} to {self.upper}"
            )
        return coefficients


def _axes(layout: Layout, options: SearchOptions) -> tuple[Axis, ...]:
    start, (lower, upper) = options.start_value(len(layout.experts)), options.bounds()
    names = layout.names()[: layout.weights]
    return (*(Axis(name, start, lower, upper) for name in names), *layout.options)
