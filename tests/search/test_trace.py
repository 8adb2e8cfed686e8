"""The trace: a line a measurement, safe against being killed, never mixed up with another search."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mergekit_3h.search import SearchOptions, Trace, TraceError, open_problem, solve, solve_problem
from mergekit_3h.search import problem as problem_module
from mergekit_3h.search.trace import discard
from mergekit_3h.writing import InUseError

KILLED_SEARCH = """
import os, signal, sys, torch
from mergekit_3h.search import SearchOptions, open_problem, solve_problem
torch.set_num_threads(1)
base, aligned, domain, data, trace, killed_after = sys.argv[1:]
options = SearchOptions(solver="cmaes", max_evaluations=14)
problem = open_problem(base, {"aligned": aligned, "domain": domain}, data, options)
def die(point):
    if point.index == int(killed_after):
        os.kill(os.getpid(), signal.SIGKILL)
solve_problem(problem, trace_path=trace, on_point=die)
"""


def test_a_killed_process_resumes_to_the_undisturbed_result(trained, tmp_path: Path) -> None:
    """A real search on a language model, killed by SIGKILL in the middle of its second generation."""
    problem = trained.problem(solver="cmaes", max_evaluations=14)
    undisturbed = solve_problem(problem, trace_path=tmp_path / "undisturbed.jsonl")
    trace = tmp_path / "killed.jsonl"
    arguments = [trained.base, *trained.experts.values(), trained.data, trace, 8]
    child = subprocess.run(
        [sys.executable, "-c", KILLED_SEARCH, *map(str, arguments)], capture_output=True, text=True, timeout=120
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert sum(line["kind"] == "candidate" for line in lines(trace)) == 9
    with trace.open("ab") as file:
        file.write(b'{"kind": "candidate", "coeff')  # what a write that was cut short leaves
    resumed = solve_problem(problem, trace_path=trace, resume=True)
    assert [point.coefficients for point in resumed.points] == [point.coefficients for point in undisturbed.points]
    assert [point.measured.losses for point in resumed.points] == [p.measured.losses for p in undisturbed.points]
    assert resumed.coefficients == undisturbed.coefficients
    assert sum(line["kind"] == "candidate" for line in lines(trace)) == 14


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_candidate_is_a_line(quadratic, tmp_path: Path) -> None:
    trace = tmp_path / "deep" / "trace.jsonl"
    runner = quadratic(2, fails_beyond=1.2)
    solution = solve(runner, runner.layout, SearchOptions(solver="grid", max_evaluations=10), trace_path=trace)
    header, *rest = lines(trace)
    assert header["kind"] == "search"
    assert header["identity"]["solver"] == "grid"
    assert [line["model"] for line in rest if line["kind"] == "model"] == ["base", "expert0", "expert1"]
    candidates = [line for line in rest if line["kind"] == "candidate"]
    assert [line["index"] for line in candidates] == list(range(10))
    for line, point in zip(candidates, solution.points, strict=True):
        assert line["coefficients"] == list(point.coefficients)
        assert line["losses"] == point.measured.losses
        assert (line["score"] is None) == bool(line["failure"]) == bool(point.measured.failure)
    assert any(line["failure"] for line in candidates)


@pytest.mark.parametrize("kept", [1, 10, -1, -3])
def test_a_line_that_was_cut_off_is_measured_again(quadratic, tmp_path: Path, kept: int) -> None:
    """The file may end anywhere: in the header, in the last line, or only without its newline."""
    trace, options = tmp_path / "trace.jsonl", SearchOptions(solver="cmaes", max_evaluations=9)
    runner = quadratic(3)
    whole = solve(runner, runner.layout, options, trace_path=trace)
    content = trace.read_bytes()
    trace.write_bytes(content[:kept])
    again = solve(runner, runner.layout, options, trace_path=trace, resume=True)
    assert again.to_dict() == whole.to_dict()
    assert trace.read_bytes() == content


@pytest.mark.parametrize("kept", [1, 25, 60, -1])
@pytest.mark.parametrize("resume", [True, False])
def test_a_trace_without_a_measurement_binds_nobody(quadratic, tmp_path: Path, kept: int, resume: bool) -> None:
    """A kill while the first line was written, or right after it; then a search with another option."""
    trace = tmp_path / "trace.jsonl"
    runner = quadratic(3)
    solve(runner, runner.layout, SearchOptions(seed=1, max_evaluations=4), trace_path=trace)
    header = trace.read_bytes().splitlines(keepends=True)[0]
    trace.write_bytes(header if kept == -1 else header[:kept])
    again = solve(runner, runner.layout, SearchOptions(max_evaluations=4), trace_path=trace, resume=resume)
    header, *rest = lines(trace)
    assert header["identity"]["seed"] == 0
    assert sum(line["kind"] == "candidate" for line in rest) == len(again.points)


WRITING_SEARCH = """
import sys
from pathlib import Path
from mergekit_3h.search import Trace
with Trace(sys.argv[1], {"seed": 1}, resume=True):
    print("writing", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.skipif(sys.platform == "win32", reason="no such locks there")
def test_a_second_search_is_refused_while_one_writes(quadratic, tmp_path: Path, seed: int) -> None:
    """The same search or another one: nothing of it gets into the trace, and it is free again after a kill."""
    trace = tmp_path / "trace.jsonl"
    command = [sys.executable, "-c", WRITING_SEARCH, str(trace)]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None and first.stdout.readline() == "writing\n"
        before, runner = trace.read_bytes(), quadratic(3)
        options = SearchOptions(seed=seed, max_evaluations=4)
        for attempt in (
            lambda: solve(runner, runner.layout, options, trace_path=trace, resume=True),
            lambda: solve(runner, runner.layout, options, trace_path=trace),
            lambda: discard(trace),
        ):
            with pytest.raises(InUseError, match=r"trace\.jsonl: another search is writing to it at this moment"):
                attempt()
        assert trace.read_bytes() == before and not runner.evaluated
    finally:
        first.kill()
        first.communicate()
    solve(runner, runner.layout, options, trace_path=trace, resume=True)
    assert sum(line["kind"] == "candidate" for line in lines(trace)) == len(set(runner.evaluated))


def test_an_earlier_search_is_not_overwritten(quadratic, tmp_path: Path) -> None:
    trace, options = tmp_path / "trace.jsonl", SearchOptions(max_evaluations=4)
    runner = quadratic(3)
    solve(runner, runner.layout, options, trace_path=trace)
    content = trace.read_bytes()
    with pytest.raises(TraceError, match=r"trace\.jsonl: holds \d+ measurements of an earlier search. Continue it"):
        solve(runner, runner.layout, options, trace_path=trace)
    assert trace.read_bytes() == content


@pytest.mark.parametrize(
    ("changes", "identity", "named"),
    [
        ({"seed": 1}, {}, "seed: was 0, is 1"),
        ({"expert_weight": 0.5}, {}, "expert_weight: was 0.3, is 0.5"),
        ({}, {"records": "other"}, "records: was 'some', is 'other'"),
    ],
)
def test_another_search_does_not_continue(quadratic, tmp_path: Path, changes, identity, named: str) -> None:
    trace, options = tmp_path / "trace.jsonl", SearchOptions(solver="cmaes", max_evaluations=4)
    runner = quadratic(3)
    solve(runner, runner.layout, options, trace_path=trace, identity={"records": "some"})
    with pytest.raises(TraceError, match=named):
        solve(
            runner,
            runner.layout,
            options.model_copy(update=changes),
            trace_path=trace,
            resume=True,
            identity={"records": "some", **identity},
        )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a trace", "not the trace of a search"),
        (b"not a trace\n", "line 1: not a JSON object"),
        (b'{"prompt": "hello"}\n', "not the trace of a search"),
    ],
)
def test_another_file_is_left_alone(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_bytes(content)
    with pytest.raises(TraceError, match=message):
        Trace(path, {}, resume=True)
    assert path.read_bytes() == content


def test_a_damaged_line_is_named(quadratic, tmp_path: Path) -> None:
    trace, options = tmp_path / "trace.jsonl", SearchOptions(max_evaluations=4)
    runner = quadratic(3)
    solve(runner, runner.layout, options, trace_path=trace)
    damaged = trace.read_text().splitlines(keepends=True)
    damaged[3] = '{"kind": "model"}\n'
    trace.write_text("".join(damaged))
    with pytest.raises(TraceError, match="line 4: not a line of a trace"):
        solve(runner, runner.layout, options, trace_path=trace, resume=True)


def test_a_complete_trace_costs_nothing(trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = tmp_path / "trace.jsonl"
    first = solve_problem(trained.problem(combine="rtsvm", max_evaluations=3), trace_path=trace)
    content = trace.read_bytes()

    def refuse(*_: object) -> None:
        raise AssertionError("the components were computed again")

    monkeypatch.setattr(problem_module, "families", refuse)
    again = solve_problem(trained.problem(combine="rtsvm", max_evaluations=3), trace_path=trace, resume=True)
    assert again.to_dict() == first.to_dict()
    assert trace.read_bytes() == content


def test_other_data_or_models_are_another_search(trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found before the components are computed."""
    trace = tmp_path / "trace.jsonl"
    solve_problem(trained.problem(max_evaluations=1), trace_path=trace)
    monkeypatch.setattr(problem_module, "families", None)
    fewer = tmp_path / "fewer.jsonl"
    fewer.write_text("".join(trained.data.read_text().splitlines(keepends=True)[1:]))
    swapped = dict(zip(trained.experts, reversed(trained.experts.values()), strict=True))
    options = SearchOptions(max_evaluations=1)
    for data, experts, named in ((fewer, trained.experts, "records: was"), (trained.data, swapped, "models: was")):
        with pytest.raises(TraceError, match=named):
            solve_problem(open_problem(trained.base, experts, data, options), trace_path=trace, resume=True)


def test_the_trace_says_what_was_computed_in(trained, tmp_path: Path) -> None:
    """Measurements in another data type are no continuation: ``auto`` depends on the machine."""
    trace = tmp_path / "trace.jsonl"
    solve_problem(trained.problem(max_evaluations=1), trace_path=trace)
    assert lines(trace)[0]["identity"]["dtype"] == "float32"
    with pytest.raises(TraceError, match="dtype: was 'float32', is 'bfloat16'"):
        solve_problem(trained.problem(max_evaluations=1, dtype="bfloat16"), trace_path=trace, resume=True)
