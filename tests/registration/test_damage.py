"""Half-removed packages and entry points that are no good: one warning that names the package, never an error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from registration.conftest import STAND_IN_METHODS
from registration.environments import Environment, build_wheel, write_project
from registration.test_hook import ALL, NAMES, WITHOUT_HOOK

from mergekit_3h.spectral.registry import own_names

BAD_ENTRY_POINTS = {
    "no_module": "no_such_module:METHOD",
    "no_attribute": "bad_package.sound:NO_SUCH_METHOD",
    "raises": "bad_package.raises:METHOD",
    "exits": "bad_package.exits:METHOD",
    "of_a_wrong_type": "bad_package.sound:FUNCTION",
    "taken_from_mergekit": "bad_package.sound:LINEAR",
    "taken_from_second": "bad_package.sound:EQUAL_PARTS",
}


@pytest.fixture(scope="module")
def bad_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel with one good method among all the ways to be bad. Its name sorts before the second package's."""
    modules = {
        "sound": """
            from mergekit.merge_methods import merge_method
            METHOD, LINEAR, EQUAL_PARTS = (
                merge_method(name=name)(lambda group: group) for name in ("sound", "linear", "equal_parts")
            )
            FUNCTION = len
        """,
        "raises": "raise RuntimeError('as if a library were of a wrong version')",
        "exits": "raise SystemExit(3)",
    }
    entry_points = {"sound": "bad_package.sound:METHOD"} | BAD_ENTRY_POINTS
    project = write_project(tmp_path_factory.mktemp("bad") / "project", "bad_package", modules, entry_points)
    return build_wheel(project)


def test_bad_entry_points(changeable: Environment, bad_package: Path) -> None:
    changeable.install(bad_package)
    declared = _metadata(changeable, "bad_package") / "entry_points.txt"
    declared.write_text(declared.read_text() + "\nno_syntax = not an entry point\n")  # pip would refuse it
    again = "import mergekit.merge_methods, importlib, mergekit_3h.methods\nimportlib.reload(mergekit.merge_methods)"
    done = changeable.run(again + NAMES)
    assert sorted(json.loads(done.stdout)) == sorted([*ALL, "sound"])

    warnings = done.stderr.splitlines()
    bad = {*BAD_ENTRY_POINTS, "no_syntax"} - {"taken_from_second"}
    for name in bad:
        [warning] = [line for line in warnings if repr(name) in line]
        assert "bad_package" in warning.replace("-", "_")
    # of two packages with one name the first by name has it, and the warning names both
    [duplicate] = [line for line in warnings if "'equal_parts' belongs to" in line]
    assert "second" in duplicate
    assert "bad" in duplicate
    assert len(warnings) == len(bad) + 1
    assert changeable.run(NAMES, "-W", "error").stderr == done.stderr


def _remove_package(environment: Environment) -> None:
    shutil.rmtree(environment.site_packages / "mergekit_3h")


def _remove_modules(environment: Environment) -> None:
    for module in (environment.site_packages / "mergekit_3h").glob("*.py"):
        module.unlink()


def _break_package(environment: Environment) -> None:
    (environment.site_packages / "mergekit_3h" / "__init__.py").write_text("raise ValueError('half-written')")


@pytest.mark.parametrize("damage", [_remove_package, _remove_modules, _break_package])
def test_hook_without_its_package(changeable: Environment, damage: Callable[[Environment], None]) -> None:
    damage(changeable)
    assert changeable.run("pass").stderr == ""
    done = changeable.run(NAMES)
    assert json.loads(done.stdout) == WITHOUT_HOOK
    [warning] = done.stderr.splitlines()
    assert "mergekit-3h is installed only in part" in warning
    assert str(changeable.site_packages) in warning


def test_pth_file_alone(changeable: Environment) -> None:
    _remove_package(changeable)
    (changeable.site_packages / "_mergekit_3h_autoload.py").unlink()
    done = changeable.run(NAMES)
    assert json.loads(done.stdout) == WITHOUT_HOOK
    [warning] = done.stderr.splitlines()
    assert "mergekit_3h.pth" in warning
    assert "mergekit-3h" in warning


def _metadata(environment: Environment, of: str) -> Path:
    return next(environment.site_packages.glob(f"{of}-*.dist-info"))


def test_package_without_metadata(changeable: Environment) -> None:
    shutil.rmtree(_metadata(changeable, "mergekit_3h"))
    done = changeable.run(NAMES)
    assert sorted(json.loads(done.stdout)) == ["equal_parts", *WITHOUT_HOOK]
    [warning] = done.stderr.splitlines()
    assert "mergekit-3h is installed only in part" in warning
    # the explicit import needs no metadata
    assert sorted(json.loads(changeable.run("import mergekit_3h.methods" + NAMES).stdout)) == sorted(ALL)


def test_metadata_without_methods(changeable: Environment) -> None:
    shutil.rmtree(changeable.site_packages / "mergekit_3h" / "methods")
    done = changeable.run(NAMES)
    assert sorted(json.loads(done.stdout)) == ["equal_parts", *WITHOUT_HOOK]
    assert [("mergekit-3h" in line, "left out" in line) for line in done.stderr.splitlines()] == [(True, True)] * (
        1 + len(own_names())
    )


def test_second_package_with_damaged_metadata(changeable: Environment) -> None:
    (_metadata(changeable, "second_package") / "METADATA").unlink()
    assert "tsvm" in changeable.run(NAMES).stdout
    (changeable.site_packages / "second_package" / "sharing.py").unlink()
    done = changeable.run(NAMES)
    assert sorted(json.loads(done.stdout)) == sorted(["linear", *own_names(), "safety_merge"])
    [warning] = done.stderr.splitlines()
    assert "second_package" in warning.replace("-", "_")


def test_unreadable_metadata(changeable: Environment) -> None:
    (_metadata(changeable, "second_package") / "entry_points.txt").write_bytes(b"\xff\xfe[not utf-8")
    done = changeable.run(NAMES)
    assert "linear" in json.loads(done.stdout)
    assert "mergekit-3h" in done.stderr


def test_uninstalling_leaves_nothing(changeable: Environment) -> None:
    changeable.run(NAMES)
    for name in STAND_IN_METHODS:  # they are no files of the wheel
        (changeable.site_packages / "mergekit_3h" / "methods" / f"{name}.py").unlink()
    changeable.pip("uninstall", "-y", "mergekit-3h")
    left = [path for path in changeable.site_packages.rglob("*mergekit_3h*") if path.is_file()]
    assert left == []
    assert changeable.answer(NAMES) == WITHOUT_HOOK


def test_an_interrupt_while_methods_load_is_no_bad_entry_point(changeable: Environment) -> None:
    (changeable.site_packages / "second_package" / "sharing.py").write_text("raise KeyboardInterrupt")
    code = """
        try:
            import mergekit.merge_methods
        except KeyboardInterrupt as interrupt:
            print(repr(interrupt.__context__))
    """
    done = changeable.run(code)
    assert (done.stdout.strip(), done.stderr) == ("None", "")
