"""Candidates are what the merge methods give, and are kept small."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny_models import Family
from torch import Tensor

from mergekit_3h.errors import OptionError
from mergekit_3h.search import CheckpointSource, SearchOptions, StateDictSource
from mergekit_3h.search.candidate_model import CandidateModel
from mergekit_3h.search.components import Dense, Difference, Factors, MergedFamily
from mergekit_3h.search.families import families, placed
from mergekit_3h.search.layout import layout_of
from mergekit_3h.spectral.literal import relative_error
from mergekit_3h.spectral.registry import parse_options
from mergekit_3h.spectral.tensors import merge_tensor

CPU = torch.device("cpu")
SHAPES = {
    "square.weight": (24, 24),
    "tall.weight": (40, 24),
    "wide.weight": (24, 40),
    "norm": (24,),
    "fused": (3, 16, 12),
}


def sources(rank: int | None = None, dtype: torch.dtype = torch.float32) -> list[StateDictSource]:
    """A base and three experts; with ``rank`` their updates are of that rank."""
    torch.manual_seed(3)
    base = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    made = [StateDictSource("base", {name: tensor.to(dtype) for name, tensor in base.items()})]
    for label in ("a", "b", "c"):
        state = {name: (tensor + 0.1 * update(tensor, rank)).to(dtype) for name, tensor in base.items()}
        made.append(StateDictSource(label, state))
    return made


def update(like: Tensor, rank: int | None) -> Tensor:
    if rank is None or like.ndim == 1:
        return torch.randn_like(like)
    *batch, rows, columns = like.shape
    return torch.randn(*batch, rows, rank) @ torch.randn(*batch, rank, columns)


def made(combine: str, models: list[StateDictSource], **method_options: object):
    method = None if combine == "task_arithmetic" else parse_options(combine, method_options)
    options = SearchOptions(combine=combine)
    return families(list(SHAPES), models[0], models[1:], options, method, None, CPU), method


@pytest.mark.parametrize("combine", ["tsvm", "rtsvm", "swudi"])
@pytest.mark.parametrize("method_options", [{}, {"lambda": 0.7, "exclude": "tall"}])
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.3, 0.0, 1.7], [-0.5, 0.2, 0.4]])
def test_linear_candidates_are_the_methods_merge(combine: str, method_options: dict, weights: list[float]) -> None:
    models = sources()
    found, method = made(combine, models, **method_options)
    for name, family in found.items():
        experts = {model.label: model.tensor(name) for model in models[1:]}
        expected = merge_tensor(name, models[0].tensor(name), experts, dict(zip("abc", weights, strict=True)), method)
        # float32 components, a few roundings of 1e-7 each on updates of about 1 and weights of about 3
        torch.testing.assert_close(family.at(weights, CPU), expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_held_candidates_are_the_methods_merge_at_the_start(power: float) -> None:
    """And linear from there: what is held is not the weights'."""
    models = sources(dtype=torch.float64)
    found, method = made("iso_c", models, power=power)
    for name, family in found.items():
        experts = {model.label: model.tensor(name) for model in models[1:]}
        base = models[0].tensor(name)
        expected = merge_tensor(name, base, experts, dict.fromkeys("abc", 1.0), method)
        at_start = family.at([1.0, 1.0, 1.0], CPU)
        assert relative_error(at_start - base, expected - base) < 1e-6
        unit = [family.at(weights, CPU) - base for weights in torch.eye(3).tolist()]
        elsewhere = family.at([0.3, 0.0, 1.7], CPU) - base
        torch.testing.assert_close(elsewhere, 0.3 * unit[0] + 1.7 * unit[2], rtol=0, atol=1e-12)


def test_task_arithmetic_is_the_sum_of_differences() -> None:
    models = sources()
    found, _ = made("task_arithmetic", models)
    for name, family in found.items():
        base = models[0].tensor(name).double()
        exact = base + sum(
            w * (m.tensor(name).double() - base) for w, m in zip((0.2, 0.5, 0.9), models[1:], strict=True)
        )
        torch.testing.assert_close(family.at([0.2, 0.5, 0.9], CPU).double(), exact, rtol=0, atol=2e-6)


def test_zero_coefficients_give_the_base_exactly() -> None:
    models = sources()
    for combine in ("task_arithmetic", "rtsvm"):
        for name, family in made(combine, models)[0].items():
            assert torch.equal(family.at([0.0, 0.0, 0.0], CPU), models[0].tensor(name))


def test_low_rank_components_are_kept_as_factors() -> None:
    models = sources(rank=2)
    found, _ = made("tsvm", models)
    for name in ("square.weight", "tall.weight", "wide.weight", "fused"):
        family = found[name]
        assert all(isinstance(component, Factors) for component in family.components)
        dense = models[0].tensor(name).nbytes * 4
        assert family.size() < 0.7 * dense
    assert all(isinstance(component, Difference) for component in found["norm"].components)


def test_components_are_kept_whole_where_factors_are_larger() -> None:
    torch.manual_seed(0)
    base, expert = (StateDictSource(label, {"w": torch.randn(24, 24)}) for label in ("base", "a"))
    options = SearchOptions(combine="tsvm")
    found = families(["w"], base, [expert], options, parse_options("tsvm", {}), None, CPU)
    assert [type(component) for component in found["w"].components] == [Dense]
    torch.testing.assert_close(found["w"].at([1.0], CPU), expert.tensor("w"), rtol=0, atol=1e-5)


