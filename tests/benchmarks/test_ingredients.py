"""The parts a benchmark stands on: synthetic updates, the literal algorithm, the GEMM bound, memory, budgets."""

from __future__ import annotations

import json
import mmap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kernels.oracle import merge_literally as independent_literal
from kernels.oracle import merge_truncated, relative
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mergekit_3h.benchmarks.budget import Costs, first_share, parse_budget
from mergekit_3h.benchmarks.checkpoints import llama_of, parse_parameters, write_checkpoints
from mergekit_3h.benchmarks.contenders import FULL_SVD, OURS, Recipe, prepare
from mergekit_3h.benchmarks.families import MatrixShape
from mergekit_3h.benchmarks.growth import decomposed_sides
from mergekit_3h.benchmarks.memory import PeakMemory
from mergekit_3h.benchmarks.problems import UPDATE_RMS, MatrixProblem, make_inputs, unrounded_updates
from mergekit_3h.benchmarks.products import product_flops
from mergekit_3h.errors import OptionError
from mergekit_3h.kernels import dense
from mergekit_3h.spectral.literal import merge_literally

CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", ["flat", "decaying", "lora"])
def test_updates_have_the_spectrum_they_are_named_after(kind: str) -> None:
    problem = MatrixProblem(160, 96, 2, "float64", kind)  # type: ignore[arg-type]
    inputs = make_inputs(problem, CPU)
    updates = inputs.updates(torch.float64)
    values = [torch.linalg.svdvals(update) for update in updates]
    for update in updates:
        assert float(update.square().mean().sqrt()) == pytest.approx(UPDATE_RMS, rel=0.1)
    share_of_ten = [float(s[:10].square().sum() / s.square().sum()) for s in values]
    ranks = [int((s > 1e-6 * s[0]).sum()) for s in values]
    overlap = float((updates[0] * updates[1]).sum() / updates[0].norm() / updates[1].norm())
    if kind == "flat":
        assert max(share_of_ten) < 0.4 and abs(overlap) < 0.05
    elif kind == "decaying":
        assert min(share_of_ten) > 0.5 and ranks == [96, 96]
        assert 0.2 < overlap < 0.4  # SHARED_PART is 0.3
    else:
        assert ranks == [16, 16]


def test_inputs_are_checkpoints_of_their_dtype_and_reproducible() -> None:
    problem = MatrixProblem(48, 64, 3, "bfloat16", "lora", seed=7)
    first, second = make_inputs(problem, CPU), make_inputs(problem, CPU)
    assert first.base.dtype == torch.bfloat16 and len(first.experts) == 3
    assert all(torch.equal(a, b) for a, b in zip(first.experts, second.experts, strict=True))
    assert not torch.equal(first.experts[0], first.experts[1])
    larger = make_inputs(replace(problem, weights=0.2), CPU)
    assert torch.allclose(larger.base.float(), 10 * first.base.float(), rtol=2**-7)
    for expert, update in zip(first.experts, unrounded_updates(problem, CPU), strict=True):
        # Rounding moves a weight by at most half a unit in the last of bfloat16's eight places.
        assert torch.all((expert.float() - first.base.float() - update).abs() <= expert.float().abs() * 2**-8 + 1e-12)


@pytest.mark.parametrize("shape", [(48, 48), (70, 40), (40, 70)])
def test_literal_algorithm_is_the_papers(shape: tuple[int, int]) -> None:
    updates = make_inputs(MatrixProblem(*shape, 3, "float64", "decaying"), CPU).updates(torch.float64)
    ranks, scales = [10, 8, 5], [1.0, 0.5, 2.0]
    # Both in float64, by full SVDs, written independently: what is left is rounding.
    assert relative(merge_literally(updates, ranks, scales), merge_truncated(updates, ranks, scales)) < 1e-10
    literal = merge_literally(updates, [9] * 3, scales, orthogonalize_first=True)
    assert relative(literal, independent_literal(updates, 9, scales)) < 1e-10


@pytest.mark.parametrize(
    "options", [{}, {"rank_budget": "per_task"}, {"preset": "paper"}, {"outlier_weighting": "inverse", "gamma": 0.9}]
)
def test_literal_contender_computes_what_our_kernel_computes(options: dict[str, object]) -> None:
    inputs = make_inputs(MatrixProblem(64, 40, 3, "float64", "decaying"), CPU)
    recipe = Recipe("rtsvm", options)
    (ours, _), (theirs, facts) = prepare(OURS, inputs, recipe)(), prepare(FULL_SVD, inputs, recipe)()
    assert relative(ours, theirs) < 1e-6, facts


