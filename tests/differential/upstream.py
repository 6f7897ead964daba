"""An upstream that reads strictly and remembers all that reached it. It shares no code with dgproxy."""

import base64
import contextlib
import hashlib
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Self

PATIENCE: Final = 30.0  # seconds that a connection may be silent between requests
QUIET: Final = 0.02  # seconds without an event; on loopback, what a client was answered after has come by then
TUNNEL: Final = 0.5  # seconds that a WebSocket may be silent before it is closed
_MOST: Final = 1 << 20  # bytes of a head, or of a chunk's line

_REQUEST: Final = re.compile(r"([A-Z]+) ([!-~]+) HTTP/1\.([01])")
_FIELD: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*")
_CHUNK: Final = re.compile(r"([0-9A-Fa-f]{1,15})(;[\t\x20-\x7e\x80-\xff]*)?")
_ACCEPT: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 1.3


class Malformed(Exception):  # noqa: N818
    """What came is not HTTP/1.1 in one certain reading."""


class Ended(Exception):  # noqa: N818
    """The peer ended the connection in the middle of something."""


@dataclass
class Seen:
    """A request as it reached the upstream, or what was not one."""

    method: str = ""
    target: str = ""
    names: list[str] = field(default_factory=list)  # of its headers, as sent
    body: int = 0  # bytes, chunk framing left out
    framing: str = "none"  # none | length | chunked
    trailers: list[str] = field(default_factory=list)  # their names
    complete: bool = False
    malformed: str | None = None  # why no strict reader takes it
    credential: bool = False  # the client's key was in it
    tunnel: int | None = None  # bytes that came through a WebSocket


class _Stream:
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = b""

    @property
    def empty(self) -> bool:
        return not self._buffer

    def fill(self) -> bool:
        try:
            data = self._sock.recv(65536)
        except OSError:
            return False
        self._buffer += data
        return bool(data)

    def line(self) -> str:
        """Up to CRLF. LF or CR alone is no line end."""
        while (end := self._buffer.find(b"\r\n")) < 0:
            if len(self._buffer) > _MOST:
                raise Malformed("a line without end")
            if not self.fill():
                raise Ended
        line, self._buffer = self._buffer[:end], self._buffer[end + 2 :]
        if re.search(rb"[\r\n\0]", line):
            raise Malformed("stray CR, LF or NUL")
        return line.decode("latin-1")

    def take(self, size: int) -> Iterator[int]:
        """Reads that many bytes; yields how many came."""
        while size:
            if not self._buffer and not self.fill():
                raise Ended
            got = min(size, len(self._buffer))
            self._buffer = self._buffer[got:]
            size -= got
            yield got


