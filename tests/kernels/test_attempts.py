"""What is tried before a full decomposition: on an accelerator only what is known to be small."""

from __future__ import annotations

import pytest

from mergekit_3h.kernels.decompositions import worth_on_accelerator
from mergekit_3h.kernels.ranks import RankRule

COLUMNS = 4096


def rule(*, budget: int = 1365, noise_edge: float = 0.0, energy: float = 1.0) -> RankRule:
    return RankRule(COLUMNS, budget, noise_edge, energy)


@pytest.mark.parametrize(
    ("given", "total_square", "expected"),
    [
        # A full-rank fine-tuning in bfloat16, as was measured: two thirds of the squares beneath an edge of 1.
        (rule(noise_edge=1.0), 3000.0, (False, False)),
        # Few can reach beyond the edge, whatever the spectrum.
        (rule(noise_edge=1.0), 100.5, (True, True)),
        (rule(noise_edge=1.0), 448.0, (True, True)),  # 448 + 64 columns of a subspace of 512
        (rule(noise_edge=1.0), 449.0, (False, True)),
        (rule(noise_edge=2.0), 449.0, (True, True)),  # a quarter of them
        # The share of the energy promises nothing of the rank.
        (rule(energy=0.9), 1.0, (False, False)),
        # A budget for many experts does.
        (rule(budget=256), 1.0, (True, False)),
        (rule(budget=600), 1.0, (False, False)),
    ],
)
def test_only_a_rank_that_is_known_to_be_small(
    given: RankRule, total_square: float, expected: tuple[bool, bool]
) -> None:
    by_noise = given.noise_edge > 0
    assert worth_on_accelerator(given, given.most(total_square), by_noise=by_noise) == expected


def test_what_is_known_of_a_rank() -> None:
    assert rule(noise_edge=1.0).most(0.3) == 1
    assert rule(noise_edge=1.0).most(1e9) == 1365
    assert rule(budget=5000).most(float("inf")) == COLUMNS
