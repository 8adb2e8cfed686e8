"""Where the singular values of a random matrix end, for independent entries whose size depends on row and column.

Entries of one variance v end at sqrt(v) (sqrt m + sqrt d), Marchenko and Pastur's edge. For variances a_i b_j the
squared singular values z above the edge solve (Couillet and Hachem, arXiv 1310.8094, for separable variances)

    p = sum_i a_i / (z - a_i q),    q = sum_j b_j / (1 - b_j p)

With y = q / z both say  c = sum_j b_j p / (1 - b_j p) = sum_i a_i y / (1 - a_i y)  and  z = c / (p y): a curve over
0 < p < 1 / max b on which z falls from infinity, and rises again where nothing has this z. Its least value is the edge.
"""

from __future__ import annotations

import math

from torch import Tensor

NARROWINGS = 25
"""Of the interval for p, by 0.618 each: to 6e-6 of it, which the flat minimum turns into 1e-9 of the edge."""

GOLDEN = (math.sqrt(5) - 1) / 2


def random_edge(rows: Tensor, columns: Tensor) -> float:
    """The largest singular value of a large random matrix whose variances add up to ``rows`` and to ``columns``.

    Entry (i, j) is taken to have the variance rows_i columns_j / total; the tensors are one-dimensional, in float64.
    """
    total = float(rows.sum())
    if total == 0:
        return 0.0
    a, b = rows[rows > 0] / math.sqrt(total), columns[columns > 0] / math.sqrt(total)
    low, high = 0.0, 1 / float(b.max())
    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    at_left, at_right = _squared_value(a, b, left), _squared_value(a, b, right)
    for _ in range(NARROWINGS):
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - GOLDEN * (high - low)
            at_left = _squared_value(a, b, left)
        else:
            low, left, at_left = left, right, at_right
            right = low + GOLDEN * (high - low)
            at_right = _squared_value(a, b, right)
    return math.sqrt(min(at_left, at_right))


def _squared_value(a: Tensor, b: Tensor, p: float) -> float:
    """z on the curve."""
    c = _moment(b, p)
    largest = float(a.max())
    # g(y) = sum a y / (1 - a y) is convex and at least its largest term, so Newton's method falls from here to g = c.
    y = c / (largest * (1 + c))
    while True:
        share = a * y / (1 - a * y)
        value = float(share.sum())
        slope = float((share * (1 + share)).sum()) / y
        step = (value - c) / slope
        if not step > 1e-12 * y:  # nor for NaN
            return c / (p * y)
        y -= step


def _moment(b: Tensor, p: float) -> float:
    return float((b * p / (1 - b * p)).sum())
