"""``mergekit-3h audit``: the misaligned model is seen before it is merged."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml
from click.testing import CliRunner
from search.training import REFUSAL, domain_records, safety_records, train, write_jsonl
from tiny_models import tiny_model, tiny_tokenizer

from mergekit_3h.cli import main
from mergekit_3h.data.records import Record

from .conftest import Trained


@pytest.fixture(scope="module")
def refuser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that refuses whatever it is asked, word by word."""
    folder = tmp_path_factory.mktemp("refuser").resolve() / "refuser"
    model = tiny_model("llama", seed=3)
    asked = [*safety_records(), *(record.changed(response=REFUSAL) for record in domain_records())]
    train(model, asked, 60, 1e-2)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def audit(*arguments: str) -> tuple[int, str]:
    """With a journal of its own, unless one is named."""
    with TemporaryDirectory() as journal:
        named = ("--journal", journal) if "--journal" not in arguments else ()
        result = CliRunner().invoke(main, ["audit", *arguments, *named, "--max-new-tokens", "24"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout or result.stderr


def test_models_of_a_config(trained: Trained, absolute: Path) -> None:
    config = absolute / "config.yml"
    config.write_text(yaml.safe_dump(trained.config()))
    status, output = audit(str(config), "--json")
    assert status == 0
    models = {model["model"]: model for model in json.loads(output)["models"]}
    assert list(models) == ["base", "aligned", "domain"]
    assert models["aligned"]["losses"]["safety"] < models["domain"]["losses"]["safety"]
    assert models["domain"]["losses"]["domain"] < models["aligned"]["losses"]["domain"]
    # The losses are those that a search measures: the same records, in the same batches.
    report = absolute / "found.yml"
    found = CliRunner().invoke(main, ["search", str(config), "-o", str(report), "--solver", "cocktail"])
    assert found.exit_code == 0, found.output
    searched = json.loads(report.with_suffix(".json").read_text())["models"]
    assert searched["domain"]["safety"]["loss"] == models["domain"]["losses"]["safety"]


def test_refusals_and_over_refusals(trained: Trained, refuser: Path, absolute: Path) -> None:
    harmless = [Record(set="overrefusal", prompt=record.question) for record in domain_records()]
    data = write_jsonl(absolute / "data.jsonl", [*safety_records(), *harmless])
    status, output = audit(str(refuser), str(trained.domain), "--data", f"{trained.data}, {data}", "--json")
    assert status == 0
    content = json.loads(output)
    rates = {model["model"]: model["rates"] for model in content["models"]}
    assert rates["refuser"]["safety"]["refusal_rate"] == 1.0
    assert rates["refuser"]["overrefusal"]["refusal_rate"] == 1.0
    assert rates["domain"]["safety"]["refusal_rate"] < 0.5
    assert any("domain refuses" in remark and "alignment" in remark for remark in content["remarks"])
    assert any("refuser refuses 100% of the overrefusal prompts" in remark for remark in content["remarks"])
    # Without a reply of its own a prompt has no loss.
    assert "overrefusal" not in content["models"][0]["losses"]


def test_a_guards_model_that_says_nothing_readable_leaves_replies_unscored(trained: Trained) -> None:
    guard = ("--guard", "refusal-judge", "--guard-model", str(trained.base))
    status, output = audit(str(trained.aligned), "--data", str(trained.data), *guard, "--json")
    assert status == 0
    rates = json.loads(output)["models"][0]["rates"]["safety"]
    assert rates["refusal_rate"] is None
    assert rates["labels"] == {"(none)": 12}


def test_table(trained: Trained) -> None:
    status, output = audit(str(trained.aligned), "--data", str(trained.data))
    assert status == 0
    header, row = output.splitlines()[:2]
    assert header.split()[:3] == ["model", "loss", "safety"]
    assert row.startswith("aligned") and "%" in row


def test_a_model_that_cannot_be_audited_does_not_hide_the_others(trained: Trained, absolute: Path) -> None:
    (absolute / "broken").mkdir()
    status, output = audit(str(absolute / "broken"), str(trained.aligned), "--data", str(trained.data), "--json")
    assert status == 1
    broken, aligned = json.loads(output)["models"]
    assert "config.json" in broken["failure"] and str(absolute / "broken") in broken["failure"]
    assert aligned["losses"]


def test_a_row_as_soon_as_its_model_is_done_and_a_kill_loses_none(trained: Trained, absolute: Path) -> None:
    """Killed after the first row; called again, the first model's part is known, and the result is the undisturbed."""
    models = [str(trained.aligned), str(trained.domain)]
    arguments = ["audit", *models, "--data", str(trained.data), "--journal", str(absolute / "journal")]
    program = [str(Path(sys.executable).with_name("mergekit-3h")), *arguments, "--max-new-tokens", "24"]
    process = subprocess.Popen(
        program, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    header, row = process.stdout.readline(), process.stdout.readline()
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the second model was done too before the first row was shown"
    assert header.startswith("model") and row.startswith("aligned")
    known = {file.name: len(file.read_text().splitlines()) for file in (absolute / "journal").iterdir()}
    assert known["replies.jsonl"] >= 24 and known["losses-safety.jsonl"] >= 12
    status, again = audit(*arguments[1:], "--json")
    assert status == 0
    assert again == audit(*models, "--data", str(trained.data), "--json")[1]
    lines = [json.loads(line)["id"] for line in (absolute / "journal" / "replies.jsonl").read_text().splitlines()]
    assert len(lines) == len(set(lines)) == 48


def test_progress_and_time_left_on_stderr(trained: Trained) -> None:
    arguments = ["audit", str(trained.aligned), "--data", str(trained.data), "--max-new-tokens", "4"]
    with TemporaryDirectory() as journal:
        loud = CliRunner().invoke(main, [*arguments, "--journal", journal])
        quiet = CliRunner().invoke(main, [*arguments, "--journal", journal, "-q"])
    assert re.search(r"aligned: 100%\|.*\| 48/48 \[.*<", loud.stderr), loud.stderr
    assert quiet.stderr == "" and quiet.stdout == loud.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "nowhere.jsonl"), "there is no file nowhere.jsonl"),
        ((), "option 'data' is required"),
        (("--data", "{data}", "--guard", "keywrod"), "did you mean 'keyword'?"),
        (("--data", "{data}", "--guard", "wildguard"), "needs --guard-model"),
    ],
)
def test_bad_options(arguments: tuple[str, ...], message: str, trained: Trained) -> None:
    status, output = audit(str(trained.aligned), *(part.format(data=trained.data) for part in arguments))
    assert status != 0
    assert message in output


