"""How far the experts' singular vectors are decorrelated: from the paper's polar factor to not at all."""

from __future__ import annotations

import pytest
import torch

from mergekit_3h.kernels.assembly import Report
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.spectral.literal import relative_error
from mergekit_3h.spectral.registry import parse_options
from mergekit_3h.testing.updates import SHAPES, update


def merged(method: str, updates: list[torch.Tensor], **options: object) -> tuple[torch.Tensor, Report]:
    return parse_options(method, options).merge(TaskMatrices(updates), [1.0] * len(updates))


def sum_of_truncations(updates: list[torch.Tensor], report: Report) -> torch.Tensor:
    total = torch.zeros(updates[0].shape, dtype=torch.float64)
    for each, rank, alpha in zip(updates, report.ranks, report.outlier_weights, strict=True):
        u, s, vh = torch.linalg.svd(each.double(), full_matrices=False)
        total += alpha * u[:, :rank] @ torch.diag(s[:rank]) @ vh[:rank]
    return total


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", ["tsvm", "rtsvm"])
def test_a_large_tau_gives_the_sum_of_the_truncations(method: str, shape: tuple[int, int], count: int) -> None:
    updates = [update(shape, seed) for seed in range(count)]
    result, report = merged(method, updates, decorrelation=1e6)
    # (1 + tau)^(1/2) (G + tau)^(-1/2) = I + (I - G) / 2 tau, and |I - G| is below the number of experts.
    assert relative_error(result, sum_of_truncations(updates, report)) < count * 1e-6
    assert max(report.conditions) < 1 + 1e-5


@pytest.mark.parametrize("shape", SHAPES)
def test_one_side_alone_is_what_it_says(shape: tuple[int, int]) -> None:
    """The output side of a matrix is the input side of its transpose."""
    updates = [update(shape, seed) for seed in range(3)]
    transposed = [each.T.contiguous() for each in updates]
    output, report = merged("tsvm", updates, decorrelation_sides="output")
    input_, other = merged("tsvm", transposed, decorrelation_sides="input")
    assert relative_error(output, input_.T) < 1e-7
    assert report.conditions[0] > 1 and report.conditions[1] == 1.0
    assert report.conditions == pytest.approx(tuple(reversed(other.conditions)), rel=1e-9)
    both, _ = merged("tsvm", updates)
    assert relative_error(output, both) > 0.01


def test_softer_decorrelation_magnifies_less() -> None:
    updates = [update((24, 24), seed) for seed in range(3)]
    conditions = [max(merged("tsvm", updates, decorrelation=tau)[1].conditions) for tau in (0.0, 0.01, 0.1, 1.0)]
    assert conditions == sorted(conditions, reverse=True)
    # The largest eigenvalue of the Gram matrix is at most the number of experts, the smallest at least 0.
    assert conditions[2] <= ((3 + 0.1) / 0.1) ** 0.5


def test_tau_goes_to_the_polar_factor_without_a_jump() -> None:
    updates = [update((40, 16), seed) for seed in range(3)]
    exact, _ = merged("tsvm", updates)
    for tau in (1e-6, 1e-9, 1e-12):
        assert relative_error(merged("tsvm", updates, decorrelation=tau)[0], exact) < 10 * tau**0.5 + 1e-7
