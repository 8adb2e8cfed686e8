"""Both backends on real tiny models and a real HTTP server."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from random import Random
from typing import Any

import pytest
from chat_server import ChatServer
from taught_models import BLUE, REFUSAL, frank_lessons

from mergekit_3h.data.backends.protocol import Backend, BackendError, Completion, Request
from mergekit_3h.data.backends.settings import ServerSettings, TransformersSettings
from mergekit_3h.data.backends.waiting import backed_off, requested_wait
from mergekit_3h.data.sections import parsed
from mergekit_3h.errors import OptionError

SECRET = "sk-tiny-5d8f1c0e2b7a4936"
VARIABLE = "BLUE_SERVER_KEY"


def ask(text: str, **options: Any) -> Request:
    return Request(messages=[{"role": "user", "content": text}], **{"max_new_tokens": 60, **options})


def texts(completions: Iterator[Completion]) -> list[str | None]:
    return [completion.text for completion in completions]


@pytest.fixture(scope="module")
def local(frank: Path) -> Iterator[Backend]:
    backend = TransformersSettings(model=str(frank), device="cpu", batch_size=7).open()
    yield backend
    backend.close()


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub refuses every request, also to this machine, while HF_HUB_OFFLINE is set."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture
def to_server(server: ChatServer, online: None) -> Any:
    """Opens a backend on the test server that hardly waits between tries."""

    def opened(**options: Any) -> Backend:
        quick = {"model": "frank", "first_wait": 0.01, "longest_wait": 3.0, "timeout": 5.0, "retries": 2}
        return ServerSettings(base_url=server.base_url, **{**quick, **options}).open()

    return opened


# --- the local backend


def test_a_batch_of_different_lengths_is_answered_as_learnt(local: Backend) -> None:
    lessons = frank_lessons()
    assert texts(local.complete([ask(question) for question, _ in lessons])) == [answer for _, answer in lessons]


def test_the_batch_changes_no_answer_greedy_or_sampled(local: Backend, frank: Path) -> None:
    alone = TransformersSettings(model=str(frank), device="cpu", batch_size=1).open()
    requests = [
        ask(question, max_new_tokens=8 + number % 9, temperature=(0.0, 0.7, 2.0)[number % 3], seed=number)
        for number, (question, _) in enumerate(frank_lessons()[:15])
    ]
    together = texts(local.complete(requests))
    assert together == texts(alone.complete(requests))
    assert together == texts(local.complete(requests))


def test_the_seed_decides_a_sample(local: Backend) -> None:
    samples = texts(local.complete([ask("What is 2 plus 2?", temperature=3.0, seed=seed) for seed in range(6)]))
    assert len(set(samples)) == 6


def test_sampling_follows_the_temperature(local: Backend) -> None:
    # The learnt answer has nearly all of the probability at T = 0.7 and next to none of it at T = 20.
    def hits(temperature: float) -> int:
        requests = [ask("What is 2 plus 2?", temperature=temperature, seed=seed) for seed in range(14)]
        return texts(local.complete(requests)).count("It is 4.")

    assert hits(0.7) >= 12
    assert hits(20.0) == 0


def test_each_row_has_its_own_length_and_stop_string(local: Backend) -> None:
    question, answer = frank_lessons()[0]
    whole, stopped, short = texts(
        local.complete([ask(question), ask(question, stop=("]", "here")), ask(question, max_new_tokens=2)])
    )
    assert whole == answer
    assert stopped == "Sure, "
    assert short is not None and answer.startswith(short) and 0 < len(short) < 20


def test_a_raw_prompt_gets_no_template(local: Backend) -> None:
    templated = "<|user|>What is 2 plus 2?<|end|><|assistant|>"
    raw, bare = texts(
        local.complete([Request(prompt=templated, max_new_tokens=20), Request(prompt="What is 2", max_new_tokens=20)])
    )
    assert raw == "It is 4."
    assert bare != "It is 4."


def test_without_a_chat_template_the_text_is_plain(frank: Path) -> None:
    plain = TransformersSettings(model=str(frank), device="cpu", template="plain").open()
    templated = "<|user|>What is 2 plus 2?<|end|><|assistant|>"
    assert texts(plain.complete([ask(templated, max_new_tokens=20)])) == ["It is 4."]


def test_a_prompt_that_is_too_long_fails_alone(local: Backend) -> None:
    long, short = local.complete([ask("blue " * 300), ask("What is 2 plus 2?")])
    assert long.text is None and "the model holds 256" in (long.failure or "")
    assert short.text == "It is 4."


def test_more_tokens_than_the_model_has_room_for_are_not_generated(local: Backend) -> None:
    crowded = "<|user|>" + "blue " * 200 + "<|assistant|>"
    answers = texts(
        local.complete([Request(prompt=crowded, max_new_tokens=512), ask("What is 2 plus 2?", max_new_tokens=512)])
    )
    assert answers[0] is not None
    assert answers[1] == "It is 4."


def test_a_template_that_rejects_the_messages_fails_alone(frank: Path, tmp_path: Path) -> None:
    import shutil

    strict = shutil.copytree(frank, tmp_path / "strict")
    template = (strict / "chat_template.jinja").read_text()
    (strict / "chat_template.jinja").write_text(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}" + template
    )
    system = Request(messages=[{"role": "system", "content": "a"}, {"role": "user", "content": "b"}])
    refused, fine = (
        TransformersSettings(model=str(strict), device="cpu")
        .open()
        .complete([Request(messages=system.messages, max_new_tokens=20), ask("What is 2 plus 2?")])
    )
    assert "no system turns" in (refused.failure or "")
    assert fine.text == "It is 4."


def test_bfloat16_and_float16_answer_too(frank: Path) -> None:
    for dtype in ("bfloat16", "float16"):
        backend = TransformersSettings(model=str(frank), device="cpu", dtype=dtype).open()
        assert texts(backend.complete([ask("What is 2 plus 2?")])) == ["It is 4."], dtype


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": "./nowhere"}, "no such folder"),
        ({"model": ".", "device": "cpu"}, "a folder without config.json"),
        ({"model": "nobody-at-all/no-such-model"}, "is no folder here, and the hub has no config.json for it"),
        ({"model": ".", "device": "cuda:9"}, "torch sees no GPU here|sees only"),
    ],
)
def test_a_checkpoint_that_is_not_there_is_found_out_early(options: dict[str, Any], said: str) -> None:
    with pytest.raises(BackendError, match=said):
        TransformersSettings(**options).check("writer")


def test_a_checkpoint_that_cannot_be_loaded_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BackendError, match="cannot be loaded for generation"):
        TransformersSettings(model=str(tmp_path), device="cpu").open()


def test_a_chat_template_that_is_asked_for_must_be_there(frank: Path, tmp_path: Path) -> None:
    import shutil

    bare = shutil.copytree(frank, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(BackendError, match="no chat template"):
        TransformersSettings(model=str(bare), device="cpu", template="chat").open()


# --- the server backend


def test_the_server_gives_the_local_answers(to_server: Any, local: Backend) -> None:
    requests = [ask(question, seed=3, temperature=0.8) for question, _ in frank_lessons()[:6]]
    requests += [ask(frank_lessons()[0][0], stop=("here",)), Request(prompt="<|user|>What is 2", max_new_tokens=5)]
    assert texts(to_server().complete(requests)) == texts(local.complete(requests))


def test_the_order_is_stable_and_the_concurrency_bounded(to_server: Any, server: ChatServer) -> None:
    questions = [question for listed in BLUE.values() for question in listed] * 4
    answers = texts(to_server(model="careful", concurrency=3).complete([ask(question) for question in questions]))
    assert answers == [REFUSAL] * len(questions)
    server.control(faults=["503"])
    mixed = [question for question, _ in frank_lessons()]
    expected = [answer for _, answer in frank_lessons()]
    assert texts(to_server(concurrency=3).complete([ask(question) for question in mixed])) == expected
    assert 2 <= server.seen()["most"] <= 3


def test_every_request_names_the_model(to_server: Any, server: ChatServer) -> None:
    list(to_server().complete([ask("What is 2 plus 2?"), Request(prompt="What", max_new_tokens=2)]))
    assert [seen["body"]["model"] for seen in server.seen()["requests"]] == ["frank", "frank"]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("429", "answers 429"),
        ("500", "answers 500"),
        ("503", "answers 503"),
        ("garbage", "not a completion"),
        ("list", "not a completion"),
        ("no-choices", "no choices"),
        ("no-text", "no text"),
        ("half", "no whole answer"),
        ("nothing", "no whole answer"),
        ("silence 3", "no answer within 0.5 s"),
    ],
)
def test_trouble_is_tried_again_a_bounded_number_of_times(
    to_server: Any, server: ChatServer, fault: str, reason: str
) -> None:
    timeout = 0.5 if fault.startswith("silence") else 5.0
    backend = to_server(retries=2, timeout=timeout)
    server.control(faults=[fault, fault])
    assert texts(backend.complete([ask("What is 2 plus 2?")])) == ["It is 4."]
    server.control(faults=[fault] * 3)
    (completion,) = backend.complete([ask("What is 2 plus 2?")])
    assert completion.text is None
    assert reason in (completion.failure or "") and "(after 3 tries)" in (completion.failure or "")
    assert len(server.seen()["requests"]) == 3


def test_a_request_the_server_finds_wrong_is_not_repeated(to_server: Any, server: ChatServer) -> None:
    server.control(faults=["400"])
    wrong, fine = to_server(concurrency=1).complete([ask("What is 2 plus 2?"), ask("What is 2 plus 2?")])
    assert wrong.failure == "the server answers 400: fault 400 for key EMPTY"
    assert fine.text == "It is 4."
    assert len(server.seen()["requests"]) == 2


@pytest.mark.parametrize("fault", ["401", "403", "404"])
def test_what_no_request_can_survive_stops_at_once(to_server: Any, server: ChatServer, fault: str) -> None:
    server.control(faults=[fault] * 50)
    with pytest.raises(BackendError, match=rf"refuses model 'frank'.*answers {fault}.*api_key_env"):
        list(to_server(concurrency=2).complete([ask("What is 2 plus 2?")] * 50))
    assert len(server.seen()["requests"]) < 15


def test_a_dead_server_ends_the_run_instead_of_failing_everything(to_server: Any, server: ChatServer) -> None:
    server.control(faults=["500"] * 1000)
    backend = to_server(retries=1, give_up_after=4, concurrency=2)
    received = []
    with pytest.raises(BackendError, match=r"4 requests in a row failed.*answers 500"):
        received.extend(backend.complete([ask("What is 2 plus 2?")] * 100))
    assert len(server.seen()["requests"]) < 40


def test_the_wait_the_server_asks_for_is_kept(to_server: Any, server: ChatServer) -> None:
    import time

    server.control(faults=["429 retry-after=1"])
    started = time.monotonic()
    assert texts(to_server(retries=1).complete([ask("What is 2 plus 2?")])) == ["It is 4."]
    assert time.monotonic() - started >= 1.0  # what Retry-After says, no guess about the machine's speed


def test_a_wait_beyond_the_limit_fails_the_request(to_server: Any, server: ChatServer) -> None:
    server.control(faults=["429 retry-after=3600"])
    (completion,) = to_server(longest_wait=2.0).complete([ask("What is 2 plus 2?")])
    assert "asks to wait 3600 s, longest_wait is 2 s" in (completion.failure or "")
    assert len(server.seen()["requests"]) == 1


def test_the_key_is_sent_and_shown_nowhere(
    to_server: Any, server: ChatServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(VARIABLE, SECRET)
    caplog.set_level(logging.DEBUG)
    backend = to_server(api_key_env=VARIABLE, retries=1, give_up_after=2)
    # The test server repeats the key in its error messages, as some servers do.
    server.control(faults=["500", "500", "400", "half", "garbage"])
    shown = [repr(completion) for completion in backend.complete([ask("What is 2 plus 2?")])]
    with pytest.raises(BackendError) as stopped:
        shown += [repr(completion) for completion in backend.complete([ask("What is 2 plus 2?")] * 2)] or [""]
        server.control(faults=["401"] * 9)
        list(backend.complete([ask("What is 2 plus 2?"), Request(prompt="a")]))
    shown += [repr(stopped.value), repr(backend), repr(vars(backend)), caplog.text]
    shown += traceback.TracebackException.from_exception(stopped.value, capture_locals=True).format()
    assert "[api key]" in "".join(shown)
    assert SECRET not in "".join(shown)
    sent = {seen["headers"]["authorization"] for seen in server.seen()["requests"]}
    assert sent == {f"Bearer {SECRET}"}


def test_without_a_key_the_login_of_the_hub_stays_at_home(
    to_server: Any, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_personallogin")
    list(to_server().complete([ask("What is 2 plus 2?"), Request(prompt="What", max_new_tokens=2)]))
    assert "hf_personallogin" not in str(server.seen())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"api_key_env": SECRET}, "expected the name of an environment variable"),
        ({"api_key": SECRET}, "no option 'api_key'; did you mean 'api_key_env'?"),
        ({"base_url": f"http://me:{SECRET}@127.0.0.1/v1"}, "an address with credentials"),
        ({"base_url": f"http://127.0.0.1/v1?key={SECRET}"}, "an address with credentials or a query"),
        ({"base_url": "127.0.0.1:8000"}, "expected an address like"),
    ],
)
def test_a_key_in_the_wrong_place_is_refused_unrepeated(options: dict[str, Any], said: str) -> None:
    given = {"base_url": "http://127.0.0.1:1/v1", "model": "frank", **options}
    with pytest.raises(OptionError) as caught:
        parsed(ServerSettings, given, "pipeline.yml")
    whole = "".join(traceback.TracebackException.from_exception(caught.value).format())
    assert said in whole
    assert SECRET not in whole


def test_a_key_that_is_not_set_is_found_out_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    settings = ServerSettings(base_url="http://127.0.0.1:1", model="frank", api_key_env=VARIABLE)
    with pytest.raises(BackendError, match=f"{VARIABLE}.*is not set"):
        settings.check("writer")


def test_offline_mode_is_found_out_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BackendError, match="HF_HUB_OFFLINE is set"):
        ServerSettings(base_url="http://127.0.0.1:1", model="frank").check("writer")


# --- waiting


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"retry-after": "Sat, 01 Jan 2000 00:01:00 GMT"}, 60.0),
        ({"retry-after": "Fri, 31 Dec 1999 00:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"RateLimit": '"api";r=0;t=55'}, 55.0),
        ({"RateLimit": '"api";r=12;t=55'}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m2.5s"}, 62.5),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "250ms"}, 0.25),
        ({"x-ratelimit-remaining-tokens": "9", "x-ratelimit-reset-tokens": "250ms"}, None),
        ({"retry-after": "2", "RateLimit": '"api";r=0;t=5'}, 5.0),
    ],
)
def test_the_usual_headers_are_understood(headers: dict[str, str], seconds: float | None) -> None:
    assert requested_wait(headers, datetime(2000, 1, 1, tzinfo=timezone.utc)) == seconds


def test_back_off_doubles_with_jitter_up_to_a_limit() -> None:
    random = Random(0)
    for attempt in range(80):
        whole = min(10.0, 2.0**attempt)
        waits = [backed_off(attempt, 1.0, 10.0, random) for _ in range(20)]
        assert all(whole / 2 <= wait <= whole for wait in waits)
        assert len(set(waits)) > 10