@pytest.mark.parametrize("combine", ["task_arithmetic", "tsvm", "rtsvm", "swudi", "iso_c"])
@pytest.mark.parametrize("rank", [2, None])
def test_inner_products(combine: str, rank: int | None) -> None:
    """Against the derivative of a linear function of the merged tensor, by its values at the unit vectors."""
    found, _ = made(combine, sources(rank))
    for family in found.values():
        gradient = torch.randn_like(family.base)
        at = lambda weights, family=family: (family.at(weights, CPU) - family.base).double()  # noqa: E731
        expected = [float((at(unit) * gradient).sum()) for unit in torch.eye(3).tolist()]
        # W_0 + C_i - W_0 in float32 loses 1e-7 per entry, of up to 960 entries
        assert [float(p) for p in family.inner_products(gradient)] == pytest.approx(expected, rel=1e-4, abs=2e-5)


def test_weights_are_rounded_once_to_the_models_dtype() -> None:
    models = sources(dtype=torch.bfloat16)
    found, _ = made("task_arithmetic", models)
    model = Holder(models[0])
    CandidateModel(model, found, layout_of(SHAPES, "abc", 0)).become([0.3, 0.3, 0.3])
    for name, parameter in model.named_parameters():
        base = models[0].tensor(name).float()
        exact = base.clone()
        for expert in models[1:]:
            exact += 0.3 * (expert.tensor(name).float() - base)
        assert parameter.dtype == torch.bfloat16
        # equal but for entries whose float32 sums differ in the last place on a boundary between two bf16 numbers
        assert (parameter != exact.bfloat16()).float().mean() < 0.01


class Holder(torch.nn.Module):
    def __init__(self, source: StateDictSource) -> None:
        super().__init__()
        for name in source.names():
            target = self
            *path, last = name.split(".")
            for step in path:
                target.add_module(step, torch.nn.Module())
                target = getattr(target, step)
            target.register_parameter(last, torch.nn.Parameter(source.tensor(name).clone()))


@pytest.mark.parametrize("architecture", ["llama", "llama-tied", "qwen2", "gpt2"])
def test_a_model_becomes_each_of_its_experts(family: Callable[..., Family], architecture: str) -> None:
    """In place, with tied weights still tied and buffers untouched: logits equal those of the loaded expert."""
    import transformers

    folders = family(architecture)
    load = transformers.AutoModelForCausalLM.from_pretrained
    model = load(folders.base)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    base, experts = CheckpointSource(folders.base), [CheckpointSource(path) for path in folders.experts]
    names = [name for name, _ in model.named_parameters()]
    made = families(names, base, experts, SearchOptions(), None, None, CPU)
    candidate = CandidateModel(model, made, layout_of(names, [e.label for e in experts], 0))
    ids = torch.arange(20)[None]
    for i, path in enumerate(folders.experts):
        own = load(path).eval()(ids).logits
        candidate.become_model(experts[i])
        assert torch.equal(model(ids).logits, own)
        candidate.become([float(i == k) for k in range(3)])
        # W_0 + (W_i - W_0) is W_i up to a rounding of 1e-7 in weights of 0.02 to 1
        torch.testing.assert_close(model(ids).logits, own, rtol=0, atol=1e-5)
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == (architecture in ("llama-tied", "gpt2"))
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name])


def test_a_method_of_the_host_sees_copies_and_its_own_weights() -> None:
    calls = []

    def combine(name, base, experts, weights):
        calls.append((name, weights))
        base.zero_()
        return sum(w * e for w, e in zip(weights, experts, strict=True))

    models = sources()
    found = families(
        list(SHAPES), models[0], models[1:], SearchOptions(combine="linear", solver="cmaes"), None, combine, CPU
    )
    before = models[0].tensor("norm").clone()
    result = found["norm"].at([0.5, 0.0, 0.5], CPU)
    assert calls == [("norm", [0.5, 0.0, 0.5])]
    assert torch.equal(models[0].tensor("norm"), before)
    torch.testing.assert_close(result, (models[1].tensor("norm") + models[3].tensor("norm")) / 2)
    with pytest.raises(OptionError, match="not linear"):
        found["norm"].inner_products(before)


def test_random_methods_are_functions_of_the_coefficients() -> None:
    def dropping(name, base, experts, weights):
        return base + sum(
            w * torch.bernoulli(torch.full_like(base, 0.5)) * e for w, e in zip(weights, experts, strict=True)
        )

    family = MergedFamily("w", torch.zeros(64), (torch.ones(64), torch.ones(64)), dropping)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = family.at([1.0, 2.0], CPU)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)
    assert torch.equal(family.at([1.0, 2.0], CPU), first)
    assert not torch.equal(MergedFamily("v", *list(vars(family).values())[1:]).at([1.0, 2.0], CPU), first)


def test_device_memory_is_kept_to_the_budget() -> None:
    """The meta device stands for an accelerator: it tells where tensors would be without having one."""
    found, _ = made("task_arithmetic", sources())
    meta = torch.device("meta")
    total = sum(family.size() for family in found.values())

    def moved(gigabytes: float | None) -> set[str]:
        return {name for name, family in placed(found, meta, gigabytes).items() if family.base.is_meta}

    assert moved(0.0) == set()
    assert moved(total / 1e9) == moved(None) == set(SHAPES)
    half = moved(total / 2e9)
    assert 0 < sum(found[name].size() for name in half) <= total / 2
    assert placed(found, CPU, 0.0) == found
