"""Requests with names, answered once: what is in the journal is not asked again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict

from mergekit_3h.data.backends.protocol import Backend, Request
from mergekit_3h.data.records import derived_id
from mergekit_3h.data.store import Store

Named = TypeVar("Named")


class Outcome(BaseModel):
    """One line of a journal: what became of one request."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    text: str | None = None
    failure: str | None = None


@dataclass(frozen=True)
class Ask:
    """A request and a name for it."""

    id: str
    request: Request


AskAll: TypeAlias = Callable[[Sequence[Ask]], "list[Outcome]"]
"""Answers requests, in their order."""


@dataclass(frozen=True)
class Answerer:
    """One model and the journal of what it was asked for one purpose."""

    journal: Path
    model: str
    """What identifies the model; a line of the journal counts only for the same model and the same request."""
    open_backend: Callable[[], Backend]
    """Called only if something has to be asked."""
    done: Callable[[int], object]
    """Hears how many more requests have an outcome."""

    def ask_all(self, asks: Sequence[Ask]) -> list[Outcome]:
        """The outcome of every request; what the journal does not have is asked, and written down one by one."""
        keys = [key_of(ask.id, self.model, asdict(ask.request)) for ask in asks]
        with Store(self.journal, Outcome) as store:
            known = {outcome.id: outcome for outcome in store}
            self.done(sum(key in known for key in keys))
            if any(key not in known for key in keys):
                for outcome in self._answers(asks, keys, known):
                    store.append(outcome)
                    self.done(1)
                    known[outcome.id] = outcome
        return [known[key] for key in keys]

    def _answers(self, asks: Sequence[Ask], keys: Sequence[str], known: Mapping[str, Outcome]) -> Iterator[Outcome]:
        backend = self.open_backend()
        pending = list(
            unfinished(list(zip(keys, asks, strict=True)), backend.batch_size, lambda pair: pair[0] in known)
        )
        completions = backend.complete([ask.request for _, ask in pending])
        for (key, _), completion in zip(pending, completions, strict=True):
            if key not in known:
                yield Outcome(id=key, text=completion.text, failure=completion.failure)


def key_of(name: str, *content: object) -> str:
    """A line's name in a journal: readable, and another one as soon as anything of the content is another."""
    return f"{name}#{derived_id(*content)[:12]}"


def unfinished(items: Sequence[Named], size: int, finished: Callable[[Named], bool]) -> Iterator[Named]:
    """The groups of ``size`` items that are not wholly finished.

    A group begun before an interruption is computed again as a whole: rounding depends a little on what is in a
    batch, and a continued run shall give what an undisturbed one gives.
    """
    source = iter(items)
    while group := list(islice(source, size)):
        if not all(finished(item) for item in group):
            yield from group


def seed_of(*parts: object) -> int:
    """A seed of 31 bits (what servers accept) that depends on nothing but the parts."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
