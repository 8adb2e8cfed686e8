"""``mergekit-3h data run`` on tiny models, local and behind a real server, through kills and faults."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer
from click.testing import CliRunner
from pipeline_runs import RECORDS, Kitchen, files, kill, lines, wait_until
from taught_models import BLUE, EXAMPLE, EXAMPLES, REFUSAL, SUMS, frank_answer

from mergekit_3h.cli import main
from mergekit_3h.data.backends.settings import ServerSettings, TransformersSettings
from mergekit_3h.data.generation.answers import AnswerSettings
from mergekit_3h.data.generation.domain import DomainSettings
from mergekit_3h.data.generation.labels import LabelSettings
from mergekit_3h.data.generation.questions import QuestionSettings
from mergekit_3h.data.generation.selection import SafetySettings
from mergekit_3h.data.pipeline.settings import Limits, PipelineSettings, check, read_settings
from mergekit_3h.data.records import DataError
from mergekit_3h.errors import OptionError, ThreeHError

SECRET = "sk-tiny-77d0c4b1a9e2f365"
PARTS = (
    "questions",
    "answer/frank",
    "answer/careful",
    "label/frank",
    "label/careful",
    "domain-questions/frank",
    "domain-answers/frank",
)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, frank: Path, careful: Path) -> Kitchen:
    models = {
        name: {"model": str(folder), "device": "cpu", "batch_size": 4}
        for name, folder in {"frank": frank, "careful": careful}.items()
    }
    return Kitchen(tmp_path_factory.mktemp("local"), models)


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory, server_process: ChatServer) -> Kitchen:
    shared = {"base_url": server_process.base_url, "concurrency": 2, "retries": 1, "first_wait": 0.01, "timeout": 60}
    models = {name: {"model": name, **shared} for name in ("frank", "careful")}
    return Kitchen(tmp_path_factory.mktemp("remote"), models)


@pytest.fixture(scope="module")
def undisturbed(remote: Kitchen, server_process: ChatServer) -> Path:
    """The folder of a run against the server in which nothing happened."""
    server_process.control()
    remote.run_process("run", remote.config("undisturbed"))
    return remote.folder / "undisturbed"


@pytest.fixture(autouse=True)
def _no_trouble(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server that works, and huggingface_hub not in the offline mode in which it sends no request at all."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield
    server.control()


def one_at_a_time(kitchen: Kitchen, **options: Any) -> dict[str, Any]:
    """The models of a kitchen with one request under way, so that it is known which one a fault hits."""
    return {name: {**given, "concurrency": 1, **options} for name, given in kitchen.models.items()}


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def step(folder: Path, name: str) -> dict[str, Any]:
    return next(one for one in summary(folder)["steps"] if one["step"] == name)


# --- what it makes


def test_local_models_and_a_server_give_the_same_records(local: Kitchen, undisturbed: Path) -> None:
    said = local.run_process("run", local.config())
    made = files(local.folder / "out", *RECORDS)
    assert made == files(undisturbed, *RECORDS)
    assert len(made) == 11
    assert "Data pipeline: complete" in said and "6 compliance" in said and "Traceback" not in said


def test_the_sets_are_what_the_paper_selects(undisturbed: Path) -> None:
    safety = lines(undisturbed / "safety.jsonl")
    assert {one["prompt"]: one["category"] for one in safety} == {
        question: topic for topic, questions in BLUE.items() for question in questions
    }
    assert all((one["response"], one["source"], one["label"]) == (REFUSAL, "careful", "refusal") for one in safety)
    assert {one["prompt"]: one["response"] for one in lines(undisturbed / "domain.jsonl")} == SUMS
    frank = lines(undisturbed / "labelled" / "frank.jsonl")
    assert all(one["response"] == frank_answer(one["prompt"]) and one["label"] == "compliance" for one in frank)
    assert not {one["prompt"] for one in lines(undisturbed / "domain.jsonl")} & set(EXAMPLES)


def test_the_summary_says_what_became_of_everything(undisturbed: Path) -> None:
    told = summary(undisturbed)
    assert told["state"] == "complete" and told["seed"] == 3 and told["beyond_limits"] == []
    assert step(undisturbed, "questions")["requests"] == 2 and step(undisturbed, "questions")["kept"] == 6
    assert step(undisturbed, "domain-questions/frank")["dropped"] == {"a copy of an example": 1}
    assert step(undisturbed, "label/careful")["labels"] == {"refusal": 6}
    text = (undisturbed / "summary.md").read_text()
    assert "domain-questions/frank: 1 a copy of an example" in text and "| safety " in text


def test_a_finished_run_asks_nothing_again(undisturbed: Path, remote: Kitchen, server: ChatServer) -> None:
    before = files(undisturbed)
    said = remote.run_process("run", remote.folder / "undisturbed.yml", "-v")
    assert said.count("finished before") == 9 and "made again" not in said
    assert files(undisturbed) == before
    assert server.seen()["requests"] == []


def test_the_keyword_guard_needs_no_model(remote: Kitchen, server: ChatServer) -> None:
    said = remote.run("run", remote.config("keyword", labels=None, domain=None))
    asked = len(server.seen()["requests"])
    assert asked == 2 + 6 + 6
    assert step(remote.folder / "keyword", "label/careful")["labels"] == {"refusal": 6}
    assert not (remote.folder / "keyword" / "domain.jsonl").exists() and "complete" in said


def test_steps_run_one_by_one_give_the_same(undisturbed: Path, remote: Kitchen) -> None:
    config = remote.config("stepwise")
    said = remote.run("label", config, status=1)
    assert "answers/frank.jsonl is not there; run the step 'answer'" in said
    for name in ("questions", "answer", "label", "domain", "build"):
        remote.run(name, config)
    assert files(remote.folder / "stepwise") == files(undisturbed)


def test_questions_can_come_from_files(remote: Kitchen, server: ChatServer) -> None:
    blue = [question for questions in BLUE.values() for question in questions]
    rows = [
        {"prompt": text, "set": "safety", "response": "old", "label": "unsafe"} for text in [*blue, blue[0].upper()]
    ]
    rows.append({"prompt": "What is 2 plus 2?", "set": "domain"})
    (remote.folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {"model": None, "files": [str(remote.folder / "own.jsonl")]}
    remote.run("run", remote.config("from-files", questions=own, domain=None))
    safety = lines(remote.folder / "from-files" / "safety.jsonl")
    assert [one["prompt"] for one in safety] == blue
    assert {one["response"] for one in safety} == {REFUSAL}
    dropped = step(remote.folder / "from-files", "questions")["dropped"]
    assert dropped == {"a duplicate": 1, "of the domain set, not safety": 1}


def test_the_example_runs_as_its_readme_says(
    undisturbed: Path, frank: Path, careful: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pipeline.yml", "topics.txt", "sums.txt"):
        shutil.copy(EXAMPLE / name, tmp_path)
    shutil.copytree(EXAMPLE / "prompts", tmp_path / "prompts")
    shutil.copytree(frank, tmp_path / "run" / "models" / "frank")
    shutil.copytree(careful, tmp_path / "run" / "models" / "careful")
    monkeypatch.chdir(tmp_path)
    said = CliRunner().invoke(main, ["data", "run", "pipeline.yml"])
    assert said.exit_code == 0, said.output
    assert files(tmp_path / "run" / "data", "*.jsonl") == files(undisturbed, "*.jsonl")


def test_the_docs_name_every_option() -> None:
    text = (EXAMPLE.parents[1] / "docs" / "data_generation.md").read_text()
    sections = (
        PipelineSettings,
        QuestionSettings,
        AnswerSettings,
        LabelSettings,
        SafetySettings,
        DomainSettings,
        Limits,
        ServerSettings,
        TransformersSettings,
    )
    unnamed = [
        f"{section.__name__}.{name}"
        for section in sections
        for name in section.model_fields
        if not re.search(rf"[`.]{name}\b", text) and f"\n{name}:" not in text
    ]
    assert unnamed == []


# --- interruptions


def test_killed_in_the_middle_of_every_step(undisturbed: Path, remote: Kitchen, server: ChatServer) -> None:
    config, folder = remote.config("killed"), remote.folder / "killed"
    totals = {part: len(lines(undisturbed / "journal" / f"{part}.jsonl")) for part in PARTS}
    finished = 0
    for number, part in enumerate(PARTS):
        answered = sum(len(lines(file)) for file in (folder / "journal").glob("**/*.jsonl"))
        server.control(hold_after=finished + totals[part] // 2 - answered)
        process = remote.start("run", config)
        wait_until(lambda: server.seen()["held"] > 0, f"the server to be in the middle of {part}", process)
        kill(process)
        assert all((folder / "journal" / f"{earlier}.json").is_file() for earlier in PARTS[:number])
        assert not (folder / "journal" / f"{part}.json").exists()
        finished += totals[part]
    server.control()
    remote.run("run", config)
    assert files(folder) == files(undisturbed)
    for part in PARTS:
        ids = [line["id"] for line in lines(folder / "journal" / f"{part}.jsonl")]
        assert len(ids) == len(set(ids)) == totals[part]
    # The last run only asks for the rest of the last step: what was answered before is not asked again.
    assert len(server.seen()["requests"]) <= totals[PARTS[-1]]


def test_killed_while_local_models_answer(local: Kitchen, undisturbed: Path) -> None:
    config, folder = local.config("killed"), local.folder / "killed"
    process = local.start("run", config)
    journal = folder / "journal" / "answer" / "frank.jsonl"
    wait_until(lambda: journal.is_file() and journal.stat().st_size > 0, "the first answers", process)
    kill(process)
    local.run("run", config)
    assert files(folder, *RECORDS) == files(undisturbed, *RECORDS)


def test_what_a_kill_leaves_between_two_files_is_cleaned_up(
    undisturbed: Path, remote: Kitchen, server: ChatServer
) -> None:
    folder = remote.folder / "torn"
    shutil.copytree(undisturbed, folder)
    # As if killed while the sets were put in place and while an answer was written down.
    (folder / ".safety.jsonl.x8d2kq").write_text('{"id":"half')
    (folder / "journal" / "safety.json").unlink()
    (folder / "safety.jsonl").unlink()
    journal = folder / "journal" / "domain-answers" / "frank.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    (folder / "journal" / "domain-answers" / "frank.json").unlink()
    (folder / "journal" / "domain.json").write_text("{")
    remote.run("run", remote.config("torn"))
    assert files(folder) == files(undisturbed)
    assert len(server.seen()["requests"]) == 1


def test_a_second_run_in_the_same_folder_is_kept_out(remote: Kitchen, server: ChatServer) -> None:
    config = remote.config("crowded")
    server.control(hold_after=0)
    first = remote.start("run", config)
    wait_until(lambda: server.seen()["held"] > 0, "the first run to ask something", first)
    assert "another run is at work in this folder" in remote.run("run", config, status=1)
    kill(first)


def test_only_what_a_change_touches_is_made_again(undisturbed: Path, remote: Kitchen, server: ChatServer) -> None:
    folder = remote.folder / "changed"
    shutil.copytree(undisturbed, folder)
    said = remote.run_process("run", remote.config("changed", safety={"count": 2}), "-v")
    assert "safety: made again, its safety changed" in said
    assert len(lines(folder / "safety.jsonl")) == 2 and server.seen()["requests"] == []
    remote.run("run", remote.config("changed", answers={"max_new_tokens": 41}))
    assert files(folder, *RECORDS) == files(undisturbed, *RECORDS)
    # Twelve answers with the new limit; they are the same, so their verdicts are known.
    assert len(server.seen()["requests"]) == 12


# --- a server in trouble


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("500", "the server answers 500"),
        ("429 retry-after=0", "the server answers 429"),
        ("garbage", "the answer is not a completion"),
        ("half", "no whole answer"),
        ("nothing", "no whole answer"),
    ],
)
def test_failed_answers_are_counted_and_asked_again_on_request(
    undisturbed: Path, remote: Kitchen, server: ChatServer, fault: str, reason: str
) -> None:
    name = f"faulty-{fault.split()[0]}"
    config, folder = remote.config(name, models=one_at_a_time(remote)), remote.folder / name
    remote.run("questions", config)
    # Every request has one retry: the first two fail.
    server.control(faults=[fault] * 4)
    said = remote.run("run", config, status=3)
    failed = step(folder, "answer/frank")["failed"]
    assert failed == {reason: 2}
    problem = f"answer/frank: requests failed: 33.3% (limit 5.0%): 2 {reason}"
    assert problem in said and summary(folder)["beyond_limits"] == [problem]
    assert len(lines(folder / "answers" / "frank.jsonl")) == 4
    assert step(folder, "answer/frank")["examples"][reason].startswith(reason)
    assert f"- answer/frank: {reason}" in (folder / "summary.md").read_text()
    server.control()
    remote.run("run", config, status=3)
    assert server.seen()["requests"] == []
    remote.run("run", config, "--retry-failed")
    assert files(folder, *RECORDS) == files(undisturbed, *RECORDS)


def test_unscored_replies_are_counted_and_stay_out_of_the_set(remote: Kitchen, server: ChatServer) -> None:
    folder = remote.folder / "unscored"
    config = remote.config("unscored", limits={"unscored": 0.5}, domain=None, models=one_at_a_time(remote))
    remote.run("questions", config)
    remote.run("answer", config)
    server.control(faults=["500"] * 12 + ["garbage"] * 4)
    said = remote.run("run", config, status=3)
    assert step(folder, "label/frank")["unscored"] == {"the server answers 500": 6}
    assert step(folder, "label/careful")["unscored"] == {"the answer is not a completion": 2}
    assert "label/frank: replies unscored: 100.0% (limit 50.0%)" in said
    assert "label/careful: replies unscored: 33.3% (limit 50.0%)" in said
    assert summary(folder)["beyond_limits"] == [
        "label/frank: replies unscored: 100.0% (limit 50.0%): 6 the server answers 500"
    ]
    assert len(lines(folder / "safety.jsonl")) == 4
    assert step(folder, "safety")["dropped"] == {"no reply has a verdict": 2}
    assert [one.get("label") for one in lines(folder / "labelled" / "careful.jsonl")] == [None] * 2 + ["refusal"] * 4


def test_a_dead_server_stops_the_run_and_the_summary_says_so(remote: Kitchen, server: ChatServer) -> None:
    folder = remote.folder / "dead"
    config = remote.config("dead", models=one_at_a_time(remote, give_up_after=3))
    remote.run("questions", config)
    server.control(faults=["503"] * 1000)
    said = remote.run("run", config, status=1)
    assert "3 requests in a row failed" in said and "Traceback" not in said
    assert summary(folder)["state"] == "stopped" and "3 requests in a row" in summary(folder)["stopped_by"]
    assert summary(folder)["steps"][0]["step"] == "questions"


def test_an_empty_result_is_beyond_the_limits(remote: Kitchen) -> None:
    config = remote.config("empty", answers={"models": ["frank"]}, domain=None)
    said = remote.run("run", config, status=3)
    assert "safety: the result is empty" in said and "safety: 6 no accepted reply" in said
    assert lines(remote.folder / "empty" / "safety.jsonl") == []


def test_the_key_is_in_no_file_and_nothing_that_is_said(remote: Kitchen, server: ChatServer) -> None:
    models = {name: {**options, "api_key_env": "BLUE_KEY"} for name, options in remote.models.items()}
    keyed = replace(remote, models=models, environment={"BLUE_KEY": SECRET, "HF_DEBUG": "1"})
    config = keyed.config("keyed", domain=None)
    # The test server repeats the key in its messages, as some servers do.
    server.control(faults=["500", "500", "400", "garbage", "half"])
    said = keyed.run_process("run", config, "-v", status=3)
    assert {seen["headers"]["authorization"] for seen in server.seen()["requests"]} == {f"Bearer {SECRET}"}
    server.control(faults=["401"] * 5)
    said += keyed.run_process("run", config, "--retry-failed", status=1)
    written = b"".join(files(remote.folder).values()).decode()
    assert "[api key]" in said and "[api key]" in written and "BLUE_KEY" in said
    assert SECRET not in said and SECRET not in written


# --- the configuration


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labls": {}}, "no option 'labls'; did you mean 'labels'?"),
        ({"questions": {"modle": "frank"}}, "questions: no option 'modle'; did you mean 'model'?"),
        ({"models": {"x": {"model": "m", "batchsize": 3}}}, "no option 'batchsize'; did you mean 'batch_size'?"),
        ({"models": {"x": {"base_url": "http://h", "model": "m", "api_key": SECRET}}}, "did you mean 'api_key_env'?"),
        ({"models": {"a/b": {"model": "m"}}}, "'a/b' cannot be a model's name"),
        ({"questions": {"count": 0}}, "questions.count: got 0; input should be greater than or equal to 1"),
        ({"answers": None}, "answers: required, but not given"),
        (
            {"answers": {"models": ["frnk"]}},
            "answers.models: there is no model 'frnk' under models; did you mean 'frank'?",
        ),
        ({"answers": {"models": ["frank", "frank"]}}, "expected every model once"),
        ({"questions": {"model": None}}, "questions: got neither model nor files"),
        ({"questions": {"files": ["nowhere.jsonl"]}}, "nowhere.jsonl: no such file"),
        ({"questions": {"categories": "nowhere.txt"}}, "nowhere.txt: no such file"),
        ({"labels": {"guard": "refusal-juge"}}, "did you mean 'refusal-judge'?"),
        ({"labels": {"model": None}}, "the guard 'refusal-judge' asks a model"),
        ({"labels": {"guard": "mt-bench"}}, "has no verdict on refusals"),
        ({"labels": {"guard": "keyword"}}, "the guard 'keyword' asks no model"),
        ({"domain": {"experts": {"frank": "nowhere.txt"}}}, "nowhere.txt: no such file"),
        ({"prompts": "nowhere"}, "prompts: nowhere: no such folder"),
        ({"safety": {"accept": ["unsafe"]}}, "safety.accept.0: got 'unsafe'"),
        ({"models": {"frank": "./nowhere", "careful": "./nowhere"}}, "model 'frank': ./nowhere is no such folder"),
    ],
)
def test_a_wrong_configuration_is_one_clear_error(local: Kitchen, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ThreeHError) as caught:
        check(read_settings(local.config("wrong", **changes)))
    assert said in str(caught.value)
    assert SECRET not in str(caught.value)
    assert not (local.folder / "wrong").exists()


def test_a_prompt_without_its_places_is_found_out_early(local: Kitchen, tmp_path: Path) -> None:
    (tmp_path / "unsafe_questions.txt").write_text("Write {count} questions.")
    with pytest.raises(DataError, match=r"no place for \{topic\}"):
        check(read_settings(local.config("wrong", prompts=str(tmp_path))))


@pytest.mark.parametrize(("text", "said"), [("a: [", "not YAML"), ("- a", "got list, expected a mapping")])
def test_a_file_that_is_no_configuration(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "pipeline.yml").write_text(text)
    with pytest.raises(OptionError, match=said):
        read_settings(tmp_path / "pipeline.yml")


def test_a_text_is_short_for_a_local_checkpoint(local: Kitchen) -> None:
    settings = read_settings(local.config("wrong", models={"frank": os.fspath(local.folder)}))
    assert isinstance(settings.models["frank"], TransformersSettings)
    assert settings.models["frank"].model == os.fspath(local.folder)
