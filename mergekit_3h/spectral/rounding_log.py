"""What the log of a merge says about the rounding of its experts: one line each, as soon as it can be told."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from mergekit_3h.kernels.rounding import FEW_CHANGED, RoundingToll

log = logging.getLogger(__name__)

MATRICES = 8
"""Matrices seen before a line is written: a layer's worth, minutes into the merge of a large model."""

OUTLIERS_LOST = 0.2
"""Distance of the saved update from the trained one above which outlier masses tell of the rounding rather than of the
update. On a real full fine-tuning in bfloat16 they were off by a factor of 4 to 7 at a distance of 0.64, of 0.4 to 2 at
0.30, and by 9 % at most at 0.09."""


class RoundingLog:
    """Adds up the tolls of one merge. Matrices may be merged side by side."""

    def __init__(self) -> None:
        self._totals: dict[str, RoundingToll] = {}
        self._matrices = 0
        self._lock = threading.Lock()

    def add(self, experts: Sequence[str], report: Any) -> None:
        """One more matrix: the labels of its experts, and the report of its merge, if that speaks of rounding."""
        tolls: Sequence[RoundingToll] | None = getattr(report, "tolls", None)
        if tolls is None:
            return
        with self._lock:
            self._matrices += 1
            for expert, toll in zip(experts, tolls, strict=True):
                self._totals[expert] = self._totals.get(expert, RoundingToll()) + toll
            if self._matrices == MATRICES:
                self._write(weighs_outliers=len(set(getattr(report, "outlier_weights", ()))) > 1)

    def _write(self, *, weighs_outliers: bool) -> None:
        for expert, toll in self._totals.items():
            if toll.lost_square == 0.0:
                continue
            said = (
                f"{expert}: {toll.changed_share:.0%} of the weights in the first {MATRICES} matrices differ from the "
                f"base's; saved in 16 bits, its update is about {toll.distance:.0%} away from the trained one"
            )
            advice = list(_advice(toll, weighs_outliers))
            log.log(logging.WARNING if advice else logging.INFO, "%s", "; ".join([said, *advice]))


def _advice(toll: RoundingToll, weighs_outliers: bool) -> Iterator[str]:
    if toll.changed_share < FEW_CHANGED:
        yield "save float32 checkpoints or adapters to merge where you can"
    if weighs_outliers and toll.distance > OUTLIERS_LOST:
        yield "its outliers are mostly rounding, so outlier_weighting: none is the safer choice"
