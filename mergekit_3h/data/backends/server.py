"""An OpenAI-compatible server, through huggingface_hub's client.

Every failure of a request ends as a ``Completion`` with a reason: no exception of the HTTP library leaves this
file, since theirs carry the request and with it the key. Reasons are cleaned of the key, as some servers echo it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any, cast

from pydantic import SecretStr

from mergekit_3h.data.backends.protocol import BackendError, Completion, Request
from mergekit_3h.data.backends.trouble import Trouble, text_of, trouble_of
from mergekit_3h.data.backends.waiting import backed_off

if TYPE_CHECKING:  # settings open backends: an import from here would be a circle
    from mergekit_3h.data.backends.settings import ServerSettings

log = logging.getLogger(__name__)

# Without a key the client would send the user's Hugging Face login to whatever server this is.
_NO_KEY = "EMPTY"
_LONGEST_REASON = 300


class _Stopped(Exception):  # noqa: N818 - a signal between threads, not an error
    """The caller does not want any more answers."""


class ServerBackend:
    """Sends up to ``concurrency`` requests at a time and yields the answers in the order of the requests."""

    batch_size = 1

    def __init__(self, settings: ServerSettings) -> None:
        from huggingface_hub import InferenceClient

        settings.check(settings.model)
        self._settings = settings
        self._key = SecretStr(os.environ[settings.api_key_env] if settings.api_key_env else _NO_KEY)
        self._client = InferenceClient(
            base_url=settings.base_url, api_key=self._key.get_secret_value(), timeout=settings.timeout
        )
        self._stopped = threading.Event()
        self._not_before = 0.0
        self._gate = threading.Lock()
        self._random = Random()  # not seeded: only for jitter, which must differ between runs and workers

    def complete(self, requests: Sequence[Request]) -> Iterator[Completion]:
        waiting = iter(requests)
        under_way: deque[Future[Completion | Trouble]] = deque()
        failed_in_a_row = 0
        with ThreadPoolExecutor(self._settings.concurrency, "server-request") as pool:
            try:
                while True:
                    # A few more than are sent at once, so that one slow answer does not hold up the others.
                    while len(under_way) < 4 * self._settings.concurrency:
                        request = next(waiting, None)
                        if request is None:
                            break
                        under_way.append(pool.submit(self._answer, request))
                    if not under_way:
                        return
                    completion = self._unless_hopeless(under_way.popleft().result())
                    failed_in_a_row = failed_in_a_row + 1 if completion.failure is not None else 0
                    yield completion
                    self._check_row(failed_in_a_row, completion)
            finally:
                self._stopped.set()
                pool.shutdown(cancel_futures=True)
                self._stopped.clear()

    def close(self) -> None:
        self._stopped.set()

    def _unless_hopeless(self, outcome: Completion | Trouble) -> Completion:
        if isinstance(outcome, Completion):
            return outcome
        variable = self._settings.api_key_env
        key = f"the key in {variable}" if variable else "no key (api_key_env is not set)"
        raise BackendError(
            f"{self._settings.base_url} refuses model {self._settings.model!r}: {outcome.reason}; sent with "
            f"{key}. Check base_url, model and api_key_env"
        )

    def _check_row(self, failed_in_a_row: int, completion: Completion) -> None:
        if failed_in_a_row >= self._settings.give_up_after:
            raise BackendError(
                f"{self._settings.base_url}, model {self._settings.model!r}: {failed_in_a_row} requests in a "
                f"row failed, the last one with: {completion.failure}. "
                "Look at the server, then run again with --retry-failed"
            )

    def _answer(self, request: Request) -> Completion | Trouble:
        """The completion of one request after as many tries as allowed; trouble if no request can succeed."""
        tries = self._settings.retries + 1
        reason = ""
        for attempt in range(tries):
            try:
                self._wait_for_gate()
            except _Stopped:
                return Completion(failure="stopped")
            outcome = self._try_once(request)
            if isinstance(outcome, Completion) or outcome.hopeless:
                return outcome
            reason = outcome.reason
            if not outcome.again:
                return Completion(failure=reason)
            if outcome.wait is not None and outcome.wait > self._settings.longest_wait:
                return Completion(
                    failure=f"{reason}; the server asks to wait {outcome.wait:.0f} s, longest_wait is "
                    f"{self._settings.longest_wait:.0f} s"
                )
            if attempt + 1 < tries:
                self._pause(
                    outcome,
                    backed_off(attempt, self._settings.first_wait, self._settings.longest_wait, self._random),
                )
        return Completion(failure=f"{reason} (after {tries} {'try' if tries == 1 else 'tries'})")

    def _try_once(self, request: Request) -> Completion | Trouble:
        try:
            return self._send(request)
        except Exception as error:  # the HTTP library differs between versions of huggingface_hub
            trouble = trouble_of(error, self._settings.timeout)
        trouble = replace(trouble, reason=self._cleaned(trouble.reason))
        log.debug("%s: %s", self._settings.model, trouble.reason)
        return trouble

    def _send(self, request: Request) -> Completion | Trouble:
        if request.prompt is not None:
            return self._continuation(request)
        client: Any = self._client
        output = client.chat_completion(
            messages=[dict(turn) for turn in request.messages or ()],
            model=self._settings.model,
            max_tokens=request.max_new_tokens,
            temperature=request.temperature,
            seed=request.seed,
            stop=list(request.stop) or None,
        )
        return text_of(output, "message", "content")

    def _continuation(self, request: Request) -> Completion | Trouble:
        """A raw prompt goes to /v1/completions, for which the client has no method of its own."""
        from huggingface_hub.utils import get_session, hf_raise_for_status

        root = self._settings.base_url.rstrip("/").removesuffix("/chat/completions").removesuffix("/v1")
        response: Any = cast(Any, get_session()).post(
            f"{root}/v1/completions",
            json={
                "model": self._settings.model,
                "prompt": request.prompt,
                "max_tokens": request.max_new_tokens,
                "temperature": request.temperature,
                "seed": request.seed,
                **({"stop": list(request.stop)} if request.stop else {}),
            },
            headers={"authorization": f"Bearer {self._key.get_secret_value()}"},
            timeout=self._settings.timeout,
        )
        hf_raise_for_status(response)
        return text_of(response.json(), "text")

    def _cleaned(self, text: str) -> str:
        """A message on one line, short, without the key."""
        key = self._key.get_secret_value()
        line = " ".join(text.replace(key, "[api key]").split()) if key != _NO_KEY else " ".join(text.split())
        return line if len(line) <= _LONGEST_REASON else line[:_LONGEST_REASON] + "..."

    def _pause(self, trouble: Trouble, own_wait: float) -> None:
        """Wait; a wait that the server asked for holds up every worker, since the limit is everybody's."""
        wait = max(own_wait, trouble.wait or 0.0)
        log.info("%s: %s; next try in %.1f s", self._settings.model, trouble.reason, wait)
        if trouble.wait is None:
            self._stopped.wait(wait)
            return
        with self._gate:
            self._not_before = max(self._not_before, time.monotonic() + wait)

    def _wait_for_gate(self) -> None:
        while True:
            if self._stopped.is_set():
                raise _Stopped
            remaining = self._not_before - time.monotonic()
            if remaining <= 0:
                return
            # With jitter again, or all workers would come back at the same moment.
            self._stopped.wait(remaining + self._random.uniform(0.0, self._settings.first_wait))
