"""An evaluated model as inspect_ai takes one: its tasks, scorers and log viewer on a model that is in memory.

inspect_ai asks for one reply at a time, of many samples at once; here they are answered a batch at a time. The reply to
a request is that of the suites' judged prompts: greedy unless a temperature is set, by the same template.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from mergekit_3h.data.backends.protocol import BackendError, Completion, Request
from mergekit_3h.data.generation.asking import seed_of
from mergekit_3h.errors import OptionError
from mergekit_3h.evaluation.subject import EvaluatedModel
from mergekit_3h.optional import optional

log = logging.getLogger(__name__)

IN_MEMORY = "mergekit-3h-memory"
"""What inspect_ai's logs call the provider of a model that cannot be opened again by its name."""
_LONGEST_REPLY = 2048
"""Where neither task nor user says: what inspect_ai's own provider of local models takes."""
_NOT_THERE = ("logprobs", "top_logprobs", "response_schema")
"""Settings without which a task's scorer would miss what it asked for."""
_WITHOUT_EFFECT = ("top_p", "top_k", "frequency_penalty", "presence_penalty", "logit_bias")


def inspect_model(subject: EvaluatedModel, **config: Any) -> Any:
    """For ``inspect_ai.eval(task, model=...)``. ``config``: fields of ``inspect_ai.model.GenerateConfig``."""
    models = optional("inspect_ai.model", "inspect", "a model for inspect_ai")
    settings = models.GenerateConfig(**config)
    return models.Model(_in_memory_api()(subject, settings), settings)


@cache
def _in_memory_api() -> Any:
    return optional("inspect_ai.model", "inspect", "a model for inspect_ai").modelapi(IN_MEMORY)(subject_api())


@cache
def subject_api() -> Any:
    """The class that inspect_ai talks to; made when it is needed, because its base class is inspect_ai's."""
    models = optional("inspect_ai.model", "inspect", "a model for inspect_ai")

    class SubjectAPI(models.ModelAPI):
        def __init__(self, subject: EvaluatedModel, config: Any) -> None:
            super().__init__(model_name=subject.name, config=config)
            self.subject = subject
            self._together = AnsweredTogether(subject)
            self._asked: Counter[str] = Counter()

        async def generate(self, input: Sequence[Any], tools: Sequence[Any], tool_choice: Any, config: Any) -> Any:
            _require_possible(self.model_name, tools, config)
            reply = await self._together.answer(self._request(input, config))
            if reply.text is None:
                raise BackendError(f"{self.model_name}: {reply.failure}")
            return _output(models, self.model_name, reply)

        def _request(self, messages: Sequence[Any], config: Any) -> Request:
            turns = [{"role": _role(message), "content": _text(message)} for message in messages]
            self._asked[repr(turns)] += 1
            return Request(
                messages=turns,
                max_new_tokens=config.max_tokens or _LONGEST_REPLY,
                temperature=config.temperature or 0.0,
                # Epochs ask the same again and want another reply.
                seed=seed_of(config.seed or 0, repr(turns), self._asked[repr(turns)]),
                stop=tuple(config.stop_seqs or ()),
            )

        def max_tokens(self) -> int:
            return _LONGEST_REPLY

        def max_connections(self) -> int:
            """Twice a batch: while one is computed the next gathers."""
            return 2 * self.subject.settings.batch_size

        def collapse_user_messages(self) -> bool:
            """Many chat templates take turns only."""
            return True

        async def count_text_tokens(self, text: str) -> int:
            return len(self.subject.tokenizer(text, add_special_tokens=False)["input_ids"])

        def close(self) -> None:
            self.subject.free()

    return SubjectAPI


@dataclass(eq=False)
class WaitingRequest:
    """A request of one sample, and what came of it."""

    request: Request
    outcome: Completion | Exception | None = None


class AnsweredTogether:
    """Requests that come one by one, answered in batches in a thread, so that whoever waits lets others run."""

    def __init__(self, subject: EvaluatedModel) -> None:
        self._subject = subject
        self._anyio = optional("anyio", "inspect", "a model for inspect_ai")
        self._turn = self._anyio.Lock()
        self._waiting: list[WaitingRequest] = []

    async def answer(self, request: Request) -> Completion:
        own = WaitingRequest(request)
        self._waiting.append(own)
        try:
            while own.outcome is None:
                async with self._turn:
                    if own.outcome is None:
                        await self._answer_batch()
        finally:  # a sample that runs out of time leaves the queue
            self._waiting = [one for one in self._waiting if one is not own]
        if isinstance(own.outcome, Exception):
            raise own.outcome
        return own.outcome

    async def _answer_batch(self) -> None:
        await self._anyio.sleep(0)  # whoever is about to ask joins
        batch = self._waiting[: self._subject.settings.batch_size]
        try:
            outcomes: Sequence[Completion | Exception] = await self._anyio.to_thread.run_sync(
                self._complete, [one.request for one in batch]
            )
        except Exception as error:  # goes to whoever waits for it
            outcomes = [error] * len(batch)
        for one, outcome in zip(batch, outcomes, strict=True):
            one.outcome = outcome
        self._waiting = [one for one in self._waiting if one.outcome is None]

    def _complete(self, requests: Sequence[Request]) -> list[Completion]:
        with self._subject.answering() as backend:
            return list(backend.complete(requests))


def _require_possible(model: str, tools: Sequence[Any], config: Any) -> None:
    if tools:
        names = ", ".join(str(tool.name) for tool in tools)
        raise OptionError(f"{model} answers with text and calls no tools; the task offers {names}")
    wanted = [name for name in _NOT_THERE if getattr(config, name, None)]
    wanted += ["num_choices"] if (config.num_choices or 1) > 1 else []
    if wanted:
        raise OptionError(f"{model} gives one text and no probabilities; the task sets {', '.join(wanted)}")
    for name in _WITHOUT_EFFECT:
        if getattr(config, name, None) is not None:
            _warn_once(model, name)


@cache
def _warn_once(model: str, name: str) -> None:
    log.warning("%s: %s has no effect; replies are greedy, or drawn by temperature alone", model, name)


def _role(message: Any) -> str:
    if message.role not in ("system", "user", "assistant"):
        raise OptionError(f"a message of the role {message.role!r}; expected system, user or assistant")
    return str(message.role)


def _text(message: Any) -> str:
    """Of a message; pictures and sounds are refused, an earlier reply's reasoning is left out."""
    if not isinstance(message.content, str):
        other = [part.type for part in message.content if part.type not in ("text", "reasoning")]
        if other:
            raise OptionError(f"a message with {other[0]}; the model reads text alone")
    return str(message.text)


def _output(models: Any, name: str, reply: Completion) -> Any:
    used = reply.tokens
    stop = "max_tokens" if used is not None and used.is_cut else "stop"
    output = models.ModelOutput.from_content(name, reply.text, stop_reason=stop)
    if used is not None:
        output.usage = models.ModelUsage(
            input_tokens=used.prompt, output_tokens=used.reply, total_tokens=used.prompt + used.reply
        )
    return output
