"""What importing a room brings along: rooms are imported whole, in fresh processes, and sys.modules is looked at."""

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

GROUND = {*HOSTS, *ROOF, "torch", "pydantic"}
"""What the single files of the ground floor do without, and the hook that runs at every start of Python."""

STANDING_ON_IT = (
    *("kernels", "spectral", "checkpoints", "inspection", "data", "losses", "cluster", "search", "safety"),
    *("diagnostics", "evaluation", "benchmarks", "testing"),
)

# Rooms that are imported together, in one process, and what that must not bring along.
FORBIDDEN = (
    (("drawings", "errors", "optional", "pages", "registration", "suggestions", "tables", "writing"), GROUND),
    (("options",), GROUND - {"pydantic"}),
    (STANDING_ON_IT, {*HOSTS, *ROOF}),
    (("lint",), {"fusion_bench", *ROOF}),
    (("methods",), {"fusion_bench", "mergekit_3h.cli", "fusion_bench_ext"}),
    (("cli",), {"fusion_bench", "fusion_bench_ext"}),
)
ROOMS_OF_A_HOST = {"lint", "methods", "cli"}
"""Importing the others by their names alone loads nothing heavy."""

IMPORT_ROOMS = """
import importlib, json, pkgutil, sys
packages = [importlib.import_module(name) for name in sys.argv[1:]]
alone = sorted(sys.modules)
for package in packages:
    for module in pkgutil.walk_packages(getattr(package, "__path__", ()), package.__name__ + "."):
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


def test_every_room_has_its_row() -> None:
    found = {module.name for module in pkgutil.iter_modules([str(REPOSITORY / "mergekit_3h")])}
    listed = {room for rooms, _ in FORBIDDEN for room in rooms}
    assert found - {"__main__"} == listed, "say in FORBIDDEN what the new room must not import"


@pytest.mark.parametrize(("rooms", "forbidden"), FORBIDDEN)
def test_rooms_do_without(rooms: tuple[str, ...], forbidden: set[str]) -> None:
    alone, whole = _loaded_by(IMPORT_ROOMS, *(f"mergekit_3h.{room}" for room in rooms))
    assert {f"mergekit_3h.{room}" for room in rooms} <= alone
    assert whole & forbidden == set()
    if not ROOMS_OF_A_HOST & set(rooms):
        assert alone & HEAVY == set()


def test_fusion_benchs_side_does_without_mergekits() -> None:
    pytest.importorskip("fusion_bench")
    _, whole = _loaded_by(IMPORT_ROOMS, "fusion_bench_ext")
    assert whole & {"mergekit_3h.cli", "mergekit_3h.methods"} == set()


def test_kernels_import_torch_and_the_standard_library_only() -> None:
    [with_torch] = _loaded_by("import json, sys, torch; print(json.dumps([sorted(sys.modules)]))")
    _, whole = _loaded_by(IMPORT_ROOMS, "mergekit_3h.kernels")
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
