"""The commands as users run them: real processes, exit status, text and JSON."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from lint.workshop import Workshop

from mergekit_3h.cli import _COMMANDS, main
from mergekit_3h.spectral.registry import own_names


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def run_process(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    command = str(Path(sys.executable).with_name("mergekit-3h"))
    everything = {**os.environ, **environment}
    return subprocess.run([command, *arguments], capture_output=True, text=True, env=everything, cwd=cwd, check=False)


def test_the_package_runs_as_a_module() -> None:
    asked = [sys.executable, "-m", "mergekit_3h", "--help"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "lint a mergekit config" in done.stdout


_HELP = """
import sys
from mergekit_3h.cli import main
main(sys.argv[1:] + ["--help"], standalone_mode=False)
heavy = {"torch", "transformers", "mergekit", "fusion_bench", "ray", "matplotlib", "huggingface_hub"}
print("loaded:", sorted(heavy & set(sys.modules)))
"""


@pytest.mark.parametrize("command", list(_COMMANDS))
def test_help_imports_nothing_heavy(command: str) -> None:
    done = subprocess.run([sys.executable, "-c", _HELP, command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout and done.stdout.endswith("loaded: []\n")


def test_clean_config_in_a_process_of_its_own(llamas: Workshop) -> None:
    done = run_process("check", str(llamas.write(llamas.config("rtsvm"))))
    assert done.returncode == 0, done.stderr
    assert "nothing found" in done.stdout and "Estimate, not a promise" in done.stdout
    assert "Traceback" not in done.stderr


def test_errors_are_shown_with_their_place_and_advice(llamas: Workshop) -> None:
    path = llamas.write(llamas.config("rtsvm", parameters={"gama": 0.5}))
    done = run("check", str(path))
    assert done.exit_code == 1
    line = path.read_text().splitlines().index("  gama: 0.5") + 1
    assert f"{path}:{line} parameters.gama" in done.output and "did you mean 'gamma'?" in done.output
    assert ": 1 error; read" in done.output and "Estimate" not in done.output
    path = llamas.write(llamas.config("rtsvm", parameters={"gama": 0.5, "lamda": 1.0}))
    assert ": 2 errors; read" in run("check", str(path)).output


def test_warnings_fail_only_when_strict(llamas: Workshop) -> None:
    density = [{"filter": "nowhere", "value": 0.5}, {"value": 1.0}]
    path = str(llamas.write(llamas.config(parameters={"weight": 1.0, "density": density})))
    assert run("check", "--no-estimate", path).exit_code == 0
    assert run("check", "--no-estimate", "--strict", path).exit_code == 1


def test_json_for_machines(llamas: Workshop) -> None:
    done = run("check", "--json", str(llamas.write(llamas.config())))
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["counts"] == {"error": 0, "warning": 0, "note": 0} and report["findings"] == []
    assert report["estimates"][0]["tensors"] == 21
    report = json.loads(run("check", "--json", str(llamas.write(llamas.config(parameters={})))).stdout)
    assert {finding["rule"] for finding in report["findings"]} == {"missing-option"}
    assert report["findings"][0]["where"] == "models[0].parameters" and report["estimates"] == []


@pytest.mark.slow
def test_model_in_the_hub_cache_is_read_there(llamas: Workshop) -> None:
    repository = llamas.folder / "hub" / "models--some-org--some-model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123abc")
    shutil.copytree(llamas.experts[0], repository / "snapshots" / "0123abc")
    models = [{"model": "some-org/some-model"}, {"model": str(llamas.experts[1])}]
    path = str(llamas.write(llamas.config("rtsvm", models=models)))
    done = run_process("check", "--no-estimate", path, HF_HUB_CACHE=str(llamas.folder / "hub"), HF_HUB_OFFLINE="1")
    assert done.returncode == 0 and "nothing found" in done.stdout, done.stdout + done.stderr
    (repository / "snapshots" / "0123abc" / "model.safetensors").write_bytes(b"cut")
    done = run_process("check", "--no-estimate", path, HF_HUB_CACHE=str(llamas.folder / "hub"), HF_HUB_OFFLINE="1")
    assert done.returncode == 1 and "truncated" in done.stdout


@pytest.mark.slow
def test_relative_paths_do_fail_offline_as_check_says(llamas: Workshop) -> None:
    models = [{"model": path.name} for path in llamas.experts]
    path = str(llamas.write(llamas.config(models=models)))
    checked = run_process("check", path, cwd=llamas.folder, HF_HUB_OFFLINE="1")
    assert checked.returncode == 1 and "[relative-path]" in checked.stdout
    merge = [str(Path(sys.executable).with_name("mergekit-yaml")), path, "merged"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    merged = subprocess.run(merge, capture_output=True, text=True, cwd=llamas.folder, env=environment, check=False)
    assert merged.returncode != 0 and (llamas.folder / "merged" / "model.safetensors").exists()
    assert not (llamas.folder / "merged" / "tokenizer.json").exists()


def test_wrong_usage(llamas: Workshop) -> None:
    assert run("check", str(llamas.folder / "absent.yml")).exit_code == 2
    assert run("check").exit_code == 2
    done = run("check", "--device", "abacus", str(llamas.write(llamas.config())))
    assert done.exit_code == 2 and "abacus" in done.output


def test_binary_file_is_no_config(llamas: Workshop) -> None:
    done = run("check", str(llamas.base / "model.safetensors"))
    assert done.exit_code == 1 and "Traceback" not in done.output


def too_old_a_fusion_bench(folder: Path) -> str:
    """A folder for PYTHONPATH, in which doctor finds a FusionBench that it need not ask: that takes ten seconds."""
    about = folder / "fusion_bench-0.1.dist-info" / "METADATA"
    about.parent.mkdir()
    about.write_text("Metadata-Version: 2.1\nName: fusion-bench\nVersion: 0.1\n")
    return str(folder)


@pytest.mark.slow
def test_doctor_sees_our_methods_in_both_hosts() -> None:
    done = run_process("doctor", "--json")
    facts = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout
    assert facts["works"] and facts["mergekit"]["sees"] == {**dict.fromkeys(own_names(), True), "safety_merge": True}
    assert facts["fusion_bench"]["sees"] == {**facts["mergekit"]["sees"], "mergekit": True}
    assert facts["hook"]["armed"] and facts["devices"][0]["kind"] == "cpu"
    assert {extra["name"] for extra in facts["extras"]} >= {"fusion-bench", "all", "test"}


@pytest.mark.slow
def test_doctor_says_what_to_do_when_the_hook_is_off(tmp_path: Path) -> None:
    done = run_process("doctor", MERGEKIT_3H_AUTOLOAD="0", PYTHONPATH=too_old_a_fusion_bench(tmp_path))
    assert done.returncode == 1
    unseen = ", ".join(f"{name}: NO" for name in [*own_names(), "safety_merge"])
    assert f"sees {unseen}" in done.stdout and "unset MERGEKIT_3H_AUTOLOAD" in done.stdout


@pytest.mark.slow
def test_doctor_explains_a_folder_that_hides_fusion_bench_configs(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    done = run_process("doctor", cwd=tmp_path)
    assert done.returncode == 0  # mergekit works all the same
    assert f"all its configs from {tmp_path / 'config'}" in done.stdout


@pytest.mark.slow
def test_doctor_repeats_why_a_method_could_not_be_loaded(tmp_path: Path) -> None:
    """A module that the methods need cannot be imported in any process of this environment."""
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['mergekit_3h.spectral.tensors'] = None")
    done = run_process("doctor", PYTHONPATH=too_old_a_fusion_bench(tmp_path))
    assert done.returncode == 1
    assert "tsvm: NO" in done.stdout and "mergekit_3h.spectral.tensors" in done.stdout


@pytest.mark.slow
def test_doctor_without_hosts(tmp_path: Path) -> None:
    """A folder whose ``mergekit`` cannot be imported stands in front of the real one."""
    (tmp_path / "mergekit").mkdir()
    (tmp_path / "mergekit" / "__init__.py").write_text("raise ImportError('broken on purpose')")
    done = run_process("doctor", PYTHONPATH=too_old_a_fusion_bench(tmp_path))
    assert done.returncode == 1
    assert "broken on purpose" in done.stdout and "-> pip install" in done.stdout
    config = tmp_path / "config.yml"
    config.write_text("merge_method: ties\n")
    done = run_process("check", str(config), PYTHONPATH=str(tmp_path))
    assert done.returncode == 1 and "broken on purpose" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_doctor_without_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('no such library')")
    done = run_process("doctor", PYTHONPATH=too_old_a_fusion_bench(tmp_path))
    assert done.returncode == 1
    assert (
        "no such library" in done.stdout and "--force-reinstall torch" in done.stdout and "Traceback" not in done.stderr
    )
