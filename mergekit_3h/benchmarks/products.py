"""The floating-point operations of the matrix products in a merge, which bound its time from below."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch

from mergekit_3h.kernels.memory import stores_left
from mergekit_3h.kernels.spectra import tiles


def product_flops(shape: tuple[int, int], ranks: Sequence[int]) -> int:
    """Operations (a multiplication and an addition count two) of every product of the exact ``truncate_first`` merge.

    Eigendecompositions are not in it: what they cost beyond products is what the ratio to this bound shows.
    """
    rows, columns = max(shape), min(shape)
    width = sum(ranks)
    is_left_wide, is_right_wide = width > rows, width > columns
    passes = 1 if stores_left(rows, columns, width) else 2
    grams = len(ranks) * rows * _upper_tiles(columns)
    left_factors = passes * rows * columns * width
    left_gram = rows * rows * width if is_left_wide else rows * _upper_tiles(width)
    pairs = sum(columns * first * second for first, second in combinations(ranks, 2))
    right_gram = columns * columns * width if is_right_wide else pairs
    roots = _inverse_sqrt(ranks, rows, is_left_wide) + _inverse_sqrt(ranks, columns, is_right_wide)
    inner = width * columns * columns if is_right_wide else width * width * columns
    left_whitening = rows * rows * columns if is_left_wide else width * width * columns
    result = rows * width * columns
    return 2 * (grams + left_factors + left_gram + right_gram + roots + inner + left_whitening + result)


def _upper_tiles(size: int) -> int:
    """Entries on and above the diagonal of a symmetric matrix, in whole tiles."""
    return sum((tile.stop - tile.start) * (size - tile.start) for tile in tiles(torch.device("cpu"), size))


def _inverse_sqrt(ranks: Sequence[int], side: int, is_wide: bool) -> int:
    if len(ranks) == 2 and not is_wide:
        large, small = max(ranks), min(ranks)
        return 3 * large * small**2 + large**2 * small + small**3 if small else 0
    size = side if is_wide else sum(ranks)
    return size * _upper_tiles(size)
