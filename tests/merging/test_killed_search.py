"""A merge that begins with a search, killed in the search and after it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from safety.conftest import Trained, trained  # noqa: F401

from mergekit_3h.methods.merging.folder import UNFINISHED

from .conftest import files, merge
from .test_kills import FLAGS, begun, ended_by


def lines(file: Path) -> int:
    try:
        return file.read_bytes().count(b"\n")
    except OSError:
        return 0


@pytest.fixture
def searched(trained: Trained, absolute: Path) -> Callable[..., Path]:  # noqa: F811
    def write(**parameters: object) -> Path:
        file = absolute / "searched.yml"
        file.write_text(yaml.safe_dump(trained.config(solver="cmaes", max_evaluations=30, **parameters)))
        return file

    return write


@pytest.mark.slow
@pytest.mark.parametrize("has_report", [False, True])
def test_no_candidate_is_evaluated_twice(
    has_report: bool, searched: Callable[..., Path], out: Path, absolute: Path
) -> None:
    report = {"report": str(absolute / "report")} if has_report else {}
    trace = absolute / "report" / "trace.jsonl" if has_report else out / UNFINISHED / "search.jsonl"
    config = searched(**report)
    status, said = ended_by(signal.SIGKILL, begun(config, out, *FLAGS), out, lambda: lines(trace) >= 8)
    assert status == -signal.SIGKILL, said
    known = trace.read_bytes()
    whole = known[: known.rindex(b"\n") + 1]
    status, said = ended_by(signal.SIGKILL, begun(config, out, *FLAGS), out, 2)
    assert status == -signal.SIGKILL, said
    found = trace.read_bytes()
    assert found.startswith(whole) and lines(trace) > whole.count(b"\n")
    merge(config, out, *FLAGS)
    if has_report:
        assert trace.read_bytes() == found
    assert not (out / UNFINISHED).exists()
    undisturbed = absolute / "undisturbed" / out.name
    undisturbed.parent.mkdir()
    (absolute / "report" / "trace.jsonl").unlink(missing_ok=True)
    merge(config, undisturbed, *FLAGS)
    assert files(out) == files(undisturbed)


def test_start_over_searches_again(searched: Callable[..., Path], out: Path) -> None:
    config = searched()
    merge(config, out, *FLAGS)
    assert not (out / UNFINISHED).exists()
    folder = out.with_name("again") / UNFINISHED
    folder.mkdir(parents=True)
    (folder / "search.jsonl").write_text("of another search\n")
    merge(config, folder.parent, *FLAGS, "--start-over")
    weights = {name: data for name, data in files(out).items() if name.endswith(".safetensors")}
    assert weights == {name: data for name, data in files(folder.parent).items() if name.endswith(".safetensors")}
