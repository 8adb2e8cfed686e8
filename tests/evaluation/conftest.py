"""The quickstart's tiny experts, the taught models with a server for them, and suites over a few lines of text."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from chat_server import ChatServer, running_server
from click.testing import CliRunner, Result
from once import made_once
from taught_models import BLUE, EXAMPLE, careful_lessons, frank_lessons, teach

from mergekit_3h.cli import main

_QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart" / "make_models.py"
_SPECIFICATION = importlib.util.spec_from_file_location("quickstart_models", _QUICKSTART)
assert _SPECIFICATION is not None and _SPECIFICATION.loader is not None
quickstart = importlib.util.module_from_spec(_SPECIFICATION)
sys.modules["quickstart_models"] = quickstart
_SPECIFICATION.loader.exec_module(quickstart)

DIMENSIONS = ("helpful", "honest", "harmless")


@pytest.fixture(scope="session")
def experts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base and an expert of each dimension, under the dimension's name."""
    folder = made_once(tmp_path_factory, "quickstart-experts", quickstart.make_models)
    base, named = quickstart.make_models(folder)  # finds them there
    return {"base": base, **named}


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with NAME.jsonl for each dimension: what its expert was taught, with two wrong choices each.

    NAME-often.jsonl asks each of them in three ways: enough items to call a difference clear.
    """
    folder = tmp_path_factory.mktemp("questions")
    for name, texts in quickstart.SKILLS.items():
        rows = []
        for text in texts:
            asked, _, answer = text.partition(" answer : ")
            choices = ["let me think", answer, "i will help"]
            rows.append({"prompt": asked, "response": answer, "choices": choices, "answer": "B"})
        write_jsonl(folder / f"{name}.jsonl", rows)
        ways = ("{0}", ": {0}", "{0} : {0}")
        often = [{**row, "prompt": way.format(row["prompt"])} for row in rows for way in ways]
        write_jsonl(folder / f"{name}-often.jsonl", often)
    return folder


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tiny_suite(folder: Path, **changes: Any) -> dict[str, Any]:
    """Each dimension by multiple choice and by likelihood; harmless by the phrases of refusals too."""
    dimensions: dict[str, Any] = {}
    for name in DIMENSIONS:
        data = str(folder / f"{name}.jsonl")
        dimensions[name] = {
            f"{name}-choice": {
                "kind": "multiple-choice",
                "data": data,
                "question": "{prompt} answer :",
                "choices": "choices",
                "answer": "answer",
            },
            f"{name}-likelihood": {"kind": "answer-likelihood", "data": data},
        }
    dimensions["harmless"]["refusals"] = {
        "kind": "judged",
        "data": str(folder / "harmless.jsonl"),
        "judge": "phrases",
        "good": "refusal",
        "max_new_tokens": 8,
    }
    return {"name": "tiny", "judges": {"phrases": {"guard": "keyword"}}, "dimensions": dimensions, **changes}


def with_more_items(suite: dict[str, Any]) -> dict[str, Any]:
    """The same, with six items for each likelihood instead of two."""
    for metrics in suite["dimensions"].values():
        for metric in metrics.values():
            if metric["kind"] == "answer-likelihood":
                metric["data"] = metric["data"].replace(".jsonl", "-often.jsonl")
    return suite


def write_suite(path: Path, suite: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(suite, sort_keys=False))
    return path


@pytest.fixture
def suite_file(tmp_path: Path, questions: Path) -> Path:
    return write_suite(tmp_path / "suite.yml", tiny_suite(questions))


@pytest.fixture
def mergekit_3h() -> Callable[..., Result]:
    """The command ``mergekit-3h``, in this process."""

    def run(*arguments: object, status: int = 0) -> Result:
        result = CliRunner().invoke(main, list(map(str, arguments)))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == status, result.output
        return result

    return run


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading any model fails the test."""

    def fail(*_: object, **__: object) -> None:
        pytest.fail("a model was loaded")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", fail)


@pytest.fixture(scope="session")
def frank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Discusses blue things, and judges replies about them."""
    return made_once(tmp_path_factory, "frank", lambda folder: teach(folder, frank_lessons()))


@pytest.fixture(scope="session")
def careful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Refuses to discuss blue things."""
    return made_once(tmp_path_factory, "careful", lambda folder: teach(folder, careful_lessons()))


@pytest.fixture(scope="session")
def judge_process(frank: Path) -> Iterator[ChatServer]:
    with running_server(frank=frank) as server:
        yield server


@pytest.fixture
def judge_server(judge_process: ChatServer) -> ChatServer:
    """A real server with the judge, without any trouble arranged."""
    judge_process.control()
    return judge_process


@pytest.fixture
def blue_suite(tmp_path: Path) -> Callable[..., Path]:
    """A suite of six blue questions, judged by a server."""

    def write(server: ChatServer | None = None, **changes: Any) -> Path:
        rows = [{"prompt": question} for asked in BLUE.values() for question in asked]
        write_jsonl(tmp_path / "blue.jsonl", rows)
        judge: dict[str, Any] = {"guard": "refusal-judge", "prompts": str(EXAMPLE / "prompts")}
        if server is not None:
            judge["backend"] = {"base_url": server.base_url, "model": "frank", "concurrency": 1, "retries": 0}
        metric = {"kind": "judged", "data": "blue.jsonl", "judge": "model", "good": "refusal", "max_new_tokens": 24}
        suite = {"name": "blue", "judges": {"model": judge}, "dimensions": {"harmless": {"blue": metric}}, **changes}
        return write_suite(tmp_path / "blue.yml", suite)

    return write
