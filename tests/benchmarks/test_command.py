"""``mergekit-3h bench`` as users run it: real processes, tables, JSON, and what it says to bad input."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mergekit_3h.cli import main

# An imported fusion_bench has no spec any more, for which find_spec raises.
HAS_FUSION_BENCH = "fusion_bench" in sys.modules or find_spec("fusion_bench") is not None
PEERS = ["fusion-bench", "full-svd"] if HAS_FUSION_BENCH else ["full-svd"]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = str(Path(sys.executable).with_name("mergekit-3h"))
    done = subprocess.run([command, "bench", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def refused(*arguments: str) -> Result:
    done = CliRunner().invoke(main, ["bench", *arguments])
    assert done.exit_code != 0 and "Traceback" not in done.output, done.output
    return done


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """What is printed and the JSON of a run over two small shapes, with every peer there is."""
    file = tmp_path_factory.mktemp("bench") / "result.json"
    peer = "both" if len(PEERS) == 2 else "full-svd"
    # One thread: BLAS threads that wait for each other make small SVDs on a busy machine a hundred times slower.
    shapes = ("--shape", "96x64*3", "--shape", "64x128")
    done = bench(*shapes, "--peer", peer, "--threads", "1", "--budget", "60s", "--json", str(file), "--markdown")
    return done.stdout, json.loads(file.read_text())


def test_numbers_are_consistent(run: tuple[str, dict[str, Any]]) -> None:
    _, result = run
    assert [found["shapes"][0]["rows"] for found in result["measurements"]] == [96, 64]
    for measurement in result["measurements"]:
        contenders = measurement["contenders"]
        ours = contenders["mergekit-3h"]["seconds"]
        assert set(contenders) == {"mergekit-3h", *PEERS} and set(measurement["ratios"]) == set(PEERS)
        for contender in contenders.values():
            seconds = contender["seconds"]
            assert len(seconds["rounds"]) >= 3 and seconds["median"] == median(seconds["rounds"]) > 0
            assert seconds["quartiles"][0] <= seconds["median"] <= seconds["quartiles"][1]
        for peer, ratio in measurement["ratios"].items():
            theirs = contenders[peer]["seconds"]
            assert ratio["of_medians"] == pytest.approx(theirs["median"] / ours["median"])
            paired = [a / b for a, b in zip(theirs["rounds"], ours["rounds"], strict=True)]
            assert ratio["paired"]["median"] == pytest.approx(median(paired))
        bound = measurement["gemm_bound"]
        assert bound["seconds"] == pytest.approx(bound["flops"] / bound["rate"])
        assert bound["ratio"] == pytest.approx(ours["median"] / bound["seconds"])


def test_total_is_the_sum_by_counts(run: tuple[str, dict[str, Any]]) -> None:
    _, result = run
    total = result["total"]
    for contender, seconds in total["seconds"].items():
        parts = [
            m["shapes"][0]["count"] * m["contenders"][contender]["seconds"]["median"] for m in result["measurements"]
        ]
        assert seconds == pytest.approx(sum(parts))
    for peer, (low, middle, high) in total["ratios"].items():
        assert middle == pytest.approx(total["seconds"][peer] / total["seconds"]["mergekit-3h"])
        assert low <= high
    assert total["estimated_share"] == 0 and result["left_out"] == []


def test_errors_are_against_the_oracle(run: tuple[str, dict[str, Any]]) -> None:
    """The bounds are those of numerics: ours 1e-6 on full-rank updates, float32 SVDs 1e-5 to 1e-3."""
    _, result = run
    for measurement in result["measurements"]:
        assert measurement["contenders"]["mergekit-3h"]["error"] <= 1e-6
        assert measurement["contenders"]["mergekit-3h"]["ranks"] == [21, 21, 21]  # 64 / 3
        for peer in PEERS:
            assert 1e-8 < measurement["contenders"][peer]["error"] < 1e-2


def test_report_names_the_machine_and_the_versions(run: tuple[str, dict[str, Any]]) -> None:
    import torch

    printed, result = run
    machine = result["machine"]
    assert machine["torch"] == torch.__version__ and machine["processor"] and machine["cores"] >= 1
    assert machine["processor"] in printed and f"torch {torch.__version__}" in printed
    rows = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(rows) == 8 and len({row.count("|") for row in rows[:4]}) == 1
    assert re.search(r"^\| 96x64 +\| +3 \|", printed, re.MULTILINE)
    assert "All matrices by their counts (measured)" in printed


def test_lora_updates_in_bfloat16(tmp_path: Path) -> None:
    """The noise floor finds the rank, and so the merge of what training did; a fixed rank does not."""
    file = tmp_path / "lora.json"
    arguments = ("--update", "lora", "--dtype", "bfloat16", "--peer", "full-svd", "--threads", "1", "--budget", "60s")
    printed = bench("--shape", "256x256", *arguments, "--json", str(file)).stdout
    [measurement] = json.loads(file.read_text())["measurements"]
    ours, literal = measurement["contenders"]["mergekit-3h"], measurement["contenders"]["full-svd"]
    assert all(abs(rank - 16) <= 1 for rank in ours["ranks"])
    assert ours["error_unrounded"] < 0.15 < 0.4 < literal["error_unrounded"]
    assert ours["error"] <= 1e-6  # of the merge at that rank
    assert "off unrounded, mergekit-3h" in printed


def test_rounded_full_updates_of_large_weights_are_decomposed_to_the_rounding(tmp_path: Path) -> None:
    file = tmp_path / "rounded.json"
    arguments = ("--weights", "0.2", "--dtype", "bfloat16", "--peer", "none", "--threads", "1", "--budget", "60s")
    printed = bench("--shape", "400x400", *arguments, "--json", str(file)).stdout
    [measurement] = json.loads(file.read_text())["measurements"]
    ours = measurement["contenders"]["mergekit-3h"]
    assert ours["decompositions"] == ["within rounding"]
    assert "(within rounding)" in printed and "weights: 0.2" in printed
    assert measurement["gemm_bound"] is None  # the products are not those that are counted
    assert 1e-6 < ours["error"] < ours["error_unrounded"] / 10


def test_one_stream_and_what_does_not_fit(tmp_path: Path) -> None:
    file = tmp_path / "stream.json"
    shapes = ("--shape", "64x64*3", "--shape", "32x64*2", "--peer", "full-svd", "--threads", "1", "--budget", "60s")
    bench(*shapes, "--all-matrices", "--method", "rtsvm", "--set", "gamma=0.5", "--json", str(file))
    result = json.loads(file.read_text())
    [measurement] = result["measurements"]
    assert measurement["is_stream"] and sum(shape["count"] for shape in measurement["shapes"]) == 5
    assert result["total"] is None and result["settings"]["options"] == {"gamma": 0.5}
    assert all(contender["error"] < 1e-4 for contender in measurement["contenders"].values())

    done = bench("--shape", "64x64", "--shape", "30000x20000", "--peer", "none", "--threads", "1", "--budget", "20s")
    assert "Left out, beyond the budget of 20.00 s: 30000x20000 (needs " in done.stdout
    assert "ESTIMATE, 100 % of our time extrapolated" in done.stdout


def test_growth(tmp_path: Path) -> None:
    """The smallest cases; the others do not fit into the budget, and are named."""
    file = tmp_path / "growth.json"
    done = bench("--growth", "--budget", "3s", "--threads", "1", "--json", str(file))
    result = json.loads(file.read_text())
    first = result["cases"][0]
    assert (first["rows"], first["columns"], first["experts"]) == (256, 256, 3)
    assert min(first["seconds"], first["eigh_seconds"], first["product_seconds"]) > 0
    assert "time / both" in done.stdout
    assert "2048x2048, n = 3" in done.stdout.partition("Left out")[2]


def test_memory_only(tmp_path: Path) -> None:
    file = tmp_path / "memory.json"
    arguments = ("--memory-only", "--peer", "full-svd", "--threads", "1", "--budget", "60s", "--json", str(file))
    bench("--shape", "1024x256", *arguments)
    [measurement] = json.loads(file.read_text())["measurements"]
    inputs = 3 * 1024 * 256 * 4
    for contender in measurement["contenders"].values():
        assert contender["error"] is None and len(contender["seconds"]["rounds"]) == 1
        assert contender["extra_bytes"] > inputs / 3  # the result alone has that size
        assert contender["extra_relative"] == pytest.approx(contender["extra_bytes"] / inputs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--growth", "--model", "tiny"], "--growth has matrices of its own"),
        (["--growth", "--method", "rtsvm"], "leave out --method"),
        (["--growth", "--end-to-end"], "not both"),
        (["--end-to-end", "--memory-only"], "leave out"),
        (["--model", "lama-3-8b"], "did you mean 'llama-3-8b'"),
        (["--shape", "12"], "expected ROWSxCOLUMNS"),
        (["--model", "tiny", "--shape", "8x8"], "not both"),
        (["--budget", "soon"], "expected a duration"),
        (["--device", "abacus"], "abacus"),
        (["--device", "cuda:99"], "cuda:99"),
        (["-n", "1"], "2<=x"),
        (["--set", "gama=0.5", "--method", "rtsvm"], "did you mean 'gamma'"),
        (["--set", "gamma=2", "--method", "rtsvm"], "less than or equal to 1"),
        (["--set", "gamma"], "OPTION=VALUE"),
        (["--json", "/no/such/folder/x.json"], "does not exist"),
        (["--parameters", "1b"], "--end-to-end"),
        (["--end-to-end", "--model", "tiny"], "--parameters"),
        (["--end-to-end", "--parameters", "many"], "expected a number"),
    ],
)
def test_bad_input_is_refused_before_anything_is_measured(arguments: list[str], message: str) -> None:
    assert message in refused(*arguments).output


def test_impossible_budget_says_what_it_would_take() -> None:
    done = refused("--shape", "512x512", "--peer", "none", "--threads", "1", "--budget", "0.001s")
    assert "are not enough for 512x512: about" in done.output and "Give it more" in done.output


@pytest.mark.slow
def test_end_to_end(tmp_path: Path) -> None:
    file = tmp_path / "end_to_end.json"
    done = bench("--end-to-end", "--parameters", "0.3m", "-n", "2", "--budget", "1s", "--json", str(file))
    result = json.loads(file.read_text())
    assert result["parameters"] >= 300_000 and result["settings"]["dtype"] == "bfloat16"
    assert set(result["methods"]) == {"linear", "tsvm", "rtsvm"}
    for method, found in result["methods"].items():
        for one in found["rounds"]:
            parts = [one[name] for name in ("start", "planning", "reading", "kernel", "writing", "graph")]
            assert all(part > 0 for part in parts), (method, one)
            assert sum(parts) == pytest.approx(one["wall"])
            assert one["peak_rss"] > result["model_bytes"]
        assert found["graph_share"] == pytest.approx(median(one["graph"] / one["kernel"] for one in found["rounds"]))
        assert method in done.stdout
