"""``iso_c``: its two ends, what lies between them, and when the noise floor cuts."""

from __future__ import annotations

import logging
import math

import pytest
import torch

from mergekit_3h.kernels.isotropic import IsotropicReport
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.spectral.literal import relative_error
from mergekit_3h.spectral.registry import parse_options
from mergekit_3h.spectral.tensors import merge_tensor
from mergekit_3h.testing.updates import SHAPES, checkpoints, update

WEIGHTS = [1.0, 0.5, -1.5]


def merged(tasks: TaskMatrices, **options: object) -> tuple[torch.Tensor, IsotropicReport]:
    return parse_options("iso_c", options).merge(tasks, WEIGHTS)


def updates(shape: tuple[int, int]) -> tuple[TaskMatrices, torch.Tensor]:
    """Three updates, and their weighted sum in float64."""
    each = [update(shape, seed) for seed in range(3)]
    return TaskMatrices(each), torch.stack([w * u.double() for w, u in zip(WEIGHTS, each, strict=True)]).sum(0)


@pytest.mark.parametrize("shape", SHAPES)
def test_power_1_is_task_arithmetic(shape: tuple[int, int]) -> None:
    tasks, total = updates(shape)
    result, report = merged(tasks, power=1.0)
    assert report.decompositions == ["none"]
    assert relative_error(result, total) < 1e-6
    # and by the decomposition, where it is not left out
    assert relative_error(merged(tasks, power=1 - 1e-12)[0], total) < 1e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_power_0_with_the_mean_is_the_papers_matrix(shape: tuple[int, int]) -> None:
    """mean(S) U V^T, Eq. 9 of the paper."""
    tasks, total = updates(shape)
    u, s, vh = torch.linalg.svd(total, full_matrices=False)
    assert relative_error(merged(tasks, scale="mean")[0], s.mean() * u @ vh) < 1e-6


@pytest.mark.parametrize("scale", ["norm", "mean"])
def test_what_lies_between_is_continuous_and_keeps_its_size(scale: str) -> None:
    tasks, total = updates((40, 16))
    size = torch.linalg.vector_norm if scale == "norm" else torch.linalg.svdvals
    before = None
    for power in (0.0, 0.01, 0.5, 0.51, 0.99, 1.0):
        result = merged(tasks, power=power, scale=scale)[0].double()
        assert float(size(result).sum()) == pytest.approx(float(size(total).sum()), rel=1e-6)
        if before is not None and power - before[0] < 0.02:
            # d log(s^p) / dp = log s, and the singular values span a factor of 20: log 20 = 3.
            assert relative_error(result, before[1]) < 3.0 * (power - before[0])
        before = power, result


@pytest.mark.parametrize(("rank", "is_cut"), [(8, True), (None, False)])
def test_auto_cuts_merged_lora_updates_and_leaves_full_fine_tunings(rank: int | None, is_cut: bool) -> None:
    base = 0.02 * torch.randn(256, 320, generator=torch.Generator().manual_seed(0))
    experts = []
    for seed in range(3):
        u, _, vh = torch.linalg.svd(update(base.shape, seed + 1), full_matrices=False)
        s = torch.arange(1, 257) ** -0.7
        delta = u[:, :rank] @ torch.diag(s[:rank]) @ vh[:rank]
        experts.append((base.bfloat16() + 3e-4 * delta / delta.square().mean().sqrt()).bfloat16())
    tasks = TaskMatrices(experts, base.bfloat16())
    _, off = merged(tasks, noise_floor="off")
    _, on = merged(tasks, noise_floor="on")
    _, auto = merged(tasks)
    assert off.ranks == [256] and off.under_edge is None and off.noise_edges == [0.0] * 3
    assert on.ranks[0] < 256 and all(edge > 0 for edge in on.noise_edges)
    assert auto.under_edge is not None and (auto.under_edge < 1.4) == is_cut
    assert auto.ranks == (on.ranks if is_cut else off.ranks)
    if rank is not None:
        assert on.ranks == [3 * rank]
    # float32 numbers that were rounded to bfloat16 once are recognised by their bits, real float32 ones have no edge.
    _, loaded = merged(TaskMatrices([expert.float() for expert in experts], base.bfloat16().float()))
    assert loaded.ranks == auto.ranks
    _, exact = merged(TaskMatrices([expert.float() + 1e-5 * base for expert in experts], base))
    assert exact.noise_edges == [0.0] * 3


@pytest.mark.parametrize("method", ["iso_c", "iso_cts"])
def test_directions_under_the_edge_of_the_sum_do_not_make_a_lora_a_full_fine_tuning(method: str) -> None:
    """Of every expert 24 directions lie between its own edge, 1.1e-3, and that of the sum, 2.0e-3."""
    base = (0.02 * torch.randn(256, 320, generator=torch.Generator().manual_seed(0))).bfloat16()
    experts = []
    for seed in (1, 2, 3):
        generator = torch.Generator().manual_seed(seed)
        left, right = (torch.linalg.qr(torch.randn(side, 32, generator=generator))[0] for side in base.shape)
        experts.append((base.float() + left @ torch.diag(torch.tensor([0.1] * 8 + [1.3e-3] * 24)) @ right.T).bfloat16())
    _, report = parse_options(method, {}).merge(TaskMatrices(experts, base), [1.0] * 3)
    assert report.under_edge is not None and report.under_edge < 1.2
    assert sum(report.ranks) < 100
    # An expert that was not rounded has what lies under the edge of the others for its update.
    mixed = [experts[0].float() + 1e-4 * base.float() * torch.rand(256, 320), *(each.float() for each in experts[1:])]
    _, report = parse_options(method, {}).merge(TaskMatrices(mixed, base.float()), [1.0] * 3)
    assert report.noise_edges[0] == 0.0 and report.under_edge == math.inf
    # One that says nothing, of weight 0 or equal to the base, has no say.
    silent = TaskMatrices([experts[0], base, mixed[0]], base)
    _, report = parse_options(method, {}).merge(silent, [1.0, 1.0, 0.0])
    assert report.under_edge is not None and report.under_edge < 1.2


