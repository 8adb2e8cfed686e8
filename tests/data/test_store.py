"""The store under real conditions: kill signals, concurrent readers, full disks, big files."""

from __future__ import annotations

import gzip
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import BaseModel

from mergekit_3h.data.reading import InvalidLinesError, Reader, numbered_lines, read_records
from mergekit_3h.data.records import DataError, Record
from mergekit_3h.data.store import Store, write_records

BOTH = pytest.mark.parametrize("name", ["records.jsonl", "records.jsonl.gz"])


def record(number: int) -> Record:
    return Record(id=f"r{number}", prompt=f"What is {number} shades of blue?", set="safety")


def ids(path: Path) -> list[str]:
    return [one.id for one in Reader(path, Record, growing=True)]


@BOTH
def test_resumes_by_id_and_writes_nothing_twice(tmp_path: Path, name: str) -> None:
    path = tmp_path / "new folder" / name
    with Store(path, Record) as store:
        assert store.append(record(1))
        assert not store.append(record(1))
        assert store.extend([record(1), record(2), record(2), record(3)]) == 2
    with Store(path, Record) as store:
        assert store.ids == {"r1", "r2", "r3"}
        assert "r2" in store
        assert len(store) == 3
        assert store.extend(record(number) for number in range(1, 6)) == 2
    assert ids(path) == ["r1", "r2", "r3", "r4", "r5"]


