"""The layer gate: which updates leave what alignment changed, and what becomes of them."""

from __future__ import annotations

import itertools
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mergekit_3h.diagnostics.record import watcher
from mergekit_3h.errors import OptionError, TensorError
from mergekit_3h.kernels.isotropic import Isotropy, merge_isotropic
from mergekit_3h.kernels.layer_gate import MixedTasks, alignment_cosines
from mergekit_3h.kernels.noise_floors import task_edges
from mergekit_3h.kernels.remainders import ROUNDING_ALONE
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.spectral.gate import Roles, roles_of
from mergekit_3h.spectral.literal import relative_error
from mergekit_3h.spectral.registry import methods, parse_options
from mergekit_3h.spectral.tensors import merge_tensor
from mergekit_3h.testing.updates import SHAPES, low_rank, normal, update

PROMISE = 1e-6
ROLES = Roles(["math", "code"], "unaligned", "safety")
SUM = {"power": 1.0, "noise_floor": "off"}
"""Options of iso_c that make it the weighted sum."""


def by_loops(aligned: Tensor, unaligned: Tensor, delta: Tensor) -> float:
    """The cosine from the paper's C, with the flattened matrices, in float64 and one singular direction at a time:
    C only scales what delta has along each left singular vector of V."""
    u, s, _ = torch.linalg.svd(aligned.double() - unaligned.double(), full_matrices=True)
    squares = torch.zeros(u.shape[0], dtype=torch.float64)
    squares[: s.numel()] = s.square()
    lengths = [float((u[:, r] @ delta.double()).square().sum()) for r in range(u.shape[0])]
    along = sum(float(square) * length for square, length in zip(squares, lengths, strict=True))
    turned = sum(float(square) ** 2 * length for square, length in zip(squares, lengths, strict=True))
    return along / (turned * sum(lengths)) ** 0.5


