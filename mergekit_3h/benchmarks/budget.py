"""What a measurement will cost, so that a budget can be kept."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from mergekit_3h.benchmarks.contenders import FULL_SVD, OURS
from mergekit_3h.benchmarks.families import MatrixShape
from mergekit_3h.benchmarks.products import product_flops
from mergekit_3h.errors import OptionError

FEWEST_ROUNDS = 3
MOST_ROUNDS = 25

# Operations, textbook counts where there are any: the proportions between shapes. Measured times set the scale.
_SVD_LONG, _SVD_SHORT = 6, 20  # 6 m n^2 + 20 n^3, Golub and Van Loan, table 8.6.1
_EIGH = 30  # 15 products of its size, as measured on two CPUs
_FLOAT64_TIMES = 2.0
"""The oracle against the same SVDs in float32."""

OVERESTIMATE = 3.0
"""Estimates from a small matrix were seen to be wrong by so much; small matrices use a processor badly."""

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_budget(text: str) -> float:
    """Seconds of ``90``, ``90s``, ``2m``, ``1.5h`` or ``1h30m``."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([smh]?)", text.strip().lower())
    if not parts or "".join(number + unit for number, unit in parts) != text.strip().lower():
        raise OptionError(f"--budget: got {text!r}, expected a duration such as 90s, 2m or 1h30m")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if seconds <= 0:
        raise OptionError(f"--budget: got {text!r}; nothing can be measured in no time")
    return seconds


def operations(contender: str, shape: MatrixShape, experts: int) -> float:
    """Of one matrix, in proportion."""
    long, short = max(shape.rows, shape.columns), min(shape.rows, shape.columns)
    if contender == OURS:
        decompositions = experts + (2 if experts > 2 else 0.25)
        return product_flops((long, short), [max(1, short // experts)] * experts) + decompositions * _EIGH * short**3
    svd = _SVD_LONG * long * short**2 + _SVD_SHORT * short**3
    return (experts + 2) * svd


@dataclass
class Costs:
    """Seconds of every contender on any shape, scaled from the last one that was measured."""

    experts: int
    rounds: int
    """The fewest that a measurement has, after the first run."""
    start_seconds: float = 0.0
    """Of a contender's process."""
    seconds_per_operation: dict[str, float] = field(default_factory=dict[str, float])

    def learn(self, contender: str, shape: MatrixShape, seconds: float) -> None:
        self.seconds_per_operation[contender] = seconds / operations(contender, shape, self.experts)

    def one(self, contender: str, shape: MatrixShape) -> float:
        """Of one run on one matrix of this shape."""
        return self.seconds_per_operation[contender] * operations(contender, shape, self.experts)

    def round(self, contenders: Sequence[str], stream: Sequence[MatrixShape]) -> float:
        """Of every contender passing over the stream once."""
        return sum(shape.count * self.one(contender, shape) for contender in contenders for shape in stream)

    def fewest(self, contenders: Sequence[str], stream: Sequence[MatrixShape], *, with_oracle: bool) -> float:
        """Of the least that is worth reporting: a first run of every matrix and some rounds of the stream."""
        distinct = [MatrixShape(shape.rows, shape.columns) for shape in stream]
        seconds = self.rounds * self.round(contenders, stream) + self.round(contenders, distinct)
        seconds += self.start_seconds * (len(contenders) + with_oracle)
        return seconds + (self.oracle(contenders, distinct) if with_oracle else 0)

    def oracle(self, contenders: Sequence[str], distinct: Sequence[MatrixShape]) -> float:
        """A float64 merge by full SVDs for every contender's result; scaled from a peer's, or else from ours."""
        known = next((c for c in contenders if c != OURS), None)
        scale = self.seconds_per_operation[known or OURS]
        svds = sum(operations(FULL_SVD, shape, self.experts) for shape in distinct)
        return _FLOAT64_TIMES * scale * svds * len(contenders)


def first_share(left: float, needs: Sequence[float]) -> float | None:
    """Seconds for the first of these measurements, ``None`` if it does not fit into what is ``left``.

    The time is divided in proportion to the needs, of those that could fit should they be overestimated.
    """
    if needs[0] > left:
        return None
    hopeful = [need for need, total in zip(needs, accumulate(needs), strict=True) if total <= OVERESTIMATE * left]
    return max(needs[0], left * needs[0] / sum(hopeful))
