"""What has been computed for one subject, line by line on disk: a killed run goes on where it was.

A line counts only for the same model and the same question: its key is a digest of both. So a journal never has to be
thrown away when a suite changes; what is new in the suite is computed, what is known is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from mergekit_3h.data.backends.protocol import Backend, Completion, Request
from mergekit_3h.data.generation.asking import Answerer, Ask, Outcome, key_of
from mergekit_3h.data.records import derived_id
from mergekit_3h.data.store import Store, write_records

Step = Callable[[int], object]
"""Hears how many more items are done."""


class Journal:
    """A folder of journals, one for each purpose. ``model`` tells the subject from any other."""

    def __init__(self, folder: Path, model: str, *, retry_failed: bool = False) -> None:
        self.folder, self.model, self._retry_failed = folder, model, retry_failed
        self._forgiven: set[Path] = set()

    def backend(self, purpose: str, model: str, open_backend: Callable[[], Backend], done: Step) -> JournaledBackend:
        """``open_backend`` is called only if something has to be asked. ``model``: what the answers depend on."""
        path = self.folder / f"{purpose}.jsonl"
        if self._retry_failed and path not in self._forgiven:
            self._forgiven.add(path)
            _drop_failures(path)
        return JournaledBackend(Answerer(path, model, open_backend, done))

    def numbers(
        self, purpose: str, keys: Sequence[str], measure: Callable[[list[int]], Iterator[tuple[int, list[float]]]]
    ):
        """The numbers of every key; ``measure`` computes those that are not known, given by their places."""
        names = [key_of(key, self.model) for key in keys]
        with Store(self.folder / f"{purpose}.jsonl", MeasuredNumbers) as store:
            known = {line.id: list(line.numbers) for line in store}
            missing = [place for place, name in enumerate(names) if name not in known]
            for place, numbers in measure(missing) if missing else ():
                store.append(MeasuredNumbers(id=names[place], numbers=tuple(numbers)))
                known[names[place]] = numbers
        return [known[name] for name in names]


class MeasuredNumbers(BaseModel):
    """One line: what was measured of one item."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    id: str
    numbers: tuple[float, ...]


class JournaledBackend:
    """A backend that writes down every answer, and gives what is written down without asking."""

    batch_size = 1

    def __init__(self, answerer: Answerer) -> None:
        self._answerer = answerer

    def complete(self, requests: Sequence[Request]) -> Iterator[Completion]:
        asks = [Ask(derived_id(asdict(request))[:12], request) for request in requests]
        for outcome in self._answerer.ask_all(asks):
            yield Completion(text=outcome.text, failure=outcome.failure)

    def close(self) -> None:
        """The backend behind it belongs to whoever opens it."""


def _drop_failures(path: Path) -> None:
    """Forget the answers that failed, so that they are asked for again."""
    if path.is_file():
        with Store(path, Outcome) as store:
            outcomes = list(store)
        write_records(path, [outcome for outcome in outcomes if outcome.failure is None])
