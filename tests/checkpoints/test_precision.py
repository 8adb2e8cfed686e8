"""``dtype: auto``: on a CPU float32, unless bfloat16 is measured to be faster; elsewhere the checkpoint's own."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer

from mergekit_3h.checkpoints import precision
from mergekit_3h.checkpoints.precision import bfloat16_gain, settled_precision, stored_dtype
from mergekit_3h.data.backends.settings import TransformersSettings
from mergekit_3h.search import SearchOptions


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("half")
    tiny_model("llama", dtype=torch.bfloat16).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def gain(monkeypatch: pytest.MonkeyPatch):
    """Pretends a measurement, for a CPU of another kind than this one."""
    return lambda value: monkeypatch.setattr(precision, "bfloat16_gain", lambda: value)


@pytest.mark.parametrize(
    ("stored", "measured", "chosen"),
    [
        (torch.bfloat16, 0.07, "float32"),
        (torch.bfloat16, 1.1, "float32"),
        (torch.bfloat16, 1.8, "bfloat16"),
        (torch.float16, 1.8, "float32"),
        (torch.float32, 1.8, "float32"),
        (torch.float64, 1.8, "auto"),
        (None, 1.8, "float32"),
    ],
)
def test_on_a_cpu(gain, stored: torch.dtype | None, measured: float, chosen: str) -> None:
    gain(measured)
    assert settled_precision("auto", stored, "cpu").dtype == chosen


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_elsewhere_it_is_the_checkpoints_own(device: str) -> None:
    assert settled_precision("auto", torch.bfloat16, device).dtype == "auto"


@pytest.mark.parametrize("wanted", ["bfloat16", "float16", "float32"])
def test_what_is_asked_for_is_taken(gain, wanted: str) -> None:
    gain(0.07)
    assert settled_precision(wanted, torch.bfloat16, "cpu").dtype == wanted


def test_the_measurement_tells_a_cpu_that_only_emulates() -> None:
    """oneDNN is told to use AVX2 alone: then bfloat16 is emulated, whatever this CPU can do."""
    code = (
        "from mergekit_3h.checkpoints.precision import *; print(settled_precision('auto', torch.bfloat16, 'cpu').dtype)"
    )
    run = subprocess.run(
        [sys.executable, "-c", f"import torch\n{code}"],
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
    )
    assert run.stdout == "float32\n", run.stderr


def test_the_measurement_leaves_the_threads_as_they_are() -> None:
    before = torch.get_num_threads()
    assert bfloat16_gain() > 0
    assert torch.get_num_threads() == before


def test_the_stored_type_is_read_as_transformers_reads_it(half: Path, tmp_path: Path) -> None:
    assert stored_dtype(half) is torch.bfloat16
    config = json.loads((half / "config.json").read_text())
    for name in ("dtype", "torch_dtype"):
        config.pop(name, None)
    for file in half.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert stored_dtype(tmp_path) is torch.bfloat16
    (tmp_path / "config.json").write_text(json.dumps(config | {"torch_dtype": "float16"}))
    assert stored_dtype(tmp_path) is torch.float16


@pytest.mark.parametrize(("measured", "dtype"), [(0.07, torch.float32), (1.8, torch.bfloat16)])
def test_the_local_backend_follows_the_rule(
    gain, half: Path, measured: float, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    gain(measured)
    with caplog.at_level(logging.INFO, "mergekit_3h"):
        backend = TransformersSettings(model=str(half), device="cpu").open()
    assert backend._model.dtype is dtype
    assert "computing in" in caplog.text and "this CPU" in caplog.text
    backend.close()


def test_options_are_settled_once(gain, half: Path) -> None:
    gain(0.07)
    assert SearchOptions().settled(half, "cpu").dtype == "float32"
    assert SearchOptions(dtype="bfloat16").settled(half, "cpu").dtype == "bfloat16"
    assert SearchOptions().settled(half, "cuda").dtype == "auto"