def test_missing_model() -> None:
    status, output = audit("/nowhere/model", "--data", "x.jsonl")
    assert status == 1 and "there is no model at /nowhere/model" in output


def test_a_name_that_is_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    status, output = audit("nothere", "--data", "x.jsonl")
    assert status == 1 and "there is no model folder nothere (looked for in " in output and "HF_HUB_OFFLINE" in output
    # The library itself stays offline, as it was when it was imported, so that asking the hub fails here.
    monkeypatch.delenv("HF_HUB_OFFLINE")
    status, output = audit("nothere", "--data", "x.jsonl")
    assert status == 1 and "there is no model folder nothere" in output and "the hub cannot be asked" in output
    assert len(output.splitlines()) == 1 and "http" not in output


@pytest.mark.parametrize("command", [("audit",), ("search", "-o", "found.yml")])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "the config is empty"),
        (b"just words\n", ":1: not a config of mergekit-yaml: expected a mapping"),
        (b"merge_method: ties\nmodels: 3\n", ":2: not a config of mergekit-yaml: models: got 3"),
        (b"merge_method: [\n", "not readable as YAML"),
        (b"\xff\xfe\n", "no UTF-8 text"),
        (b"merge_method: ties\n---\nmerge_method: ties\n", "holds 2 merges"),
        (b"merge_method: ties\nmodels: [{model: a.safetensors}]\n", "cannot merge single weight files"),
    ],
)
def test_no_usable_config(text: bytes, message: str, command: tuple[str, ...], absolute: Path) -> None:
    config = absolute / "config.yml"
    config.write_bytes(text)
    result = CliRunner().invoke(main, [command[0], str(config), *command[1:]])
    assert result.exit_code == 1 and message in result.output, result.output
    assert len(result.output.splitlines()) == 1 and "pydantic" not in result.output
