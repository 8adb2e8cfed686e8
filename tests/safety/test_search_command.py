"""``mergekit-3h search``: a config that reproduces the merge without data, and a search that survives a kill."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from hosts import OFFLINE, mergekit_yaml

from mergekit_3h.cli import main
from mergekit_3h.search import Trace

from .conftest import Trained
from .test_mergekit import same_bits


def search(config: dict[str, Any], output: Path, *flags: str, check: bool = True) -> Result:
    file = output.with_name(f"{output.stem}-config.yml")
    file.write_text(yaml.safe_dump(config))
    result = CliRunner().invoke(main, ["search", str(file), "-o", str(output), *flags])
    assert result.exit_code == 0 or not check, result.output
    return result


def without_seconds(report: Path) -> dict[str, Any]:
    content = json.loads(report.read_text())
    del content["seconds"]
    return content


def test_found_config_merges_like_safety_merge(trained: Trained, absolute: Path) -> None:
    config = trained.config(max_evaluations=8)
    result = search(config, absolute / "found.yml")
    assert {"found.yml", "found.json", "found.png", "found.trace.jsonl"} <= {path.name for path in absolute.iterdir()}
    assert "uniform merge" in result.output and "weights: aligned" in result.output
    mergekit_yaml(yaml.safe_load((absolute / "found.yml").read_text()), absolute / "by-found")
    mergekit_yaml(config, absolute / "by-safety-merge")
    assert same_bits(absolute / "by-found", absolute / "by-safety-merge")


def test_options_of_the_command_line_go_before_those_of_the_config(trained: Trained, absolute: Path) -> None:
    search(trained.config(solver="gradient"), absolute / "found.yml", "--solver", "grid", "--max-evaluations", "4")
    report = json.loads((absolute / "found.json").read_text())
    assert (report["options"]["solver"], report["evaluations"]) == ("grid", 4)


def test_weights_of_any_method_are_searched(trained: Trained, absolute: Path) -> None:
    config = trained.config() | {"merge_method": "ties", "parameters": {"density": 0.6, "weight": 1.0}}
    flags = ("--data", str(trained.data), "--solver", "cocktail")
    search(config, absolute / "found.yml", *flags)
    found = yaml.safe_load((absolute / "found.yml").read_text())
    assert (found["merge_method"], found["parameters"]) == ("ties", {"density": 0.6})
    assert all(0.0 < model["parameters"]["weight"] < 1.0 for model in found["models"])


def test_bad_output(trained: Trained, absolute: Path) -> None:
    file = absolute / "config.yml"
    file.write_text(yaml.safe_dump(trained.config()))
    for output, message in (
        ("found.json", "expected a name that ends in .yml"),
        ("no/found.yml", "there is no folder"),
    ):
        result = CliRunner().invoke(main, ["search", str(file), "-o", str(absolute / output)])
        assert result.exit_code == 1 and message in result.output
    assert [path.name for path in absolute.iterdir()] == ["config.yml"]


def test_nothing_is_replaced_unasked(trained: Trained, absolute: Path) -> None:
    config, output = trained.config(solver="cocktail"), absolute / "found.yml"
    search(config, output)
    before = output.read_text()
    refused = search({**config, "parameters": {**config["parameters"], "solver": "grid"}}, output, check=False)
    assert refused.exit_code == 1
    assert "is there already" in refused.output and output.read_text() == before
    refused = search(trained.config(solver="grid"), output, "--resume", check=False)
    assert "solver: was 'cocktail', is 'grid'" in refused.output and output.read_text() == before
    search(trained.config(solver="grid", max_evaluations=3), output, "--force")
    assert output.read_text() != before


@pytest.mark.parametrize("flags", [(), ("--resume",), ("--force",)])
def test_two_searches_do_not_write_one_output(trained: Trained, absolute: Path, flags: tuple[str, ...]) -> None:
    trace = absolute / "found.trace.jsonl"
    with Trace(trace, {"seed": 7}):
        before = trace.read_bytes()
        refused = search(trained.config(), absolute / "found.yml", *flags, check=False)
        assert refused.exit_code == 1, refused.output
        assert f"{trace}: another search is writing to it" in refused.output
        assert trace.read_bytes() == before and not (absolute / "found.yml").exists()


def test_the_line_of_progress_tells_the_time_left(trained: Trained, absolute: Path) -> None:
    """From the first evaluation on; a search that goes on does not take recorded ones for fast ones."""
    output = absolute / "found.yml"
    first = search(trained.config(solver="grid", max_evaluations=3), output)
    told = [line for line in re.split(r"[\r\n]", first.stderr) if "/3 [" in line]
    assert "the single models first" in told[0] + told[1]
    assert re.search(r"3/3 \[.*best [\d.]+, [\d.]+ s each, at most 0\.0 s left\]", told[-1]), told
    again = search(trained.config(solver="grid", max_evaluations=3), output, "--resume")
    assert "each" not in again.stderr and "best" in again.stderr


def test_a_coefficient_on_its_bound_is_said(trained: Trained, absolute: Path, caplog: pytest.LogCaptureFixture) -> None:
    search(trained.config(max_coefficient=0.3, start=0.2), absolute / "found.yml")
    report = json.loads((absolute / "found.json").read_text())
    [on_bound] = [entry for entry in report["on_bounds"] if entry["bound"] == 0.3]
    on_the_bound = [name for name, value in report["coefficients"]["all"].items() if value == 0.3]
    assert on_bound["coefficients"] == on_the_bound != []
    assert re.search(f"coefficients? of {', '.join(on_the_bound)} ended on the bound 0.3", caplog.text)
    assert "Raise max_coefficient (0.3)" in caplog.text


@pytest.mark.slow
def test_a_quiet_search_says_nothing(trained: Trained, absolute: Path) -> None:
    """In a process of its own, where transformers and mergekit have not said yet what they say once."""
    file = absolute / "config.yml"
    file.write_text(yaml.safe_dump({**trained.config(max_evaluations=2), "dtype": "bfloat16"}))
    program = Path(sys.executable).with_name("mergekit-3h")
    command = [str(program), "search", str(file), "-o", str(absolute / "found.yml"), "-q"]
    run = subprocess.run(command, env={**os.environ, **OFFLINE}, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


@pytest.mark.slow
def test_a_killed_search_resumes_to_the_undisturbed_result(trained: Trained, absolute: Path) -> None:
    config = trained.config(solver="cmaes", combine="ties", density=0.7, max_evaluations=60, seed=3)
    search(config, absolute / "undisturbed.yml")
    file, trace = absolute / "config.yml", absolute / "killed.trace.jsonl"
    file.write_text(yaml.safe_dump(config))
    program = Path(sys.executable).with_name("mergekit-3h")
    # One thread, as in this process: sums that are split otherwise are rounded otherwise.
    environment = {**os.environ, **OFFLINE, "OMP_NUM_THREADS": "1"}
    command = [str(program), "search", str(file), "-o", str(absolute / "killed.yml")]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not trace.exists() or trace.read_bytes().count(b"\n") < 9:
        assert process.poll() is None and time.monotonic() < deadline, "it ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert trace.read_bytes().count(b"\n") < 60, "killed too late to show anything"
    assert not (absolute / "killed.yml").exists()
    done = subprocess.run([*command, "--resume"], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert without_seconds(absolute / "killed.json") == without_seconds(absolute / "undisturbed.json")
    killed, undisturbed = ((absolute / f"{name}.yml").read_text() for name in ("killed", "undisturbed"))
    assert yaml.safe_load(killed) == yaml.safe_load(undisturbed)
