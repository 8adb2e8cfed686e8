"""A real OpenAI-compatible HTTP server for tests, in a process of its own, serving tiny models.

    python chat_server.py NAME=FOLDER ...      (prints its port, ends when its standard input closes)

POST /control {"faults": [...], "hold_after": N} arranges trouble: each fault spoils one of the next completions, and
with ``hold_after`` every completion past the N-th from now hangs until the next POST /control. GET /seen tells what
was asked and with which headers.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener
from urllib.request import Request as UrlRequest


class ChatServer:
    """The client's side: starts the process, arranges trouble, looks at what was asked."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.base_url = f"http://127.0.0.1:{port}/v1"
        self._root = f"http://127.0.0.1:{port}"

    def control(self, faults: list[str] | None = None, hold_after: int | None = None) -> None:
        """Forget what was seen, let go of what hangs, and arrange new trouble."""
        self._call("/control", {"faults": faults or [], "hold_after": hold_after})

    def seen(self) -> dict[str, Any]:
        return self._call("/seen")

    def _call(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = UrlRequest(self._root + path, data, {"content-type": "application/json"})
        with build_opener(ProxyHandler({})).open(request, timeout=60) as response:
            return json.loads(response.read())


@contextmanager
def running_server(**models: Path) -> Iterator[ChatServer]:
    """A server process for as long as the block lasts."""
    process = subprocess.Popen(
        [sys.executable, __file__, *(f"{name}={folder}" for name, folder in models.items())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    try:
        assert process.stdout is not None
        first_line = process.stdout.readline()
        yield ChatServer(process, int(first_line))
    finally:
        process.kill()
        process.wait(timeout=30)


_USELESS = {
    "garbage": b"<<<%%% not json",
    "list": b"[1, 2]",
    "no-choices": b'{"choices": []}',
    "no-text": b'{"choices": [{"message": {"content": null}, "finish_reason": "filter"}]}',
}


class _State:
    def __init__(self, backends: dict[str, Any]) -> None:
        self.backends = backends
        self.computing = threading.Lock()
        self.changing = threading.Lock()
        self.faults: list[str] = []
        self.left: int | None = None
        self.released = threading.Event()
        self.requests: list[dict[str, Any]] = []
        self.served = 0
        self.under_way = self.most_under_way = 0
        self.held = 0

    def control(self, faults: list[str], hold_after: int | None) -> None:
        with self.changing:
            self.released.set()
            self.released = threading.Event()
            self.faults, self.left = list(faults), hold_after
            self.requests, self.served, self.most_under_way, self.held = [], 0, 0, 0

    def next_turn(self, seen: dict[str, Any]) -> tuple[str | None, threading.Event | None]:
        """What is to go wrong with this request, and what it has to wait for."""
        with self.changing:
            self.requests.append(seen)
            fault = self.faults.pop(0) if self.faults else None
            if self.left is None:
                return fault, None
            self.left -= 1
            self.held += self.left < 0
            return fault, self.released if self.left < 0 else None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: _State

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        state = self.state
        self._send(
            200,
            {"requests": state.requests, "served": state.served, "held": state.held, "most": state.most_under_way},
        )

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/control":
            self.state.control(**body)
            self._send(200, {})
            return
        state = self.state
        with state.changing:
            state.under_way += 1
            state.most_under_way = max(state.most_under_way, state.under_way)
        try:
            fault, hold = state.next_turn({"path": self.path, "body": body, "headers": dict(self.headers)})
            if hold is not None:
                hold.wait(60)
            self._serve(body, fault)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with state.changing:
                state.under_way -= 1

    def _serve(self, body: dict[str, Any], fault: str | None) -> None:
        if fault is not None:
            self._spoil(fault)
        elif body.get("model") not in self.state.backends:
            self._send(404, {"error": {"message": f"no model {body.get('model')!r}"}})
        else:
            text = self._answer(body)
            choice = {"message": {"role": "assistant", "content": text}} if "messages" in body else {"text": text}
            choices = [{"index": 0, "finish_reason": "stop", **choice}]
            self._send(200, {"id": "1", "object": "chat.completion", "model": body["model"], "choices": choices})
            self.state.served += 1

    def _answer(self, body: dict[str, Any]) -> str:
        from mergekit_3h.data.backends.protocol import Request

        request = Request(
            messages=body.get("messages"),
            prompt=body.get("prompt"),
            max_new_tokens=body["max_tokens"],
            temperature=body["temperature"],
            seed=body["seed"],
            stop=tuple(body.get("stop") or ()),
        )
        with self.state.computing:
            completion = next(iter(self.state.backends[body["model"]].complete([request])))
        return completion.text if completion.text is not None else f"FAILED {completion.failure}"

    def _spoil(self, fault: str) -> None:
        name, _, detail = fault.partition(" ")
        key = self.headers.get("authorization", "").removeprefix("Bearer ")
        if name in _USELESS:
            self._raw(200, _USELESS[name])
        elif name == "half":
            self.send_response(200)
            self.send_header("content-length", "500")
            self.end_headers()
            self.wfile.write(b'{"choices": [{"message": {"content": "ha')
            self._hang_up()
        elif name == "nothing":
            self._hang_up()
        elif name == "silence":
            threading.Event().wait(float(detail))
            self._hang_up()
        else:
            headers = dict([detail.split("=", 1)]) if detail else {}
            self._send(int(name), {"error": {"message": f"fault {name} for key {key}"}}, headers)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        self._raw(status, json.dumps(body).encode(), headers)

    def _raw(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def main() -> None:
    from mergekit_3h.data.backends.settings import TransformersSettings

    named = dict(argument.split("=", 1) for argument in sys.argv[1:])
    state = _State({name: TransformersSettings(model=folder, device="cpu").open() for name, folder in named.items()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"state": state}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdout.write(f"{server.server_address[1]}\n")
    sys.stdout.flush()
    sys.stdin.read()  # until the test that started it is gone


if __name__ == "__main__":
    main()
