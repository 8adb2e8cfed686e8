"""The hook in a sound installation, on every Python: methods are there, whoever imports mergekit and however."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from textwrap import dedent

import pytest
from registration.environments import STAND_IN, Environment

from mergekit_3h.spectral.registry import own_names

NAMES = """
import json
from mergekit.merge_methods import registered_methods

print(json.dumps([method.spec.name for method in registered_methods()]))
"""
ALL = ["linear", *own_names(), "safety_merge", "equal_parts"]
WITHOUT_HOOK = ["linear"]


def test_importing_mergekit_brings_the_methods_of_every_package(installed: Environment) -> None:
    assert sorted(installed.answer(NAMES)) == sorted(ALL)


def test_a_start_of_python_loads_nothing_but_the_hook(installed: Environment, tmp_path: Path) -> None:
    code = "import sys, json; print(json.dumps([sorted(sys.modules), len(sys.meta_path)]))"
    without = installed.copy(tmp_path / "without")
    (without.site_packages / "mergekit_3h.pth").write_text("# for which Python loads its codec just the same\n")
    modules, finders = installed.answer(code)
    modules_without, finders_without = without.answer(code)
    assert set(modules) - set(modules_without) == {"_mergekit_3h_autoload"}
    assert finders == finders_without + 1


@pytest.mark.parametrize("flags", [["-I"], ["-E"], ["-s"], ["-O"], ["-W", "error"]], ids=" ".join)
def test_interpreter_options_do_not_matter(installed: Environment, flags: list[str]) -> None:
    assert sorted(installed.answer(NAMES, *flags)) == sorted(ALL)


def test_without_site_packages_nothing_is_armed(installed: Environment) -> None:
    code = "import sys, json; print(json.dumps([type(finder).__name__ for finder in sys.meta_path]))"
    assert "_Finder" in installed.answer(code)
    assert "_Finder" not in installed.answer(code, "-S")


def test_the_switch_turns_it_off(installed: Environment) -> None:
    assert installed.answer(NAMES, MERGEKIT_3H_AUTOLOAD="0") == WITHOUT_HOOK
    assert installed.answer("import os; os.environ['MERGEKIT_3H_AUTOLOAD'] = '0'" + NAMES) == WITHOUT_HOOK
    assert sorted(installed.answer(NAMES, MERGEKIT_3H_AUTOLOAD="1")) == sorted(ALL)


def test_explicit_import_registers_this_package_alone(installed: Environment) -> None:
    code = "import mergekit_3h.methods" + NAMES
    assert installed.answer(code, MERGEKIT_3H_AUTOLOAD="0") == ["linear", *own_names(), "safety_merge"]
    assert sorted(installed.answer(code)) == sorted(ALL)


def test_run_as_a_module(installed: Environment) -> None:
    done = installed.start("-m", "mergekit.scripts.run_yaml")
    assert sorted(json.loads(done.stdout)) == sorted(ALL)
    assert done.stderr == ""


def test_processes_that_a_process_starts(installed: Environment, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import json, subprocess, sys\n"
        "from multiprocessing import get_context\n"
        "def names(_):\n"
        "    from mergekit.merge_methods import registered_methods\n"
        "    return [method.spec.name for method in registered_methods()]\n"
        "if __name__ == '__main__':\n"
        "    with get_context('spawn').Pool(1) as pool:\n"
        "        spawned = pool.map(names, [0])[0]\n"
        "    child = subprocess.run([sys.executable, '-m', 'mergekit.scripts.run_yaml'], capture_output=True)\n"
        "    print(json.dumps([spawned, json.loads(child.stdout)]))\n"
    )
    done = installed.start(str(script))
    spawned, child = json.loads(done.stdout)
    assert sorted(spawned) == sorted(child) == sorted(ALL)
    assert done.stderr == ""


def test_looking_for_the_module_neither_imports_nor_disarms(installed: Environment) -> None:
    look = """
        import copy, importlib.util, sys
        specs = [importlib.util.find_spec("mergekit.merge_methods") for _ in range(2)]
        assert "mergekit.merge_methods" not in sys.modules
        assert "merge_method" in specs[0].loader.get_source("mergekit.merge_methods")
        importlib.util.module_from_spec(specs[1])
        assert copy.copy(specs[1].loader).name == "mergekit.merge_methods"
    """
    assert installed.run(look).stderr == ""
    code = f"import importlib.util; importlib.util.find_spec('mergekit.merge_methods')\n{NAMES}"
    assert sorted(installed.answer(code)) == sorted(ALL)


def test_an_import_that_fails_does_not_disarm(installed: Environment) -> None:
    fail = """
        import sys
        sys.modules["mergekit.merge_methods.registry"] = None
        try:
            import mergekit.merge_methods
        except ImportError:
            del sys.modules["mergekit.merge_methods.registry"]
    """
    assert sorted(installed.answer(dedent(fail) + NAMES)) == sorted(ALL)


def test_the_module_looks_as_if_there_were_no_hook(installed: Environment) -> None:
    code = """
        import importlib.machinery, inspect, json, mergekit.merge_methods as module
        assert type(module.__loader__) is importlib.machinery.SourceFileLoader
        assert module.__spec__.loader is module.__loader__
        assert type(module.__spec__) is importlib.machinery.ModuleSpec
        print(json.dumps(inspect.getsource(module)))
    """
    assert installed.answer(code) == (STAND_IN / "merge_methods" / "__init__.py").read_text()


@pytest.mark.parametrize(
    "first",
    [
        "mergekit.merge_methods.registry",
        "mergekit_3h.methods.spectral",
        "second_package.equal_parts",
        "second_package.sharing",
    ],
)
def test_any_module_may_be_imported_first(installed: Environment, first: str) -> None:
    """The last two are unfinished when the hook wants the entry point; it must have it as soon as they are done."""
    code = f"""
        import {first}, json, sys
        names = [method.spec.name for method in sys.modules["mergekit.merge_methods"].registered_methods()]
        kinds = [type(module.__spec__).__name__ for name, module in sys.modules.items() if "second" in name]
        print(json.dumps([names, kinds]))
    """
    names, kinds = installed.answer(code)
    assert sorted(names) == sorted(ALL)
    assert set(kinds) == {"ModuleSpec"}


def test_importing_again(installed: Environment) -> None:
    reload = "import importlib, mergekit.merge_methods; importlib.reload(mergekit.merge_methods)"
    assert sorted(installed.answer(reload + NAMES)) == sorted(ALL)

    forget = """
        import sys, mergekit.merge_methods
        for name in list(sys.modules):
            if name.partition(".")[0] in {forgotten}:
                del sys.modules[name]
    """
    everything = dedent(forget.format(forgotten=("mergekit", "mergekit_3h", "second_package")))
    assert sorted(installed.answer(everything + NAMES)) == sorted(ALL)

    # methods made with the forgotten mergekit's classes are strangers to the new one: a warning, not an error
    done = installed.run(dedent(forget.format(forgotten=("mergekit", "second_package"))) + NAMES)
    assert sorted(json.loads(done.stdout)) == ["equal_parts", "linear"]
    assert "mergekit-3h" in done.stderr


@pytest.mark.parametrize("where", ["registry", "package"])
def test_a_mergekit_that_loads_the_group_itself(installed: Environment, where: str) -> None:
    for first in ("", "import mergekit_3h.methods", "import mergekit_3h.methods.spectral"):
        names = installed.answer(first + NAMES, STAND_IN_LOADS_ENTRY_POINTS=where)
        assert sorted(names) == sorted(ALL), first


def test_mergekit_in_a_zip_file(installed: Environment, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "zipped"), "zip", STAND_IN.parent, "mergekit")
    code = "import mergekit; assert '.zip' in mergekit.__file__" + NAMES
    assert sorted(installed.answer(code, PYTHONPATH=archive)) == sorted(ALL)


def test_lazily_loaded_mergekit(installed: Environment) -> None:
    code = """
        import importlib.util, json, sys, mergekit
        spec = importlib.util.find_spec("mergekit.merge_methods")
        spec.loader = importlib.util.LazyLoader(spec.loader)
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert "mergekit.merge_methods.registry" not in sys.modules
        print(json.dumps([method.spec.name for method in module.registered_methods()]))
    """
    assert sorted(installed.answer(code)) == sorted(ALL)


def test_two_hooks_of_this_kind_do_not_ask_each_other_forever(installed: Environment) -> None:
    code = """
        import runpy, sys, _mergekit_3h_autoload
        runpy.run_path(_mergekit_3h_autoload.__file__, run_name="another_hook")["arm"]()
        _mergekit_3h_autoload.arm()
        assert [type(finder).__name__ for finder in sys.meta_path].count("_Finder") == 2
    """
    assert sorted(installed.answer(dedent(code) + NAMES)) == sorted(ALL)


def test_the_start_file_arms_as_the_pth_file_does(installed: Environment, tmp_path: Path) -> None:
    """Python 3.15 resolves each line of a .start file with pkgutil.resolve_name and calls what it finds."""
    environment = installed.copy(tmp_path / "environment")
    (environment.site_packages / "mergekit_3h.pth").unlink()
    assert environment.answer(NAMES) == WITHOUT_HOOK
    lines = (environment.site_packages / "mergekit_3h.start").read_text().splitlines()
    [line] = [line for line in lines if not line.startswith("#")]
    start = f"import pkgutil; pkgutil.resolve_name({line!r})()"
    assert sorted(environment.answer(start + NAMES)) == sorted(ALL)
    count = "; import sys, json; print(json.dumps([type(f).__name__ for f in sys.meta_path].count('_Finder')))"
    assert installed.answer(start + count) == 1


THREADS = """
import importlib, json, sys, threading, time
sys.setswitchinterval(1e-6)
together = threading.Barrier(len(modules))
problems = []