@BOTH
def test_every_way_of_cutting_off_the_end_is_repaired(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with Store(path, Record) as store:
        for number in range(3):
            store.append(record(number))
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        readable = ids(path)
        assert readable == [f"r{number}" for number in range(len(readable))]
        with Store(path, Record) as store:
            assert sorted(store.ids) == readable
            store.extend(map(record, range(3)))
        assert ids(path) == ["r0", "r1", "r2"]


def test_a_cut_off_gzip_file_of_one_member_keeps_its_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "made elsewhere.jsonl.gz"
    with gzip.open(path, "wb") as file:
        for number in range(2000):
            file.write(record(number).model_dump_json(exclude_defaults=True).encode() + b"\n")
    path.write_bytes(path.read_bytes()[:-200])
    with Store(path, Record) as store:
        assert len(store) > 1000
        store.extend(map(record, range(2000)))
    assert ids(path) == [f"r{number}" for number in range(2000)]


def test_a_last_line_without_newline_is_a_whole_line_if_it_is_json(tmp_path: Path) -> None:
    path = tmp_path / "by hand.jsonl"
    path.write_text('{"id": "a", "prompt": "Blue?", "set": "domain"}')
    assert [one.id for one in read_records(path)] == ["a"]
    with Store(path, Record) as store:
        store.append(record(1))
    assert ids(path) == ["a", "r1"]


WRITER = """
import sys
from mergekit_3h.data.records import Record
from mergekit_3h.data.store import Store
with Store(sys.argv[1], Record) as store:
    number = len(store)
    while True:
        store.append(Record(id=f"r{number}", prompt="blue " * 400, set="safety"))
        number += 1
"""


@BOTH
def test_sigkill_at_any_moment_loses_no_record_and_repeats_none(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    seen = 0
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
        try:
            deadline = time.monotonic() + 60
            while (found := len(ids(path)) if path.exists() else 0) < seen + 10:
                assert time.monotonic() < deadline and writer.poll() is None
        finally:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
        with Store(path, Record) as store:
            assert len(store) >= found, "what a reader has seen stays"
            seen = len(store)
        assert ids(path) == [f"r{number}" for number in range(seen)]


@BOTH
def test_a_reader_sees_the_file_as_it_was_however_fast_it_grows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with Store(path, Record) as store:
        store.extend(map(record, range(100)))
        reading = iter(store)
        first = next(reading)
        store.extend(map(record, range(100, 200)))
        assert [first, *reading] == [record(number) for number in range(100)]


def test_a_line_that_is_finished_while_it_is_read_is_left_for_the_next_reading(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with Store(path, Record) as store:
        store.extend(map(record, range(3)))
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    lines = numbered_lines(path, growing=True)
    assert next(lines)[0] == 1
    path.write_bytes(whole)
    assert [number for number, _ in lines] == [2]
    assert ids(path) == ["r0", "r1", "r2"]


def test_a_second_writer_is_refused_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with Store(path, Record):
        other = subprocess.run([sys.executable, "-c", WRITER, str(path)], capture_output=True, text=True)
        assert other.returncode != 0
        assert "another process is writing to it" in other.stderr
    with Store(path, Record):
        pass


def test_a_full_disk_leaves_whole_lines_and_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    script = """
import resource, signal, sys
from mergekit_3h.data.records import DataError, Record
from mergekit_3h.data.store import Store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
store = Store(sys.argv[1], Record)
try:
    for number in range(100):
        store.append(Record(id=f"r{number}", prompt="blue " * 100, set="safety"))
except DataError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert "make room on the disk" in run.stdout
    assert path.read_bytes().endswith(b"}\n")
    assert len(ids(path)) == len(path.read_bytes().splitlines()) > 10


def test_holds_any_model_with_an_id(tmp_path: Path) -> None:
    class Answer(BaseModel):
        id: str
        text: str

    class Nameless(BaseModel):
        text: str

    with Store(tmp_path / "answers.jsonl", Answer) as store:
        store.append(Answer(id="q1@base", text="No."))
        assert list(store) == [Answer(id="q1@base", text="No.")]
    with pytest.raises(DataError, match="no field 'id'"):
        Store(tmp_path / "other.jsonl", Nameless)


def test_a_closed_store_refuses_to_write(tmp_path: Path) -> None:
    store = Store(tmp_path / "records.jsonl", Record)
    store.close()
    with pytest.raises(DataError, match="closed"):
        store.append(record(1))


@BOTH
def test_writing_a_whole_file_is_all_or_nothing(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    assert write_records(path, map(record, range(3))) == 3

    def breaks() -> object:
        yield record(9)
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        write_records(path, breaks())  # type: ignore[arg-type]
    assert ids(path) == ["r0", "r1", "r2"]
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_what_a_killed_writer_of_a_whole_file_left_is_gone_after_the_next(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    script = """
import os, signal, sys
from mergekit_3h.data.records import Record
from mergekit_3h.data.store import write_records
def items():
    for number in range(10_000):
        yield Record(prompt=f"Blue {number}?", set="domain")
    os.kill(os.getpid(), signal.SIGKILL)
write_records(sys.argv[1], items())
"""
    killed = subprocess.run([sys.executable, "-c", script, str(path)])
    assert killed.returncode == -signal.SIGKILL
    assert not path.exists()
    write_records(path, map(record, range(3)))
    assert ids(path) == ["r0", "r1", "r2"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["set.jsonl"]


def test_new_files_have_the_permissions_the_user_wants(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_records(tmp_path / "set.jsonl", [record(1)])
        Store(tmp_path / "store.jsonl", Record).close()
    finally:
        os.umask(before)
    assert [stat.S_IMODE(entry.stat().st_mode) for entry in tmp_path.iterdir()] == [0o600, 0o600]


@pytest.fixture
def bad_file(tmp_path: Path) -> Path:
    """10,000 lines, three of them bad in different ways."""
    lines = [json.dumps({"prompt": f"Is shade {number} blue?", "set": "domain"}) for number in range(10_000)]
    lines[16] = '{"prompt": "Is it blue?", "set": "domian"}'
    lines[4_999] = lines[4_999][:-5]
    lines[9_999] = '{"prompt": "Is it blue?", "set": "domain", "respons": "Yes."}'
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_one_error_names_every_bad_line_and_nothing_is_yielded(bad_file: Path) -> None:
    with pytest.raises(InvalidLinesError) as error:
        next(iter(Reader(bad_file, Record)))
    message = str(error.value)
    assert f"{bad_file}: 3 of 10000 lines" in message
    assert "line 17, field 'set': got 'domian'" in message
    assert "line 5000, field '(whole line)': not JSON" in message
    assert "line 10000, field 'respons': no such field; did you mean 'response'?" in message
    assert "--skip-invalid" in message


def test_the_same_fault_of_many_lines_is_said_once_with_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "faulty.jsonl"
    good = [json.dumps({"prompt": f"Is shade {number} blue?", "set": "domain"}) for number in range(60)]
    for number in (*range(10, 34), 40):
        good[number - 1] = '{"prompt": "Is it blue?", "set": "domian"}'
    path.write_text("\n".join(good) + "\n")
    with pytest.raises(InvalidLinesError) as error:
        read_records(path)
    heading, *faults, advice = str(error.value).splitlines()
    assert heading == f"{path}: 25 of 60 lines are not valid records:"
    assert len(faults) == 1 and faults[0].startswith("  lines 10-33, 40, field 'set': got 'domian'")
    assert "--skip-invalid" in advice


@pytest.mark.parametrize(("lines", "said"), [(1, "1 of 1 line is not"), (80, "1 of 80 lines is not")])
def test_one_bad_line_is_told_in_grammar(tmp_path: Path, lines: int, said: str) -> None:
    path = tmp_path / "faulty.jsonl"
    path.write_text('{"prompt": "a", "set": "domain"}\n' * (lines - 1) + "{}\n")
    with pytest.raises(InvalidLinesError, match=f"{said} a valid record"):
        read_records(path)


def test_skip_invalid_keeps_the_rest_and_counts(bad_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    reader = Reader(bad_file, Record, skip_invalid=True)
    assert sum(1 for _ in reader) == 9_997
    assert reader.skipped == 3
    assert [problem.line for problem in reader.problems] == [17, 5000, 10000]
    assert "left out 3 invalid of 10000 lines" in caplog.text


def test_a_file_of_another_kind_gets_a_bounded_message(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a record\n" * 5_000)
    with pytest.raises(InvalidLinesError) as error:
        read_records(path)
    assert error.value.bad_lines == 5_000
    assert len(str(error.value)) < 30_000


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'\xff\xfe{"prompt": "a", "set": "domain"}\n', "line 1"),
        (b'{"prompt": "\\ud800", "set": "domain"}\n', "line 1"),
    ],
)
def test_broken_text_is_a_bad_line(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_bytes(content)
    with pytest.raises(InvalidLinesError, match=says):
        read_records(path)


def test_byte_order_mark_blank_lines_and_windows_newlines_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "windows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a", "set": "domain"}\r\n\r\n{"prompt": "b", "set": "domain"}\r\n')
    assert [one.prompt for one in read_records(path)] == ["a", "b"]


def test_missing_files_folders_and_false_gzip_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        Reader(tmp_path / "absent.jsonl", Record)
    with pytest.raises(DataError, match="a folder"):
        Reader(tmp_path, Record)
    false = tmp_path / "false.jsonl.gz"
    false.write_bytes(b'{"prompt": "a", "set": "domain"}\n')
    with pytest.raises(DataError, match="gzip"):
        read_records(false)
    with pytest.raises(DataError, match="gzip"):
        Store(false, Record)
    assert false.read_bytes() == b'{"prompt": "a", "set": "domain"}\n'


COUNT = """
import resource, sys
from mergekit_3h.data.reading import Reader
from mergekit_3h.data.records import Record
from mergekit_3h.data.statistics import statistics
count = sum(1 for _ in Reader(sys.argv[1], Record))
print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_a_million_records_stream_in_constant_memory(tmp_path: Path) -> None:
    def peak(lines: int) -> int:
        path = tmp_path / f"{lines}.jsonl"
        line = b'{"prompt": "%s", "response": "%s", "set": "safety"}\n' % (b"Is it blue? " * 5, b"No, not at all. " * 9)
        with path.open("wb") as file:
            for _ in range(lines // 1000):
                file.write(line * 1000)
        run = subprocess.run([sys.executable, "-c", COUNT, str(path)], capture_output=True, text=True, check=True)
        count, kilobytes = map(int, run.stdout.split())
        assert count == lines
        return kilobytes

    # The file of a million is 270 MB; 8 MB are left for the allocator's moods.
    assert peak(1_000_000) < peak(1_000) + 8_000
