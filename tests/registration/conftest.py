"""One wheel a session, and one virtual environment for every Python that the project supports."""

from __future__ import annotations

import shutil
import sys
import sysconfig
from pathlib import Path
from textwrap import dedent

import pytest
from registration.environments import (
    STAND_IN,
    Environment,
    build_wheel,
    create_environment,
    find_python,
    unpack_source_distribution,
    write_project,
)

from mergekit_3h.spectral.registry import own_names

SECOND_PACKAGE = {
    "sharing": """
        from mergekit.merge_methods import TensorGroup, merge_method

        def share(group):
            return sum(entry.tensor for entry in group.entries) / len(group.entries)
    """,
    "equal_parts": """
        from __future__ import annotations

        try:
            import torch  # mergekit reads the annotations; the stand-in for mergekit has no torch and does not
        except ImportError:
            pass
        from mergekit.merge_methods import TensorGroup, merge_method
        from second_package.sharing import share

        @merge_method(name="equal_parts")
        def METHOD(group: TensorGroup) -> torch.Tensor:
            return share(group)
    """,
}
STAND_IN_METHODS = {
    "spectral": "\n".join(
        ["from mergekit.merge_methods.base import MergeMethod", *(f"{n} = MergeMethod({n!r})" for n in own_names())]
    ),
    "safety_merge": """
        from mergekit.merge_methods.base import MergeMethod

        METHOD = MergeMethod("safety_merge")
    """,
}
"""Modules of ``mergekit_3h.methods`` without torch."""


@pytest.fixture(scope="session")
def source_distribution(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared: change a copy of it only."""
    return unpack_source_distribution(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="session")
def wheel(source_distribution: Path) -> Path:
    return build_wheel(source_distribution)


@pytest.fixture(scope="session")
def second_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of another package with a merge method; one of its modules needs another that needs mergekit."""
    project = write_project(
        tmp_path_factory.mktemp("project") / "second",
        "second_package",
        SECOND_PACKAGE,
        {"equal_parts": "second_package.equal_parts:METHOD"},
    )
    return build_wheel(project)


@pytest.fixture(scope="session", params=["3.10", "3.11", "3.12", "3.13"])
def installed(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    wheel: Path,
    second_package: Path,
) -> Environment:
    """This package, the second one and the stand-in for mergekit. Shared: change a copy of it only.

    The modules of the merge methods are stood in for as well, because these interpreters have no torch.
    """
    python = find_python(request.param)
    if python is None:
        pytest.skip(f"this machine has no Python {request.param}")
    environment = create_environment(python, tmp_path_factory.mktemp("installed") / request.param)
    environment.install(wheel, second_package)
    shutil.copytree(STAND_IN, environment.site_packages / "mergekit")
    for name, source in STAND_IN_METHODS.items():
        (environment.site_packages / "mergekit_3h" / "methods" / f"{name}.py").write_text(dedent(source))
    return environment


@pytest.fixture
def changeable(installed: Environment, tmp_path: Path) -> Environment:
    return installed.copy(tmp_path / "environment")


@pytest.fixture(scope="session")
def beside_pytest(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An empty environment that sees what is installed beside pytest, but does not process its .pth files.

    Shared: change a copy of it only.
    """
    python = Path(getattr(sys, "_base_executable", sys.executable))
    environment = create_environment(python, tmp_path_factory.mktemp("beside") / "environment")
    (environment.site_packages / "zz_beside_pytest.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return environment
