"""``mergekit-3h data``: prompts, stats and import, and what all its commands share."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mergekit_3h.cli import main
from mergekit_3h.data.prompts import prompt_names, prompt_text
from mergekit_3h.data.reading import read_records


def data(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["data", *map(str, arguments)])


def jsonl(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Three models' replies to the same four questions: one refuses all, one half, one has no verdict on one."""
    labels = {
        "careful": ["refusal"] * 4,
        "fickle": ["refusal", "compliance", "refusal", "compliance"],
        "odd": ["compliance", "compliance", "compliance", ""],
    }
    rows = [
        {"prompt": f"Why is {number} blue?", "response": "...", "set": "safety", "source": model, "category": "sky"}
        | ({"label": label} if label else {})
        for model, given in labels.items()
        for number, label in enumerate(given)
    ]
    return jsonl(tmp_path / "labelled.jsonl", rows)


@pytest.fixture
def beavertails(tmp_path: Path) -> Path:
    """A table with the real column names of BeaverTails, one row twice and one with an unsafe reply."""
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "response", "category", "is_safe"])
        writer.writeheader()
        for prompt, is_safe in (("Why is the sky blue?", True), ("why is the sky BLUE", True), ("Is it blue?", False)):
            writer.writerow({"prompt": prompt, "response": "I cannot.", "category": "{'x': True}", "is_safe": is_safe})
    return path


def test_every_prompt_is_listed_and_shown(tmp_path: Path) -> None:
    listed = data("prompts")
    assert listed.exit_code == 0
    assert listed.output.splitlines() == prompt_names()
    assert {"unsafe_questions", "domain_questions", "unsafe_categories"} <= set(prompt_names())
    for name in prompt_names():
        assert data("prompts", name).output == prompt_text(name)


def test_own_prompts_take_the_place_of_ours(tmp_path: Path) -> None:
    (tmp_path / "domain_questions.txt").write_text("{count} like {examples}\n")
    assert data("prompts", "domain_questions", "--folder", tmp_path).output == "{count} like {examples}\n"
    assert f"domain_questions  ({tmp_path})" in data("prompts", "--folder", tmp_path).output
    unknown = data("prompts", "domain_question")
    assert unknown.exit_code == 1 and "there is no prompt 'domain_question'" in unknown.output


@pytest.mark.parametrize("width", [40, 80])
def test_help_cuts_no_text_off(width: int) -> None:
    text = CliRunner().invoke(main, ["data", "--help"], terminal_width=width).output
    assert "..." not in text.replace("[ARGS]...", "")
    listed = text.partition("Commands:\n")[2].splitlines()
    assert {line.split()[0] for line in listed} >= {"run", "stats", "import"} and max(map(len, listed)) <= width
    if width == 80:
        assert all(line[2] != " " for line in listed), "a text does not fit its line"


def test_stats_show_counts_and_refusal_rates(labelled: Path, tmp_path: Path) -> None:
    chart = tmp_path / "rates.png"
    shown = data("stats", labelled, "--chart", chart)
    assert shown.exit_code == 0, shown.output
    rates = {line.split()[0]: line.split() for line in shown.output.splitlines() if line.count("safety") == 1}
    assert "100.0%" in rates["careful"] and "50.0%" in rates["fickle"] and "0.0%" in rates["odd"]
    assert rates["odd"][-1] == "1"  # unscored, and in no rate
    assert chart.read_bytes().startswith(b"\x89PNG") and chart.stat().st_size > 5000


def test_a_chart_of_nothing_is_not_drawn(tmp_path: Path) -> None:
    empty, chart = jsonl(tmp_path / "empty.jsonl", []), tmp_path / "rates.png"
    done = data("stats", empty, "--chart", chart)
    assert done.exit_code == 1 and "nothing to draw" in done.output and not chart.exists()
    assert data("stats", empty).exit_code == 0


def test_stats_of_a_bad_file_name_the_line(labelled: Path) -> None:
    labelled.write_text(labelled.read_text() + '{"prompt": "a", "set": "safty"}\n')
    bad = data("stats", labelled)
    assert bad.exit_code == 1 and "line 13" in bad.output and "set" in bad.output
    assert data("stats", labelled, "--skip-invalid").exit_code == 0


