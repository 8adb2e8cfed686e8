"""How sure a score is: seeded bootstrap over items, and comparisons of two models on the same items.

Resampling follows from the seed, the metric's name and the number of items alone. So two models on the same items are
resampled alike, and the difference of their resampled scores is a paired bootstrap: for a metric, a dimension, and the
average of all dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergekit_3h.data.generation.asking import seed_of

if TYPE_CHECKING:
    from torch import Tensor

CONFIDENCE = 0.95
FEWEST_ITEMS = 6
"""Below it no difference is clear. The exact two-sided sign test cannot reach p < 0.05 with fewer: five items that all
speak for one model have 2 / 2^5 = 0.06, six 0.03. A bootstrap does not see it: items all alike give no width."""
EXACT_UP_TO = 16
"""Items that differ, of which all 65536 ways to turn their signs are tried. With more the bootstrap says the same: of
17 that differ by as much, both want 13 for one side."""
_SAME = 1e-9
"""Sums of the same numbers in another order are equal within this share of their sizes."""
_ROWS_AT_ONCE = 1 << 22
"""Resampled values in memory at once: 32 MB."""


@dataclass(frozen=True)
class Interval:
    """Holds the score in 95 of 100 repetitions with other items of the same kind."""

    low: float
    high: float


@dataclass(frozen=True)
class PairedDifference:
    """One model's score minus another's on the items that both have a value for."""

    difference: float
    interval: Interval
    items: int
    p_value: float | None
    """The chance of so uneven a split of the items that differ: McNemar's exact test where every value is 0 or 1, else
    by turning signs. None where too many differ for that."""

    @property
    def is_clear(self) -> bool:
        return is_clear(self.items, self.interval, self.p_value)


def is_clear(items: int, interval: Interval, p_value: float | None) -> bool:
    """Whether there are enough items, the interval leaves out zero, and the exact test, if there is one, agrees."""
    agrees = p_value is None or p_value < 1.0 - CONFIDENCE
    return items >= FEWEST_ITEMS and agrees and (interval.low > 0.0 or interval.high < 0.0)


def resampled_means(values: Sequence[float], resamples: int, seed: int, name: str) -> Tensor:
    """Means of ``resamples`` draws of as many values, with replacement."""
    import torch

    generator = torch.Generator().manual_seed(seed_of(seed, name, len(values)))
    column = torch.tensor(values, dtype=torch.float64)
    at_once = max(1, _ROWS_AT_ONCE // max(len(values), 1))
    parts: list[Tensor] = []
    for begin in range(0, resamples, at_once):
        count = min(at_once, resamples - begin)
        places = torch.randint(len(values), (count, len(values)), generator=generator)
        parts.append(column[places].mean(dim=1))
    return torch.cat(parts)


def resampled_share(outcomes: Sequence[float], resamples: int, seed: int, name: str) -> Tensor:
    """Means of values that are shares or outcomes, 0 or 1.

    Items that all came out alike are no proof that all others would, though every resample of them is the same: then
    these are draws from the posterior of the share under a uniform prior (for many items the "rule of three").
    """
    import torch

    outcome, count = outcomes[0], len(outcomes)
    if outcome not in (0.0, 1.0) or any(value != outcome for value in outcomes):
        return resampled_means(outcomes, resamples, seed, name)
    generator = torch.Generator().manual_seed(seed_of(seed, name, count))
    uniform = torch.rand(resamples, generator=generator, dtype=torch.float64)
    other = 1.0 - uniform ** (1.0 / (count + 1))
    return 1.0 - other if outcome else other


def normal_scores(score: float, error: float, resamples: int, seed: int, name: str) -> Tensor:
    """Draws around a score of which only the standard error is known."""
    import torch

    generator = torch.Generator().manual_seed(seed_of(seed, name, "normal"))
    return score + error * torch.randn(resamples, generator=generator, dtype=torch.float64)


def interval_of(replicates: Tensor) -> Interval:
    """The middle 95 of 100."""
    import torch

    tail = (1.0 - CONFIDENCE) / 2
    low, high = torch.quantile(replicates, torch.tensor([tail, 1.0 - tail], dtype=replicates.dtype)).tolist()
    return Interval(low, high)


def paired_difference(
    first: Mapping[str, float], second: Mapping[str, float], scale: float, resamples: int, seed: int, name: str
) -> PairedDifference | None:
    """``first`` minus ``second``, values by item; None where they share no item."""
    shared = sorted(first.keys() & second.keys())
    if not shared:
        return None
    differences = [scale * (first[item] - second[item]) for item in shared]
    replicates = resampled_means(differences, resamples, seed, name)
    binary = all(value in (0.0, 1.0) for item in shared for value in (first[item], second[item]))
    better, worse = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    p_value = mcnemar(better, worse) if binary else sign_flips(differences)
    return PairedDifference(math.fsum(differences) / len(shared), interval_of(replicates), len(shared), p_value)


def sign_flips(differences: Sequence[float]) -> float | None:
    """Two-sided exact test of a sum of paired differences: by chance each could as well have been the other way round.

    The share of all ways to turn the signs in which the sum is as far from zero as it is. A bootstrap does not see what
    this does: of twelve items with four that differ, all for one model, nearly every resample holds one of the four,
    but four coins fall alike one time in eight. None where more differ than ``EXACT_UP_TO``.
    """
    import torch

    differ = [abs(difference) for difference in differences if difference]
    if len(differ) > EXACT_UP_TO:
        return None
    sums = torch.zeros(1, dtype=torch.float64)
    for size in differ:
        sums = torch.cat([sums + size, sums - size])
    reached = abs(math.fsum(differences)) - _SAME * math.fsum(differ)
    return (sums.abs() >= reached).double().mean().item()


def mcnemar(better: int, worse: int) -> float:
    """Two-sided exact test: the items that differ are as likely to differ one way as the other."""
    differ, fewer = better + worse, min(better, worse)
    if not differ:
        return 1.0
    tail = sum(math.comb(differ, count) for count in range(fewer + 1))
    return min(1.0, 2.0 * tail / 2.0**differ) if differ < 1000 else min(1.0, _normal_tail(better, worse))


def _normal_tail(better: int, worse: int) -> float:
    """The same for so many items that the powers of two leave the range of floats; with continuity correction."""
    return math.erfc(max(abs(better - worse) - 1.0, 0.0) / math.sqrt(2.0 * (better + worse)))