def _addmm_flop(_: object, left: list[int], right: list[int], **__: object) -> int:
    return 2 * left[0] * left[1] * right[1]


@pytest.mark.parametrize("experts", [2, 3, 4])
@pytest.mark.parametrize("shape", [(300, 280), (280, 300), (900, 128), (64, 64)])
@pytest.mark.parametrize("rank_budget", ["shared", "per_task"])
def test_product_count_is_what_the_kernel_performs(
    shape: tuple[int, int], experts: int, rank_budget: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, "can_decompose", lambda gram: False)  # a decomposition's check is none of its products
    run = prepare(
        OURS,
        make_inputs(MatrixProblem(*shape, experts, "float32", "decaying"), CPU),
        Recipe("rtsvm", {"rank_budget": rank_budget}),
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the counter sees the calling thread only
    try:
        # torch's counter does not know the product that adds in place
        with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _addmm_flop}) as counter:
            _, facts = run()
    finally:
        torch.set_num_threads(threads)
    assert product_flops(shape, facts.ranks) == counter.get_total_flops()


class EighSizes(TorchDispatchMode):
    """Notes the size of every eigendecomposition."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "eigh" in str(func):
            self.sizes.append(args[0].shape[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("experts", [2, 3])
@pytest.mark.parametrize("shape", [(300, 280), (900, 128)])
def test_decomposition_count_is_what_the_kernel_performs(
    shape: tuple[int, int], experts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, "can_decompose", lambda gram: False)  # the mode sees what torch does
    run = prepare(OURS, make_inputs(MatrixProblem(*shape, experts, "float32", "decaying"), CPU), Recipe("tsvm"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the mode sees the calling thread only
    try:
        with EighSizes() as seen:
            _, facts = run()
    finally:
        torch.set_num_threads(threads)
    assert decomposed_sides(min(shape), facts.ranks) == seen.sizes


def test_peak_memory_sees_what_was_freed_again() -> None:
    size = 64 << 20
    with PeakMemory(CPU) as peak:
        block = mmap.mmap(-1, size)
        for page in range(0, size, mmap.PAGESIZE):
            block[page] = 1
        block.close()
    # Other threads of this process may free or take a few pages meanwhile.
    assert 0.9 * size < peak.extra < 1.5 * size


def test_budgets_as_people_write_them() -> None:
    assert [parse_budget(text) for text in ("90", "90s", "2m", "1.5h", "1h30m")] == [90, 90, 120, 5400, 5400]
    for wrong in ("", "soon", "2 minutes", "-3s", "0", "m"):
        with pytest.raises(OptionError, match="--budget"):
            parse_budget(wrong)


def test_budget_is_divided_among_what_may_fit() -> None:
    assert first_share(10, [11.0, 1.0]) is None
    assert first_share(10, [1.0, 1000.0]) == 10  # nothing else will ever fit
    assert first_share(10, [1.0, 1.0]) == 5
    assert first_share(10, [4.0, 20.0]) == 4  # what it needs at least


def test_costs_grow_with_the_matrix_and_learn() -> None:
    costs = Costs(3, rounds=3)
    small, large = MatrixShape(256, 256), MatrixShape(512, 256)
    costs.learn(OURS, small, 2.0)
    assert costs.one(OURS, small) == pytest.approx(2.0) and costs.one(OURS, large) > 2.0
    costs.learn(OURS, large, 8.0)
    assert costs.one(OURS, large) == pytest.approx(8.0)


@pytest.mark.parametrize("text", ["0.3m", "20m", "0.1b", "1b", "7b"])
def test_random_llama_has_the_size_asked_for(text: str) -> None:
    asked = parse_parameters(text)
    size = llama_of(asked)
    tensors = size.tensors()
    counted = sum(shape[0] * (shape[1] if len(shape) == 2 else 1) for shape in tensors.values())
    assert asked <= counted == size.parameters < 1.5 * asked


def test_checkpoints_load_as_the_model_they_describe(tmp_path: Path) -> None:
    import transformers

    size = llama_of(300_000)
    base, *experts = write_checkpoints(tmp_path, size, 2, "bfloat16", "decaying")
    assert json.loads((base / "config.json").read_text())["hidden_size"] == size.hidden
    model = transformers.AutoModelForCausalLM.from_pretrained(experts[1])
    assert sum(parameter.numel() for parameter in model.parameters()) == size.parameters
    other = transformers.AutoModelForCausalLM.from_pretrained(base)
    assert not torch.equal(model.lm_head.weight, other.lm_head.weight)
    assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()
