"""Where the singular values of a random matrix end, for independent entries whose size depends on row and column.

Entries of one variance v end at sqrt(v) (sqrt m + sqrt d), Marchenko and Pastur's edge. For variances a_i b_j the
squared singular values z above the edge solve (Couillet and Hachem, arXiv 1310.8094, for separable variances)

    p = sum_i a_i / (z - a_i q),    q = sum_j b_j / (1 - b_j p)

With y = q / z both say  c = sum_j b_j p / (1 - b_j p) = sum_i a_i y / (1 - a_i y)  and  z = c / (p y): a curve over
0 < p < 1 / max b on which z falls from infinity, and rises again where nothing has this z. Its least value is the edge.
There, by the derivative of log z, the squares of the terms of both sums add up to S and T with S T = c^2.
"""

from __future__ import annotations

import math

from torch import Tensor

MOST_STEPS = 60
"""Of a search that was seen to take 4 to 8."""

NEAR = 1e-5
"""Distance from S T = c^2, relative, at which the search ends: the flat minimum turns it into 1e-10 of the edge."""


def random_edge(rows: Tensor, columns: Tensor) -> float:
    """The largest singular value of a large random matrix whose variances add up to ``rows`` and to ``columns``.

    Entry (i, j) is taken to have the variance rows_i columns_j / total; the tensors are one-dimensional, in float64.
    """
    total = float(rows.sum())
    if total == 0:
        return 0.0
    a, b = rows[rows > 0] / math.sqrt(total), columns[columns > 0] / math.sqrt(total)
    # False position on a slope that is -1 and 1 at the ends; halving the value of an end that stays (Illinois).
    low, high, at_low, at_high = 0.0, 1 / float(b.max()), -1.0, 1.0
    square, before = math.nan, 0.0
    for _ in range(MOST_STEPS):
        p = (low * at_high - high * at_low) / (at_high - at_low)
        square, slope = _curve(a, b, p)
        stays = 0.5 if slope * before > 0 else 1.0
        if slope < -NEAR:
            low, at_low, at_high = p, slope, at_high * stays
        elif slope > NEAR:
            high, at_high, at_low = p, slope, at_low * stays
        else:  # or NaN
            break
        before = slope
    return math.sqrt(square)


def _curve(a: Tensor, b: Tensor, p: float) -> tuple[float, float]:
    """z, and a number between -1 and 1 with the sign of its derivative by p."""
    terms = b * p / (1 - b * p)
    c = float(terms.sum())
    inverse = 1 / a
    largest = 1 / float(inverse.min())
    # g(y) = sum a y / (1 - a y) is convex, at least its largest term, and at least what equal a would give: Newton's
    # method falls from here to g = c.
    mean = float(a.mean())
    y = c / max(largest * (1 + c), mean * (a.numel() + c))
    while True:
        share = y / (inverse - y)
        value, squares = float(share.sum()), float(share @ share)
        step = (value - c) * y / (value + squares)
        if not step > 1e-12 * y:  # nor for NaN
            break
        y -= step
    product = float(terms @ terms) * squares / c**2
    return c / (p * y), (product - 1) / (product + 1)