def test_a_published_format_is_imported(beavertails: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    told = data("import", beavertails, "-o", out)
    assert told.exit_code == 0, told.output
    assert (
        "3 records from 3 rows of BeaverTails" in told.output and "1 unsafe or untrue replies left out" in told.output
    )
    records = read_records(out)
    assert [record.response for record in records] == ["I cannot.", "I cannot.", None]
    assert all(record.set == "safety" for record in records)


def test_duplicates_are_left_out_on_request(beavertails: Path, tmp_path: Path) -> None:
    told = data("import", beavertails, beavertails, "-o", tmp_path / "out.jsonl", "--unique")
    assert "duplicates left out: 4 exact, 0 near" in told.output
    assert len(read_records(tmp_path / "out.jsonl")) == 2


def test_a_file_that_is_there_is_not_replaced_unasked(beavertails: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("precious\n")
    refused = data("import", beavertails, "-o", out)
    assert refused.exit_code == 1 and "--force" in refused.output and out.read_text() == "precious\n"
    assert data("import", beavertails, "-o", out, "--force").exit_code == 0
    assert len(read_records(out)) == 3


def test_a_file_is_not_imported_onto_itself(tmp_path: Path) -> None:
    table = jsonl(tmp_path / "own.jsonl", [{"prompt": "Why?", "set": "domain"}])
    before = table.read_bytes()
    done = data("import", table, "-o", table, "--force")
    assert done.exit_code == 1 and "one of the files to import" in done.output
    assert table.read_bytes() == before


def test_places_that_cannot_be_written_are_named(labelled: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "below"
    (tmp_path / "config.json").write_text("{}")
    pipeline = tmp_path / "pipeline.yml"
    pipeline.write_text(
        f"output: {place}\nmodels: {{tiny: {tmp_path}}}\nanswers: {{models: [tiny]}}\n"
        f"questions: {{files: [{labelled}]}}\nlabels: {{guard: keyword}}\n"
    )
    for done in (
        data("import", labelled, "-o", place / "records.jsonl"),
        data("stats", labelled, "--chart", place / "rates.png"),
        data("run", pipeline),
    ):
        assert done.exit_code == 1 and str(place) in done.output and "Not a directory" in done.output, done.output
        assert isinstance(done.exception, SystemExit)


def test_an_unknown_kind_of_chart_is_refused_with_those_that_exist(labelled: Path, tmp_path: Path) -> None:
    done = data("stats", labelled, "--chart", tmp_path / "rates.xyz")
    assert done.exit_code == 1 and ".png" in done.output and isinstance(done.exception, SystemExit)


def test_any_table_is_imported_with_its_columns(tmp_path: Path) -> None:
    table = jsonl(tmp_path / "own.jsonl", [{"ask": "Why blue?", "reply": "No."}])
    columns = ("--column", "prompt=ask", "--column", "response=reply", "--set", "overrefusal", "--source", "mine")
    told = data("import", table, "-o", tmp_path / "out.jsonl", *columns)
    assert told.exit_code == 0, told.output
    (record,) = read_records(tmp_path / "out.jsonl")
    assert (record.prompt, record.response, record.set, record.source) == ("Why blue?", "No.", "overrefusal", "mine")
    wrong = data("import", table, "-o", tmp_path / "other.jsonl", "--column", "prompt")
    assert wrong.exit_code == 1 and "expected FIELD=COLUMN" in wrong.output


def test_bad_rows_stop_an_import_and_leave_nothing_behind(tmp_path: Path) -> None:
    rows = [{"prompt": "a?", "set": "safety"}, {"prompt": "", "set": "safety"}, {"prompt": "b?", "set": "blue"}]
    table, out = jsonl(tmp_path / "own.jsonl", rows), tmp_path / "out.jsonl"
    stopped = data("import", table, "-o", out)
    assert stopped.exit_code == 1 and "line 2" in stopped.output and "line 3" in stopped.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.jsonl"]
    told = data("import", table, "-o", out, "--skip-invalid")
    assert "2 invalid rows left out" in told.output and len(read_records(out)) == 1


def test_help_and_wrong_configurations_load_no_model_library(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from mergekit_3h.cli import main\n"
        "run = lambda *words: CliRunner().invoke(main, ['data', *words])\n"
        "assert run('run', '--help').exit_code == 0\n"
        f"assert run('run', {str(tmp_path / 'nowhere.yml')!r}).exit_code == 1\n"
        "print([name for name in ('torch', 'transformers', 'huggingface_hub', 'mergekit') if name in sys.modules])\n"
        "import torch\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines() == ["[]", "True"]