def work(module):
    together.wait()
    try:
        importlib.import_module(module)
        if alike:
            sys.modules["mergekit.merge_methods"].get("equal_parts")
    except BaseException as error:
        problems.append(f"{module}: {error!r}")

threads = [threading.Thread(target=work, args=[module]) for module in modules]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
while len(threading.enumerate()) > 1:
    time.sleep(0.001)
"""


def test_threads_that_import_mergekit_at_once(installed: Environment) -> None:
    """Whoever's import of mergekit has ended has every method."""
    code = "alike, modules = True, ['mergekit.merge_methods', 'mergekit.scripts.run_yaml'] * 3" + THREADS
    names = installed.answer(code + "assert problems == [], problems" + NAMES, STAND_IN_SECONDS="0.05")
    assert sorted(names) == sorted(ALL)


@pytest.mark.parametrize("turn", [0, 2, 4])
def test_threads_that_import_in_different_orders(installed: Environment, turn: int) -> None:
    """Their import locks form circles, which Python breaks by an error or a half-imported module in one of them."""
    modules = [
        "mergekit.merge_methods",
        "second_package.sharing",
        "mergekit_3h.methods",
        "second_package.equal_parts",
        "mergekit_3h.registration",
        "mergekit.scripts.run_yaml",
    ]
    code = f"alike, modules = False, {modules[turn:] + modules[:turn]}" + THREADS
    names = installed.answer(code + "assert problems == [], problems" + NAMES, STAND_IN_SECONDS="0.05")
    assert sorted(names) == sorted(ALL)
