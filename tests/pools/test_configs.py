"""Hydra finds our configs, in FusionBench only, and they say what the options' one declaration says."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
from fusion_bench.utils.hydra_utils import initialize_hydra_config
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

import fusion_bench_ext
from fusion_bench_ext.algorithms import MergeKitAlgorithm, SafetyMerge, spectral
from mergekit_3h.spectral import registry
from mergekit_3h.spectral.method import ExpertOptions

CONFIGS = Path(fusion_bench_ext.__file__).parent / "config"
FILES = {"mergekit": MergeKitAlgorithm, "safety_merge": SafetyMerge}
SPECTRAL = {name: getattr(spectral, method.__name__) for name, method in registry.methods().items()}
ALGORITHMS = FILES | SPECTRAL
HOST = ("lora", "adapter_save_path", "adapter_rank", "memory_gb", "model_save_path")


def compose(*overrides: str):
    GlobalHydra.instance().clear()
    return initialize_hydra_config("fabric_model_fusion", overrides=list(overrides))


def test_every_method_config_is_known_here():
    assert {path.stem for path in (CONFIGS / "method").iterdir()} == set(FILES)


@pytest.mark.parametrize(("name", "algorithm"), ALGORITHMS.items())
def test_resolves_to_our_algorithm(name, algorithm):
    """A config of the same name in FusionBench would win silently."""
    method = compose(f"method={name}").method
    assert method._target_ == f"{algorithm.__module__}.{algorithm.__qualname__}"


@pytest.mark.parametrize("name", registry.names())
def test_keys_and_defaults_are_those_of_the_options(name):
    method = dict(OmegaConf.to_container(compose(f"method={name}").method))
    declared = {field.alias or key: field.default for key, field in registry.method(name).model_fields.items()}
    declared |= {key: field.default for key, field in ExpertOptions.model_fields.items()}
    assert {key: value for key, value in method.items() if key in declared} == declared
    assert set(method) - set(declared) == {"_target_", *HOST}
    algorithm = ALGORITHMS[name](**{key: value for key, value in method.items() if key != "_target_"})
    assert algorithm.options == registry.method(name)()
    # What the algorithm writes, say into a model card, reads back as the same config.
    written = {key: value for key, value in algorithm.config.items() if key in method}
    assert written == method


def test_mergekit_config_lists_every_argument():
    method = compose("method=mergekit").method
    hosts = {"_recursive_", "_usage_", "_version_"}
    assert set(method) - {"_target_"} == set(MergeKitAlgorithm._config_mapping.values()) - hosts
    assert all(method[key] is None for key in method if key != "_target_")


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("method.lambda=0.5", "lambda", 0.5),
        ("method.weight=[1,2]", "weight", [1, 2]),
        ("method.weight={a: 1, b: 0.5}", "weight", {"a": 1, "b": 0.5}),
        ("method.noise_floor=off", "noise_floor", "off"),
    ],
)
def test_overrides(override, key, value):
    assert compose("method=tsvm", override).method[key] == value


@pytest.mark.parametrize("override", ["method.parameters={density: 0.5}", "+method.parameters.density=0.5"])
def test_parameters_of_mergekit_methods_are_given_by_either_syntax(override):
    assert compose("method=mergekit", override).method.parameters == {"density": 0.5}


def test_parameters_of_single_models_are_given_by_either_syntax():
    expected = {"math": {"weight": 0.9}}
    for override in ("method.model_parameters={math: {weight: 0.9}}", "+method.model_parameters.math.weight=0.9"):
        assert compose("method=mergekit", override).method.model_parameters == expected


def test_entry_point_of_newer_hydra_is_the_plugin():
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    found = importlib.metadata.entry_points(group="hydra.plugins")
    plugin = next(entry for entry in found if entry.name == "mergekit-3h").load()
    assert issubclass(plugin, SearchPathPlugin)


_OTHER_APPLICATION = """
import sys
import hydra
from hydra.core.hydra_config import HydraConfig

@hydra.main(config_path="conf", config_name="app", version_base=None)
def main(cfg):
    providers = [source["provider"] for source in HydraConfig.get().runtime.config_sources]
    assert providers == ["hydra", "main", "schema"], providers
    plugins = [name for name in sys.modules if name.startswith("hydra_plugins.")]
    assert "hydra_plugins.mergekit_3h" in plugins, plugins
    heavy = {"torch", "transformers", "mergekit", "fusion_bench", "fusion_bench_ext", "mergekit_3h"} & set(sys.modules)
    assert not heavy, heavy
    print("method is", cfg.method.name)

main()
"""


def test_other_hydra_applications_are_not_disturbed(tmp_path: Path):
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "conf" / "app.yaml").write_text("defaults: [method: mine]\n")
    (tmp_path / "conf" / "method" / "mine.yaml").write_text("name: mine\n")
    (tmp_path / "app.py").write_text(_OTHER_APPLICATION)

    def run(*overrides: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "app.py", "hydra.run.dir=.", "hydra.output_subdir=null", *overrides]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    done = run()
    assert done.returncode == 0, done.stderr
    assert done.stdout == "method is mine\n" and done.stderr == ""
    refused = run("method=tsvm")
    assert refused.returncode != 0 and "method/tsvm" in refused.stderr


def test_no_folder_that_would_replace_fusion_benchs_configs():
    root = Path(fusion_bench_ext.__file__).parents[1]
    assert not (root / "config").exists() and not (root / "fusion_bench_config").exists()
