"""What every spectral method must do, as tests: inherit ``SpectralContract`` and say which method.

    class TestMine(SpectralContract):
        @pytest.fixture
        def method(self) -> SpectralMethod:
            return parse_options("mine", {})

The method has to be registered, since both hosts are asked for it by name.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from mergekit_3h.errors import OptionError, TensorError
from mergekit_3h.kernels.core_space import merged_in_core_space
from mergekit_3h.kernels.tasks import BLOCK_ROWS, TaskMatrices
from mergekit_3h.spectral import registry
from mergekit_3h.spectral.literal import relative_error
from mergekit_3h.spectral.method import SpectralMethod
from mergekit_3h.spectral.tensors import merge_tensor
from mergekit_3h.testing.memory_taken import BLAS_BUFFERS, memory_taken
from mergekit_3h.testing.updates import SHAPES, checkpoints, factors, low_rank, update

COUNTS = [1, 2, 3, 8]

PROMISE = 1e-6
"""Of the kernels, against a float64 oracle; rounding the result to float32 costs 3e-8 of it."""

ONE_ULP = 1e-5
"""How far one unit in the last place of float32 inputs (1.2e-7) may move a merge that is well defined."""


class SpectralContract:
    """The tests. ``method`` is an instance; a suite may run them for several."""

    @pytest.fixture
    def method(self) -> SpectralMethod:
        pytest.fail("override the fixture `method` with the method to test")

    def test_options_are_described_and_have_defaults(self, method: SpectralMethod) -> None:
        assert registry.parse_options(method.name, {}).name == type(method).name
        assert method.title and method.paper.startswith("https://")
        for name, field in type(method).model_fields.items():
            assert field.description and field.description.endswith("."), name

    @pytest.mark.parametrize("count", COUNTS)
    @pytest.mark.parametrize("shape", SHAPES)
    def test_full_rank_updates_merge_as_the_formula_says(
        self, method: SpectralMethod, shape: tuple[int, int], count: int
    ) -> None:
        updates = [update(shape, seed) for seed in range(count)]
        weights = [1.0, 0.5, 1.5, *[1.0] * count][:count]
        merged, report = method.merge(TaskMatrices(updates), weights)
        assert merged.shape == shape and merged.dtype == torch.float32
        expected = method.literally([each.double() for each in updates], weights, report)
        if expected is None:
            pytest.skip(f"{method.name} has no literal form under these options")
        assert relative_error(merged, expected) < PROMISE

    def test_float64_updates_keep_their_digits(self, method: SpectralMethod) -> None:
        updates = [update((40, 16), seed).double() for seed in range(3)]
        merged, report = method.merge(TaskMatrices(updates), [1.0] * 3)
        assert merged.dtype == torch.float64
        expected = method.literally(updates, [1.0] * 3, report)
        assert expected is None or relative_error(merged, expected) < 1e-9

    def test_the_report_holds_plain_values(self, method: SpectralMethod) -> None:
        _, report = method.merge(TaskMatrices([update((24, 16), seed) for seed in range(3)]), [1.0] * 3)
        assert dataclasses.is_dataclass(report) and not isinstance(report, type)
        assert json.dumps(dataclasses.asdict(report))
        for level, sentence in method.remarks(report):
            assert isinstance(level, int) and sentence

    def test_a_linear_method_is_the_weighted_sum_of_its_components(self, method: SpectralMethod) -> None:
        tasks = TaskMatrices([update((24, 40), seed).double() for seed in range(3)])
        if not method.is_linear:
            with pytest.raises(OptionError, match=method.name):
                method.components(tasks)
            return
        weights = [0.7, 0.0, -1.5]
        shares = method.components(tasks)
        total = torch.stack([w * left @ right for w, (left, right) in zip(weights, shares, strict=True)]).sum(0)
        assert relative_error(total, method.merge(tasks, weights)[0]) < 1e-9

    @pytest.mark.parametrize("shape", SHAPES)
    def test_held_components_sum_up_to_the_merge_where_they_are_held(
        self, method: SpectralMethod, shape: tuple[int, int]
    ) -> None:
        tasks, weights = TaskMatrices([update(shape, seed).double() for seed in range(3)]), [0.7, 0.2, -1.5]
        if not method.has_held_components:
            with pytest.raises(OptionError, match=method.name):
                method.held_components(tasks, weights)
            return
        shares = method.held_components(tasks, weights)
        total = torch.stack([w * left @ right for w, (left, right) in zip(weights, shares, strict=True)]).sum(0)
        assert relative_error(total, method.merge(tasks, weights)[0]) < 1e-9

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("count", [1, 3])
    def test_no_updates_give_no_update(self, method: SpectralMethod, shape: tuple[int, int], count: int) -> None:
        merged, _ = method.merge(TaskMatrices([torch.zeros(shape)] * count), [1.0] * count)
        assert torch.equal(merged, torch.zeros(shape))

    @pytest.mark.parametrize("shape", SHAPES)
    def test_identical_experts_give_a_merge_that_stands_still(
        self, method: SpectralMethod, shape: tuple[int, int]
    ) -> None:
        _require_still(method, [update(shape, 1)] * 3)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_a_rank_below_what_the_method_takes_stands_still(
        self, method: SpectralMethod, shape: tuple[int, int]
    ) -> None:
        """Null-space vectors are arbitrary: a method that took them in would move by tens of percent."""
        _require_still(method, [low_rank(shape, 2, seed) for seed in range(3)])

    @pytest.mark.parametrize("shape", SHAPES)
    def test_a_zero_update_among_others_stands_still(self, method: SpectralMethod, shape: tuple[int, int]) -> None:
        _require_still(method, [low_rank(shape, 3, 0), torch.zeros(shape), low_rank(shape, 3, 1)])

    @pytest.mark.parametrize("shape", SHAPES)
    def test_low_rank_updates_merge_alike_in_their_core_space(
        self, method: SpectralMethod, shape: tuple[int, int]
    ) -> None:
        if not method.is_equivariant:
            pytest.skip(f"{method.name} does not say that it turns with its inputs under these options")
        updates = [factors(shape, rank, seed) for seed, rank in enumerate([4, 0, 5, 3])]
        weights = [1.0, 1.0, 0.5, 1.5]
        in_core = merged_in_core_space(updates, lambda tasks: method.merge(tasks, weights)[0])
        dense, _ = method.merge(TaskMatrices([each.dense(torch.float32) for each in updates]), weights)
        assert relative_error(in_core.dense(torch.float64), dense) < PROMISE

    @pytest.mark.parametrize("shape", [(1, 12), (12, 1), (1, 1), (2, 3)])
    def test_the_smallest_matrices(self, method: SpectralMethod, shape: tuple[int, int]) -> None:
        merged, _ = method.merge(TaskMatrices([update(shape, seed) for seed in range(5)]), [1.0] * 5)
        assert merged.shape == shape and bool(torch.isfinite(merged).all())

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_checkpoints_of_16_bits(self, method: SpectralMethod, dtype: torch.dtype) -> None:
        base, experts = checkpoints((48, 32), 3, dtype)
        merged = merge_tensor("w", base, experts, dict.fromkeys(experts, 1.0), method)
        assert merged.dtype == dtype and bool(torch.isfinite(merged).all())
        assert not torch.equal(merged, base)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_what_is_not_finite_is_refused_by_name(self, method: SpectralMethod, bad: float) -> None:
        base, experts = checkpoints((24, 16), 2, torch.float32)
        experts["expert1"][3, 4] = bad
        with pytest.raises(TensorError, match="'w' of expert1 holds NaN or infinity"):
            merge_tensor("w", base, experts, dict.fromkeys(experts, 1.0), method)

    def test_inputs_are_left_as_they_were(self, method: SpectralMethod) -> None:
        base, experts = checkpoints((24, 40), 3, torch.float32)
        before = [tensor.clone() for tensor in [base, *experts.values()]]
        merge_tensor("w", base, experts, dict.fromkeys(experts, 1.0), method)
        assert all(map(torch.equal, before, [base, *experts.values()]))

    def test_bits_do_not_depend_on_the_number_of_threads(self, method: SpectralMethod) -> None:
        """On the smallest matrix whose rows and whose columns are cut into several pieces of work."""
        base, experts = checkpoints((BLOCK_ROWS // 2 + 4, BLOCK_ROWS + 4), 3, torch.bfloat16)
        tasks, threads, found = TaskMatrices(list(experts.values()), base), torch.get_num_threads(), list[Tensor]()
        try:
            for count in (1, 3):
                torch.set_num_threads(count)
                found.append(method.merge(tasks, [1.0] * 3)[0])
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(*found)

    def test_both_hosts_merge_to_the_same_bits(self, method: SpectralMethod) -> None:
        pytest.importorskip("mergekit")
        pytest.importorskip("fusion_bench")
        base, experts = checkpoints((48, 32), 3, torch.bfloat16)
        weights = dict(zip(experts, [1.0, 0.5, 1.5], strict=True))
        expected = merge_tensor("weight", base, experts, weights, method)
        assert torch.equal(_by_mergekit(base, experts, weights, method), expected)
        assert torch.equal(_by_fusion_bench(base, experts, weights, method), expected)

    @pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak cannot be reset")
    def test_the_memory_that_it_says_is_enough(self, method: SpectralMethod) -> None:
        given = _given(method)
        # One process for the defaults of all methods: most of its time is its start.
        asked = {method.name: given} if given else dict.fromkeys(registry.names(), given)
        measured = memory_taken(json.dumps(asked))[method.name]
        assert isinstance(measured, list), measured
        for shape, taken, said in measured:
            assert taken < said + BLAS_BUFFERS, shape


def _require_still(method: SpectralMethod, updates: Sequence[Tensor]) -> None:
    """One unit in the last place of every entry moves the merge by no more than it should."""
    ones = [1.0] * len(updates)
    merged, _ = method.merge(TaskMatrices(updates), ones)
    nudged = [torch.where(each == 0, each, torch.nextafter(each, torch.full_like(each, 1.0))) for each in updates]
    moved, _ = method.merge(TaskMatrices(nudged), ones)
    assert bool(torch.isfinite(merged).all()) and float(merged.norm()) > 0
    assert relative_error(moved, merged) < ONE_ULP


def _given(method: SpectralMethod) -> dict[str, object]:
    """The options as a user writes them, those with their defaults left out."""
    fields = type(method).model_fields
    values = {field.alias or key: (getattr(method, key), field.default) for key, field in fields.items()}
    return {name: value for name, (value, default) in values.items() if value != default}


def _by_mergekit(base: Tensor, experts: dict[str, Tensor], weights: dict[str, float], method: SpectralMethod) -> Tensor:
    import importlib

    importlib.import_module("mergekit_3h.methods")
    merge_methods = importlib.import_module("mergekit.merge_methods")
    return merge_methods.merge_tensors(
        [*experts.values(), base],
        method.name,
        parameters={**_given(method), "weight": weights},
        ids=[*experts, "base"],
        base_index=len(experts),
        name="weight",
    )


def _by_fusion_bench(
    base: Tensor, experts: dict[str, Tensor], weights: dict[str, float], method: SpectralMethod
) -> Tensor:
    import importlib

    algorithms = importlib.import_module("fusion_bench_ext.algorithms.spectral")
    pools = importlib.import_module("fusion_bench.modelpool")
    models = {"_pretrained_": _linear(base), **{label: _linear(tensor) for label, tensor in experts.items()}}
    algorithm = getattr(algorithms, type(method).__name__)(weight=weights, **_given(method))
    return algorithm.run(pools.BaseModelPool(models)).weight.detach()


def _linear(weight: Tensor) -> torch.nn.Linear:
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    layer.weight = torch.nn.Parameter(weight.clone())
    return layer
