"""``mergekit-3h data split``: parts that do not depend on the moment, and nothing overwritten or left half done."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mergekit_3h.cli import main
from mergekit_3h.data.reading import read_records

NAMES = ("train", "validation", "test")


def split(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["data", "split", *map(str, arguments)])


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """200 questions of unlike words, each once more with one of its words changed, and with a second reply."""
    made = random.Random(3)
    words = ["".join(made.choices("abcdefghijklmnopqrstuvwxyz", k=7)) for _ in range(900)]
    rows = []
    for number in range(200):
        asked = made.sample(words, 14)
        for prompt in (" ".join(asked), " ".join([*asked[:-1], words[number]])):
            for reply in ("No.", "Never."):
                rows.append({"prompt": prompt, "response": reply, "set": ("safety", "domain")[number % 2]})
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_every_record_is_in_one_part_and_likeness_keeps_together(questions: Path, tmp_path: Path) -> None:
    done = split(questions, "-o", tmp_path / "parts")
    assert done.exit_code == 0, done.output
    assert sorted(contents(tmp_path / "parts")) == sorted(f"{name}.jsonl" for name in NAMES)
    parts = {name: read_records(tmp_path / "parts" / f"{name}.jsonl") for name in NAMES}
    given = read_records(questions)
    assert sorted(r.id for part in parts.values() for r in part) == sorted(r.id for r in given)
    assert {record.set for record in parts["test"]} == {"safety", "domain"}
    # Four standard deviations of the binomial count of 200 groups of four.
    assert abs(len(parts["train"]) - 640) < 4 * 4 * (200 * 0.8 * 0.2) ** 0.5
    beginnings = [{record.question.rsplit(" ", 1)[0] for record in part} for part in parts.values()]
    assert sum(map(len, beginnings)) == 200, "a question and its near duplicate are in two parts"
    for name, part in parts.items():
        assert f"{name}.jsonl: {len(part)} records, {len(part) / 800:.1%}" in done.output


def test_the_seed_decides_and_nothing_else(questions: Path, tmp_path: Path) -> None:
    shuffled = tmp_path / "shuffled.jsonl"
    lines = questions.read_text().splitlines(keepends=True)
    shuffled.write_text("".join(random.Random(1).sample(lines, len(lines))))
    split(questions, "-o", tmp_path / "first", "--seed", "7")
    split(questions, "-o", tmp_path / "again", "--seed", "7")
    split(shuffled, "-o", tmp_path / "shuffled", "--seed", "7")
    split(questions, "-o", tmp_path / "other", "--seed", "8")
    first = contents(tmp_path / "first")
    assert contents(tmp_path / "again") == first != contents(tmp_path / "other")
    for name, lines in contents(tmp_path / "shuffled").items():
        assert sorted(lines.splitlines()) == sorted(first[name].splitlines())


def test_exact_shares_of_named_parts(questions: Path, tmp_path: Path) -> None:
    done = split(questions, "-o", tmp_path / "parts", "--shares", "search=0.75, check=.25", "--by", "exact")
    assert done.exit_code == 0, done.output
    for name, share in (("search", 0.75), ("check", 0.25)):
        sets = [record.set for record in read_records(tmp_path / "parts" / f"{name}.jsonl")]
        # Groups of four are not divided.
        assert all(abs(sets.count(which) - 400 * share) <= 4 for which in ("safety", "domain"))


def test_parts_that_are_there_are_not_replaced_unasked(questions: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "test.jsonl").write_text("precious\n")
    refused = split(questions, "-o", parts)
    assert refused.exit_code == 1 and "test.jsonl: is there already" in refused.output
    assert contents(parts) == {"test.jsonl": b"precious\n"}
    assert split(questions, "-o", parts, "--force").exit_code == 0
    assert len(read_records(parts / "test.jsonl")) > 1


def test_a_file_is_not_divided_onto_itself(questions: Path, tmp_path: Path) -> None:
    train = questions.rename(tmp_path / "train.jsonl")
    before = train.read_bytes()
    refused = split(train, "-o", tmp_path, "--force")
    assert refused.exit_code == 1 and "one of the files to divide" in refused.output
    assert contents(tmp_path) == {"train.jsonl": before}


def test_a_part_that_cannot_be_written_takes_the_others_with_it(questions: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    (parts / ".test.partial.jsonl").mkdir(parents=True)  # where the last part is to be written first
    failed = split(questions, "-o", parts)
    assert failed.exit_code == 1 and ".test.partial.jsonl" in failed.output
    assert [file.name for file in parts.iterdir()] == [".test.partial.jsonl"]


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ("train=0.8", "shares that sum to 1"),
        ("train=0.8,test=0.3", "sum 1.1"),
        ("train=1,test=0", "positive shares"),
        ("train=0.5,train=0.5", "'train' is there twice"),
        ("train", "got 'train', expected NAME=SHARE"),
        ("../train=0.5,test=0.5", "got '../train=0.5'"),
        ("train=half,test=0.5", "got 'train=half'"),
        ("train=nan,test=0.5", "got 'train=nan'"),
    ],
)
def test_bad_shares(shares: str, message: str, questions: Path, tmp_path: Path) -> None:
    refused = split(questions, "-o", tmp_path / "parts", "--shares", shares)
    assert refused.exit_code == 1 and message in refused.output
    assert not (tmp_path / "parts").exists()


def test_nothing_to_divide(questions: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    questions.write_text("")
    empty = split(questions, "-o", parts)
    assert empty.exit_code == 1 and "no records" in empty.output and not parts.exists()
    questions.write_text('{"prompt": "a", "set": "safty"}\n')
    bad = split(questions, "-o", parts)
    assert bad.exit_code == 1 and "line 1" in bad.output and not parts.exists()
    questions.write_text('{"prompt": "a", "set": "safety"}\n')
    in_a_file = split(questions, "-o", questions)
    assert in_a_file.exit_code == 1 and "is a file; expected a folder" in in_a_file.output
    one = split(questions, "-o", parts, "--shares", "all=1")
    assert one.exit_code == 0 and "all.jsonl: 1 record, 100.0%" in one.output
