"""A WebSocket client that sends any bytes and reads what comes, on a TLS socket; and an upstream to play with it."""

import contextlib
import json
import socket
import ssl
import struct
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from dgproxy.wire.frames import BINARY, CLOSE
from tests.support.frames import frame
from tests.support.logs import is_event
from tests.support.proxy import Proxy
from tests.support.scripted import PATIENCE, upstream

RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends RST
ECHO: Final = "/v1/listen?standin_echo=1"


def reset(sock: socket.socket) -> None:
    """Ends a connection with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    socket.socket.close(sock)


class RawStream:
    """A client's connection from its handshake on. `id` finds its lines in the log."""

    def __init__(
        self,
        proxy: Proxy,
        key: str,
        target: str = ECHO,
        *,
        early: bytes = b"",
        headers: tuple[str, ...] = (),
        begin: bool = True,
        buffer: int | None = None,
    ) -> None:
        self.id = uuid.uuid4().hex
        self._proxy = proxy
        raw = socket.socket()
        raw.settimeout(PATIENCE)
        if buffer is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        raw.connect(("127.0.0.1", proxy.port))
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = proxy.client_tls().wrap_socket(raw, server_hostname="127.0.0.1", suppress_ragged_eofs=False)
        lines = (
            f"GET {target} HTTP/1.1",
            "Host: dg",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            f"X-Request-Id: {self.id}",
            f"Authorization: Token {key}",
            *headers,
            "",
            "",
        )
        self.sock.sendall("\r\n".join(lines).encode() + early)
        self.got = bytearray()
        self.head = b""
        if begin:
            self.begin()

    def begin(self) -> int:
        """Reads the answer's head; its status."""
        while b"\r\n\r\n" not in self.got:
            piece = self.sock.recv(65536)
            assert piece, "ended within the answer's head"
            self.got += piece
        head, _, rest = bytes(self.got).partition(b"\r\n\r\n")
        self.head, self.got = head, bytearray(rest)
        return int(head.split(b" ")[1])

    def send(self, *data: bytes) -> None:
        self.sock.sendall(b"".join(data))

    def exactly(self, size: int) -> bytes:
        """So many bytes."""
        while len(self.got) < size:
            piece = self.sock.recv(65536)
            assert piece, f"ended after {bytes(self.got[:200])!r}"
            self.got += piece
        taken = bytes(self.got[:size])
        del self.got[:size]
        return taken

    def frame(self) -> tuple[int, bytes]:
        """The next frame, as a server sends it: its first byte, its payload."""
        first, size = self.exactly(2)
        if size >= 126:
            size = int.from_bytes(self.exactly(2 if size == 126 else 8), "big")
        return first, self.exactly(size)

    def close_code(self) -> int:
        """That of the Close that must come next."""
        first, payload = self.frame()
        assert first == 0x80 | CLOSE, f"{first:#x} {payload[:100]!r} came in place of a Close"
        return int.from_bytes(payload[:2], "big")

    def rest(self) -> tuple[bytes, str]:
        """All that still comes, and how it ended: "orderly", "cut" (without close_notify) or "reset"."""
        how = "orderly"
        try:
            while piece := self.sock.recv(65536):
                self.got += piece
        except ssl.SSLEOFError:
            how = "cut"
        except ConnectionResetError:
            how = "reset"
        return bytes(self.got), how

    def reset(self) -> None:
        reset(self.sock)

    def half_close(self) -> None:
        """close_notify and FIN; what the proxy sends can still be read."""
        with contextlib.suppress(ssl.SSLError):
            self.sock.setblocking(False)  # noqa: FBT003
            self.sock.unwrap()
        self.sock.settimeout(PATIENCE)
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.sock, socket.SHUT_WR)

    def log(self) -> dict[str, Any]:
        """Its stream.close line, once it is there; a field that it leaves out is None."""
        line: dict[str, Any] = json.loads(
            self._proxy.stderr.wait_for(is_event("stream.close", client_request_id=self.id))
        )
        return dict.fromkeys(("code_sent", "code_from_client", "code_from_upstream", "fault")) | line

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.sock.close()


def honest(proxy: Proxy, key: str, target: str = ECHO) -> None:
    """A stream as it should be, with a key of one stream: so nobody else holds that any more."""
    with RawStream(proxy, key, target) as stream:
        assert stream.head.startswith(b"HTTP/1.1 101")
        stream.send(frame(BINARY, b"honest"))
        assert stream.frame() == (0x80 | BINARY, b"honest")
        stream.send(frame(CLOSE, b"\x03\xe8"))
        assert stream.close_code() == 1000
    line = stream.log()
    assert (line["end"], line["code_sent"], line["fault"]) == ("complete", None, None)


class Stage:
    """An upstream whose next connections do as `act` says."""

    def __init__(self) -> None:
        self.url = ""
        self.act: Callable[[socket.socket], None] = lambda _: None

    def serve(self, sock: socket.socket) -> None:
        self.act(sock)


@contextmanager
def stage() -> Iterator[Stage]:
    """A Stage that serves."""
    made = Stage()
    with upstream(made.serve) as url:
        made.url = url
        yield made


@contextmanager
def before(url: str, directory: Path, leaks: list[str], **settings: str) -> Iterator[Proxy]:
    """A proxy with one worker before these upstreams (`a", "b` for two); settings have `__` for the dot."""
    entries = {name.replace("__", "."): value for name, value in settings.items()}
    made = Proxy(directory, url, {"server.workers": "1", **entries})
    try:
        with made:
            yield made
    finally:
        leaks += made.leaks()
