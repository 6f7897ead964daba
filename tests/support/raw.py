"""Requests as bytes, on a TLS socket of one's own: what clients that no library would write send, and what they get.

In what is sent, KEY stands for the proxy's good key.
"""

import io
import socket
import ssl
from collections.abc import Iterable, Iterator
from http.client import HTTPResponse
from typing import Final, TypeVar

from tests.support.clients import Answer, assert_forwarded, assert_refusal
from tests.support.logs import mentions
from tests.support.proxy import Proxy
from tests.support.upstreams import Upstream

_Socket = TypeVar("_Socket", bound=socket.socket)

PATIENCE: Final = 20.0  # seconds for whatever must happen
MAX_HEAD: Final = 32 * 1024  # spec part 5
AUTH: Final = b"Authorization: Token KEY\r\n"
HOST: Final = b"Host: dg\r\n"
# What is smuggled behind a refused head: it would be served, if anybody parsed it.
SECOND: Final = b"GET /v1/models?second HTTP/1.1\r\nHost: dg\r\nAuthorization: Token KEY\r\nConnection: close\r\n\r\n"
WS: Final = (
    b"Upgrade: websocket",
    b"Connection: Upgrade",
    b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
CODES: Final = {
    400: "BAD_REQUEST",
    401: "INVALID_AUTH",
    403: "INSUFFICIENT_PERMISSIONS",
    404: "NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    413: "PAYLOAD_TOO_LARGE",
    417: "EXPECTATION_FAILED",
    426: "UPGRADE_REQUIRED",
    431: "HEADERS_TOO_LARGE",
    502: "BAD_GATEWAY",
}


def post(*lines: bytes, first: bytes = b"POST /v1/listen HTTP/1.1") -> bytes:
    """A head with Host and a good key, and these lines between them."""
    return b"\r\n".join([first, b"Host: dg", *lines, b"Authorization: Token KEY", b"", b""])


def get(*lines: bytes, target: bytes = b"/v1/models") -> bytes:
    """The same, of a GET."""
    return post(*lines, first=b"GET " + target + b" HTTP/1.1")


def ws(*lines: bytes, target: bytes = b"/v1/listen", without: bytes = b"-", first: bytes | None = None) -> bytes:
    """A good handshake but for what is left out and what is put in; the key is sent as a header."""
    kept = [line for line in WS if not line.startswith(without)]
    return post(*kept, *lines, first=first or b"GET " + target + b" HTTP/1.1")


class _Bytes(io.BytesIO):
    """A socket, as HTTPResponse knows it, of what was read; several answers may be parsed from it."""

    def makefile(self, _: str) -> "_Bytes":
        return self

    def close(self) -> None:
        pass


def _socket(buffer: int | None) -> socket.socket:
    sock = socket.socket()
    sock.settimeout(PATIENCE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    return sock


def tcp(proxy: Proxy, *, buffer: int | None = None) -> socket.socket:
    """A connection without TLS yet. With `buffer` the kernel holds about so many bytes each way."""
    return _connected(_socket(buffer), proxy)


def connect(proxy: Proxy, *, buffer: int | None = None) -> ssl.SSLSocket:
    """A connection. One that ends without close_notify raises: every end should be an orderly one."""
    tls = proxy.client_tls()  # wrapped before it connects: one that is reset at once would not be closed
    return _connected(tls.wrap_socket(_socket(buffer), server_hostname="127.0.0.1", suppress_ragged_eofs=False), proxy)


def _connected(sock: _Socket, proxy: Proxy) -> _Socket:
    try:
        sock.connect(("127.0.0.1", proxy.port))
    except BaseException:
        sock.close()
        raise
    return sock


def read_all(sock: ssl.SSLSocket) -> bytes:
    """All that comes until the proxy ends the connection."""
    pieces = []
    while piece := sock.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


def read_cut(sock: ssl.SSLSocket) -> bytes:
    """All that comes until the proxy breaks the connection off; AssertionError if it ends it in good order."""
    told = b""
    try:
        while piece := sock.recv(65536):
            told += piece
    except (ssl.SSLEOFError, ConnectionResetError):
        return told
    raise AssertionError(f"an orderly end after {told!r}")


def read_head(sock: ssl.SSLSocket) -> bytes:
    """What comes, up to an empty line at least."""
    told = b""
    while b"\r\n\r\n" not in told:
        piece = sock.recv(4096)
        assert piece, told
        told += piece
    return told


def answers(raw: bytes, methods: Iterable[str] = ()) -> Iterator[Answer]:
    """Every answer in what was read, 1xx left out; nothing else may be in it. `methods` were asked, else GET."""
    asked = iter(methods)
    stream = _Bytes(raw)
    while stream.tell() < len(raw):
        response = HTTPResponse(stream, method=next(asked, "GET"))  # type: ignore[arg-type]
        response.begin()
        yield _whole(response)


def read_answer(sock: ssl.SSLSocket) -> Answer:
    """One answer to anything but HEAD; its connection may go on, if nothing was asked behind it."""
    response = HTTPResponse(sock)
    response.begin()
    return _whole(response)


def _whole(response: HTTPResponse) -> Answer:
    body = response.read()
    return Answer(response.status, [(name.lower(), value) for name, value in response.getheaders()], body)


def send(sock: ssl.SSLSocket, proxy: Proxy, *pieces: bytes) -> None:
    """Each piece in a write of its own."""
    for piece in pieces:
        sock.sendall(piece.replace(b"KEY", proxy.key.encode()))


def exchange(proxy: Proxy, *pieces: bytes, methods: Iterable[str] = ()) -> list[Answer]:
    """The answers to these bytes on one connection, until the proxy ends it."""
    with connect(proxy) as sock:
        send(sock, proxy, *pieces)
        return list(answers(read_all(sock), methods))


# --- what holds of every row ----------------------------------------------------------------------------------------


def assert_honest_is_served_and_nothing_else_was(proxy: Proxy, upstream: Upstream) -> None:
    """`up: 0` and `next ok` of bad-inputs.md: an honest request is served, and is all that the upstream ever saw."""
    (answer,) = exchange(proxy, SECOND.replace(b"?second", b"?honest"))
    assert answer.status == 200
    head = upstream.only()
    assert head["target"] == "/v1/models?honest"
    assert_forwarded(head, upstream)


def assert_refused_for_good(proxy: Proxy, upstream: Upstream, status: int, *sent: bytes) -> Answer:
    """What is sent gets this refusal and nothing after it is served (`c` of bad-inputs.md): its answer."""
    (answer,) = exchange(proxy, *sent, SECOND)
    assert_refusal(answer, status, CODES[status])
    assert answer.value("connection") == "close"
    assert proxy.stderr.wait_for(mentions(request_id=answer.value("dg-request-id"), status=status))
    assert_honest_is_served_and_nothing_else_was(proxy, upstream)
    return answer


def assert_refused_alone(proxy: Proxy, upstream: Upstream, status: int, sent: bytes) -> Answer:
    """What is sent gets this refusal, and what follows on its connection is judged on its own: its answer."""
    first, second = exchange(proxy, sent + SECOND.replace(b"Token KEY", b"Token wrong"))
    assert_refusal(first, status, CODES[status])
    assert not first.values("connection")
    assert_refusal(second, 401, CODES[401])
    assert_honest_is_served_and_nothing_else_was(proxy, upstream)
    return first
