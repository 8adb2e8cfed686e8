"""Processes that fail: the message names the contender or the method, and what happened."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from mergekit_3h.benchmarks.contenders import OURS, Recipe
from mergekit_3h.benchmarks.end_to_end import MergeRunError, run_process
from mergekit_3h.benchmarks.problems import MatrixProblem
from mergekit_3h.benchmarks.processes import ContenderError, Contestant
from mergekit_3h.benchmarks.serving import Assignment

JOB = Assignment(OURS, ((MatrixProblem(32, 16, 2, "float32", "flat"), 1),), Recipe("tsvm"))


def test_contender_works_in_its_own_process() -> None:
    with Contestant(JOB) as contestant:
        assert contestant.seconds() > 0 and contestant.gemm_rate() > 1e6


def test_contender_that_fails() -> None:
    wrong = replace(JOB, stream=((MatrixProblem(32, 16, 2, "float3", "flat"), 1),))  # type: ignore[arg-type]
    with (
        Contestant(wrong) as contestant,
        pytest.raises(ContenderError, match=r"mergekit-3h on 32x16 with 2 .*'float3'"),
    ):
        contestant.seconds()


def test_contender_that_is_killed() -> None:
    with Contestant(JOB) as contestant:
        contestant.kill()
        with pytest.raises(ContenderError, match=r"ended with status -9.*ran out of memory"):
            contestant.seconds()


def test_merge_that_fails_shows_its_last_words() -> None:
    command = [sys.executable, "-c", "print('no such tensor'); raise SystemExit(3)"]
    with pytest.raises(MergeRunError, match=r"with tsvm ended with status 3:\nno such tensor"):
        run_process(command, "tsvm")


def test_memory_of_a_process_is_sampled() -> None:
    command = [sys.executable, "-c", "import time; block = b'x' * (256 << 20); time.sleep(0.3)"]
    anonymous = run_process(command, "nothing")
    # Python itself needs some 10 MB.
    assert anonymous is None or 256 << 20 < anonymous < 300 << 20


def test_peak_of_a_process_is_not_its_parents() -> None:
    block = bytearray(b"x") * (800 << 20)
    code = "from mergekit_3h.benchmarks.memory import high_water_mark; print(high_water_mark())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # Importing torch takes 200 to 400 MB.
    assert 10 << 20 < int(done.stdout) < len(block)
