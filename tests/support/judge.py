"""An upstream that reads what dgproxy lets through with a strict parser that is not ours: llhttp, the one in Node.

Rules of this file: nothing of dgproxy or h11 is in it; whatever reaches it is either one whole request, one that was
cut, or a fault; every request is answered only when it is whole, so that more than one at a time is a fault as well.
"""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import httptools

from tests.support import scripted

LONGER_THAN_IDLE: Final = 60.0  # seconds; dgproxy gives an idle connection up after 30


@dataclass
class Request:
    """A request as llhttp read it: names as they came, values without outer white space."""

    method: bytes = b""
    target: bytes = b""
    version: str = ""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    whole: bool = False
    after: bytes = b""  # what came behind a handshake

    def all(self, name: bytes) -> list[bytes]:
        """Every value of a header."""
        return [value for key, value in self.headers if key.lower() == name]


class _Reader:
    """llhttp's callbacks for one connection."""

    def __init__(self) -> None:
        self.parser: Final = httptools.HttpRequestParser(self)
        self.requests: list[Request] = []

    def on_message_begin(self) -> None:
        self.requests.append(Request())

    def on_url(self, url: bytes) -> None:
        self.requests[-1].target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.requests[-1].headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.requests[-1].method = self.parser.get_method()
        self.requests[-1].version = self.parser.get_http_version()

    def on_body(self, body: bytes) -> None:
        self.requests[-1].body += body

    def on_message_complete(self) -> None:
        self.requests[-1].whole = True


class Judge:
    """What reached the upstream since the last `take`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: list[Request] = []
        self._faults: list[str] = []

    def take(self) -> list[Request]:
        """The requests that came, whole or cut; they are forgotten. AssertionError if llhttp refused anything."""
        with self._lock:
            requests, faults = self._requests, self._faults
            self._requests, self._faults = [], []
        assert not faults, faults
        return requests

    def forget(self) -> None:
        """As if nothing had come."""
        with self._lock:
            self._requests, self._faults = [], []

    def serve(self, sock: socket.socket) -> None:
        """One connection."""
        sock.settimeout(LONGER_THAN_IDLE)
        reader = _Reader()
        answered = 0
        while data := sock.recv(65536):
            with self._lock:
                before = len(reader.requests)
                rest: bytes | None = None
                try:
                    reader.parser.feed_data(data)
                except httptools.HttpParserUpgrade as upgrade:
                    rest = data[upgrade.args[0] :]
                except httptools.HttpParserError as error:
                    self._faults.append(f"{error!r} in {data!r}")
                    return
                self._requests += reader.requests[before:]
                if len(reader.requests) - answered > 1:
                    self._faults.append(f"a second request before the first was answered: {data!r}")
                    return
                if answered == len(reader.requests) or not self.due(reader.requests[-1]):
                    continue
            request = reader.requests[-1]
            answered = len(reader.requests)
            if rest is not None:
                self.tunnel(sock, request, rest)
                return
            if not self.answer(sock, request):
                return

    def due(self, request: Request) -> bool:
        """Whether the request that is being read is to be answered now: when it is whole."""
        return request.whole

    def answer(self, sock: socket.socket, request: Request) -> bool:
        """Says what was asked; whether the connection goes on."""
        body = json.dumps({"method": request.method.decode(), "target": request.target.decode("latin-1")}).encode()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        sock.sendall(head + (b"" if request.method == b"HEAD" else body))
        return True

    def tunnel(self, sock: socket.socket, request: Request, rest: bytes) -> None:
        """A handshake is accepted, and what comes behind it kept."""
        request.after += rest
        head = b"\r\n".join(b": ".join(line) for line in request.headers)
        sock.sendall(scripted.switching_protocols(head))
        while data := sock.recv(65536):
            request.after += data


@contextmanager
def judge() -> Iterator[tuple[Judge, str]]:
    """A judge and its URL, while it sits. The proxy before it must be gone first."""
    made = Judge()
    with scripted.upstream(made.serve) as url:
        yield made, url
