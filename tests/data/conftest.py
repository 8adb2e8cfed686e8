"""Taught tiny models and a server for them, made once a session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_server import ChatServer, running_server
from once import made_once
from taught_models import careful_lessons, frank_lessons, teach


@pytest.fixture(scope="session")
def frank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generator, judge, expert, and a member of the pool that discusses blue things."""
    return made_once(tmp_path_factory, "frank", lambda folder: teach(folder, frank_lessons()))


@pytest.fixture(scope="session")
def careful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A member of the pool that refuses to discuss blue things."""
    return made_once(tmp_path_factory, "careful", lambda folder: teach(folder, careful_lessons()))


@pytest.fixture(scope="session")
def server_process(frank: Path, careful: Path) -> Iterator[ChatServer]:
    with running_server(frank=frank, careful=careful) as server:
        yield server


@pytest.fixture
def server(server_process: ChatServer) -> ChatServer:
    """The server without any trouble arranged."""
    server_process.control()
    return server_process
