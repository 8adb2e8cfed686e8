"""Merges on more and more cores: the schedule of mergekit's graph, measured, and replayed by threads that sleep."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from mergekit_3h.benchmarks import scaling
from mergekit_3h.benchmarks.families import MatrixShape, family_named
from mergekit_3h.benchmarks.scaling import Matrix, in_mergekits_order, replayed
from mergekit_3h.cli.bench import command

GB = 1 << 30


@pytest.fixture(autouse=True)
def _short_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "_SHORTEST_REPLAY", 1.0)


def matrices(count: int, need: int = 1, seconds: float = 0.04) -> list[Matrix]:
    return [Matrix("8x8", seconds, 0.7 * seconds, experts=3, need=need, inputs=1, result=1)] * count


@pytest.mark.parametrize("cores", [2, 16, 64])
def test_many_matrices_keep_many_cores_busy(cores: int) -> None:
    """Eight each; what is left idle is the threads' waking up and the last of them."""
    found = replayed(matrices(8 * cores), cores, memory=GB)
    assert 0.8 < found.busy <= 1.0
    assert found.is_replayed and found.cores == cores
    assert found.in_turn_seconds > 1.05 * found.seconds


def test_memory_for_few_leaves_cores_idle() -> None:
    few = replayed(matrices(64, need=10, seconds=0.1), cores=8, memory=50)  # 40 of them for four at once
    assert 0.4 < few.busy <= 0.5


def test_large_matrices_keep_sixteen_cores_busy() -> None:
    """8192x2048 in float32 with three experts: a result waits for its turn without keeping others from beginning."""
    large = [Matrix("8192x2048", 23.7, 13.3, 3, need=587_000_000, inputs=268_000_000, result=67_000_000)] * 96
    assert replayed(large, 16, memory=16_000_000_000).busy > 0.75


def test_a_matrix_alone_has_a_core_for_each_decomposition() -> None:
    [matrix] = matrices(1, seconds=10.0)
    assert matrix.alone_seconds(1) == pytest.approx(10.0)
    assert matrix.alone_seconds(2) == pytest.approx(7.0 * 3 / 5 + 3.0 / 2)
    assert matrix.alone_seconds(3) == pytest.approx(7.0 * 2 / 5 + 3.0 / 3)
    assert matrix.alone_seconds(30) == pytest.approx(7.0 * 2 / 5 + 3.0 / 30)


def test_the_order_is_that_of_mergekits_graph() -> None:
    shapes = family_named("llama-3-8b").shapes()
    ordered = in_mergekits_order(shapes)
    assert len(ordered) == sum(shape.count for shape in shapes)
    layer = ["4096x14336", "14336x4096", "14336x4096", "1024x4096", "4096x4096", "4096x4096", "1024x4096"]
    assert [shape.name for shape in ordered] == ["128256x4096"] * 2 + layer * 32
    assert len(in_mergekits_order([MatrixShape(8, 16, 3), MatrixShape(16, 8, 2)])) == 5


def test_the_command_measures_and_replays(tmp_path: Path) -> None:
    file = tmp_path / "scaling.json"
    arguments = ["--cores", "1,2,8", "--threads", "2", "--shape", "64x96*24", "--json", str(file)]
    done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert done.exit_code == 0 and "8 (replayed)" in done.output
    one, two, eight = json.loads(file.read_text())["results"]
    assert one["seconds"] == one["in_turn_seconds"] and not two["is_replayed"] and eight["is_replayed"]
    assert 0.5 < two["busy"] <= 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cores", "two"], "--cores: got 'two', expected numbers from 1 to 1024"),
        (["--cores", "2,0"], "got '2,0'"),
        (["--cores", "2", "--growth"], "give --growth or --cores, not both"),
        (["--cores", "2", "--memory-gb", "-1"], "option 'memory_gb': got -1.0"),
        (["--cores", "2", "--peer", "both"], "leave out --peer"),
        (["--memory-gb", "3"], "--memory-gb goes with --cores"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(command, arguments)
    said = " ".join(f"{done.output} {done.exception}".split())
    assert done.exit_code != 0 and message in said
