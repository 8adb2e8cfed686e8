"""What stands between the decorrelated sides: TSVM's core, DC-Merge's and SCORE's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mergekit_3h.errors import OptionError
from mergekit_3h.kernels.assembly import Report
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.spectral.literal import polar_factor, relative_error
from mergekit_3h.spectral.registry import parse_options
from mergekit_3h.testing.updates import SHAPES, low_rank, update

EVERYTHING = {"core": "dc", "core_keep": 1.0}


def merged(updates: list[Tensor], **options: object) -> tuple[Tensor, Report]:
    return parse_options("tsvm", options).merge(TaskMatrices(updates), [1.0] * len(updates))


def truncated(matrix: Tensor, rank: int) -> Tensor:
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    return u[:, :rank] @ torch.diag(s[:rank]) @ vh[:rank]


def apart() -> list[Tensor]:
    """Experts that have nothing in common, in rows or columns."""
    updates = [torch.zeros(30, 24) for _ in range(3)]
    for i, each in enumerate(updates):
        each[10 * i : 10 * i + 10, 8 * i : 8 * i + 8] = update((10, 8), i)
    return updates


@pytest.mark.parametrize("options", [EVERYTHING, {"core": "score"}])
def test_experts_that_have_nothing_in_common_merge_as_by_tsvm(options: dict[str, object]) -> None:
    assert relative_error(merged(apart(), **options)[0], merged(apart())[0]) < 1e-7


@pytest.mark.parametrize("shape", SHAPES)
def test_equal_experts(shape: tuple[int, int]) -> None:
    """dc: their mean. score: their largest directions once, whose entries off the diagonal are the outliers, and the
    others as often as there are experts."""
    each = update(shape, 1)
    mean, report = merged([each] * 3, **EVERYTHING)
    rank = report.ranks[0]
    assert relative_error(mean, truncated(each, rank) / 3) < 1e-6
    u, s, vh = torch.linalg.svd(each.double(), full_matrices=False)
    seen = u[:, :rank].T @ merged([each] * 3, core="score")[0].double() @ vh[:rank].T
    factors = seen.diagonal() / s[:rank]
    assert relative_error(torch.diag(seen.diagonal()), seen) < 1e-6
    counts = factors.round()
    assert torch.allclose(factors, counts, atol=1e-4) and {1.0} <= set(counts.tolist()) <= {1.0, 3.0}
    assert torch.equal(counts, counts.sort().values)


def test_dc_keeps_the_largest_entries_and_one_at_least() -> None:
    each = update((24, 40), 0)
    for share, kept in ((0.001, 1), (7 / 24**2, 7), (1.0, 24)):
        assert relative_error(merged([each], core="dc", core_keep=share)[0], truncated(each, kept)) < 1e-6


def test_one_expert_is_returned_by_score() -> None:
    assert relative_error(merged([update((40, 24), 0)], core="score")[0], update((40, 24), 0)) < 1e-6


def test_without_pruning_score_is_what_the_sides_see_of_the_sum() -> None:
    updates = [low_rank((40, 30), 4, seed).double() for seed in range(3)]
    result, report = merged(updates, core="score", core_deviations=1e6)
    triplets = [torch.linalg.svd(each, full_matrices=False) for each in updates]
    u = polar_factor(torch.cat([t[0][:, :4] for t in triplets], 1))
    vh = polar_factor(torch.cat([t[2][:4] for t in triplets], 0))
    assert report.ranks == [4, 4, 4]
    assert relative_error(result, u @ u.T @ torch.stack(updates).sum(0) @ vh.T @ vh) < 1e-6


@pytest.mark.parametrize("core", ["dc", "score"])
def test_equal_opposite_experts_cancel(core: str) -> None:
    each = update((24, 24), 2)
    result, _ = merged([each, -each], core=core)
    assert float(result.norm()) < 1e-9 * float(each.norm())


@pytest.mark.parametrize(
    ("method", "given", "named"),
    [
        ("tsvm", {"core": "dc", "decorrelation": 0.1}, "option 'decorrelation': got 0.1; core: dc"),
        ("tsvm", {"core": "score", "decorrelation_sides": "input"}, "option 'decorrelation_sides': got 'input'"),
        ("rtsvm", {"core": "dc", "preset": "paper"}, "option 'order': got 'orthogonalize_first'"),
        ("rtsvm", {"core": "score", "rank_budget": "per_task"}, "option 'rank_budget': got 'per_task'"),
        ("tsvm", {"core": "dcmerge"}, "option 'core': got 'dcmerge'"),
        ("tsvm", {"core_keep": 0.0}, "option 'core_keep': got 0.0; input should be greater than 0"),
        ("tsvm", {"core_deviations": -1.0}, "option 'core_deviations': got -1.0"),
    ],
)
def test_what_does_not_go_together_is_refused(method: str, given: dict[str, object], named: str) -> None:
    with pytest.raises(OptionError, match=named):
        parse_options(method, given)
