"""What check says about options and structure, for which no model has to be read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml
from lint.workshop import Workshop, all_of, only
from mergekit import merge_methods
from mergekit.config import MergeConfiguration
from mergekit.merge_methods import BasePolicy, InputContract, TensorGroup
from mergekit.scripts.merge_raw_pytorch import RawPyTorchMergeConfig

from mergekit_3h.lint import Finding, lint, parameter_findings, unknown_parameters
from mergekit_3h.lint.structure import structure_findings


def parsed(config: dict[str, Any]) -> MergeConfiguration:
    return MergeConfiguration.model_validate(config)


def option_findings(config: dict[str, Any]) -> list[Finding]:
    return parameter_findings(parsed(config), merge_methods.get(config["merge_method"]).spec)


def two_models(method: str = "della", base: str | None = "/b", **changes: Any) -> dict[str, Any]:
    models = [{"model": "/x", "parameters": {"weight": 1}}, {"model": "/y", "parameters": {"weight": 1}}]
    return {"merge_method": method, "base_model": base, "models": models, **changes}


def test_sound_options_give_no_findings() -> None:
    parameters = {
        "density": [{"filter": "mlp", "value": [0.2, "5e-1"]}, {"value": 0.9}],
        "normalize": True,
        "lambda": [0.1, 1],
    }
    assert option_findings(two_models(parameters=parameters)) == []


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"parameters": {"densty": 0.5}}, "parameters.densty"),
        (
            {"models": [{"model": "/x", "parameters": {"weight": 1, "densty": 0.5}}]},
            "models[0].parameters.densty",
        ),
        (
            {
                "models": None,
                "slices": [
                    {
                        "sources": [
                            {"model": "/b", "layer_range": [0, 2]},
                            {"model": "/x", "layer_range": [0, 2], "parameters": {"weight": 1, "densty": 1}},
                        ]
                    }
                ],
            },
            "slices[0].sources[1].parameters.densty",
        ),
        (
            {
                "models": None,
                "slices": [
                    {
                        "sources": [{"model": "/b", "layer_range": [0, 2]}],
                        "parameters": {"densty": 1},
                    }
                ],
            },
            "slices[0].parameters.densty",
        ),
        (
            {
                "models": None,
                "modules": {
                    "default": {
                        "models": [{"model": "/x", "parameters": {"weight": 1}}],
                        "parameters": {"densty": 1},
                    }
                },
            },
            "modules.default.parameters.densty",
        ),
    ],
    ids=["global", "model", "source", "slice", "module"],
)
def test_misspelt_option_is_found_wherever_it_stands(changes: dict[str, Any], where: str) -> None:
    finding = only(option_findings(two_models(**changes)), "unknown-option")
    assert (finding.severity, finding.where) == ("error", where)
    assert "'density'" in finding.advice


def test_option_of_another_method_names_its_owner() -> None:
    config = two_models("linear", base=None, parameters={"filter_wise": True})
    assert "model_stock" in only(option_findings(config), "unknown-option").advice


def test_planned_config_and_raw_config_are_understood() -> None:
    spec = merge_methods.get("ties").spec
    raw = {"merge_method": "ties", "models": [{"model": "a.bin", "parameters": {"wieght": 1}}]}
    assert unknown_parameters(RawPyTorchMergeConfig.model_validate(raw), spec)[0].model == "a.bin"
    sources = [{"model": "/x", "layer_range": [0, 1], "parameters": {"wieght": 1}}]
    planned = {"merge_method": "ties", "modules": {"default": {"slices": [{"sources": sources}]}}}
    assert "'weight'" in unknown_parameters(parsed(planned), spec)[0].advice


def test_shared_option_under_a_model_has_no_effect() -> None:
    models = [{"model": "/x", "parameters": {"weight": 1, "normalize": False}}]
    finding = only(option_findings(two_models(models=models)), "no-effect")
    assert (finding.severity, finding.where) == ("warning", "models[0].parameters.normalize")


def test_expert_option_under_the_base_has_no_effect() -> None:
    models = [{"model": "/b", "parameters": {"density": 1}}, {"model": "/x", "parameters": {"weight": 1}}]
    finding = only(option_findings(two_models(models=models)), "no-effect")
    assert finding.where == "models[0].parameters.density"


@pytest.mark.parametrize(
    ("setting", "where"),
    [
        ("much", "parameters.density"),
        ([0.1, "much"], "parameters.density[1]"),
        ([{"filter": "mlp", "value": "much"}], "parameters.density[0].value"),
        ({"filter": "mlp", "value": [1, "much"]}, "parameters.density.value[1]"),
    ],
    ids=["literal", "gradient", "filter", "gradient under a filter"],
)
def test_every_kind_of_value_is_validated(setting: Any, where: str) -> None:
    finding = only(option_findings(two_models(parameters={"density": setting})), "bad-value")
    assert (finding.severity, finding.where) == ("error", where)
    assert "'much'" in finding.message


@pytest.mark.parametrize("method", ["tsvm", "rtsvm"])
def test_our_own_validation_speaks_for_itself(method: str) -> None:
    finding = only(option_findings(two_models(method, parameters={"energy": 1.5})), "bad-value")
    assert "energy" in finding.message and "1.5" in finding.message and "less than or equal to 1" in finding.message


def test_misspelt_option_of_rtsvm_has_a_suggestion() -> None:
    finding = only(option_findings(two_models("rtsvm", parameters={"gama": 0.5})), "unknown-option")
    assert "'gamma'" in finding.advice


def test_list_of_strings_is_a_layer_gradient() -> None:
    config = two_models("rtsvm", parameters={"exclude": ["lm_head", "embed"]})
    finding = only(option_findings(config), "list-of-strings")
    assert finding.severity == "warning" and "gradient" in finding.message


def test_gradient_between_whole_numbers_only() -> None:
    config = two_models("karcher", base=None, parameters={"max_iter": [10, 21]})
    config["models"] = [{"model": "/x"}, {"model": "/y"}]
    assert only(option_findings(config), "fractional-gradient").where == "parameters.max_iter"


def test_empty_list_and_unreachable_filter() -> None:
    parameters = {"density": [], "epsilon": [{"value": 0.1}, {"filter": "mlp", "value": 0.2}]}
    findings = option_findings(two_models(parameters=parameters))
    assert only(findings, "empty-list").where == "parameters.density"
    assert only(findings, "unreachable-filter").where == "parameters.epsilon[1]"


def test_required_option_is_missing_for_one_model() -> None:
    models = [{"model": "/x", "parameters": {"weight": 1}}, {"model": "/y"}]
    finding = only(option_findings(two_models(models=models)), "missing-option")
    assert finding.model == "/y" and "'weight'" in finding.message


def test_required_option_of_the_base_that_mergekit_adds() -> None:
    assert only(option_findings(two_models("linear")), "missing-option").model == "/b"


def test_required_shared_option() -> None:
    assert only(option_findings(two_models("slerp", models=[{"model": "/x"}])), "missing-option").where == "models"


def structure(text: str) -> list[Finding]:
    return lint(f"{text}\n")


def rules_of(config: dict[str, Any], rule: str) -> Finding:
    return only(structure(yaml.safe_dump(config)), rule)


def test_unknown_method() -> None:
    finding = rules_of(two_models("tees"), "unknown-method")
    assert "'ties'" in finding.advice and "rtsvm" in finding.advice and finding.line is not None


def test_hook_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERGEKIT_3H_AUTOLOAD", "0")
    assert rules_of(two_models("safety_merge"), "autoload-off").severity == "warning"
    finding = rules_of(two_models("rtsvm"), "autoload-off")
    assert finding.severity == "warning" and "MERGEKIT_3H_AUTOLOAD=0" in finding.message


@pytest.mark.parametrize(("name", "meant"), [("bf16", "bfloat16"), ("float17", "float16"), ("int64", "bfloat16")])
def test_dtype_names(name: str, meant: str) -> None:
    finding = rules_of(two_models(out_dtype=name), "dtype")
    assert finding.where == "out_dtype" and meant in f"{finding.message} {finding.advice}"


def test_method_without_its_base() -> None:
    assert rules_of(two_models(base=None), "no-base").severity == "error"


def test_method_that_takes_no_base() -> None:
    def average(group: TensorGroup) -> torch.Tensor:
        return torch.stack(group.tensors).mean(0)

    average.__annotations__ = {"group": TensorGroup, "return": torch.Tensor}
    contract = InputContract(base=BasePolicy.FORBIDDEN)
    method = merge_methods.merge_method(average, name="average", contract=contract)
    findings = structure_findings(parsed(two_models()), method)
    assert only(findings, "base-forbidden").severity == "error"


def test_base_alone() -> None:
    assert rules_of(two_models(models=[{"model": "/b"}]), "no-experts").severity == "error"


def test_same_expert_twice() -> None:
    expert = {"model": "/x", "parameters": {"weight": 1}}
    assert rules_of(two_models(models=[expert, expert]), "duplicate-model").model == "/x"


def test_number_of_inputs() -> None:
    config = {"merge_method": "slerp", "base_model": "/b", "models": [{"model": "/x"}, {"model": "/y"}]}
    assert "exactly 2" in rules_of({**config, "parameters": {"t": 0.5}}, "inputs").message


def test_slices() -> None:
    sources = [{"model": "/x", "layer_range": [0, 2]}, {"model": "/y", "layer_range": [0, 3]}]
    config = {"merge_method": "ties", "base_model": "/b", "slices": [{"sources": sources}]}
    assert "[2, 3]" in rules_of(config, "layer-range").message
    assert rules_of(config, "base-not-in-slice").model == "/b"
    sources[0]["layer_range"] = sources[1]["layer_range"] = [2, 2]
    assert "is empty" in next(f for f in structure(yaml.safe_dump(config)) if f.rule == "layer-range").message


def test_tokenizer_and_template_settings() -> None:
    config = two_models("linear", base=None, tokenizer_source="base", chat_template="chatmll")
    assert rules_of(config, "tokenizer-base").severity == "error"
    assert "'chatml'" in rules_of(config, "chat-template").advice
    sound = two_models(chat_template="chatml")
    assert not [f for f in structure(yaml.safe_dump(sound)) if f.rule == "chat-template"]


def test_keys_that_mergekit_drops() -> None:
    models = [{"model": "/x", "weight": 1}, {"model": "/y", "paramters": {"weight": 1}}]
    settings = {"density": {"value": 1, "fliter": "mlp"}}
    findings = structure(yaml.safe_dump(two_models(models=models, outdtype="float16", parameters=settings)))
    advice = {finding.where: finding.advice for finding in all_of(findings, "unknown-key")}
    assert set(advice) == {"outdtype", "models[0].weight", "models[1].paramters", "parameters.density.fliter"}
    assert "'out_dtype'" in advice["outdtype"] and "parameters:" in advice["models[0].weight"]
    assert "'filter'" in advice["parameters.density.fliter"] and "'parameters'" in advice["models[1].paramters"]


def test_duplicate_key_with_its_line() -> None:
    text = yaml.safe_dump(two_models(), sort_keys=False) + "parameters:\n  density: 0.1\n  density: 0.9\n"
    finding = only(structure(text), "duplicate-key")
    assert finding.where == "parameters.density" and finding.line == len(text.splitlines())


def test_unreadable_configs() -> None:
    broken = only(structure("merge_method: [ties\n"), "yaml")
    assert broken.line is not None
    assert "mapping" in only(structure("- ties\n"), "yaml").message
    assert "required" in only(structure("models: [{model: /x}]\n"), "config").message
    assert "Exactly one of" in only(structure("merge_method: ties\n"), "config").message
    assert (
        "None"
        in only(structure("merge_method: ties\nmodels: [{model: /x, parameters: {weight: }}]\n"), "config").message
    )
    assert only(structure("base_model: /x\nexperts: []\n"), "other-tool").severity == "error"
    assert only(structure("\n"), "yaml").message == "the config is empty"


def test_options_of_safety_merge_are_also_those_of_the_method_it_combines_with(llamas: Workshop) -> None:
    """As docs/safety_merge.md writes them: side by side."""
    of_ties = {"data": "/nowhere/safety.jsonl", "combine": "ties", "solver": "cmaes", "density": 0.5}
    planned = llamas.lint(llamas.config("safety_merge", parameters=of_ties))
    assert [finding.rule for finding in planned] == ["plan"] and "/nowhere/safety.jsonl" in planned[0].message
    finding = only(llamas.lint(llamas.config("safety_merge", parameters={**of_ties, "gamma": 0.3})), "unknown-option")
    assert "'gamma'" in finding.message


@pytest.mark.parametrize(
    ("setting", "where"),
    [
        ("1 1 / 1 0 / 1 1", "parameters.block_weights"),
        ([{"filter": "mlp", "value": "1 / 1"}, {"value": "1"}], "parameters.block_weights[1].value"),
    ],
)
@pytest.mark.parametrize("of_search", [False, True])
def test_blocks_of_another_number_of_experts(setting: Any, where: str, of_search: bool) -> None:
    """The base among the models is no expert."""
    parameters = {"block_weights": setting, **({"data": "d.jsonl", "combine": "tsvm"} if of_search else {})}
    config = two_models("safety_merge" if of_search else "tsvm", parameters=parameters)
    config["models"] = [{"model": "/b"}, *({"model": model} for model in ("/x", "/y"))]
    method = merge_methods.get(config["merge_method"])
    spec = method.spec_for(parsed(config)) if of_search else method.spec
    finding = only(parameter_findings(parsed(config), spec), "bad-value")
    assert finding.where == where and "experts; there are 2" in finding.message
    config["parameters"]["block_weights"] = "1 0.5 / 0 1"
    assert parameter_findings(parsed(config), spec) == []


@pytest.mark.parametrize("setting", ["block_weights=1 / 1 / 1", [{"filter": "mlp", "value": "block_weights=1"}]])
def test_blocks_of_another_number_of_experts_in_what_combine_names(setting: Any) -> None:
    config = two_models("svc", parameters={"combine": "tsvm", "combine_options": setting})
    config["models"] = [{"model": "/b"}, *({"model": model} for model in ("/x", "/y"))]
    finding = only(parameter_findings(parsed(config), merge_methods.get("svc").spec), "bad-value")
    assert finding.where.startswith("parameters.combine_options") and "experts; there are 2" in finding.message
    assert "option 'combine_options', for tsvm: option 'block_weights'" in finding.message
