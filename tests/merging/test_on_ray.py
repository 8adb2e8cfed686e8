"""A merge on a real cluster of several workers: the files of ``mergekit-yaml``, whoever dies meanwhile."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from mergekit_3h.methods.merging.folder import UNFINISHED, UnfinishedMerge

from .conftest import files, merge
from .test_kills import begun, ended_by

pytest.importorskip("ray")

FLAGS = ("--out-shard-size", "40000", "--ray-workers", "2", "--ray-cpus-per-worker", "0.5")


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mergekit_3h.methods.merging.on_ray._SMALLEST_PIECE", 10_000)


@pytest.mark.slow
def test_a_killed_driver_and_a_killed_worker_change_nothing(
    write_config: Callable[..., Path],
    reference,
    out: Path,
    cluster: str,
    ended_after,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = write_config("rtsvm")
    expected = reference(config, *FLAGS[:2])
    status, said = ended_by(signal.SIGKILL, begun(config, out, *FLAGS, "--ray", cluster), out, 1)
    assert status == -signal.SIGKILL and [path.name for path in out.iterdir()] == [UNFINISHED], said

    def kill_a_worker(_: UnfinishedMerge) -> None:
        worker = next(record for record in caplog.records if record.getMessage().startswith("worker on"))
        os.kill(worker.args[1], signal.SIGKILL)  # type: ignore[index,arg-type]

    ended_after(1, then=kill_a_worker)
    with caplog.at_level(logging.INFO, logger="mergekit_3h"):
        merge(config, out, *FLAGS, "--ray", cluster)
    assert "another one takes its place" in caplog.text
    assert files(out) == expected


@pytest.mark.slow
def test_random_methods_are_refused_with_advice(write_config: Callable[..., Path], out: Path, cluster: str) -> None:
    config = write_config("dare_ties", density=0.5, weight=0.4)
    said = merge(config, out, *FLAGS, "--ray-workers", "1", "--ray", cluster, status=1).output
    assert "'dare_ties' draws random numbers" in said and "leave --ray out" in said
    assert not out.exists()


def test_what_has_one_writer_is_refused_before_the_cluster_is_asked(
    write_config: Callable[..., Path], out: Path, absolute: Path
) -> None:
    config = write_config("tsvm", record=str(absolute / "record"))
    said = merge(config, out, "--ray", status=1).output
    assert "option 'record': its file has one writer" in said and not out.exists()


def test_a_worker_that_no_node_holds(write_config: Callable[..., Path], out: Path, cluster: str) -> None:
    config = write_config("linear", weight=0.5)
    said = merge(config, out, "--ray", cluster, "--ray-memory-per-worker", "100000", status=1).output
    assert "needs 1 CPU and 0 GPU and 1e+05 GB of memory" in said and "--ray-memory-per-worker" in said
    assert not out.exists()
