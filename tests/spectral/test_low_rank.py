"""Tensors whose experts are updates of low rank: what the core space takes from the shape of the whole matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from mergekit_3h.benchmarks.memory import PeakMemory
from mergekit_3h.errors import OptionError, TensorError
from mergekit_3h.kernels.core_space import LowRank, is_smaller, lost_share, merged_in_core_space, truncated
from mergekit_3h.kernels.ranks import rank_for_energy
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.spectral.literal import relative_error
from mergekit_3h.spectral.low_rank import AsAdapter, LowRankUpdates, Route, bytes_to_merge_low_rank, merge_low_rank
from mergekit_3h.spectral.registry import parse_options

PROMISE = 1e-6


def update(shape: tuple[int, int], rank: int, seed: int, smallest: float = 0.3) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(shape[0], rank, generator=generator))[0]
    right = torch.linalg.qr(torch.randn(shape[1], rank, generator=generator))[0].T
    return LowRank(left * torch.logspace(0, 1, rank).flip(0) ** torch.tensor(smallest).log10().abs(), right, 2e-3)


def merged(updates: Sequence[LowRank], route: Route, method: str = "tsvm", **options: Any) -> Tensor:
    """The merged update itself, on a base of zeros."""
    labels = [f"expert {i}" for i in range(len(updates))]
    given = LowRankUpdates("w", dict(zip(labels, updates, strict=True)), dict.fromkeys(labels, 1.0))
    return merge_low_rank(torch.zeros(updates[0].shape), given, parse_options(method, options), route=route)


@pytest.mark.parametrize("shape", [(30, 40), (40, 30)])
def test_the_rank_is_budgeted_by_the_whole_matrix(shape: tuple[int, int]) -> None:
    """Of the core's 12 directions every expert would get 4; of the matrix's 30 it gets 10."""
    updates = [update(shape, rank, seed) for seed, rank in enumerate([10, 1, 1])]
    assert relative_error(merged(updates, "core"), merged(updates, "dense")) < PROMISE
    nine = [update(shape, 2, seed) for seed in range(9)]
    nine[0] = update(shape, 6, 0)  # 30 // 9 = 3 of its directions stay
    assert is_smaller(nine)
    core = merged(nine, "core", decorrelation=1e9)
    assert relative_error(core, merged(nine, "dense", decorrelation=1e9)) < PROMISE
    whole = sum((each.dense(torch.float32) for each in nine), torch.zeros(shape))
    assert relative_error(core, whole) > 0.1


def test_what_counts_as_nothing_is_judged_by_the_whole_matrix() -> None:
    """A direction of 1e-5 of the largest is none for a matrix of 400 columns, and would be one for the core of 6."""
    updates = [update((400, 500), 2, seed, smallest=1e-5) for seed in range(3)]
    core = merged(updates, "core")
    assert relative_error(core, merged(updates, "dense")) < PROMISE
    values = torch.linalg.svdvals(core.double())
    assert int((values > 1e-7 * values[0]).sum()) == 3


@pytest.mark.parametrize("options", [{"rank": "gavish_donoho"}, {"rank": "participation"}, {"rank": "noise_edge"}])
def test_the_median_of_all_singular_values_is_that_of_the_whole_matrix(options: dict[str, Any]) -> None:
    updates = [update((60, 30), 7, seed) for seed in range(4)]
    assert relative_error(merged(updates, "core", "swudi", **options), merged(updates, "dense", "swudi", **options)) < (
        PROMISE
    )


def test_entries_are_those_of_the_whole_matrix() -> None:
    updates = [update((90, 70), 4, seed) for seed in range(3)]
    updates[1].left[3] *= 40  # outliers, which weigh an expert more, and leave the rest sparse
    assert relative_error(merged(updates, "core", "rtsvm"), merged(updates, "dense", "rtsvm")) < PROMISE
    without = merged(updates, "core", "rtsvm", outlier_weighting="none")
    assert relative_error(merged(updates, "core", "rtsvm"), without) > 0.01


def test_adapters_that_fill_the_matrix_are_merged_dense() -> None:
    updates = [update((24, 30), 8, seed) for seed in range(3)]
    assert not is_smaller(updates)
    assert torch.equal(merged(updates, "core"), merged(updates, "dense"))


def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    updates, threads, found = [update((900, 700), 9, seed) for seed in range(3)], torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(merged(updates, "core", "iso_c", power=0.5))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


def test_excluded_tensors_get_the_mean_and_kept_ones_nothing() -> None:
    updates = [update((30, 20), 2, seed) for seed in range(3)]
    mean = torch.stack([each.dense(torch.float64) for each in updates]).mean(0)
    assert relative_error(merged(updates, "auto", exclude="w"), mean) < PROMISE
    assert not bool(merged(updates, "auto", keep_base="w").any())


def test_the_result_is_rounded_once_to_the_base() -> None:
    base = torch.randn(40, 30).bfloat16()
    updates = {f"expert {i}": update((40, 30), 2, i) for i in range(3)}
    given, method = LowRankUpdates("w", updates, dict.fromkeys(updates, 1.0)), parse_options("tsvm", {"lambda": 2.0})
    exact = base.double() + 2 * merged(list(updates.values()), "dense").double()
    found = merge_low_rank(base, given, method)
    assert found.dtype == torch.bfloat16 and torch.equal(found, exact.bfloat16())


def test_wrong_inputs_are_named() -> None:
    good, other = update((30, 20), 2, 0), update((30, 21), 2, 1)
    with pytest.raises(TensorError, match=r"'w': the updates have different shapes: .*'expert 1': \(30, 21\)"):
        merged([good, other], "auto")
    with pytest.raises(TensorError, match="'w': expert 1 holds NaN or infinity"):
        merged([good, LowRank(good.left / 0, good.right)], "auto")
    given = LowRankUpdates("w", {"mine": good}, {"mine": 1.0})
    with pytest.raises(TensorError, match=r"'w' is \(20, 30\) in the base model, its updates are \(30, 20\)"):
        merge_low_rank(torch.zeros(20, 30), given, parse_options("tsvm", {}))
    with pytest.raises(OptionError, match="lora: core: rtsvm with these options depends on more"):
        merged([good], "core", "rtsvm", preset="paper")


def test_a_truncation_is_the_nearest_and_tells_what_it_lost() -> None:
    whole = update((30, 50), 6, 0)
    cut, exact = truncated(whole, 4), whole.dense(torch.float64)
    assert truncated(whole).kept.rank == 6 and cut.kept.rank == 4
    u, s, vh = torch.linalg.svd(exact, full_matrices=False)
    assert relative_error(cut.kept.dense(torch.float64), u[:, :4] @ torch.diag(s[:4]) @ vh[:4]) < 1e-12
    lost = relative_error(cut.kept.dense(torch.float64), exact)
    assert lost_share([cut]) == pytest.approx(lost, rel=1e-9)
    double = LowRank(torch.cat([whole.left] * 2, 1), torch.cat([whole.right] * 2))
    assert truncated(double).kept.rank == 6  # twice the same directions


@pytest.mark.parametrize("as_adapter", [False, True])
@pytest.mark.parametrize("route", ["core", "dense"])
def test_memory_is_no_more_than_what_is_said(route: Route, as_adapter: bool) -> None:
    method, cpu = parse_options("tsvm", {}), torch.device("cpu")
    for shape in [(64, 64), (768, 768), (1536, 384)]:
        updates = {str(seed): update(shape, 16, seed) for seed in range(3)}
        given = LowRankUpdates("w", updates, dict.fromkeys(updates, 1.0))
        wanted = AsAdapter(None, lambda cut: None) if as_adapter else None
        with PeakMemory(cpu) as peak:
            merge_low_rank(torch.zeros(shape), given, method, route=route, as_adapter=wanted)
        if shape[0] > 64:  # the first loads what every product needs
            said = bytes_to_merge_low_rank(shape, 4, [16] * 3, method, route, as_adapter=as_adapter)
            assert peak.extra <= said


def in_float64(shape: tuple[int, int], rank: int, count: int, seed: int) -> list[LowRank]:
    """Adapters that share the factor A, and with it all directions of the input side."""
    generator = torch.Generator().manual_seed(seed)

    def random(*of: int) -> Tensor:
        return torch.randn(of, generator=generator, dtype=torch.float64)

    right = random(rank, shape[1])
    return [LowRank(random(shape[0], rank), right, 1e-3) for _ in range(count)]


@pytest.mark.parametrize("energy", [0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("shape", [(200, 100), (100, 200), (150, 150), (60, 60)])
def test_a_shared_factor_in_float64_is_shared_on_both_routes(shape: tuple[int, int], count: int, energy: float) -> None:
    """Of the experts' leading directions so many depend on others as there are more than A has rows. Multiplied out in
    float64, up to 12 times what the errors of the vectors explain was left of them, and blown up to full size."""
    method = parse_options("tsvm", {"energy": energy})
    for seed in range(2):
        updates, reports = in_float64(shape, 8, count, seed), list[Any]()

        def merge(tasks: TaskMatrices, reports: list[Any] = reports, count: int = count) -> Tensor:
            update, report = method.merge(tasks, [1.0] * count)
            reports.append(report)
            return update

        core = merged_in_core_space(updates, merge).dense(torch.float64)
        dense = merge(TaskMatrices([each.dense(torch.float64) for each in updates]))
        assert relative_error(core, dense) < 1e-11
        assert reports[0].ranks == reports[1].ranks
        shared = max(0, sum(reports[0].ranks) - 8)
        assert [report.dependent for report in reports] == [(0, shared)] * 2


def test_a_share_of_energy_that_is_held_exactly_asks_for_no_more() -> None:
    """Squares of 2, 1, 1, with errors of a last digit: half of them are in the first."""
    for error in (-2e-16, 0.0, 2e-16):
        values = torch.tensor([2.0 + error, 1.0, 1.0], dtype=torch.float64).sqrt()
        assert rank_for_energy(values, 4.0 - error, 0.5) == 1
        assert rank_for_energy(values, 4.0, 0.5 + 1e-9) == 2
