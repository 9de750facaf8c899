"""A server on this machine that speaks OpenAI's protocol as a test tells it to, and remembers every call.

    with Server(lambda call: said("four")) as server:
        ...                      # server.address, server.calls

A script gets the call and gives an Answer; `call.number` counts from 0, `call.text` is the last message or the prompt.
"""

from __future__ import annotations

import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self


@dataclass(frozen=True)
class Call:
    """One call as it came in."""

    number: int
    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]
    tries: int  # how often the same body was sent before

    @property
    def text(self) -> str:
        """What is to be answered."""
        messages = self.body.get("messages")
        return str(messages[-1]["content"] if messages else self.body["prompt"])


@dataclass(frozen=True)
class Answer:
    """What is sent back: `body` as JSON, or bytes as they are. `wait` seconds come first; only `send` bytes go out."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    wait: float = 0.0
    send: int | None = None
    drip: float = 0.0  # seconds between two bytes
    reset: bool = False  # no answer: the connection is reset


def said(
    text: str, *, finish: str = "stop", prompt_tokens: int = 10, completion_tokens: int = 5, **more: Any
) -> Answer:
    """A chat reply."""
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return Answer(body={"model": "served", "choices": [choice], "usage": usage}, **more)


def failed(status: int, message: str, **more: Any) -> Answer:
    """An error in OpenAI's form."""
    return Answer(status, {"error": {"message": message, "type": "test"}}, **more)


class Server:
    """The server; use in a `with`. It answers at most 10,000 calls and sleeps at most 20 s over one."""

    def __init__(self, script: Callable[[Call], Answer], certificate: Path | None = None) -> None:
        self.script = script
        self.scheme = "https" if certificate else "http"
        self.calls: list[Call] = []
        self.answered: list[Call] = []
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        if certificate:  # key and certificate in one file
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def address(self) -> str:
        """The base address."""
        return f"{self.scheme}://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def _take(self, path: str, headers: Mapping[str, str], body: Mapping[str, Any]) -> Call:
        with self._lock:
            assert len(self.calls) < 10_000
            tries = sum(call.body == body for call in self.calls)
            call = Call(len(self.calls), path, headers, body, tries)
            self.calls.append(call)
            return call

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                call = outer._take(self.path, dict(self.headers), body)
                try:
                    self._answer(call, outer.script(call))
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            def _answer(self, call: Call, answer: Answer) -> None:
                if outer.closing.wait(min(answer.wait, 20.0)):
                    self.close_connection = True
                    return
                if answer.reset:
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                    self.close_connection = True
                    return
                content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
                self.send_response(answer.status)
                for name, value in {"Content-Type": "application/json", **answer.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if answer.drip:
                    for byte in content:
                        if outer.closing.wait(answer.drip):
                            break
                        self.wfile.write(bytes([byte]))
                        self.wfile.flush()
                else:
                    self.wfile.write(content[: answer.send])
                if answer.send is not None:
                    self.close_connection = True
                with outer._lock:
                    outer.answered.append(call)

            def log_message(self, format: str, *args: Any) -> None:
                del format, args

        return Handler


def until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for something; fails the test when it does not come."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
