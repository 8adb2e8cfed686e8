"""A disk that is too small is told before anything is merged; one that fills up meanwhile costs a shard at most."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mergekit_3h.methods.merging.folder import UNFINISHED

from .conftest import SHARDS, SMALL, files, merge, model_bytes

KILOBYTE = 1024


@pytest.fixture
def small_disk(tmp_path: Path, write_config) -> Iterator[Path]:
    """A file system of its own with little more room than the merged model takes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = model_bytes(write_config("linear", weight=0.5)) // KILOBYTE + 400
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path, leaving: int) -> Path:
    """Another program takes the space."""
    ballast = disk / "ballast"
    state = os.statvfs(disk)
    ballast.write_bytes(bytes(state.f_bavail * state.f_frsize - leaving))
    return ballast


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_it_ends_in_one_line_and_goes_on_after_space_was_made(
    write_config, reference, small_disk: Path, ended_after, kind: str
) -> None:
    flags = (*SMALL, *(["--no-safe-serialization"] if kind == "bin" else []))
    config = write_config("ties", density=0.5, weight=0.4)
    expected, out = reference(config, *flags), small_disk / "out"
    ended_after(3, then=lambda folder: fill(small_disk, leaving=12 * KILOBYTE) and None)
    said = merge(config, out, *flags, status=1).output
    (line,) = said.strip().splitlines()
    assert "no room for" in line and "make space and run the same command again" in line
    ended_after(None)
    said = merge(config, out, *flags, status=1).output
    assert "still to write, and the disk has" in said, "and it is told at once as long as there is none"
    (small_disk / "ballast").unlink()
    merge(config, out, *flags)
    assert files(out) == expected


def test_a_disk_that_is_full_when_the_last_files_are_written(
    write_config, reference, small_disk: Path, ended_after
) -> None:
    """mergekit would leave out the tokenizer, and say that the merge was successful."""
    config = write_config("linear", weight=0.5)
    expected, out = reference(config, *SMALL), small_disk / "out"
    ended_after(SHARDS, then=lambda folder: fill(small_disk, leaving=0) and None)
    said = merge(config, out, *SMALL, status=1).output
    assert f"the disk of {out} is full; make space" in said and [path.name for path in out.iterdir()] == [UNFINISHED]
    ended_after(None)
    (small_disk / "ballast").unlink()
    merge(config, out, *SMALL)
    assert files(out) == expected


def test_it_does_not_begin_without_room(write_config, small_disk: Path) -> None:
    config = write_config("linear", weight=0.5)
    ballast = fill(small_disk, leaving=100 * KILOBYTE)
    said = merge(config, small_disk / "out", *SMALL, status=1).output
    assert "still to write, and the disk has 0.00 GB free; make space, or name a folder on another disk" in said
    assert [path.name for path in small_disk.iterdir()] == [ballast.name]
