"""Judges of a suite: a guard of ``data/guards`` and the model behind it, if it needs one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from mergekit_3h.data.backends.protocol import Backend
from mergekit_3h.data.backends.settings import BackendSettings
from mergekit_3h.data.guards import Guard, guard_named
from mergekit_3h.data.records import DataError
from mergekit_3h.data.sections import Section
from mergekit_3h.errors import OptionError


class JudgeSettings(Section):
    """One judge."""

    guard: str = Field(description="A guard or judge of `mergekit-3h data`: keyword, md-judge, mt-bench, ...")
    backend: BackendSettings | None = Field(None, description="The model behind it; keyword needs none.")
    prompts: str | None = Field(
        None, description="Folder with your own prompts, which take the place of the package's."
    )


@dataclass
class Judge:
    """A judge that is opened when it is first asked."""

    name: str
    guard: Guard
    settings: BackendSettings | None
    _backend: Backend | None = None

    @property
    def identity(self) -> str:
        """What its verdicts depend on, besides what it is asked."""
        return json.dumps({"guard": self.guard.name, "model": self.settings and self.settings.identity()})

    def open(self) -> Backend:
        if self._backend is None:
            assert self.settings is not None  # judge_of has seen to it
            self._backend = self.settings.open()
        return self._backend

    def close(self) -> None:
        if self._backend is not None:
            self._backend.close()
        self._backend = None

    def require_ready(self) -> None:
        """Raise unless the judge can be asked, as far as that can be told without loading its model."""
        if self.guard.needs_model and self.settings is None:
            raise OptionError(
                f"judge {self.name!r}: {self.guard.name} needs a model and has none; pass --judge {self.name}=FOLDER, "
                f"or --judge {self.name}=NAME@URL for a server, or give it a backend in the suite"
            )
        if self.guard.needs_model and self.settings is not None:
            self.settings.check(f"judge {self.name}")


def judge_of(name: str, settings: JudgeSettings) -> Judge:
    try:
        guard = guard_named(settings.guard, settings.prompts)
    except DataError as error:
        raise OptionError(f"judge {name!r}: {error}") from None
    return Judge(name, guard, settings.backend if guard.needs_model else None)


def backend_from_text(given: str) -> dict[str, Any]:
    """The backend that ``FOLDER``, ``NAME@URL`` or ``NAME@URL#VARIABLE`` (with the key's variable) names."""
    model, found, address = given.partition("@http")
    if not found:
        return {"model": given}
    url, _, variable = f"http{address}".partition("#")
    return {"model": model, "base_url": url, **({"api_key_env": variable} if variable else {})}
