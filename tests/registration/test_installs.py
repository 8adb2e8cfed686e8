"""What an installation consists of, as a wheel and editable, and the real mergekit under it."""

from __future__ import annotations

import json
import re
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from registration.environments import REPOSITORY, STAND_IN, Environment, build_wheel, write_project
from safetensors.torch import load_file, save_file

from mergekit_3h.registration import GROUP, own_methods
from mergekit_3h.spectral.registry import own_names

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

START_UP_FILES = {"mergekit_3h.pth", "mergekit_3h.start", "_mergekit_3h_autoload.py"}
NAMES = """
import json
from mergekit.merge_methods import registered_methods

print(json.dumps([method.spec.name for method in registered_methods()]))
"""


def test_the_wheel_puts_the_start_up_files_beside_the_package(wheel: Path) -> None:
    at_the_top = {name for name in zipfile.ZipFile(wheel).namelist() if "/" not in name}
    assert at_the_top == START_UP_FILES


def test_own_methods_are_those_that_the_project_declares() -> None:
    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["entry-points"][GROUP]
    assert {entry_point.name: entry_point.value for entry_point in own_methods()} == declared


@pytest.fixture
def source(source_distribution: Path, tmp_path: Path) -> Path:
    """What a checkout holds, and a test may change it."""
    return Path(shutil.copytree(source_distribution, tmp_path / "checkout"))


@pytest.fixture
def editable(beside_pytest: Environment, source: Path, tmp_path: Path) -> Environment:
    """This project installed editable, with the stand-in for mergekit before the real one."""
    environment = beside_pytest.copy(tmp_path / "environment")
    environment.pip("install", "--no-deps", "--no-index", "--no-build-isolation", "-e", source)
    shutil.copytree(STAND_IN, environment.site_packages / "mergekit")
    return environment


def test_editable_install(editable: Environment, source: Path) -> None:
    assert {path.name for path in editable.site_packages.iterdir()} >= START_UP_FILES
    edited = {"spectral": {name: name for name in own_names()}, "safety_merge": {"METHOD": "safety_merge"}}
    for module, methods in edited.items():
        lines = [
            f"{name} = merge_method(name='edited_{method}')(lambda group: group)" for name, method in methods.items()
        ]
        (source / "mergekit_3h" / "methods" / f"{module}.py").write_text(
            "\n".join(["from mergekit.merge_methods import merge_method", *lines]) + "\n"
        )
    assert sorted(editable.answer(NAMES)) == sorted(
        [*(f"edited_{name}" for name in own_names()), "edited_safety_merge", "linear"]
    )


def test_editable_install_whose_source_is_gone(editable: Environment, source: Path) -> None:
    source.rename(source.with_name("elsewhere"))
    (editable.site_packages / "zz_beside_pytest.pth").unlink()
    assert editable.run("pass").stderr == ""
    done = editable.run(NAMES)
    assert json.loads(done.stdout) == ["linear"]
    [warning] = done.stderr.splitlines()
    assert "mergekit-3h is installed only in part" in warning


def test_uninstalling_an_editable_install_leaves_nothing(editable: Environment) -> None:
    editable.pip("uninstall", "-y", "mergekit-3h")
    assert [path for path in editable.site_packages.rglob("*mergekit_3h*") if path.is_file()] == []


@pytest.fixture(scope="module")
def documented_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the example package in docs/registration.md."""
    page = (REPOSITORY / "docs" / "registration.md").read_text()
    blocks = re.findall(r"```(\w+)\n(.*?)```", page, re.DOTALL)
    [declaration] = [tomllib.loads(text) for language, text in blocks if language == "toml"]
    [module] = [text for language, text in blocks if language == "python" and "my_mean" in text]
    project = tmp_path_factory.mktemp("documented") / "project"
    entry_points = declaration["project"]["entry-points"][GROUP]
    return build_wheel(write_project(project, "my_package", {"my_mean": module}, entry_points))


@pytest.fixture(scope="module")
def with_real_mergekit(
    beside_pytest: Environment,
    wheel: Path,
    second_package: Path,
    documented_package: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Environment:
    environment = beside_pytest.copy(tmp_path_factory.mktemp("real") / "environment")
    environment.install(wheel, second_package, documented_package)
    return environment


@pytest.mark.parametrize("first", ["mergekit.plan", "mergekit_3h.methods.spectral"])
def test_real_mergekit_has_the_methods_whatever_is_imported_first(with_real_mergekit: Environment, first: str) -> None:
    names = with_real_mergekit.answer(f"import {first}{NAMES}")
    assert {*own_names(), "safety_merge", "equal_parts", "my_mean", "linear"} <= set(names)


def test_real_mergekit_merges_with_the_documented_package(with_real_mergekit: Environment, tmp_path: Path) -> None:
    """The command mergekit-pytorch, whose console script runs these two statements."""
    models = {"one": 1.0, "two": 2.0}
    for name, value in models.items():
        save_file({"weight": torch.full((4, 3), value)}, tmp_path / f"{name}.safetensors")
    listed = "".join(f"- model: {tmp_path / name}.safetensors\n" for name in models)
    (tmp_path / "merge.yml").write_text(f"merge_method: my_mean\nmodels:\n{listed}")
    merged = tmp_path / "merged"
    command = "from mergekit.scripts.merge_raw_pytorch import main; main()"
    with_real_mergekit.start("-c", command, str(tmp_path / "merge.yml"), str(merged))
    assert torch.equal(load_file(merged / "model.safetensors")["weight"], torch.full((4, 3), 1.5))
