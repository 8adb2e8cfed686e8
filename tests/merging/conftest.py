"""Tiny models, the command that merges them, and ways to end it in the middle."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from hosts import merge_config, mergekit_yaml
from single_thread import one_thread  # noqa: F401
from tiny_models import Family

from mergekit_3h.cli import main
from mergekit_3h.methods.merging.folder import UnfinishedMerge

SMALL = ("--out-shard-size", "9000")
SHARDS = 11
"""Of a tiny Llama, of that size."""


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a model. mergekit lists the models on its card in another order each time."""
    content = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    if "README.md" in content:
        content["README.md"] = b"\n".join(sorted(content["README.md"].splitlines()))
    return content


def merge(config: Path, out: Path, *flags: object, status: int = 0) -> Result:
    """The command ``mergekit-3h merge``, in this process."""
    result = CliRunner().invoke(main, ["merge", str(config), str(out), *map(str, flags)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == status, result.output
    return result


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    """The command sets torch's threads, as its process does nothing else."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def write_config(llama: Family, absolute: Path) -> Callable[..., Path]:
    """``write_config("ties", density=0.5)``: a merge of the three experts in a file."""

    def write(method: str, name: str = "merge", *, top: dict[str, Any] | None = None, **parameters: Any) -> Path:
        content = merge_config(llama, method, parameters=parameters, **(top or {}))
        file = absolute / f"{name}.yml"
        file.write_text(yaml.safe_dump(content, sort_keys=False))
        return file

    return write


@pytest.fixture
def reference(absolute: Path) -> Callable[..., dict[str, bytes]]:
    """The files that ``mergekit-yaml`` writes for a config."""

    def merged(config: Path, *flags: str) -> dict[str, bytes]:
        out = absolute / "reference" / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.parent.mkdir(exist_ok=True)
        shutil.copy(config, out.with_suffix(".yml"))
        given = list(flags)
        if "--num-threads" in given:  # mergekit-yaml sets threads of torch that can be set once in a process
            place = given.index("--num-threads")
            torch.set_num_threads(int(given[place + 1]))
            del given[place : place + 2]
        mergekit_yaml(yaml.safe_load(config.read_text()), out, *given)
        return files(out)

    return merged


@pytest.fixture
def out(absolute: Path) -> Path:
    """The model's folder, of the same name as the reference's, which is on the card."""
    return absolute / "merged" / "out"


@pytest.fixture
def ended_after(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``ended_after(3)``: Ctrl-C when the third piece is finished; ``ended_after(None)``: no more of it.

    ``then`` is called instead, if it is given.
    """
    add = UnfinishedMerge.add

    def arrange(count: int | None, then: Callable[[UnfinishedMerge], None] | None = None) -> None:
        finished = 0

        def adding(folder: UnfinishedMerge, piece: Any) -> None:
            nonlocal finished
            add(folder, piece)
            finished += 1
            if finished == count:
                if then is None:
                    raise KeyboardInterrupt
                then(folder)

        monkeypatch.setattr(UnfinishedMerge, "add", adding)

    return arrange


def model_bytes(config: Path) -> int:
    """Of the weights that a merge writes."""
    base = Path(yaml.safe_load(config.read_text())["base_model"])
    return sum(file.stat().st_size for file in base.glob("*.safetensors"))
