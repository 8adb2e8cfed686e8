"""Options: one declaration, its presets, and errors that say what to write instead."""

from __future__ import annotations

import pytest

from mergekit_3h.errors import OptionError
from mergekit_3h.spectral.registry import methods, option_names, parse_options
from mergekit_3h.spectral.rtsvm import PRESETS, RTSVM
from mergekit_3h.spectral.tsvm import TSVM


def test_defaults_of_rtsvm() -> None:
    settings = parse_options("rtsvm", {}).settings()
    assert (settings.order, settings.rank_budget, settings.rank_selection) == ("truncate_first", "shared", "sparsity")
    assert (settings.gamma, settings.epsilon_mode, settings.epsilon) == (0.2, "relative", 0.3)
    assert (settings.outlier_weighting, settings.alpha_scale, settings.outlier_strength) == ("paper", "mean", 1.0)
    assert settings.noise_floor == "auto"


def test_the_paper_preset_is_algorithm_1() -> None:
    settings = parse_options("rtsvm", {"preset": "paper"}).settings()
    assert (settings.order, settings.rank_budget) == ("orthogonalize_first", "per_task")
    assert (settings.epsilon_mode, settings.epsilon, settings.alpha_scale) == ("absolute", 0.1, "sum")
    assert settings.noise_floor == "off"


@pytest.mark.parametrize("preset", list(PRESETS))
@pytest.mark.parametrize(("name", "value"), [("gamma", 0.9), ("order", "truncate_first"), ("noise_floor", "auto")])
def test_every_option_of_a_preset_can_be_overridden(preset: str, name: str, value: object) -> None:
    assert getattr(parse_options("rtsvm", {"preset": preset, name: value}).settings(), name) == value


def test_presets_set_exactly_the_options_that_have_no_default_of_their_own() -> None:
    """But for those that tsvm leaves unset too, which decide for themselves."""
    unset = {name for name, field in RTSVM.model_fields.items() if field.default is None}
    undecided = {name for name, field in TSVM.model_fields.items() if field.default is None}
    assert {frozenset(values) for values in PRESETS.values()} == {frozenset(unset - undecided)}


def test_gamma_0_and_no_outlier_weighting_are_the_settings_of_tsvm_but_for_numbers_without_effect() -> None:
    tsvm = parse_options("tsvm", {}).settings()
    rtsvm = parse_options("rtsvm", {"gamma": 0.0, "outlier_weighting": "none"}).settings()
    differing = {name for name in vars(tsvm) if getattr(tsvm, name) != getattr(rtsvm, name)}
    assert differing == {"rank_selection", "epsilon", "outlier_strength"}


def test_yaml_reads_off_as_false() -> None:
    assert parse_options("tsvm", {"noise_floor": False}).noise_floor == "off"
    assert parse_options("rtsvm", {"noise_floor": False}).settings().noise_floor == "off"


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("rtsvm", {"gama": 0.5}, r"rtsvm has no option 'gama'; did you mean 'gamma'\?"),
        ("tsvm", {"gamma": 0.5}, r"tsvm has no option 'gamma'; it has: lambda"),
        ("rtsvm", {"gamma": 1.5}, r"option 'gamma': got 1.5; input should be less than or equal to 1"),
        ("rtsvm", {"epsilon": -1}, r"option 'epsilon': got -1"),
        ("rtsvm", {"order": "sideways"}, r"'truncate_first' or 'orthogonalize_first'"),
        ("tsvm", {"lambda": True}, r"option 'lambda': got True, expected a number"),
        ("tsvm", {"lambda": float("nan")}, r"option 'lambda': got nan"),
        ("tsvm", {"energy": 0}, r"option 'energy': got 0; input should be greater than 0"),
        ("tsvm", {"noise_floor": True}, r"option 'noise_floor': got True"),
    ],
)
def test_a_bad_option_is_named_with_what_it_may_be(method: str, given: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        parse_options(method, given)


@pytest.mark.parametrize("method", list(methods()))
def test_every_option_is_described(method: str) -> None:
    assert "weight" in option_names(method)
    for name, field in methods()[method].model_fields.items():
        assert field.description and field.description[-1] == ".", name
