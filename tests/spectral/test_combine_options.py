"""What ``svc`` and ``boost`` change: TIES and DARE, and the options of the method that merges."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from mergekit_3h.errors import OptionError
from mergekit_3h.kernels.tasks import TaskMatrices
from mergekit_3h.spectral.elementwise import SPARSE, DareLinear, DareTies, SparseMethod, Ties
from mergekit_3h.spectral.literal import relative_error
from mergekit_3h.spectral.registry import parse_options
from mergekit_3h.testing.memory_taken import BLAS_BUFFERS, memory_taken
from mergekit_3h.testing.updates import SHAPES, normal, update

PROMISE = 1e-6
WEIGHTS = [1.0, 0.5, -0.7]


def three(shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [update(shape, seed).to(dtype) for seed in range(3)]


def merged(method: SparseMethod, updates: Sequence[Tensor], weights: Sequence[float] = WEIGHTS) -> Tensor:
    return method.merge(TaskMatrices(updates), weights)[0]


@pytest.mark.parametrize(
    "options", [{}, {"density": 1.0}, {"density": 0.01}, {"normalize": True}, {"normalize": False}]
)
@pytest.mark.parametrize("name", list(SPARSE))
@pytest.mark.parametrize("shape", [*SHAPES, (700, 300), (300, 700), (1, 5)])
def test_sums_are_what_sorting_whole_matrices_gives(shape: tuple[int, int], name: str, options: dict[str, Any]) -> None:
    updates, method = three(shape), SPARSE[name](**options)
    found, report = method.merge(TaskMatrices(updates), WEIGHTS)
    expected = method.literally([each.double() for each in updates], WEIGHTS, report)
    assert float((found - expected).norm()) <= 1e-7 * float(expected.norm())


@pytest.mark.parametrize(("density", "normalize"), itertools.product([0.05, 0.4, 1.0], [True, False]))
def test_ties_is_mergekits(density: float, normalize: bool) -> None:
    """Its own code, on float64 tensors, where no two entries are equal."""
    from mergekit import merge_methods

    base, updates = normal((40, 30), 1).double(), three((40, 30), torch.float64)
    theirs = merge_methods.merge_tensors(
        [*(base + each for each in updates), base],
        "ties",
        parameters={"density": density, "normalize": normalize, "weight": dict(zip("abc", WEIGHTS, strict=True))},
        ids=[*"abc", "base"],
        base_index=3,
        name="w",
    )
    assert relative_error(merged(Ties(density=density, normalize=normalize), updates), theirs - base) < 1e-9


@pytest.mark.parametrize("method", [Ties(density=1.0), DareTies(density=1.0, normalize=True)])
def test_nothing_is_divided_by_weights_that_cancel(method: SparseMethod) -> None:
    """0.1 + 0.2 - 0.3 is 6e-17, not 0."""
    delta = normal((8, 6), 1).double()
    found = merged(method, [delta, 2 * delta, -delta], [0.1, 0.2, -0.3])
    assert relative_error(found, 0.8 * delta) < 1e-12
    found = merged(method, [delta, 0 * delta, 0 * delta], [1e-9, 1.0, 1.0])
    assert relative_error(found, delta) < 1e-12  # a small weight alone is none


def test_entries_as_large_as_the_last_that_stays_stay_too() -> None:
    """Updates of rounded checkpoints have many entries of one size, and no order among them means anything."""
    updates = [torch.tensor([[3.0, -1.0, 1.0, 0.0], [1.0, 0.5, -0.5, 2.0]])]
    found, report = Ties(density=3 / 8).merge(TaskMatrices(updates), [1.0])
    assert torch.equal(found, torch.tensor([[3.0, -1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 2.0]]))
    assert report.kept_shares == [5 / 8]


@pytest.mark.parametrize("method", [DareLinear(density=0.25), DareTies(density=0.25)])
def test_chance_is_its_seeds_alone(method: SparseMethod) -> None:
    updates, threads, found = three((300, 700)), torch.get_num_threads(), list[Tensor]()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            torch.manual_seed(count)
            found.append(merged(method, updates))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)
    other = type(method)(density=0.25, seed=1)
    assert relative_error(merged(other, updates), found[0]) > 0.5


def test_dare_leaves_as_many_entries_as_it_says_and_the_same_sum_on_average() -> None:
    updates = three((200, 100))
    drawn = [DareLinear(density=0.25, seed=seed).merge(TaskMatrices(updates), [1.0] * 3) for seed in range(64)]
    shares = torch.tensor([report.kept_shares for _, report in drawn])
    # 20000 entries a draw, 64 draws of 3 experts: a standard deviation of 2.2e-4 for the mean share
    assert float(shares.mean()) == pytest.approx(0.25, abs=1e-3)
    mean, plain = torch.stack([each for each, _ in drawn]).double().mean(0), torch.stack(updates).sum(0)
    # each entry of an expert errs by (1 / 0.25 - 1)^(1/2) / 8 of its size
    size = float(torch.stack(updates).norm())
    assert float((mean - plain).norm()) == pytest.approx(size * 3**0.5 / 8, rel=0.05)


def test_experts_are_drawn_apart() -> None:
    same = [update((100, 80), 0)] * 2
    first, second = (merged(DareLinear(density=0.5), same, weights) for weights in ([1.0, 0.0], [0.0, 1.0]))
    both = float(((first != 0) & (second != 0)).double().mean())
    assert both == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("name", list(SPARSE))
def test_no_updates_give_none(name: str) -> None:
    assert not bool(merged(SPARSE[name](density=0.3), [torch.zeros(9, 7)] * 3).any())


INNER = [
    ("ties", "density=0.3, normalize=false"),
    ("dare_ties", "density=0.4, seed=3"),
    ("dare_linear", "normalize=true"),
    ("tsvm", "energy=0.6"),
    ("rtsvm", "gamma=0.5, outlier_weighting=none"),
    ("star", "eta=0.7"),
    ("swudi", "start=sum, filter=exponential"),
]


@pytest.mark.parametrize(("combine", "given"), INNER)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["svc", "boost"])
def test_the_formula_holds_with_inner_options(name: str, shape: tuple[int, int], combine: str, given: str) -> None:
    method = parse_options(name, {"combine": combine, "combine_options": given})
    updates = three(shape)
    found, report = method.merge(TaskMatrices(updates), [1.0, 0.5, 1.5])
    expected = method.literally([each.double() for each in updates], [1.0, 0.5, 1.5], report)
    assert expected is not None and relative_error(found, expected) < PROMISE


@pytest.mark.parametrize(("combine", "given"), INNER)
def test_a_merge_that_is_not_changed_is_that_of_the_inner_method(combine: str, given: str) -> None:
    """``boost`` with beta 1 raises nothing, so what is left are the options."""
    updates, options = three((24, 40)), dict(part.strip().split("=") for part in given.split(","))
    result, _ = parse_options("boost", {"combine": combine, "combine_options": given, "beta": 1.0}).merge(
        TaskMatrices(updates), [1.0] * 3
    )
    inner = SPARSE[combine](**options) if combine in SPARSE else parse_options(combine, options)
    assert relative_error(result, inner.merge(TaskMatrices(updates), [1.0] * 3)[0]) < PROMISE
    default = SPARSE[combine]() if combine in SPARSE else parse_options(combine, {})
    assert relative_error(result, default.merge(TaskMatrices(updates), [1.0] * 3)[0]) > 0.01


def test_a_mapping_is_taken_too() -> None:
    """As Hydra and Python have it."""
    one = parse_options("svc", {"combine": "ties", "combine_options": {"density": 0.3, "normalize": False}})
    other = parse_options("svc", {"combine": "ties", "combine_options": "density=0.3, normalize=False"})
    assert one.combine_options == other.combine_options and one == other


@pytest.mark.parametrize(
    ("combine", "given", "message"),
    [
        ("ties", "densty=0.3", r"'combine_options': ties has no option 'densty'; did you mean 'density'\?"),
        ("ties", "density=2", r"for ties: option 'density': got 2; input should be less than or equal to 1"),
        ("ties", "density=0", r"for ties: option 'density': got 0; input should be greater than 0"),
        ("ties", "density=true", r"for ties: option 'density': got True, expected a number"),
        ("ties", "density", r"got 'density'; expected options and their values, as density=0.3"),
        ("ties", "density=0.1, density=0.2", "where density is there twice"),
        ("ties", 3, r"'combine_options': got 3; input should be a valid string"),
        ("dare_ties", "seed=-1", r"for dare_ties: option 'seed': got -1"),
        ("tsvm", "density=0.2", r"tsvm has no option 'density'; it has: noise_floor, energy"),
        ("tsvm", "lambda=2", r"lambda is an option of the whole merge; set it beside combine"),
        ("tsvm", "gate_share=1", r"gate_share is an option of the whole merge"),
        ("tsvm", "core=dc, decorrelation=0.5", r"for tsvm: option 'decorrelation': got 0.5; core: dc"),
        ("task_arithmetic", "density=0.3", r"got 'density=0.3', but combine: task_arithmetic, .* has no options"),
    ],
)
@pytest.mark.parametrize("name", ["svc", "boost"])
def test_inner_options_are_checked_at_once(name: str, combine: str, given: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        parse_options(name, {"combine": combine, "combine_options": given})


def test_adapters_are_multiplied_out_for_what_looks_at_entries() -> None:
    assert parse_options("svc", {"combine": "tsvm", "combine_options": "energy=0.9"}).is_equivariant
    assert not parse_options("svc", {"combine": "ties"}).is_equivariant
    assert not parse_options("svc", {"combine": "rtsvm", "combine_options": "preset=paper"}).is_equivariant


@pytest.mark.parametrize("combine", ["ties", "dare_ties"])
def test_the_memory_that_they_say_is_enough(combine: str) -> None:
    measured = memory_taken(json.dumps({"svc": {"combine": combine}, "boost": {"combine": combine}}))
    for name, found in measured.items():
        assert isinstance(found, list), found
        for shape, taken, said in found:
            assert taken < said + BLAS_BUFFERS, (name, shape)
