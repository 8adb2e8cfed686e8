"""The gradient on iso_c: its preconditioner is held during the search, and made anew for what is found."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import yaml
from hosts import mergekit_yaml

from .conftest import Trained
from .test_search_command import search, without_seconds
from .test_tuned_options import losses_of


def test_the_result_is_what_the_found_config_merges_to(
    trained: Trained, absolute: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = trained.config(combine="iso_c", power=0.5, max_evaluations=8)
    caplog.set_level(logging.INFO, "mergekit_3h")
    said = search(config, absolute / "found.yml").output
    assert "with a part of it held as at the start" in caplog.text and "result, as searched" in said
    report = json.loads((absolute / "found.json").read_text())
    mergekit_yaml(yaml.safe_load((absolute / "found.yml").read_text()), absolute / "merged")
    measured = {name: entry["loss"] for name, entry in report["losses"].items()}
    held = {name: entry["loss"] for name, entry in report["held"]["losses"].items()}
    # float32 sums in another order; what was held is told apart from it
    assert losses_of(absolute / "merged", trained.data) == pytest.approx(measured, rel=1e-5)
    assert losses_of(absolute / "merged", trained.data) != pytest.approx(held, rel=1e-4)
    uniform = report["uniform"]
    assert report["score"] < uniform["safety"]["loss"] + 0.3 * uniform["domain"]["loss"]
    lines = (absolute / "found.trace.jsonl").read_bytes().splitlines(keepends=True)
    assert [json.loads(line)["kind"] for line in lines].count("merged") == 1
    (absolute / "cut.trace.jsonl").write_bytes(b"".join(lines[:-2]))
    search(config, absolute / "cut.yml", "--resume")
    assert without_seconds(absolute / "cut.json") == without_seconds(absolute / "found.json")
