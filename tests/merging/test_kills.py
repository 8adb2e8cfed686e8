"""Real processes, ended by real signals in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hosts import OFFLINE
from tiny_models import Family, write_family

from mergekit_3h.methods.merging.folder import UNFINISHED

from .conftest import files, merge

FLAGS = ("--random-seed", "7", "--out-shard-size", "60000")
WAIT = 300.0


def finished(out: Path) -> int:
    """Pieces that the journal tells of."""
    try:
        return (out / UNFINISHED / "journal.jsonl").read_bytes().count(b'"kind":"piece"')
    except OSError:
        return 0


def begun(config: Path, out: Path, *flags: str) -> subprocess.Popen[str]:
    command = [str(Path(sys.executable).with_name("mergekit-3h")), "merge", str(config), str(out), *flags]
    environment = {**os.environ, **OFFLINE, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def ended_by(
    number: signal.Signals, process: subprocess.Popen[str], out: Path, moment: int | Callable[[], bool]
) -> tuple[int, str]:
    """Send the signal as soon as so many pieces are finished, or at another moment; what the process said."""
    has_come = moment if callable(moment) else lambda: finished(out) >= moment
    deadline = time.monotonic() + WAIT
    while not has_come() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.0005)
    process.send_signal(number)
    said, _ = process.communicate(timeout=WAIT)
    return process.returncode, said


@pytest.fixture
def deep(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Many layers, so that a merge of them takes longer than the way of a signal."""
    return write_family(tmp_path_factory.mktemp("deep").resolve(), num_hidden_layers=12, hidden_size=64)


@pytest.mark.slow
def test_killed_and_stopped_it_ends_with_the_same_bits(
    write_config: Callable[..., Path], reference, deep: Family, out: Path
) -> None:
    models = [{"model": str(path)} for path in deep.experts]
    top = {"base_model": str(deep.base), "models": models}
    config = write_config("dare_ties", top=top, density=0.5, weight=0.4)
    expected = reference(config, *FLAGS)
    status, said = ended_by(signal.SIGKILL, begun(config, out, *FLAGS), out, 2)
    kept = finished(out)
    assert status == -signal.SIGKILL and kept >= 2, said
    status, said = ended_by(signal.SIGTERM, begun(config, out, *FLAGS), out, kept + 3)
    assert status == 128 + signal.SIGTERM and "finished files are kept" in said, said
    assert [path.name for path in out.iterdir()] == [UNFINISHED]
    merge(config, out, *FLAGS)
    assert files(out) == expected
