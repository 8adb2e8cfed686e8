"""Against FusionBench's own implementations, in whose float32 decompositions or steps the differences lie."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.spectral.literal import relative_error
from mergekit_3h.spectral.registry import parse_options
from mergekit_3h.testing.updates import update

pytest.importorskip("fusion_bench")
CPU = torch.device("cpu")


def three(shape: tuple[int, int]) -> list[Tensor]:
    return [update(shape, seed) for seed in range(3)]


def agree(name: str, theirs: Tensor, updates: Sequence[Tensor], **options: object) -> None:
    """Our distance to them is their distance to the oracle."""
    method = parse_options(name, options)
    ours, report = method.merge(TaskMatrices(updates), [1.0] * len(updates))
    oracle = method.literally([each.double() for each in updates], [1.0] * len(updates), report)
    assert oracle is not None
    assert relative_error(ours, oracle) < 1e-6
    assert relative_error(ours, theirs) <= relative_error(theirs, oracle) + 1e-6
    assert relative_error(theirs, oracle) < 1e-2


@pytest.mark.parametrize("fraction", [0.8, 0.5])
@pytest.mark.parametrize("shape", [(64, 64), (96, 48), (48, 96)])
def test_iso_cts(shape: tuple[int, int], fraction: float) -> None:
    from fusion_bench.method.isotropic_merging.iso_utils import iso_cts

    updates = three(shape)
    theirs = iso_cts([{"w": each} for each in updates], common_space_fraction=fraction, accelerator="cpu")["w"]
    agree("iso_cts", theirs, updates, common_fraction=fraction)


@pytest.mark.parametrize("alpha", [1.0, 1 / 3])
@pytest.mark.parametrize("shape", [(64, 64), (96, 48), (48, 96)])
def test_svc(shape: tuple[int, int], alpha: float) -> None:
    from fusion_bench.method.singular_value_calibration.utils import subspace_consistency_spectral_calibration

    updates = three(shape)
    base = torch.zeros(shape)
    theirs = subspace_consistency_spectral_calibration(base, updates, torch.stack(updates).sum(0), alpha, CPU)
    agree("svc", theirs, updates, alpha=alpha)


@pytest.mark.parametrize("shape", [(32, 32), (48, 24)])
def test_swudi_is_where_wudi_would_end(shape: tuple[int, int]) -> None:
    """WUDI's loss, by its own formula, is nowhere lower: at the closed form in all directions its gradient vanishes."""
    updates = three(shape)
    merged, report = parse_options("swudi", {"rank": "noise_edge"}).merge(TaskMatrices(updates), [1.0] * 3)
    assert report.ranks == [min(shape[1], 3 * shape[0])]
    tvs, point = torch.stack(updates).double(), merged.double().requires_grad_()
    norms = tvs.square().sum((1, 2))[:, None, None]

    def loss(at: Tensor) -> Tensor:
        return (((at - tvs) @ tvs.transpose(1, 2)).square() / norms).sum()

    loss(point).backward()
    start = torch.stack(updates).double().sum(0).requires_grad_()
    loss(start).backward()
    assert float(loss(point).detach()) < float(loss(start).detach())
    # The gradient at the minimum, in float32, against where WUDI starts.
    assert float(point.grad.norm()) < 1e-6 * float(start.grad.norm())
