"""Imports point downward only: each layer is imported whole, in a fresh process, and sys.modules is looked at."""

from __future__ import annotations

import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
HOSTS = ("mergekit", "fusion_bench")
ROOF = ("mergekit_3h.methods", "mergekit_3h.cli", "fusion_bench_ext")
HEAVY = {"transformers", "datasets", "ray", "cma", "matplotlib", "lm_eval", "lightning"}

# layer: what importing all of its modules must not bring along; a layer that does not exist is skipped
FORBIDDEN = {
    "mergekit_3h.drawings": {*HOSTS, *ROOF, "torch", "pydantic"},
    "mergekit_3h.errors": {*HOSTS, *ROOF, "torch", "pydantic"},
    "mergekit_3h.optional": {*HOSTS, *ROOF, "torch", "pydantic"},
    "mergekit_3h.pages": {*HOSTS, *ROOF, "torch", "pydantic"},
    "mergekit_3h.suggestions": {*HOSTS, *ROOF, "torch", "pydantic"},
    "mergekit_3h.tables": {*HOSTS, *ROOF, "torch", "pydantic"},
    "mergekit_3h.writing": {*HOSTS, *ROOF, "torch", "pydantic"},
    "mergekit_3h.registration": {*HOSTS, *ROOF, "torch", "pydantic"},
    "mergekit_3h.options": {*HOSTS, *ROOF, "torch"},
    "mergekit_3h.kernels": {*HOSTS, *ROOF, "pydantic"},
    "mergekit_3h.spectral": {*HOSTS, *ROOF},
    "mergekit_3h.checkpoints": {*HOSTS, *ROOF},
    "mergekit_3h.inspection": {*HOSTS, *ROOF},
    "mergekit_3h.data": {*HOSTS, *ROOF},
    "mergekit_3h.losses": {*HOSTS, *ROOF},
    "mergekit_3h.cluster": {*HOSTS, *ROOF},
    "mergekit_3h.search": {*HOSTS, *ROOF},
    "mergekit_3h.safety": {*HOSTS, *ROOF},
    "mergekit_3h.diagnostics": {*HOSTS, *ROOF},
    "mergekit_3h.evaluation": {*HOSTS, *ROOF},
    "mergekit_3h.benchmarks": {*HOSTS, *ROOF},
    "mergekit_3h.lint": {"fusion_bench", *ROOF},
    "mergekit_3h.testing": {*HOSTS, *ROOF},
    "mergekit_3h.methods": {"fusion_bench", "mergekit_3h.cli", "fusion_bench_ext"},
    "mergekit_3h.cli": {"fusion_bench", "fusion_bench_ext"},
    "fusion_bench_ext": {"mergekit_3h.cli", "mergekit_3h.methods"},
}
LAYERS_OF_A_HOST = {"mergekit_3h.lint", "mergekit_3h.methods", "mergekit_3h.cli", "fusion_bench_ext"}

IMPORT_LAYER = """
import importlib, json, pkgutil, sys
package = importlib.import_module(sys.argv[1])
alone = sorted(sys.modules)
for module in pkgutil.walk_packages(getattr(package, "__path__", ()), sys.argv[1] + "."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(json.dumps([alone, sorted(sys.modules)]))
"""


def _loaded_by(code: str, *arguments: str) -> list[set[str]]:
    command = [sys.executable, "-c", code, *arguments]
    without_hook = os.environ | {"MERGEKIT_3H_AUTOLOAD": "0"}  # it would load the methods
    done = subprocess.run(command, cwd=REPOSITORY, env=without_hook, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [set(modules) for modules in json.loads(done.stdout.splitlines()[-1])]


def _exists(layer: str) -> bool:
    path = REPOSITORY.joinpath(*layer.split("."))
    return path.with_suffix(".py").exists() or any(path.glob("*.py"))


def test_every_layer_has_its_row() -> None:
    found = {module.name for module in pkgutil.iter_modules([str(REPOSITORY / "mergekit_3h")], "mergekit_3h.")}
    assert found - {"mergekit_3h.__main__", *FORBIDDEN} == set(), "say in FORBIDDEN what the new layer must not import"


@pytest.mark.parametrize("layer", FORBIDDEN)
def test_layer_imports_downward_only(layer: str) -> None:
    if not _exists(layer):
        pytest.skip(f"there is no {layer}")
    if layer == "fusion_bench_ext":
        pytest.importorskip("fusion_bench")
    alone, whole = _loaded_by(IMPORT_LAYER, layer)
    assert layer in alone
    assert whole & FORBIDDEN[layer] == set()
    if layer not in LAYERS_OF_A_HOST:
        assert alone & HEAVY == set()


def test_kernels_import_torch_and_the_standard_library_only() -> None:
    [with_torch] = _loaded_by("import json, sys, torch; print(json.dumps([sorted(sys.modules)]))")
    _, whole = _loaded_by(IMPORT_LAYER, "mergekit_3h.kernels")
    others = {name.partition(".")[0] for name in whole - with_torch} - sys.stdlib_module_names - {"torch"}
    assert others == {"mergekit_3h"}


def test_importing_the_package_is_light() -> None:
    heavy = {"torch", "mergekit", "transformers", "pydantic", "fusion_bench"}

    def loaded_after(use: str) -> set[str]:
        [loaded] = _loaded_by(f"import json, sys, mergekit_3h; {use}; print(json.dumps([sorted(sys.modules)]))")
        return loaded

    assert loaded_after("dir(mergekit_3h)") & heavy == set()
    assert loaded_after("import mergekit_3h.cli") & heavy == set()
    # the same look does see what is loaded
    assert "pydantic" in loaded_after("mergekit_3h.parse_options('tsvm', {})")
    assert loaded_after("import mergekit_3h.methods") >= {"torch", "mergekit", "pydantic"}
