"""An option has one name, default and description: in mergekit, FusionBench, the command line and Python."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mergekit_3h.cli.search import command
from mergekit_3h.cluster.options import ClusterOptions
from mergekit_3h.errors import OptionError
from mergekit_3h.methods.safety_merge import METHOD
from mergekit_3h.safety.options import (
    DECLARATIONS,
    REQUIRED,
    parse_safety_merge_options,
    safety_merge_option_names,
)

DECLARED = {name: field for part in DECLARATIONS for name, field in part.model_fields.items()}


def test_no_name_is_declared_twice() -> None:
    assert len(DECLARED) == sum(len(part.model_fields) for part in DECLARATIONS) == len(safety_merge_option_names())


def test_mergekit() -> None:
    parameters = {parameter.name: parameter for parameter in METHOD.spec.parameters}
    assert set(parameters) == set(DECLARED)
    for name, parameter in parameters.items():
        assert parameter.description == DECLARED[name].description
        # A config without a required one is refused while it is planned (test_bad_input.py), in our words.
        expected = None if name in REQUIRED else DECLARED[name].default
        assert parameter.validate(parameter.default) == expected
        with pytest.raises(Exception, match=f"option '{name}': got"):
            parameter.validate({"not": "a value"})


def test_fusion_bench() -> None:
    import fusion_bench_ext

    file = Path(fusion_bench_ext.__file__).parent / "config" / "method" / "safety_merge.yaml"
    config = yaml.safe_load(file.read_text())
    of_host = {"_target_", "parameters", "model_parameters", "random_seed", "model_save_path"}
    assert set(config) - of_host == set(DECLARED)
    assert {name: config[name] for name in DECLARED} == {name: field.default for name, field in DECLARED.items()}


def test_fusion_bench_attributes_make_the_same_config_again() -> None:
    pytest.importorskip("fusion_bench")
    from fusion_bench_ext.algorithms import SafetyMerge

    given = {"data": "a.jsonl", "solver": "cmaes", "seed": 3, "ray_workers": 2, "parameters": {"density": 0.5}}
    written = dict(SafetyMerge(**given, combine="ties").config)
    again = SafetyMerge(**{key: value for key, value in written.items() if not key.startswith("_")})
    assert dict(again.config) == written
    assert {name: written[name] for name in given} == given


def test_command_line(tmp_path: Path) -> None:
    options = {option.name: option for option in command.params}
    (tmp_path / "config.yml").write_text("")
    given = command.make_context("search", [str(tmp_path / "config.yml"), "-o", "found.yml"]).params
    missing = set(DECLARED) - set(options)
    assert missing == {"report"}, "the output says where the report goes"
    for name in set(DECLARED) - missing:
        assert options[name].help.startswith(DECLARED[name].description)
        assert given[name] is None, "what is not given is what the config says"


def test_python() -> None:
    parsed = parse_safety_merge_options({"data": "a.jsonl", "ray_workers": "2", "layer_granularity": "1"})
    assert parsed.cluster == ClusterOptions(workers=2)
    assert parsed.search.layer_granularity == 1
    assert parse_safety_merge_options(parsed.by_name()) == parsed
    defaults = parse_safety_merge_options({}).by_name()
    assert defaults == {name: field.default for name, field in DECLARED.items()}


@pytest.mark.parametrize("name", ["daat", "max_evaluation", "ray_worker"])
def test_a_misspelt_option(name: str) -> None:
    with pytest.raises(OptionError, match="did you mean"):
        parse_safety_merge_options({name: 1})


def test_every_option_is_documented() -> None:
    docs = Path(__file__).parents[2] / "docs"
    lines = [line for page in ("safety_merge.md", "search.md") for line in (docs / page).read_text().splitlines()]
    for name, field in DECLARED.items():
        rows = [line for line in lines if line.startswith(f"| `{name}` |")]
        assert len(rows) == 1 and rows[0].endswith(f"| {field.description} |"), name