def test_after_the_first_full_fine_tuning_nobody_else_is_asked() -> None:
    base = (0.02 * torch.randn(96, 80, generator=torch.Generator().manual_seed(0))).bfloat16()

    def expert(delta: torch.Tensor, rms: float) -> torch.Tensor:
        return (base.float() + rms * delta / delta.square().mean().sqrt()).bfloat16()

    lora = expert(update((96, 4), 4) @ update((4, 80), 5), 1e-3)
    small, large = (expert(update((96, 80), 6), rms) for rms in (3e-4, 1.5e-4))

    def asked(*experts: torch.Tensor) -> float:
        weights = [1.0] * len(experts)
        found = parse_options("iso_c", {}).merge(TaskMatrices(experts, base), weights)[1].under_edge
        assert found is not None
        return found

    assert asked(lora) < 1.4 < asked(small) < asked(large)
    assert asked(small, large) == asked(small, lora) == asked(small)
    assert asked(lora, small, large) == asked(lora, large) == asked(large)


def test_magnified_noise_is_said(caplog: pytest.LogCaptureFixture) -> None:
    base, experts = checkpoints((24, 24), 1, torch.float64)
    u, s, vh = torch.linalg.svd(experts["expert0"] - base)
    s[-1] = 1e-5 * s[0]
    steep = {"expert0": base + u @ torch.diag(s) @ vh}
    with caplog.at_level(logging.INFO, "mergekit_3h"):
        merge_tensor("w", base, steep, {"expert0": 1.0}, parse_options("iso_c", {}))
        assert "w: the smallest direction of the sum is magnified 1.0e+05 times" in caplog.text
        caplog.clear()
        merge_tensor("w", base, steep, {"expert0": 1.0}, parse_options("iso_c", {"power": 0.9}))
        assert caplog.text == ""


@pytest.mark.parametrize(("given", "stands_for"), [(True, "on"), (False, "off"), ("auto", "auto")])
def test_yaml_reads_on_and_off_as_booleans(given: object, stands_for: str) -> None:
    assert parse_options("iso_c", {"noise_floor": given}).noise_floor == stands_for


@pytest.mark.parametrize("shape", [(64, 64), (96, 48), (48, 96)])
def test_the_same_as_fusion_benchs_own(shape: tuple[int, int], capsys: pytest.CaptureFixture[str]) -> None:
    peer = pytest.importorskip("fusion_bench.method.isotropic_merging.iso_utils")
    each = [update(shape, seed) for seed in range(3)]
    theirs = peer.iso_c([{"w": delta} for delta in each], accelerator="cpu")["w"]
    method = parse_options("iso_c", {"scale": "mean"})
    ours, report = method.merge(TaskMatrices(each), [1.0] * 3)
    oracle = method.literally([delta.double() for delta in each], [1.0] * 3, report)
    # Our distance to them is their distance to the oracle, which float32 SVDs leave.
    assert relative_error(ours, theirs) <= relative_error(theirs, oracle) + 1e-6
    assert relative_error(theirs, oracle) < 1e-2


@pytest.mark.parametrize("smallest", [1.0, 1e-2, 1e-6])
@pytest.mark.parametrize(("method", "ranks"), [("iso_c", [15]), ("iso_cts", [0, 0, 0, 15])])
def test_a_sum_of_low_rank_in_float64_has_no_more_directions(method: str, ranks: list[int], smallest: float) -> None:
    """Its numbers explain next to nothing of what a Gram matrix leaves where the sum is nothing."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    values = torch.logspace(0, math.log10(smallest), 5, dtype=torch.float64)
    each = [random(60, 5) * values @ random(5, 40) for _ in range(3)]
    _, report = parse_options(method, {}).merge(TaskMatrices(each), [1.0] * 3)
    assert report.ranks == ranks


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(96, 96), (128, 48), (48, 128)])
def test_low_rank_merged_into_float32_has_no_more_directions(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Rows of a base differ in size, and the last digits of what was added to it in float32 with them. Numbers of that
    file in float64 have no more digits."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.logspace(-1, 0.5, shape[0]).unsqueeze(1)
    base = rows * torch.randn(shape, generator=generator)
    pairs = [torch.randn(2, max(shape), 4, generator=generator) for _ in range(3)]
    experts = [base + 1e-3 * left[: shape[0]] @ right[: shape[1]].T for left, right in pairs]
    for method, ranks in (("iso_c", [12]), ("iso_cts", [0, 0, 0, 12])):
        tasks = TaskMatrices([expert.to(dtype) for expert in experts], base.to(dtype))
        assert parse_options(method, {}).merge(tasks, [1.0] * 3)[1].ranks == ranks