def models(shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> tuple[Tensor, dict[str, Tensor]]:
    """A base, two experts, and what it was aligned from: ``math`` goes the way of alignment, ``code`` none of it."""
    base, rows, columns = 0.02 * normal(shape, 77), *shape
    aligned = torch.zeros_like(base)
    aligned[: rows // 2] = update((rows // 2, columns), 5)
    away = torch.zeros_like(base)
    away[rows // 2 :] = update((rows - rows // 2, columns), 6)
    of = {
        "math": base + aligned + 0.1 * away,
        "code": base + away + 0.05 * update(shape, 7),
        "unaligned": base - aligned,
        "safety": base + update(shape, 8),
    }
    return base.to(dtype), {name: tensor.to(dtype) for name, tensor in of.items()}


def gated(shape: tuple[int, int] = (24, 16), method: str = "iso_c", roles: Roles = ROLES, **options: Any) -> Tensor:
    """The merged update."""
    base, given = models(shape, torch.float64)
    there = {name: given[name] for name in [*roles.experts, *roles.others]}
    weights = dict.fromkeys(roles.experts, 1.0)
    chosen = parse_options(method, options or SUM)
    return merge_tensor("w", base, there, weights, chosen, roles=roles) - base


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [*SHAPES, (1, 9), (9, 1), (300, 20), (20, 1100)])
def test_the_cosine_is_the_papers(shape: tuple[int, int], dtype: torch.dtype) -> None:
    base, given = (0.02 * normal(shape, 1)).to(dtype), [normal(shape, seed).to(dtype) for seed in range(2, 5)]
    unaligned, *experts = given
    found, is_aligned = alignment_cosines(unaligned, experts, base)
    expected = [by_loops(base, unaligned, expert.double() - base.double()) for expert in experts]
    assert is_aligned and found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("shape", [(40, 16), (16, 40)])
def test_bits_of_the_cosine_do_not_depend_on_the_number_of_threads(shape: tuple[int, int]) -> None:
    rows, columns = 60 * shape[0], 20 * shape[1]
    base, unaligned, expert = (normal((rows, columns), seed) for seed in range(3))
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(alignment_cosines(unaligned, [expert], base))
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1]


def test_an_update_within_what_alignment_changed_is_kept_and_one_beside_it_is_gated() -> None:
    base, given = models((24, 16), torch.float64)
    cosines, _ = alignment_cosines(given["unaligned"], [given["math"], given["code"]], base)
    assert cosines[0] > 0.7 > 0.35 > cosines[1]
    delta = {name: tensor - base for name, tensor in given.items()}
    expected = delta["math"] + 0.8 * delta["code"] + 0.2 * delta["safety"]
    assert relative_error(gated(), expected) < 1e-12
    assert relative_error(gated(**SUM, gate_share=1.0), delta["math"] + delta["safety"]) < 1e-12
    assert relative_error(gated(**SUM, gate_threshold=0.0), delta["math"] + delta["code"]) < 1e-12
    both = 0.8 * (delta["math"] + delta["code"]) + 0.4 * delta["safety"]
    assert relative_error(gated(**SUM, gate_threshold=1.0), both) < 1e-12


def test_without_a_safety_model_a_gated_update_is_made_smaller() -> None:
    base, given = models((24, 16), torch.float64)
    roles = Roles(["math", "code"], "unaligned")
    expected = given["math"] - base + 0.8 * (given["code"] - base)
    assert relative_error(gated(roles=roles), expected) < 1e-12
    assert relative_error(gated(roles=roles, **SUM, gate_share=1.0), given["math"] - base) < 1e-12


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", list(methods()))
def test_every_method_merges_what_the_gate_leaves(name: str, shape: tuple[int, int]) -> None:
    """Against the same merge of experts that were mixed by hand, in float64 throughout."""
    base, given = models(shape, torch.float64)
    by_hand = {"math": given["math"], "code": 0.8 * given["code"] + 0.2 * given["safety"]}
    expected = merge_tensor("w", base, by_hand, dict.fromkeys(by_hand, 1.0), parse_options(name, {})) - base
    assert relative_error(gated(shape, name, gate_share=0.2), expected) < (PROMISE)


def test_of_16_bits_the_noise_floor_is_that_of_both_roundings() -> None:
    base, given = models((160, 128), torch.bfloat16)
    experts = [given["math"], given["code"]]
    alone = task_edges(MixedTasks(experts, base, [], 0.2, given["safety"]), "auto")
    safe = task_edges(MixedTasks([given["safety"]], base, [], 0.2, None), "auto")[0]
    mixed = task_edges(MixedTasks(experts, base, [1], 0.2, given["safety"]), "auto")
    assert mixed[0] == alone[0] > 0
    assert mixed[1] == pytest.approx(((0.8 * alone[1]) ** 2 + (0.2 * safe) ** 2) ** 0.5)
    without = task_edges(MixedTasks(experts, base, [1], 0.2, None), "auto")
    assert without[1] == pytest.approx(0.8 * alone[1])


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("has_safety", [False, True])
def test_a_gated_full_fine_tuning_is_not_taken_for_rounding(share: float, has_safety: bool) -> None:
    """Made smaller it lies under its roundings' edge more than before, and the gate is no reason to cut it."""
    shape = (200, 150)
    base = (0.02 * normal(shape, 1)).bfloat16()

    def tuned(seed: int) -> Tensor:
        left, right = (torch.linalg.qr(normal((side, 150), 10 * seed + side)).Q for side in shape)
        delta = left * torch.arange(1, 151) ** -0.5 @ right.T
        return (base + 1e-4 * delta / delta.square().mean().sqrt()).bfloat16()

    experts, safety = [tuned(2), tuned(3)], tuned(4) if has_safety else None
    how, mixture = Isotropy(0.0, "norm", "auto"), MixedTasks(experts, base, [0, 1], share, safety)
    alone, mixed = (merge_isotropic(tasks, [1.0, 1.0], how)[1] for tasks in (TaskMatrices(experts, base), mixture))
    assert alone.under_edge is not None and alone.under_edge > ROUNDING_ALONE and alone.ranks == [150]
    if share == 1.0 and safety is None:
        assert mixed.under_edge is None and mixed.ranks == [0]
    else:
        assert mixed.under_edge == pytest.approx(alone.under_edge, rel=0.1) and mixed.ranks == [150]


def test_a_gated_lora_expert_of_16_bits_keeps_its_rank() -> None:
    shape = (160, 128)
    base = (0.02 * normal(shape, 1)).bfloat16()
    experts = [(base.float() + low_rank(shape, 4, seed)).bfloat16() for seed in range(3)]
    tasks = MixedTasks(experts[:2], base, [0, 1], 0.25, experts[2])
    _, report = parse_options("tsvm", {}).merge(tasks, [1.0, 1.0])
    assert report.ranks == [8, 8]  # its own directions and the safety model's


def test_fused_experts_are_gated_one_by_one() -> None:
    pairs = [models((24, 16), torch.float64), models((24, 16), torch.float64)]
    swapped = {**pairs[1][1], "math": pairs[1][1]["code"], "code": pairs[1][1]["math"]}
    base = torch.stack([pairs[0][0], pairs[1][0]])
    given = {name: torch.stack([pairs[0][1][name], swapped[name]]) for name in swapped}
    seen: list[Any] = []
    method, weights = parse_options("tsvm", {}), {"math": 1.0, "code": 1.0}
    result = merge_tensor("w", base, given, weights, method, roles=ROLES, watch=seen.append)
    assert sorted((each.name, each.gate.gated) for each in seen) == [("w[0]", [False, True]), ("w[1]", [True, False])]
    assert relative_error(result[0] - base[0], gated((24, 16), "tsvm", gate_share=0.2)) < 1e-9


@pytest.mark.parametrize(("name", "options"), [("norm", {}), ("w", {"exclude": "w"})])
def test_what_is_averaged_is_not_gated(name: str, options: dict[str, Any]) -> None:
    base, given = models((24, 16), torch.float64)
    if name == "norm":
        base, given = base[0], {label: tensor[0] for label, tensor in given.items()}
    weights = {"math": 1.0, "code": 0.5}
    result = merge_tensor(name, base, given, weights, parse_options("tsvm", options), roles=ROLES)
    mean = (given["math"] - base + 0.5 * (given["code"] - base)) / 2
    assert relative_error(result - base, mean) < 1e-12


def test_a_kept_tensor_is_the_bases() -> None:
    base, given = models((24, 16))
    method = parse_options("tsvm", {"keep_base": "w"})
    assert torch.equal(merge_tensor("w", base, given, dict.fromkeys(ROLES.experts, 1.0), method, roles=ROLES), base)


def test_where_alignment_changed_nothing_every_update_is_gated_and_none_of_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    base, given = models((24, 16), torch.float64)
    given |= {"unaligned": base.clone(), "code": base.clone()}
    seen: list[Any] = []
    weights, method = dict.fromkeys(ROLES.experts, 1.0), parse_options("iso_c", SUM)
    with caplog.at_level(logging.INFO, "mergekit_3h.spectral.gate"):
        result = merge_tensor("w", base, given, weights, method, roles=ROLES, watch=seen.append)
    assert seen[0].gate.gate_cosines == [0.0, None] and seen[0].gate.gated == [True, False]
    expected = 0.8 * (given["math"] - base) + 0.2 * (given["safety"] - base)
    assert relative_error(result - base, expected) < 1e-12
    assert "w: updates below the gate's threshold 0.35 are replaced" in caplog.text
    assert "math (0.000); alignment did not change it" in caplog.text


def test_an_update_of_no_alignment_measures_by_the_spectrum_of_alignment() -> None:
    """The page says it: mean over root mean square of the squared singular values of V."""
    base, unaligned = torch.zeros(400, 400), normal((400, 400), 1)
    [cosine], _ = alignment_cosines(unaligned, [normal((400, 400), 2)], base)
    squares = torch.linalg.svdvals(unaligned.double()).square()
    assert cosine == pytest.approx(float(squares.mean() / squares.square().mean().sqrt()), rel=0.01)
    assert cosine == pytest.approx(0.71, abs=0.01)


def test_the_record_says_what_was_gated(tmp_path: Path) -> None:
    base, given = models((24, 16))
    method = parse_options("tsvm", {"record": str(tmp_path)})
    watch = watcher(method, ROLES.experts)
    weights = dict.fromkeys(ROLES.experts, 1.0)
    merge_tensor("w", base, given, weights, method, roles=ROLES, watch=watch)
    head, line = map(json.loads, (tmp_path / "record.jsonl").read_text().splitlines())
    assert head["models"] == ["math", "code"]
    assert line["gated"] == [False, True] and line["gate_cosines"][0] > 0.35 > line["gate_cosines"][1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a": "unaligned", "b": "unaligned", "c": "expert"}, "'role': a and b are both unaligned; expected one model"),
        ({"a": "safety", "b": "expert"}, "'role': a is safety, but no model is unaligned"),
        ({"a": "safety", "b": "unaligned"}, "'role': no model is left to merge; a, b are all compared with"),
    ],
)
def test_roles_that_do_not_go_together_are_refused(given: dict[str, str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        roles_of(given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gate_threshold": 1.5}, r"'gate_threshold': got 1.5; input should be less than or equal to 1"),
        ({"gate_threshold": -0.1}, r"'gate_threshold': got -0.1"),
        ({"gate_share": 0}, r"'gate_share': got 0; input should be greater than 0"),
        ({"gate_treshold": 0.5}, r"did you mean 'gate_threshold'\?"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        parse_options("tsvm", options)


def test_a_threshold_without_a_gate_is_refused() -> None:
    base, given = models((24, 16))
    with pytest.raises(OptionError, match=r"'gate_threshold': got 0.4, but no model has role: unaligned"):
        merge_tensor("w", base, given, dict.fromkeys(given, 1.0), parse_options("tsvm", {"gate_threshold": 0.4}))


@pytest.mark.parametrize(("label", "problem"), itertools.product(["unaligned", "safety"], ["nan", "shape"]))
def test_models_that_are_compared_with_are_checked_like_experts(label: str, problem: str) -> None:
    base, given = models((24, 16))
    if problem == "nan":
        given[label][3, 4] = float("nan")
    else:
        given[label] = torch.cat([given[label], given[label][:1]])
    message = f"'w' of {label} holds NaN" if problem == "nan" else rf"'w' has different shapes: .*{label}: \(25, 16\)"
    with pytest.raises(TensorError, match=message):
        merge_tensor("w", base, given, dict.fromkeys(given, 1.0), parse_options("tsvm", {}), roles=ROLES)
