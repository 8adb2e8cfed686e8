"""Component masks: a coefficient for every block of singular components, found by the gradient, merged without data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hosts import mergekit_yaml

from mergekit_3h.search import open_problem, parse_search_options, solve

from .conftest import Trained
from .test_mergekit import same_bits
from .test_search_command import search, without_seconds
from .test_tuned_options import losses_of, plain


@pytest.mark.parametrize(
    ("granularity", "method"),
    [(0, {"combine": "tsvm"}), (1, {"combine": "tsvm"}), (1, {"combine": "iso_c", "power": 0.5})],
)
def test_both_hosts_merge_what_was_found(
    trained: Trained, absolute: Path, granularity: int, method: dict[str, Any]
) -> None:
    searched = {"component_blocks": 3, "max_evaluations": 6, "layer_granularity": granularity}
    config = trained.config(**searched, **method, weight=0.8, report=str(absolute / "report"))
    mergekit_yaml(config, absolute / "searched")
    static = yaml.safe_load((absolute / "report" / "static.yml").read_text())
    assert (
        set(static["parameters"]) == {"weight", "block_weights", *(method.keys() - {"combine"})}
        and static["parameters"]["weight"] == 0.8
    )
    mergekit_yaml(static, absolute / "static")
    assert same_bits(absolute / "searched", absolute / "static")
    report = json.loads((absolute / "report" / "safety_merge.json").read_text())
    measured = {name: entry["loss"] for name, entry in report["losses"].items()}
    # components are kept in float32
    assert losses_of(absolute / "static", trained.data) == pytest.approx(measured, rel=1e-4)
    uniform = report["uniform"]
    assert report["score"] < uniform["safety"]["loss"] + 0.3 * uniform["domain"]["loss"] - 0.01
    pytest.importorskip("fusion_bench")
    from fusion_bench_ext.algorithms import SafetyMerge

    from .test_fusion_bench import pool_of

    pooled = SafetyMerge(
        data=str(trained.data),
        report=str(absolute / "pooled"),
        parameters={"weight": 0.8, **{name: value for name, value in method.items() if name != "combine"}},
        combine=method["combine"],
        model_save_path=str(absolute / "by-fusion-bench"),
        **searched,
    )
    pooled.run(pool_of(trained))
    assert without_seconds(absolute / "pooled" / "safety_merge.json") == without_seconds(
        absolute / "report" / "safety_merge.json"
    )
    assert same_bits(absolute / "searched", absolute / "by-fusion-bench")


def test_from_python(trained: Trained) -> None:
    """The derivatives are those of the losses."""
    experts = {"aligned": trained.aligned, "domain": trained.domain}
    options = parse_search_options({"combine": "rtsvm", "component_blocks": 2, "max_evaluations": 3})
    problem = open_problem(trained.base, experts, trained.data, options)
    assert problem.layout.names() == ["aligned #1", "aligned #2", "domain #1", "domain #2"]
    runner = problem.local_runner()
    (measured,) = runner.evaluate([[1.0] * 4], gradient=True)
    assert measured.gradients is not None
    for i in range(4):
        ends = [[1.0 + sign * 0.05 * (i == k) for k in range(4)] for sign in (1, -1)]
        above, below = runner.evaluate(ends, gradient=False)
        for name, gradient in measured.gradients.items():
            # float32 losses of about 1 over a step of 0.1, and the third derivative over it
            assert gradient[i] == pytest.approx((above.losses[name] - below.losses[name]) / 0.1, abs=3e-3)
    solution = solve(runner, problem.layout, options)
    assert len(solution.option_values()["block_weights"].split("/")) == 2 and solution.mergekit_weights() == {}


BAD: list[tuple[dict[str, Any], str]] = [
    ({"combine": "swudi"}, "only iso_c, rtsvm, tsvm merge singular components of every expert"),
    ({"combine": "task_arithmetic"}, "iso_c with power: 1 and noise_floor: off is the same sum of matrices, and has"),
    ({"combine": "iso_c", "solver": "cmaes"}, "only while a part of it is held; take solver 'gradient'"),
    ({"combine": "tsvm", "over": "lambda", "solver": "climb"}, "the blocks' coefficients are what is searched"),
    ({"combine": "tsvm", "solver": "cocktail"}, "by gradient, cmaes, climb or grid"),
    ({"combine": "tsvm", "block_weights": "1 1 / 1 1"}, "these are what component_blocks searches"),
    ({"combine": "tsvm", "weight": [0.5, 1.0]}, "each has one number for all tensors"),
    ({"combine": "tsvm", "core": "dc"}, "core: dc has no singular components of single experts to search"),
]


@pytest.mark.parametrize(("parameters", "message"), BAD)
def test_bad_options(parameters: dict[str, Any], message: str, trained: Trained, absolute: Path) -> None:
    config = trained.config(component_blocks=2, **parameters)
    refused = search(config, absolute / "found.yml", check=False)
    assert refused.exit_code == 1 and message in refused.output, refused.output


def test_search_on_a_plain_config(trained: Trained, absolute: Path) -> None:
    config = plain(trained, "tsvm", {"lambda": 0.9}, weight=0.5)
    flags = ("--component-blocks", "2", "--data", str(trained.data), "--max-evaluations", "3")
    said = search(config, absolute / "found.yml", *flags).output
    found = yaml.safe_load((absolute / "found.yml").read_text())
    assert [model["parameters"] for model in found["models"]] == [{"weight": 0.5}] * 2
    assert set(found["parameters"]) == {"lambda", "block_weights"} and "aligned #2" in said
