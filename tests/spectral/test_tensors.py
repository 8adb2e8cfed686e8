"""One tensor of any kind: shapes, exclusions, dtypes, rounding, and the errors that name model and tensor."""

from __future__ import annotations

import logging

import pytest
import torch
from kernels.oracle import merge_truncated, relative

from mergekit_3h.errors import TensorError
from mergekit_3h.spectral.name_patterns import matches
from mergekit_3h.spectral.registry import parse_options
from mergekit_3h.spectral.tensors import MOST_EXTRA, matrix_bytes, merge_tensor, tensor_components


def merged(
    base: torch.Tensor,
    experts: list[torch.Tensor],
    weights: list[float] | None = None,
    *,
    name: str = "w",
    **options: object,
) -> torch.Tensor:
    labels = [f"expert{i}" for i in range(len(experts))]
    factors = dict(zip(labels, weights or [1.0] * len(experts), strict=True))
    method = str(options.pop("method", "tsvm"))
    return merge_tensor(name, base, dict(zip(labels, experts, strict=True)), factors, parse_options(method, options))


def family(shape: tuple[int, ...], n: int = 3) -> tuple[torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(7)
    base = torch.randn(shape, generator=generator)
    return base, [base + 0.1 * torch.randn(shape, generator=generator) for _ in range(n)]


@pytest.mark.parametrize("shape", [(12,), (), (5, 3, 2, 2), (16, 1, 4), (40, 8, 3)])
def test_what_is_no_matrix_gets_the_weighted_mean_of_the_updates(shape: tuple[int, ...]) -> None:
    """Biases, scalars and convolutions; a depthwise one has three dimensions but no matrices worth the name."""
    base, experts = family(shape)
    weights = [1.0, 2.0, 0.5]
    expected = base + sum(w * (e.double() - base) for w, e in zip(weights, experts, strict=True)) / 3
    assert torch.allclose(merged(base, experts, weights), expected.float(), atol=1e-6)


@pytest.mark.parametrize("count", [4, 64])
def test_fused_experts_are_merged_matrix_by_matrix(count: int) -> None:
    """In turn, or side by side where the tensor is large beside what one of its matrices needs."""
    base, experts = family((count, 16, 12))
    room = MOST_EXTRA * 4 * base.nbytes - base.nbytes
    need = matrix_bytes(base.shape, torch.float32, 3, parse_options("tsvm", {}))
    assert (2 * need < room) == (count > 4)
    result = merged(base, experts)
    for i in range(count):
        single = merged(base[i], [expert[i] for expert in experts])
        assert torch.equal(result[i], single)


def test_excluded_tensors_are_averaged() -> None:
    base, experts = family((20, 10))
    mean = base + sum(expert.double() - base for expert in experts) / 3
    name = "model.embed_tokens.weight"
    assert torch.allclose(merged(base, experts, name=name, exclude="lm_head, embed_tokens"), mean.float(), atol=1e-6)
    assert not torch.allclose(merged(base, experts, name=name, exclude="lm_head"), mean.float(), atol=1e-3)


@pytest.mark.parametrize(
    ("pattern", "hit"),
    [
        ("", False),
        ("embed", True),
        ("layers.1.", False),
        ("*.weight", True),
        ("*.weigh", False),
        ("model.*_tokens.weight", True),
        ("model.embed?tokens.weight", True),
        (" lm_head , embed_tokens ", True),
        ("lm_head,,", False),
    ],
)
def test_exclude_patterns(pattern: str, hit: bool) -> None:
    assert matches("model.embed_tokens.weight", pattern) is hit


def test_lambda_scales_the_update_of_every_kind_of_tensor() -> None:
    for shape in ((20, 10), (10,)):
        base, experts = family(shape)
        full = merged(base, experts) - base
        half = merged(base, experts, **{"lambda": 0.5}) - base
        # Differences of float32 numbers near 1: each is off by up to 6e-8.
        assert torch.allclose(half, 0.5 * full, atol=5e-7)


def test_the_result_is_rounded_once_to_the_promoted_dtype() -> None:
    base, experts = family((30, 20))
    base16, experts16 = base.bfloat16(), [expert.bfloat16() for expert in experts]
    exact = base16.double() + merge_truncated([e.double() - base16.double() for e in experts16], [6] * 3, [1.0] * 3)
    result = merged(base16, experts16, noise_floor="off")
    assert result.dtype == torch.bfloat16
    # float32 holds 16 more bits than bfloat16: rounding twice may differ in one of 2^15 ties, not in 600 numbers.
    assert torch.equal(result, exact.bfloat16())
    assert merged(base16, [experts16[0], experts[1]]).dtype == torch.float32


def test_an_expert_of_weight_zero_adds_nothing_but_keeps_its_place() -> None:
    base, experts = family((30, 20), n=2)
    result = merged(base, experts, [1.0, 0.0])
    shares = tensor_components("w", base, {"a": experts[0], "b": experts[1]}, parse_options("tsvm", {}))
    assert relative(result - base, shares["a"].dense()) < 1e-5
    assert shares["a"].products[0][0].shape == (30, 10)  # half of the rank: the other half is the second expert's


def test_components_add_up_for_every_kind_of_tensor() -> None:
    for shape in ((20, 10), (4, 16, 12), (10,)):
        base, experts = family(shape)
        base = base.double()
        labelled = {str(i): expert.double() for i, expert in enumerate(experts)}
        weights = {"0": 0.3, "1": -1.0, "2": 2.0}
        options = parse_options("rtsvm", {"lambda": 0.7})
        whole = merge_tensor("w", base, labelled, weights, options)
        shares = tensor_components("w", base, labelled, options)
        assert shares["0"].dense().shape == shape
        total = sum(weights[label] * share.dense() for label, share in shares.items())
        assert relative(total, whole - base) < 1e-10


def test_an_empty_tensor_stays_empty() -> None:
    assert merged(torch.zeros(0, 4), [torch.zeros(0, 4)]).shape == (0, 4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_non_finite_weight_names_model_and_tensor(bad: float) -> None:
    base, experts = family((20, 10))
    experts[1][3, 4] = bad
    with pytest.raises(TensorError, match=r"'w' of expert1 holds NaN or infinity"):
        merged(base, experts)
    base[0, 0] = bad
    with pytest.raises(TensorError, match=r"'w' of the base model"):
        merged(base, [experts[0]])


def test_a_shape_mismatch_names_every_model() -> None:
    base, experts = family((20, 10))
    experts[2] = experts[2][:19]
    with pytest.raises(TensorError, match=r"'w'.*the base model: \(20, 10\).*expert2: \(19, 10\)"):
        merged(base, experts)


def test_scaled_8_bit_numbers_are_refused() -> None:
    base = torch.ones(4, 4).to(torch.float8_e4m3fn)
    with pytest.raises(TensorError, match=r"'w' of the base model holds torch.float8_e4m3fn, .* 16 bits"):
        merged(base, [base])


def test_integers_are_refused() -> None:
    with pytest.raises(TensorError, match=r"torch.int64"):
        merged(torch.ones(2, 2), [torch.ones(2, 2, dtype=torch.int64)])


def test_a_fully_sparse_layer_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    base, experts = family((20, 10))
    with caplog.at_level(logging.WARNING, "mergekit_3h"):
        merged(base, experts, method="rtsvm", epsilon_mode="absolute", epsilon=100.0)
    assert "w: sparsity Omega = 1.000" in caplog.text
    caplog.clear()
    merged(base, experts, method="rtsvm")
    assert caplog.text == ""


@pytest.mark.parametrize("exclude", ["", "w"])
def test_a_float64_base_keeps_its_digits_among_float32_experts(exclude: str) -> None:
    base, experts = family((20, 10))
    base = base.double() + 1e-10
    result = merged(base, experts, exclude=exclude, **{"lambda": 0.0})
    assert torch.equal(result, base)
