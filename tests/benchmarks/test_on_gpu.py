"""The measurement for a machine with a GPU, tried out with the CPU standing in for one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from mergekit_3h.benchmarks.checkpoints import LlamaSize, llama_of
from mergekit_3h.benchmarks.files_to_files import FilesToFiles
from mergekit_3h.benchmarks.on_gpu import main

SMALL = {"layers": 1, "hidden": 32, "intermediate": 48, "key-value": 16, "vocabulary": 64, "side": 32, "rounds": 1}
TINY = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]


def run(*arguments: str, status: int = 0) -> str:
    done = CliRunner().invoke(main, [*TINY, *arguments])
    assert done.exit_code == status, done.output
    return done.output


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.only_on("cuda"))])
def test_a_whole_merge_is_measured_beside_its_stages(device: str, tmp_path: Path) -> None:
    written = tmp_path / "gpu.json", tmp_path / "gpu.md"
    folder = tmp_path / "disk"
    folder.mkdir()
    out = run("--device", device, "--folder", str(folder), "--json", str(written[0]), "--markdown", str(written[1]))
    found = json.loads(written[0].read_text())
    files, matrices = found["files"], found["matrices"]
    assert files["has_same_files"] and files["read_bytes"] == 4 * files["written_bytes"] == 8 * files["parameters"]
    assert set(files["alone"]) == {"reading", "merging", "writing"} and min(files["alone"].values()) > 0
    assert files["ratio"] == pytest.approx(files["whole"] / max(files["alone"].values()))
    # The threads of the conveyor had their part in it, and that part is within the whole.
    assert 0 < files["stages"]["merging"] < files["whole"] and files["stages"]["uploading"] > 0
    assert matrices["peer"]["apart"] < 1e-3 and matrices["decompositions"]["apart"] < 1e-2
    assert matrices["rates"]["float32"] > 0 and found["settings"]["device"] == device
    table = written[1].read_text()
    assert table in out and "| same files as one after the other" in table
    assert table.count("\n|") == out.count("\n|") > 15
    assert list(folder.iterdir()) == []


def test_what_is_wrong_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--device: 'cuda:99' cannot compute in float64 here" in run("--device", "cuda:99", status=1)
    assert "there is no folder" in run("--device", "cpu", "--folder", str(tmp_path / "none"), status=1)
    assert "did you mean 'tsvm'" in run("--device", "cpu", "--method", "tsmv", status=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    refused = run("--device", "cpu", "--folder", str(tmp_path), status=1)
    assert "are to be written there, and 0.0 GB are free; name another --folder, or fewer --layers" in refused
    assert list(tmp_path.iterdir()) == []


def test_the_longest_stage_is_what_the_whole_is_measured_by() -> None:
    alone = {"reading": 5.0, "merging": 8.0, "writing": 2.0}
    stages = {"uploading": 4.0, "merging": 8.1, "downloading": 1.0}
    found = FilesToFiles(1, 8, 2, 10.0, 16.0, alone, stages, True, None, None, None, None, 1)
    assert found.ratio == 1.25 and found.merging_share == pytest.approx(0.81)


def test_shapes_are_those_of_llama_3_8b() -> None:
    size = LlamaSize(4096, 14336, 128256, 32, key_value=1024)
    assert size.parameters == 8_030_261_248
    config = size.config("bfloat16")
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (32, 8)
    small = llama_of(100_000_000).config("bfloat16")
    assert small["num_attention_heads"] == small["num_key_value_heads"] == small["hidden_size"] // 64  # type: ignore[operator]
