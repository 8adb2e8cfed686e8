"""The toy laboratory, run as a user runs it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "lab_toy" / "run.py"
Line = dict[str, Any]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def lines_of(path: Path) -> dict[str, Line]:
    """The lines of seed 1 by row."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {line["row"]: line for line in lines if line["seed"] == 1}


@dataclass(frozen=True)
class Outcomes:
    undisturbed: dict[str, Line]
    printed: str
    resumed: dict[str, Line]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """A run, and one that goes on where another was killed, in the middle of writing its fifth line from the end."""
    folder = tmp_path_factory.mktemp("lab_toy")
    whole, part = folder / "whole.jsonl", folder / "part.jsonl"
    done = run("--quick", "--seeds", 1, "--results", whole)
    assert done.returncode == 0, done.stderr
    lines = whole.read_text().splitlines(keepends=True)
    part.write_text("".join(lines[:-5]) + lines[-5][:20])
    resumed = run("--quick", "--seeds", 1, "--results", part)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.count("keeps") == 5
    return Outcomes(lines_of(whole), done.stdout, lines_of(part))


def kept(lines: dict[str, Line], row: str) -> float:
    return mean(lines[row]["kept"].values())


@pytest.mark.slow
def test_a_resumed_run_gives_what_an_undisturbed_one_gives(outcomes: Outcomes) -> None:
    """And so one seed gives the same lines twice, in other processes."""
    assert outcomes.resumed == outcomes.undisturbed
    assert "| tsvm |" in outcomes.printed


@pytest.mark.slow
def test_merges_keep_what_no_expert_has(outcomes: Outcomes) -> None:
    lines = outcomes.undisturbed
    experts = [kept(lines, row) for row in lines if row.startswith("expert: ")]
    assert len(experts) == 3
    assert kept(lines, "task_arithmetic") > max(experts) + 0.1


@pytest.mark.slow
def test_every_merge_was_tuned_by_as_many_trials(outcomes: Outcomes) -> None:
    merges = {row: line for row, line in outcomes.undisturbed.items() if "scale" in line}
    assert merges.keys() >= {"task_arithmetic", "ties", "tsvm", "tsvm, no floor", "rtsvm", "iso_c"}
    assert {line["passes"] for line in merges.values()} == {7}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for the workers in /proc")
def test_a_run_that_is_told_to_end_takes_its_workers_along(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--quick", "--seeds", "2", "--jobs", "2"]
    with subprocess.Popen([*command, "--results", str(tmp_path / "results.jsonl")]) as running:
        workers = started_workers(running.pid)
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 143
    assert waited(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


def started_workers(pid: int) -> list[int]:
    found: list[int] = []

    def look() -> bool:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        found[:] = [int(child) for child in listed if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]
        return len(found) == 2

    assert waited(look)
    return found


def waited(is_so: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Whether it becomes so."""
    until = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", 0], "--seeds: got 0, expected 1 or more"),
        (["--jobs", -1], "--jobs: got -1, expected 1 or more"),
        (["--kinds", "ppo"], "invalid choice: 'ppo'"),
        (["--studies", "merge"], "invalid choice: 'merge'"),
    ],
)
def test_wrong_arguments_are_named(arguments: list[object], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
