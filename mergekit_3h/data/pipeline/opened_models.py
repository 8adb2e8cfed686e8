"""The models of a pipeline, one in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import TracebackType

from mergekit_3h.data.backends.protocol import Backend
from mergekit_3h.data.backends.settings import BackendSettings


class PipelineModels:
    """Opens a model when it is first needed and closes the one before."""

    def __init__(self, settings: Mapping[str, BackendSettings]) -> None:
        self._settings = settings
        self._name: str | None = None
        self._backend: Backend | None = None

    def backend(self, name: str) -> Backend:
        if self._backend is None or self._name != name:
            self.close()
            self._backend, self._name = self._settings[name].open(), name
        return self._backend

    def identity(self, name: str) -> str:
        """What a model's answers depend on, as one text."""
        return json.dumps(self._settings[name].identity(), sort_keys=True)

    def close(self) -> None:
        if self._backend is not None:
            self._backend.close()
        self._backend = self._name = None

    def __enter__(self) -> PipelineModels:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
