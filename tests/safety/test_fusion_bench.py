"""``fusion_bench method=safety_merge``: mergekit's coefficients and bits, and errors before the search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hosts import mergekit_yaml, run

from mergekit_3h.errors import ModelError, OptionError, ThreeHError

from .conftest import Trained
from .test_mergekit import same_bits

pytest.importorskip("fusion_bench")

from fusion_bench.modelpool import CausalLMPool

from fusion_bench_ext.algorithms import SafetyMerge


def pool_of(trained: Trained, *, lazy: bool = True, **others: Any) -> CausalLMPool:
    models = {"_pretrained_": str(trained.base), "aligned": str(trained.aligned), "domain": str(trained.domain)}
    return CausalLMPool({**models, **others}, tokenizer=str(trained.base), enable_lazy_loading=lazy)


@pytest.mark.parametrize(
    ("combine", "lazy", "options", "parameters"),
    [
        ("task_arithmetic", True, {"max_evaluations": 12}, {}),
        ("task_arithmetic", False, {"max_evaluations": 4}, {}),
        ("rtsvm", True, {"max_evaluations": 5, "layer_granularity": 1}, {"gamma": 0.4}),
        ("della", True, {"max_evaluations": 6, "solver": "cmaes", "seed": 5}, {"density": [0.5, 0.8], "epsilon": 0.1}),
    ],
)
def test_the_same_coefficients_and_bits_as_mergekit(
    combine: str, lazy: bool, options: dict[str, Any], parameters: dict[str, Any], trained: Trained, absolute: Path
) -> None:
    config = trained.config(combine=combine, report=str(absolute / "mergekit"), **options, **parameters)
    mergekit_yaml(config, absolute / "by-mergekit", "--random-seed", "7")
    algorithm = SafetyMerge(
        data=str(trained.data),
        report=str(absolute / "fusion-bench"),
        combine=combine,
        parameters=parameters,
        random_seed=7,
        model_save_path=str(absolute / "by-fusion-bench"),
        **options,
    )
    algorithm.run(pool_of(trained, lazy=lazy))
    reports = [json.loads((absolute / f / "safety_merge.json").read_text()) for f in ("mergekit", "fusion-bench")]
    for report in reports:
        del report["seconds"]
    assert reports[0] == reports[1]
    assert same_bits(absolute / "by-mergekit", absolute / "by-fusion-bench")
    static = [yaml.safe_load((absolute / f / "static.yml").read_text()) for f in ("mergekit", "fusion-bench")]
    assert static[0] == static[1]


def test_the_pools_models_stay_as_they_are(trained: Trained) -> None:
    class Holding(CausalLMPool):
        """Gives out the same modules each time."""

        def load_model(self, name: str, *args: Any, **kwargs: Any) -> Any:
            return held[name]

    pool = pool_of(trained, lazy=False)
    held = {name: pool.load_model(name) for name in pool.all_model_names}
    before = {name: tensor.clone() for name, tensor in held["_pretrained_"].state_dict().items()}
    holding = Holding(dict(pool._models), tokenizer=str(trained.base))
    merged = SafetyMerge(data=str(trained.data), max_evaluations=3).run(holding)
    after = held["_pretrained_"].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(not torch.equal(before[name], tensor) for name, tensor in merged.state_dict().items())


@pytest.mark.slow
def test_command(trained: Trained, absolute: Path) -> None:
    configs = absolute / "configs" / "modelpool"
    configs.mkdir(parents=True)
    models = {"_pretrained_": str(trained.base), "aligned": str(trained.aligned), "domain": str(trained.domain)}
    pool = {"_target_": "fusion_bench.modelpool.CausalLMPool", "models": models, "tokenizer": str(trained.base)}
    (configs / "tiny.yaml").write_text(yaml.safe_dump({**pool, "enable_lazy_loading": True}))
    options = [f"method.data={trained.data}", "method.max_evaluations=4", f"method.model_save_path={absolute / 'out'}"]
    command = ["fusion_bench", "--config-dir", configs.parent, "modelpool=tiny", "method=safety_merge", *options]
    run(*command, cwd=absolute)
    (report,) = absolute.rglob("safety_merge.json")
    assert {"static.yml", "trace.jsonl", "search.png"} <= {path.name for path in report.parent.iterdir()}
    assert list((absolute / "out").glob("*.safetensors"))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, OptionError, "option 'data' is required"),
        ({"combine": "tiess"}, OptionError, "did you mean 'ties'?"),
        ({"combine": "ties"}, OptionError, "Take solver 'cmaes'"),
        ({"combine": "linear", "solver": "cmaes"}, OptionError, "a base and a weight per expert"),
        ({"parameters": {"weight": 1.0}}, OptionError, "the weights are what safety_merge searches"),
        ({"parameters": {"lambda": 0.5}}, OptionError, "leave this option out"),
        ({"model_parameters": {"alined": {}}}, OptionError, "did you mean 'aligned'?"),
        ({"max_evalutions": 3}, OptionError, "did you mean 'max_evaluations'?"),
        ({"report": "{data}"}, OptionError, "is a file; expected a folder"),
        ({"max_length": 4}, ThreeHError, "more than the 4 of option max_length"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str, trained: Trained) -> None:
    given = {"data": str(trained.data)} if options else {}
    options = {key: value.format(data=trained.data) if key == "report" else value for key, value in options.items()}
    with pytest.raises(error, match=message.replace("?", "\\?")):
        SafetyMerge(**given, **options).run(pool_of(trained))


def test_a_pool_without_a_base(trained: Trained) -> None:
    pool = CausalLMPool({"aligned": str(trained.aligned)}, tokenizer=str(trained.base))
    with pytest.raises(ModelError, match="_pretrained_"):
        SafetyMerge(data=str(trained.data)).run(pool)