class Upstream:
    """Listens on a loopback port. `secret` is looked for in each head."""

    def __init__(self) -> None:
        self.secret = ""
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: Final[int] = self._listener.getsockname()[1]
        self._changed = threading.Condition()
        self._seen: list[Seen] = []
        self._busy = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def take(self) -> list[Seen]:
        """What reached it since the last call, once nothing is in progress and nothing more comes for a moment."""
        with self._changed:
            while self._changed.wait(QUIET) or self._busy:
                pass
            seen, self._seen = self._seen, []
        return seen

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(PATIENCE)
        stream = _Stream(sock)
        with sock, contextlib.suppress(OSError):
            while not stream.empty or stream.fill():
                with self._changed:
                    self._busy += 1
                try:
                    going = self._one(sock, stream)
                finally:
                    with self._changed:
                        self._busy -= 1
                        self._changed.notify_all()
                if not going:
                    return

    def _one(self, sock: socket.socket, stream: _Stream) -> bool:
        """One request; whether another may follow."""
        seen = Seen()
        fields: list[tuple[str, str]] = []
        try:
            fields = self._head(stream, seen)
            if _is_poll(seen, fields):
                sock.sendall(_answer(seen, fields))
                return True
            self._body(stream, seen, fields)
        except Malformed as why:
            seen.malformed = str(why)
            self._remember(seen)
            sock.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return False
        except Ended:
            self._remember(seen)
            return False
        seen.complete = True
        self._remember(seen)
        answer = _answer(seen, fields)
        sock.sendall(answer)
        if answer.startswith(b"HTTP/1.1 101 "):
            seen.tunnel = 0 if stream.empty else sum(stream.take(len(stream._buffer)))
            sock.settimeout(TUNNEL)
            while stream.fill():
                seen.tunnel += sum(stream.take(len(stream._buffer)))
            return False
        return "close" not in _all(fields, "connection")

    def _remember(self, seen: Seen) -> None:
        with self._changed:
            self._seen.append(seen)

    def _head(self, stream: _Stream, seen: Seen) -> list[tuple[str, str]]:
        line = stream.line()
        match = _REQUEST.fullmatch(line)
        if match is None:
            seen.target = line[:80]
            raise Malformed("request line")
        seen.method, seen.target = match[1], match[2]
        fields: list[tuple[str, str]] = []
        while line := stream.line():
            if self.secret and self.secret in line:
                seen.credential = True
            one = _FIELD.fullmatch(line)
            if one is None:
                raise Malformed("header line")
            fields.append((one[1].lower(), one[2]))
            seen.names.append(one[1])
        if match[3] == "1" and len(_all(fields, "host")) != 1:
            raise Malformed("not one Host")
        return fields

    def _body(self, stream: _Stream, seen: Seen, fields: list[tuple[str, str]]) -> None:
        lengths, codings = _all(fields, "content-length"), _all(fields, "transfer-encoding")
        if len(lengths) + len(codings) > 1:
            raise Malformed("two framings")
        if lengths:
            if not re.fullmatch(r"[0-9]{1,18}", lengths[0]):
                raise Malformed("length")
            seen.framing = "length"
            for size in stream.take(int(lengths[0])):
                seen.body += size
        elif codings:
            if codings[0].lower() != "chunked":
                raise Malformed("transfer coding")
            seen.framing = "chunked"
            while self._chunk(stream, seen):
                pass
            while line := stream.line():
                one = _FIELD.fullmatch(line)
                if one is None:
                    raise Malformed("trailer line")
                seen.trailers.append(one[1])

    @staticmethod
    def _chunk(stream: _Stream, seen: Seen) -> bool:
        match = _CHUNK.fullmatch(stream.line())
        if match is None:
            raise Malformed("chunk size")
        left = int(match[1], 16)
        if not left:
            return False
        for size in stream.take(left):
            seen.body += size
        if stream.line():
            raise Malformed("end of a chunk")
        return True


def _all(fields: list[tuple[str, str]], name: str) -> list[str]:
    return [value for key, value in fields if key == name]


def _is_poll(seen: Seen, fields: list[tuple[str, str]]) -> bool:
    """Whether a proxy asks for itself: no client is behind it."""
    return seen.target.startswith("/v1/status") and not _all(fields, "x-forwarded-for")


def _answer(seen: Seen, fields: list[tuple[str, str]]) -> bytes:
    upgrade = [value.lower() for value in _all(fields, "upgrade")]
    if any("websocket" in value for value in upgrade):
        return _upgrade(seen, fields, upgrade)
    body = b"" if seen.method == "HEAD" else b"ok"
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n" + body


def _upgrade(seen: Seen, fields: list[tuple[str, str]], upgrade: list[str]) -> bytes:
    """101 for a valid handshake (RFC 6455 4.2.1), else 400."""
    keys = _all(fields, "sec-websocket-key")
    options = {option.strip() for value in _all(fields, "connection") for option in value.lower().split(",")}
    valid = (
        seen.method == "GET"
        and seen.framing == "none"
        and upgrade == ["websocket"]
        and "upgrade" in options
        and _all(fields, "sec-websocket-version") == ["13"]
        and len(keys) == 1
        and re.fullmatch(r"[A-Za-z0-9+/]{22}==", keys[0])
    )
    if not valid:
        return b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"
    accept = base64.b64encode(hashlib.sha1(keys[0].encode() + _ACCEPT, usedforsecurity=False).digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
        + accept
        + b"\r\n\r\n"
    )
