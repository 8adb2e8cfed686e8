"""MergeKitAlgorithm gives the very bits that ``mergekit-yaml`` writes for the same checkpoints and parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fusion_bench.modelpool import BaseModelPool, CausalLMPool
from mergekit.merge_methods import registered_methods

from fusion_bench_ext.algorithms import RTSVM, TSVM, MergeKitAlgorithm
from mergekit_3h.errors import ModelError, OptionError, TensorError, ThreeHError
from mergekit_3h.spectral import registry

from .conftest import EXPERTS, differing, merge_config, named_experts, pool_of, stored

SEED = 17
# Every method of mergekit 0.1.5 that merges whole models, with the number of experts it takes and its parameters.
METHODS: dict[str, tuple[int, dict[str, Any]]] = {
    "linear": (3, {"weight": 0.7}),
    "task_arithmetic": (3, {"weight": 0.4, "lambda": 0.9}),
    "ties": (3, {"weight": 0.5, "density": 0.6}),
    "dare_ties": (3, {"weight": 0.5, "density": 0.6}),
    "dare_linear": (3, {"weight": 0.5, "density": 0.6}),
    "breadcrumbs": (3, {"weight": 0.5, "density": 0.8, "gamma": 0.05}),
    "breadcrumbs_ties": (3, {"weight": 0.5, "density": 0.8, "gamma": 0.05}),
    "della": (3, {"weight": 0.5, "density": 0.6, "epsilon": 0.1}),
    "della_linear": (3, {"weight": 0.5, "density": 0.6, "epsilon": 0.1}),
    "sce": (3, {"select_topk": 0.5}),
    "model_stock": (3, {}),
    "karcher": (3, {}),
    "multislerp": (3, {"weight": 1.0}),
    "ram": (3, {}),
    "slerp": (1, {"t": 0.3}),
    "nuslerp": (2, {"weight": 0.5}),
    "nearswap": (1, {"t": 0.001}),
    "arcee_fusion": (1, {}),
    "tsvm": (3, {"weight": 0.8}),
    "rtsvm": (3, {"lambda": 0.9}),
}
WITHOUT_BASE = {"linear", "karcher"}


@pytest.fixture(scope="module")
def outputs(family, mergekit_yaml):
    """What one ``mergekit-yaml`` process writes for each method, from bf16 checkpoints with tied embeddings."""
    models = family("llama-tied", dtype=torch.bfloat16)
    configs = {
        name: merge_config(models, name, parameters, base=name not in WITHOUT_BASE, count=count)
        for name, (count, parameters) in METHODS.items()
    }
    return models, mergekit_yaml(configs, seed=SEED)


def tiny_pool(models, count: int, *, lazy: bool) -> CausalLMPool:
    paths = {"_pretrained_": str(models.base), **named_experts(models, count)}
    return CausalLMPool(paths, tokenizer=str(models.base), enable_lazy_loading=lazy)


@pytest.mark.parametrize(
    ("name", "lazy"),
    [*((name, True) for name in METHODS), ("della", False), ("model_stock", False), ("karcher", False)],
)
def test_equals_mergekit_yaml(name, lazy, outputs, tmp_path):
    models, folders = outputs
    count, parameters = METHODS[name]
    algorithm = MergeKitAlgorithm(name, parameters, seed=SEED, model_save_path=str(tmp_path / "merged"))
    algorithm.run(tiny_pool(models, count, lazy=lazy))
    merged = stored(tmp_path / "merged")
    expected = stored(folders[name])
    if name == "arcee_fusion":  # computes in float32, and mergekit writes that; merged models keep their dtype here
        expected = {key: tensor.bfloat16() for key, tensor in expected.items()}
    assert differing(merged, expected) == []
    assert differing(merged, stored(models.base)), "the merge changed nothing"


def test_covers_all_methods_that_merge():
    # passthrough merges nothing (test_pools.py); ramplus_tl is ram with other weights and has required parameters;
    # safety_merge needs the whole merge, and is compared in tests/safety; spectral methods in test_every_method.py.
    left_out = {"passthrough", "ramplus_tl", "safety_merge", *registry.names()}
    assert {method.spec.name for method in registered_methods()} - set(METHODS) <= left_out


@pytest.mark.parametrize("algorithm", [TSVM, RTSVM])
def test_our_algorithms_equal_mergekit_yaml(algorithm, outputs, tmp_path):
    models, folders = outputs
    options = {"weight": 0.8} if algorithm is TSVM else {"lambda": 0.9}
    for lazy in (True, False):
        path = tmp_path / f"{lazy}"
        algorithm(**options, model_save_path=str(path)).run(tiny_pool(models, 3, lazy=lazy))
        assert differing(stored(path), stored(folders[algorithm.method.name])) == []


def test_filters_gradients_and_parameters_of_single_models(family, mergekit_yaml, tmp_path):
    models = family("llama", num_hidden_layers=4)
    shared = {"density": [{"filter": "self_attn", "value": [0.2, 0.9]}, {"value": 0.6}], "normalize": False}
    own = {"alpha": {"weight": [0.0, 1.0]}, "beta": {"weight": [{"filter": "mlp", "value": 0.5}, {"value": 0.1}]}}
    config = merge_config(models, "ties", shared, count=2)
    for entry, parameters in zip(config["models"], own.values(), strict=True):
        entry["parameters"] = parameters
    output = mergekit_yaml({"ties": config})["ties"]
    path = str(tmp_path / "merged")
    MergeKitAlgorithm("ties", shared, own, model_save_path=path).run(tiny_pool(models, 2, lazy=True))
    assert differing(stored(path), stored(output)) == []
    one_value_each = {"alpha": {"weight": 1}, "beta": {"weight": 0.1}}
    plain = MergeKitAlgorithm("ties", {"density": 0.6, "normalize": False}, one_value_each)
    assert differing(stored(path), plain.run(tiny_pool(models, 2, lazy=True)).state_dict())


def test_mixed_dtypes_equal_mergekit_yaml_but_for_the_last_rounding(family, mergekit_yaml, tmp_path):
    low, full = family("llama", dtype=torch.bfloat16), family("llama")
    paths = [low.base, full.experts[0], low.experts[1]]
    models = [{"model": str(path)} for path in paths[1:]]
    config = {"merge_method": "ties", "base_model": str(low.base), "models": models, "parameters": {"weight": 0.5}}
    output = stored(mergekit_yaml({"mixed": config})["mixed"])
    assert {tensor.dtype for tensor in output.values()} == {torch.float32}
    pool = CausalLMPool(dict(zip(("_pretrained_", "a", "b"), map(str, paths), strict=True)), tokenizer=None)
    merged = MergeKitAlgorithm("ties", {"weight": 0.5}).run(pool)
    # The merged model has the base's dtype, where mergekit writes the promoted one.
    assert differing(merged.state_dict(), {name: tensor.bfloat16() for name, tensor in output.items()}) == []


def test_seed_decides_the_random_numbers(llama):
    pool = pool_of(llama, lazy=True)

    def merged(seed):
        return MergeKitAlgorithm("della", {"weight": 0.5, "density": 0.5}, seed=seed).run(pool).state_dict()

    first = merged(1)
    torch.rand(3)
    assert differing(first, merged(1)) == []
    assert differing(first, merged(2))


@pytest.mark.parametrize(
    ("given", "allowed"),
    [
        (None, None),
        (0.5, 0.5),
        ("0.5", 0.5),
        ([1.0, 0.25], 0.25),
        ([{"filter": "mlp", "value": 0.5}, {"value": 2}], 0.5),
    ],
)
def test_of_different_memory_gb_the_smallest_counts(llama, given, allowed):
    algorithm = MergeKitAlgorithm("tsvm", {} if given is None else {"memory_gb": given})
    for _ in range(2):
        algorithm.run(tiny_pool(llama, 2, lazy=False))
        assert algorithm.memory_gb == allowed


def test_what_needs_whole_models_says_so(llama):
    with pytest.raises(ThreeHError, match="safety_merge evaluates whole models"):
        MergeKitAlgorithm("safety_merge", {"data": "records.jsonl"}).run(tiny_pool(llama, 2, lazy=False))


def test_base_model_may_be_any_model_of_the_pool(llama):
    pool = CausalLMPool({"a": str(llama.experts[0]), "b": str(llama.experts[1])}, tokenizer=None)
    first = MergeKitAlgorithm("slerp", {"t": 0.0}, base_model="b").run(pool)
    assert differing(first.state_dict(), stored(llama.experts[1])) == []
    with pytest.raises(ModelError, match=r"slerp needs a base.*base_model"):
        MergeKitAlgorithm("slerp", {"t": 0.0}).run(pool)
    with pytest.raises(OptionError, match="no model 'bb'; did you mean 'b'"):
        MergeKitAlgorithm("slerp", {"t": 0.0}, base_model="bb").run(pool)


def test_methods_without_a_base_never_see_it(llama):
    with_base = MergeKitAlgorithm("linear", {"weight": 1.0}).run(pool_of(llama, lazy=True))
    without = MergeKitAlgorithm("linear", {"weight": 1.0}).run(CausalLMPool(named_experts(llama), tokenizer=None))
    assert differing(with_base.state_dict(), without.state_dict()) == []
    with pytest.raises(OptionError, match="linear does not take a base"):
        MergeKitAlgorithm("linear", {"weight": 1.0}, base_model="_pretrained_").run(pool_of(llama, lazy=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"merge_method": "tie"}, "no merge method 'tie'; did you mean 'ties'"),
        ({}, "name the mergekit method.*ties"),
        (
            {"merge_method": "ties", "parameters": {"wieght": 1}},
            "ties has no parameter 'wieght'; did you mean 'weight'",
        ),
        ({"merge_method": "ties", "parameters": {"weight": "much"}}, r"parameters\.weight: got 'much'"),
        (
            {"merge_method": "ties", "model_parameters": {"alpha": {"normalize": True}}},
            r"model_parameters\.alpha: 'normalize' of ties is one for all models; move it to `parameters`",
        ),
        ({"merge_method": "ties", "paramters": {"weight": 1}}, "no option 'paramters'; did you mean 'parameters'"),
    ],
)
def test_impossible_arguments_are_refused_at_once(arguments, message):
    with pytest.raises(OptionError, match=message):
        MergeKitAlgorithm(**arguments)


@pytest.mark.parametrize(
    ("algorithm", "error", "message"),
    [
        (lambda: MergeKitAlgorithm("ties", {"weight": 1}, {"alpa": {"weight": 1}}), OptionError, "mean 'alpha'"),
        (lambda: MergeKitAlgorithm("ties", {"density": 0.5}), OptionError, "required parameter weight"),
        (lambda: MergeKitAlgorithm("slerp", {"t": 0.5}), ModelError, "slerp cannot merge.*at most 2|exactly 2"),
    ],
)
def test_what_does_not_fit_the_pool_is_refused_before_loading(algorithm, error, message, tmp_path):
    nowhere = {name: str(tmp_path / "absent") for name in ("_pretrained_", *EXPERTS)}
    with pytest.raises(error, match=message):
        algorithm().run(CausalLMPool(nowhere, tokenizer=None))


def test_yaml_round_trip(tmp_path):
    given = {
        "parameters": {"density": [0.2, 0.8], "weight": 0.5},
        "model_parameters": {"a": {"weight": 1.0}},
        "seed": 4,
    }
    algorithm = MergeKitAlgorithm("della", **given)
    algorithm.to_yaml(tmp_path / "method.yaml")
    again = MergeKitAlgorithm.from_yaml(tmp_path / "method.yaml")
    assert type(again) is MergeKitAlgorithm and again.merge_method == "della"
    assert {key: getattr(again, key) for key in given} == given
    assert again.config == algorithm.config


def test_nan_names_model_and_tensor():
    models = {name: torch.nn.Linear(8, 8) for name in ("_pretrained_", "good", "broken")}
    with torch.no_grad():
        models["broken"].weight[3, 4] = torch.nan
    with pytest.raises(TensorError, match="'weight' of model 'broken' holds NaN"):
        MergeKitAlgorithm("ties", {"weight": 1.0}).run(BaseModelPool(models))


def test_failures_inside_a_method_name_the_tensor():
    pool = BaseModelPool({name: torch.nn.Linear(8, 8) for name in ("_pretrained_", "a")})
    with pytest.raises(TensorError, match=r"della failed on the tensor 'bias': Epsilon must be chosen"):
        MergeKitAlgorithm("della", {"weight": 0.5, "density": 0.95, "epsilon": 0.5}).run(pool)
