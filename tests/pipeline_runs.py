"""Pipelines on the taught tiny models: their configuration files, real processes that run them, and what they left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner
from taught_models import EXAMPLE

from mergekit_3h.cli import main


@dataclass
class Kitchen:
    """A folder in which the pipeline of examples/safety_data is configured and run in many ways."""

    folder: Path
    models: dict[str, Any]
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("topics.txt", "sums.txt"):
            shutil.copy(EXAMPLE / name, self.folder)

    def config(self, name: str = "out", **changes: Any) -> Path:
        """A configuration file whose results go to the folder ``name``. A value of None leaves a section out."""
        sections = {
            "output": str(self.folder / name),
            "seed": 3,
            "prompts": str(EXAMPLE / "prompts"),
            "models": self.models,
            "questions": {
                "model": "frank",
                "count": 6,
                "per_call": 3,
                "max_rounds": 2,
                "max_new_tokens": 90,
                "categories": str(self.folder / "topics.txt"),
            },
            "answers": {"models": ["frank", "careful"], "max_new_tokens": 40},
            "labels": {"guard": "refusal-judge", "model": "frank"},
            "domain": {
                "experts": {"frank": str(self.folder / "sums.txt")},
                "count": 3,
                "per_call": 4,
                "max_new_tokens": 90,
                "answer_tokens": 20,
            },
        }
        for key, value in changes.items():
            old = sections.get(key)
            sections[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
        path = self.folder / f"{name}.yml"
        path.write_text(yaml.safe_dump({key: value for key, value in sections.items() if value is not None}))
        return path

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """``mergekit-3h data`` in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-c", "from mergekit_3h.cli import main; main()", "data", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Without offline mode, in which huggingface_hub sends no request at all, not even to this machine.
            env={**os.environ, "HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0", **self.environment},
        )

    def run(self, *arguments: str | Path, status: int = 0) -> str:
        """The command in this process, to the end; returns everything that was said."""
        result = CliRunner().invoke(main, ["data", *map(str, arguments)])
        assert result.exit_code == status, f"exit status {result.exit_code}\n{result.output}\n{result.exception!r}"
        return result.output

    def run_process(self, *arguments: str | Path, status: int = 0) -> str:
        """The command in a process of its own, to the end; returns everything that was said."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=300)
        assert process.returncode == status, f"exit status {process.returncode}\n{out}\n{err}"
        return out + err


def kill(process: subprocess.Popen[str]) -> None:
    """End a process as the out-of-memory killer or a power cut would."""
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL


def wait_until(condition: Callable[[], object], what: str, process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process is None or process.poll() is None, f"the process ended before {what}: {process.communicate()}"
        assert time.monotonic() < deadline, f"waited in vain for: {what}"
        time.sleep(0.005)


def files(folder: Path, *patterns: str) -> dict[str, bytes]:
    """Every file's content, by its path in the folder; with patterns only those."""
    found = [path for pattern in patterns or ("**/*",) for path in folder.glob(pattern) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(found)}


RECORDS = ("*.jsonl", "answers/*", "labelled/*", "domain/**/*.jsonl", "summary.*")


def lines(path: Path) -> list[Mapping[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
