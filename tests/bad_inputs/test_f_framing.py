"""Bytes on a real TLS socket against a running proxy: what is refused, how, and that nothing of it reaches an upstream.

Rows carry their ids from bad-inputs.md. In a row, KEY stands for a good key. Every row ends with an honest request on a
connection of its own, which must be served and be all that the upstream ever saw (`up: 0`, `next ok`).
"""

import io
import json
import socket
import ssl
from collections.abc import Iterator
from http.client import HTTPResponse
from typing import Final

import pytest

from tests.conftest import second_only
from tests.support.clients import Answer, assert_forwarded, assert_refusal
from tests.support.logs import SECRETS, mentions
from tests.support.proxy import Proxy
from tests.support.upstreams import Upstream, values

pytestmark = [second_only]

PATIENCE: Final = 20.0
MAX_HEAD: Final = 32 * 1024
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


def post(*lines: bytes, first: bytes = b"POST /v1/listen HTTP/1.1") -> bytes:
    """A head with Host and a good key, and these lines between them."""
    return b"\r\n".join([first, b"Host: dg", *lines, b"Authorization: Token KEY", b"", b""])


def ws(*lines: bytes, target: bytes = b"/v1/listen", without: bytes = b"-", first: bytes | None = None) -> bytes:
    """A good handshake but for what is left out and what is put in; the key is sent as a header."""
    kept = [line for line in WS if not line.startswith(without)]
    return post(*kept, *lines, first=first or b"GET " + target + b" HTTP/1.1")


# --- the wire --------------------------------------------------------------------------------------------------------


class Bytes(io.BytesIO):
    """A socket, as HTTPResponse knows it, of what was read; several answers may be parsed from it."""

    def makefile(self, _: str) -> "Bytes":
        return self

    def close(self) -> None:
        pass


def connect(proxy: Proxy) -> ssl.SSLSocket:
    sock = socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A stream that ends without close_notify raises: every end below is an orderly one.
    return proxy.client_tls().wrap_socket(sock, server_hostname="127.0.0.1", suppress_ragged_eofs=False)


def read_all(sock: ssl.SSLSocket) -> bytes:
    """All that comes until the proxy ends the connection."""
    pieces = []
    while piece := sock.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


def answers(raw: bytes) -> Iterator[Answer]:
    """Every answer in what was read; nothing else may be in it."""
    stream = Bytes(raw)
    while stream.tell() < len(raw):
        response = HTTPResponse(stream)  # type: ignore[arg-type]
        response.begin()
        body = response.read()
        yield Answer(response.status, [(name.lower(), value) for name, value in response.getheaders()], body)


def exchange(proxy: Proxy, *pieces: bytes) -> list[Answer]:
    """The answers to these bytes on one connection, until the proxy ends it."""
    with connect(proxy) as sock:
        for piece in pieces:
            sock.sendall(piece.replace(b"KEY", proxy.key.encode()))
        return list(answers(read_all(sock)))


def assert_honest_is_served_and_nothing_else_was(proxy: Proxy, upstream: Upstream) -> None:
    (answer,) = exchange(proxy, SECOND.replace(b"?second", b"?honest"))
    assert answer.status == 200
    head = upstream.only()
    assert head["target"] == "/v1/models?honest"
    assert_forwarded(head, upstream)


CODES: Final = {
    400: "BAD_REQUEST",
    401: "INVALID_AUTH",
    404: "NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    413: "PAYLOAD_TOO_LARGE",
    417: "EXPECTATION_FAILED",
    426: "UPGRADE_REQUIRED",
    431: "HEADERS_TOO_LARGE",
}


# --- refused, and closed ---------------------------------------------------------------------------------------------

LENGTHS: Final = (b"", b"+5", b"-5", b"0x5", b"5.0", b"5\t5", b"1_000", b"\xd9\xa5", b"5 5", b"5,")
CODINGS: Final = (
    b"gzip",
    b"gzip, chunked",
    b"identity",
    b"chunked, chunked",
    b"chunked;q=1",
    b'"chunked"',
    b"",
    b"chunked\r\nTransfer-Encoding: chunked",
)
ODD: Final = {"VT": b"\x0b", "FF": b"\x0c", "NBSP": b"\xa0", "NUL": b"\x00"}
CONTROLS: Final = (b"\x00", b"\x01", b"\x07", b"\x08", b"\x1b", b"\x7f")

CLOSED: Final[dict[str, tuple[bytes, int]]] = {
    "F1 length, chunked": (post(b"Content-Length: 6", b"Transfer-Encoding: chunked") + b"0\r\n\r\nX", 400),
    "F1 chunked, length": (post(b"Transfer-Encoding: chunked", b"Content-Length: 6") + b"0\r\n\r\nX", 400),
    "F2 equal": (post(b"Content-Length: 5", b"Content-Length: 5") + b"audio", 400),
    "F2 not equal": (post(b"Content-Length: 5", b"Content-Length: 6") + b"audio", 400),
    "F2 a list": (post(b"Content-Length: 5, 5") + b"audio", 400),
    **{f"F3 {value!r}": (post(b"Content-Length: " + value) + b"audio", 400) for value in LENGTHS},
    "F4 20 digits": (post(b"Content-Length: 00000000000000000005") + b"audio", 400),
    "F4 2^63": (post(b"Content-Length: 9223372036854775808"), 400),
    "F4 2^64+1": (post(b"Content-Length: 18446744073709551617") + b"a", 400),
    "F5 over max_body": (post(b"Content-Length: 3000000000") + b"audio", 413),
    "F6": (post(b"Transfer-Encoding: chunked", first=b"POST /v1/listen HTTP/1.0") + b"0\r\n\r\n", 400),
    **{f"F7 {value!r}": (post(b"Transfer-Encoding: " + value) + b"0\r\n\r\n", 400) for value in CODINGS},
    **{f"F9 {name} before": (post(b"Transfer-Encoding: " + odd + b"chunked"), 400) for name, odd in ODD.items()},
    **{f"F9 {name} after": (post(b"Transfer-Encoding: chunked" + odd), 400) for name, odd in ODD.items()},
    **{f"F9 {name} in the name": (post(b"Transfer-Encoding" + odd + b": chunked"), 400) for name, odd in ODD.items()},
    "F10 space": (post(b"Content-Length : 5") + b"audio", 400),
    "F10 tab": (post(b"Transfer-Encoding\t: chunked") + b"0\r\n\r\n", 400),
    "F11 space": (post(b"X-A: b", b" Content-Length: 5"), 400),
    "F11 tab": (post(b"X-A: b", b"\tc"), 400),
    "F11 first": (b"GET /v1/models HTTP/1.1\r\n Host: dg\r\n" + AUTH + b"\r\n", 400),
    "F12 LF in the head": (b"GET /v1/models HTTP/1.1\r\nHost: dg\n" + AUTH + b"\r\n", 400),
    "F12 LF for the empty line": (b"GET /v1/models HTTP/1.1\r\n" + HOST + AUTH + b"\n", 400),
    "F12 LF everywhere": (b"GET /v1/models HTTP/1.1\nHost: dg\nAuthorization: Token KEY\n\n", 400),
    "F12 CRLF LF": (b"GET /v1/models HTTP/1.1\r\n" + HOST + AUTH + b"\n\r\n", 400),
    "F13 in a value": (post(b"X-A: b\rContent-Length: 5"), 400),
    "F13 CR CR LF": (b"GET /v1/models HTTP/1.1\r\n" + HOST + b"X: y\r\r\n" + AUTH + b"\r\n", 400),
    **{f"F14 {byte!r} in a name": (post(b"X" + byte + b"Y: a"), 400) for byte in CONTROLS},
    **{f"F14 {byte!r} in a value": (post(b"X: a" + byte), 400) for byte in CONTROLS},
    **{f"F14 {byte!r} in the target": (post(first=b"GET /v1/mod" + byte + b" HTTP/1.1"), 400) for byte in CONTROLS},
    "F15 no colon": (post(b"X-A"), 400),
    "F15 empty name": (post(b": a"), 400),
    **{
        f"F15 {byte!r} in a name": (post(b"X" + byte + b"Y: a"), 400) for byte in (b"(", b"@", b'"', "é".encode(), b" ")
    },
    "F22": (ws(without=b"Sec-WebSocket-Key"), 400),
    **{
        f"F24 {line!r}": (line + b"\r\n" + HOST + AUTH + b"\r\n", 400)
        for line in (
            b"GET  /v1/models HTTP/1.1",
            b"GET /v1/models  HTTP/1.1",
            b"GET\t/v1/models HTTP/1.1",
            b" GET /v1/models HTTP/1.1",
            b"GET /v1/models HTTP/1.1 ",
            b"get /v1/models HTTP/1.1",
            b"GET /v1/models",
            b"GET /v1/models ",
        )
    },
    "F25 two empty lines": (b"\r\n\r\n" + SECOND, 400),
    "F25 an empty line of LF": (b"\n" + SECOND, 400),
    "F25 CR alone": (b"\rG", 400),
    **{
        f"F26 {version!r}": (b"GET /v1/models " + version + b"\r\n" + HOST + AUTH + b"\r\n", 400)
        for version in (b"HTTP/0.9", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/3", b"http/1.1")
    },
    "F26 HTTP/2's preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", 400),
    "F32": (post(b"Content-Length: 5", b"Expect: 200-maybe"), 417),
    "H1 none": (b"GET /v1/models HTTP/1.1\r\n" + AUTH + b"\r\n", 400),
    "H1 two": (b"GET /v1/models HTTP/1.1\r\n" + HOST + HOST + AUTH + b"\r\n", 400),
    **{
        f"H1 {value!r}": (b"GET /v1/models HTTP/1.1\r\nHost: " + value + b"\r\n" + AUTH + b"\r\n", 400)
        for value in (b"", b"user@dg", b"dg/path", b"d\x01g", b"dg, dg")
    },
    "H2 absolute": (post(first=b"GET http://other.example/v1/models HTTP/1.1"), 400),
    "H2 absolute, our host": (post(first=b"GET https://dg/v1/models HTTP/1.1"), 400),
    "H2 authority": (post(first=b"GET dg:443 HTTP/1.1"), 400),
    "H2 asterisk": (post(first=b"OPTIONS * HTTP/1.1"), 400),
    "H2 CONNECT": (post(first=b"CONNECT dg:443 HTTP/1.1"), 405),
    "H2 TRACE": (post(first=b"TRACE /v1/models HTTP/1.1"), 405),
    "H4": (post(first=b"GET /v1/models#part HTTP/1.1"), 400),
    "H6 raw non-ASCII": (post(first="GET /v1/models?keyterm=é HTTP/1.1".encode()), 400),
    "H7 one write": (post(b"X: " + b"x" * MAX_HEAD), 431),
    "H7 a target": (post(first=b"GET /v1/models?" + b"x" * MAX_HEAD + b" HTTP/1.1"), 431),
    "H7 no end": (b"GET /v1/models HTTP/1.1\r\nX: " + b"x" * (2 * MAX_HEAD), 431),
    "H7 101 headers": (post(*[b"X: y"] * 99), 431),
    "H8 Content-Length": (post(b"Connection: close, Content-Length", b"Content-Length: 5") + b"audio", 400),
    "H8 Transfer-Encoding": (post(b"Connection: Transfer-Encoding", b"Transfer-Encoding: chunked"), 400),
    "H12 foo, websocket": (ws(b"Upgrade: foo, websocket", without=b"Upgrade"), 400),
    "W1 POST": (ws(first=b"POST /v1/listen HTTP/1.1"), 400),
    "W1 HTTP/1.0": (ws(first=b"GET /v1/listen HTTP/1.0"), 400),
    "W1 version 12": (ws(b"Sec-WebSocket-Version: 12", without=b"Sec-WebSocket-Version"), 426),
    "W1 no version": (ws(without=b"Sec-WebSocket-Version"), 400),
    "W1 no key": (ws(without=b"Sec-WebSocket-Key"), 400),
    "W1 key twice": (ws(WS[-1]), 400),
    "W1 15 bytes": (ws(b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j", without=b"Sec-WebSocket-Key"), 400),
    "W1 17 bytes": (ws(b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZTE=", without=b"Sec-WebSocket-Key"), 400),
    "W1 not base64": (ws(b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j!!==", without=b"Sec-WebSocket-Key"), 400),
    "W1 a length": (ws(b"Content-Length: 5") + b"audio", 400),
    "W1 chunked": (ws(b"Transfer-Encoding: chunked") + b"0\r\n\r\n", 400),
    "W2 no Connection": (ws(without=b"Connection"), 400),
    "W2 another Connection": (ws(b"Connection: keep-alive", without=b"Connection"), 400),
    "W2 a path without WebSocket": (ws(target=b"/v1/models"), 404),
    "W2 a path that is not served": (ws(target=b"/v1/other"), 404),
    "C3 40,000 bytes": (
        b"GET /v1/models HTTP/1.1\r\n" + HOST + b"Authorization: Token " + b"k" * 40_000 + b"\r\n\r\n",
        431,
    ),
}


@pytest.mark.parametrize(("sent", "status"), CLOSED.values(), ids=CLOSED)
def test_it_is_refused_and_nothing_after_it_is_served(
    proxy: Proxy, upstream: Upstream, sent: bytes, status: int
) -> None:
    (answer,) = exchange(proxy, sent + SECOND)
    assert_refusal(answer, status, CODES[status])
    assert answer.value("connection") == "close"
    if status == 426:
        assert answer.value("sec-websocket-version") == "13"
    assert proxy.stderr.wait_for(mentions(request_id=answer.value("dg-request-id"), status=status))
    assert_honest_is_served_and_nothing_else_was(proxy, upstream)


def test_f5_the_answer_reaches_a_client_that_is_still_uploading(proxy: Proxy, upstream: Upstream) -> None:
    with connect(proxy) as sock:
        sock.sendall(post(b"Content-Length: 3000000000").replace(b"KEY", proxy.key.encode()))
        for _ in range(64):
            sock.sendall(bytes(256 * 1024))
        (answer,) = answers(read_all(sock))
    assert_refusal(answer, 413, CODES[413])
    assert_honest_is_served_and_nothing_else_was(proxy, upstream)


def test_f14_a_key_in_a_head_that_cannot_be_parsed_is_nowhere_in_the_log(proxy: Proxy, upstream: Upstream) -> None:
    """C9; the session's watch over leaks looks at all that was said in the end, this at the line itself."""
    for sent in (
        b"KEY /v1/models HTTP/1.1\r\n\r\n",
        b"GET /KEY HTTP/9\r\n\r\n",
        b"GET / HTTP/1.1\r\nKEY\r\n\r\n",
        b"KEY\n",
    ):
        (answer,) = exchange(proxy, sent)
        assert_refusal(answer, 400, CODES[400])
        line = proxy.stderr.wait_for(mentions(request_id=answer.value("dg-request-id")))
        assert not SECRETS.found_in(line.encode())
    assert_honest_is_served_and_nothing_else_was(proxy, upstream)


def test_h7_a_head_that_comes_byte_by_byte_is_bounded_too(proxy: Proxy, upstream: Upstream) -> None:
    with connect(proxy) as sock:
        for byte in b"GET /v1/models HTTP/1.1\r\nX: " + b"x" * MAX_HEAD:
            sock.send(bytes((byte,)))
        (answer,) = answers(read_all(sock))
    assert_refusal(answer, 431, CODES[431])
    assert_honest_is_served_and_nothing_else_was(proxy, upstream)


# --- refused, and the connection lives on ----------------------------------------------------------------------------

BODILESS: Final = b"GET /v1/models HTTP/1.1\r\nHost: dg\r\n"

OPEN: Final[dict[str, tuple[bytes, int]]] = {
    **{
        f"H3 {target!r}": (b"GET " + target + b" HTTP/1.1\r\n" + HOST + AUTH + b"\r\n", 404)
        for target in (
            b"/v1/listen/../status",
            b"/v1/./listen",
            b"//v1/listen",
            b"/v1/models/",
            b"/V1/MODELS",
            b"/v1/models;x",
            b"/v1/listen%2f..",
            b"/%76%31/models",
            b"/v1\\models",
            b"/v1/models/..%5cstatus",
            b"/v1/models/%2e%2e",
            b"/v1/status",
            b"/",
        )
    },
    "C1 none": (BODILESS + b"\r\n", 401),
    "C1 empty": (BODILESS + b"Authorization:\r\n\r\n", 401),
    "C1 scheme without value": (BODILESS + b"Authorization: Token\r\n\r\n", 401),
    "C1 Basic": (BODILESS + b"Authorization: Basic dGVzdHM6dGVzdHM=\r\n\r\n", 401),
    "C1 unknown scheme": (BODILESS + b"Authorization: ApiKey KEY\r\n\r\n", 401),
    "C1 three words": (BODILESS + b"Authorization: Token KEY KEY\r\n\r\n", 401),
    "C1 quotes": (BODILESS + b'Authorization: Token "KEY"\r\n\r\n', 401),
    "C1 trailing comma": (BODILESS + b"Authorization: Token KEY,\r\n\r\n", 401),
    "C2 one more": (BODILESS + b"Authorization: Token KEYx\r\n\r\n", 401),
    "C2 no such id": (BODILESS + b"Authorization: Token dgp_0000000000_" + b"0" * 38 + b"\r\n\r\n", 401),
    "C3 20,000 bytes": (BODILESS + b"Authorization: Token " + b"k" * 20_000 + b"\r\n\r\n", 401),
    "C4 two Authorization": (BODILESS + AUTH + b"Authorization: Bearer KEY\r\n\r\n", 400),
    "C4 the same twice": (BODILESS + AUTH + AUTH + b"\r\n", 400),
    "C4 two that differ": (BODILESS + AUTH + b"X-Api-Key: another\r\n\r\n", 400),
    "C5 query": (b"GET /v1/models?token=KEY&api_key=KEY HTTP/1.1\r\nHost: dg\r\n\r\n", 401),
    "C5 cookie": (BODILESS + b"Cookie: token=KEY\r\n\r\n", 401),
    "C5 path": (b"GET /v1/models/KEY HTTP/1.1\r\nHost: dg\r\n\r\n", 401),
    "C5 another path": (b"GET /KEY HTTP/1.1\r\nHost: dg\r\n\r\n", 404),
    "C5 Proxy-Authorization": (BODILESS + b"Proxy-Authorization: Token KEY\r\n\r\n", 401),
}


@pytest.mark.parametrize(("sent", "status"), OPEN.values(), ids=OPEN)
def test_it_is_refused_and_what_follows_is_judged_on_its_own(
    proxy: Proxy, upstream: Upstream, sent: bytes, status: int
) -> None:
    last = SECOND.replace(b"Token KEY", b"Token wrong")
    first, second = exchange(proxy, sent + last)
    assert_refusal(first, status, CODES[status])
    assert not first.values("connection")
    assert_refusal(second, 401, CODES[401])
    assert_honest_is_served_and_nothing_else_was(proxy, upstream)


@pytest.mark.parametrize(
    "lines",
    [[b"Content-Length: 5"], [b"Transfer-Encoding: chunked"], [b"Content-Length: 5", b"Expect: 100-continue"]],
    ids=["C5 in a body", "C5 in a chunked body", "F31"],
)
def test_a_bad_key_is_answered_before_a_byte_of_the_body_is_asked_for(
    proxy: Proxy, upstream: Upstream, lines: list[bytes]
) -> None:
    head = b"\r\n".join([b"POST /v1/listen HTTP/1.1", b"Host: dg", *lines, b"", b""])
    (answer,) = exchange(proxy, head)
    assert_refusal(answer, 401, CODES[401])
    assert answer.value("connection") == "close"
    (answer,) = exchange(proxy, head + b"token=KEY" + SECOND)  # nor is what came of it taken for a request
    assert_refusal(answer, 401, CODES[401])
    assert_honest_is_served_and_nothing_else_was(proxy, upstream)


# --- passed on, in one reading ---------------------------------------------------------------------------------------


def test_f8_chunked_in_any_case_is_chunked(proxy: Proxy, upstream: Upstream) -> None:
    body = b"5\r\naudio\r\n0\r\n\r\n"
    (answer,) = exchange(proxy, post(b"Transfer-Encoding: ChUnKeD", b"Connection: close") + body)
    assert answer.status == 200
    head = upstream.only()
    assert (values(head, "Transfer-Encoding"), head["body_bytes"]) == (["chunked"], 5)


def test_f20_bytes_after_an_empty_body_are_the_next_request_and_need_their_own_key(
    proxy: Proxy, upstream: Upstream
) -> None:
    inner = b"GET /v1/models?inner HTTP/1.1\r\nHost: dg\r\n\r\n"
    statuses = [answer.status for answer in exchange(proxy, post(b"Content-Length: 0") + inner + SECOND)]
    assert statuses == [200, 401, 200]
    assert [head["target"] for head in upstream.heads()] == ["/v1/listen", "/v1/models?second"]


def test_f21_two_requests_in_one_packet_are_answered_in_their_order(proxy: Proxy, upstream: Upstream) -> None:
    asked = [b"GET /v1/models?n=%d HTTP/1.1\r\n" % n + HOST + AUTH + b"\r\n" for n in range(3)]
    asked.insert(1, post(b"Content-Length: 5", first=b"POST /v1/listen?standin_status=429 HTTP/1.1") + b"audio")
    asked.insert(3, b"GET /v1/nothing HTTP/1.1\r\n" + HOST + AUTH + b"\r\n")
    statuses = [answer.status for answer in exchange(proxy, b"".join(asked) + SECOND)]
    assert statuses == [200, 429, 200, 404, 200, 200]
    targets = [head["target"] for head in upstream.heads()]
    assert targets == [
        "/v1/models?n=0",
        "/v1/listen?standin_status=429",
        "/v1/models?n=1",
        "/v1/models?n=2",
        "/v1/models?second",
    ]


def test_f22_nothing_behind_a_refused_upgrade_is_served(proxy: Proxy, upstream: Upstream) -> None:
    wrong = ws().replace(b"Authorization: Token KEY", b"Authorization: Token wrong")
    (answer,) = exchange(proxy, wrong + SECOND)
    assert_refusal(answer, 401, CODES[401])
    assert answer.value("connection") == "close"
    assert_honest_is_served_and_nothing_else_was(proxy, upstream)


def test_f22_nor_behind_one_that_the_upstream_refuses(proxy: Proxy, upstream: Upstream) -> None:
    (answer,) = exchange(proxy, ws(target=b"/v1/listen?standin_status=429") + SECOND)
    assert (answer.status, answer.json()["err_code"]) == (429, "TOO_MANY_REQUESTS")
    assert [head["target"] for head in upstream.heads()] == ["/v1/listen?standin_status=429"]


def test_f23_a_get_with_a_body_leaves_none_of_it_in_the_connection(proxy: Proxy, upstream: Upstream) -> None:
    inner = b"GET /v1/models?inner HTTP/1.1\r\nHost: dg\r\nAuthorization: Token KEY\r\n\r\n"
    size = len(inner) - len("KEY") + len(proxy.key)
    get = post(b"Content-Length: %d" % size, first=b"GET /v1/models?first HTTP/1.1")
    statuses = [answer.status for answer in exchange(proxy, get + inner + SECOND)]
    assert statuses[0] == 200
    targets = [head["target"] for head in upstream.heads()]
    assert targets in (["/v1/models?first"], ["/v1/models?first", "/v1/models?second"])
    assert len(statuses) == len(targets)


def test_f25_one_empty_line_before_a_request_is_forgiven(proxy: Proxy, upstream: Upstream) -> None:
    for pieces in ((b"\r\n" + SECOND,), (b"\r", b"\n", SECOND)):
        (answer,) = exchange(proxy, *pieces)
        assert answer.status == 200
    assert len(upstream.heads()) == 2


def test_f31_a_good_key_gets_its_100_and_then_its_answer(proxy: Proxy, upstream: Upstream) -> None:
    with connect(proxy) as sock:
        head = post(b"Content-Length: 5", b"Expect: 100-continue", b"Connection: close")
        sock.sendall(head.replace(b"KEY", proxy.key.encode()))
        told = b""
        while not told.endswith(b"\r\n\r\n"):
            told += sock.recv(4096)
        assert told.startswith(b"HTTP/1.1 100 ")
        sock.sendall(b"audio")
        (answer,) = answers(read_all(sock))
    assert answer.status == 200
    assert_forwarded(upstream.only(), upstream)  # Expect is answered here and not there


def test_h5_a_query_of_30_kb_passes_byte_for_byte(proxy: Proxy, upstream: Upstream) -> None:
    query = "&".join(f"keyterm=term%20{n:03}+" + "x" * 280 for n in range(100))
    assert len(query) > 29_000
    (answer,) = exchange(
        proxy,
        post(b"Content-Length: 5", b"Connection: close", first=f"POST /v1/listen?{query} HTTP/1.1".encode()) + b"audio",
    )
    assert answer.status == 200
    assert upstream.only()["target"] == f"/v1/listen?{query}"


def test_h6_escapes_in_a_query_pass_unread(proxy: Proxy, upstream: Upstream) -> None:
    query = "a=%00&b=%0d%0aX:%20y&c=%&d=%zz&e=%C3%A9&e=%c3%28&f=a+b%2Bc&&=&g"
    (answer,) = exchange(
        proxy,
        post(b"Content-Length: 5", b"Connection: close", first=f"POST /v1/listen?{query} HTTP/1.1".encode()) + b"audio",
    )
    assert answer.status == 200
    assert upstream.only()["target"] == f"/v1/listen?{query}"


def test_h8_headers_of_ours_are_set_whatever_connection_names(proxy: Proxy, upstream: Upstream) -> None:
    (answer,) = exchange(
        proxy,
        post(
            b"Connection: close, X-Forwarded-For, X-Forwarded-Proto, Authorization, X-Request-Id, traceparent, X-Mine",
            b"X-Mine: 1",
            b"X-Other: 2",
            first=b"GET /v1/models HTTP/1.1",
        ),
    )
    assert answer.status == 200
    head = upstream.only()
    assert_forwarded(head, upstream)
    assert (values(head, "X-Mine"), values(head, "X-Other")) == ([], ["2"])


LONG: Final = b"r" * 10_000


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (b"client-id.1", True),
        (b"r" * 128, True),
        (b"r" * 129, False),
        (LONG, False),
        (b"a b", False),
        (b'a"b', False),
        (b"caf\xe9", False),
        (b"", False),
    ],
    ids=["token", "128", "129", "10 KB", "space", "quote", "non-ASCII", "empty"],
)
def test_h9_what_a_client_says_of_itself_is_replaced(
    proxy: Proxy, upstream: Upstream, sent: bytes, *, kept: bool
) -> None:
    (answer,) = exchange(
        proxy,
        post(
            b"X-Forwarded-For: 10.0.0.1",
            b"X-Forwarded-Proto: gopher",
            b"X-Forwarded-Host: evil.example",
            b"X-Forwarded-Port: 1",
            b"Forwarded: for=10.0.0.1",
            b"X-Real-IP: 10.0.0.1",
            b"X-Request-Id: " + sent,
            b"Connection: close",
            first=b"GET /v1/models HTTP/1.1",
        ),
    )
    assert answer.status == 200
    head = upstream.only()
    assert_forwarded(head, upstream)
    assert not values(head, "X-Forwarded-Host")
    assert not values(head, "X-Forwarded-Port")
    assert (values(head, "X-Request-Id") == [sent.decode("latin-1")]) is kept


@pytest.mark.parametrize("upgrade", [b"h2c", b"TLS/1.0", b"h2c, TLS/1.0"])
def test_h12_an_upgrade_to_anything_else_is_stripped(proxy: Proxy, upstream: Upstream, upgrade: bytes) -> None:
    statuses = [
        answer.status
        for answer in exchange(
            proxy,
            post(
                b"Upgrade: " + upgrade,
                b"Connection: Upgrade, HTTP2-Settings",
                b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
                first=b"GET /v1/models?first HTTP/1.1",
            )
            + SECOND,
        )
    ]
    assert statuses == [200, 200]  # still HTTP/1.1 after it: no tunnel
    head = upstream.heads()[0]
    assert not values(head, "Upgrade")
    assert not values(head, "HTTP2-Settings")
    assert "upgrade" not in "".join(values(head, "Connection")).lower()


def test_h13_what_is_hop_by_hop_or_secret_stays_here(proxy: Proxy, upstream: Upstream) -> None:
    (answer,) = exchange(
        proxy,
        post(
            b"Cookie: a=b",
            b"Proxy-Authorization: Basic dGVzdHM6dGVzdHM=",
            b"TE: trailers",
            b"Trailer: X",
            b"Keep-Alive: timeout=5",
            b"Proxy-Connection: keep-alive",
            b"X-Passes: yes",
            b"Connection: close, TE",
            first=b"GET /v1/models HTTP/1.1",
        ),
    )
    assert answer.status == 200
    head = upstream.only()
    assert_forwarded(head, upstream)
    assert (values(head, "Trailer"), values(head, "X-Passes")) == ([], ["yes"])


# --- WebSocket -------------------------------------------------------------------------------------------------------


def opened(proxy: Proxy, head: bytes) -> list[str]:
    """The lines of the 101 that this head gets; the stream is closed by the client then (a masked CLOSE of 1000)."""
    with connect(proxy) as sock:
        sock.sendall(head.replace(b"KEY", proxy.key.encode()))
        told = b""
        while b"\r\n\r\n" not in told:
            piece = sock.recv(4096)
            assert piece, told
            told += piece
        sock.sendall(b"\x88\x82\0\0\0\0\x03\xe8")
        read_all(sock)
    lines = told.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    assert lines[0].startswith("HTTP/1.1 101 "), told
    return [line.lower() for line in lines[1:]]


def test_w5_an_extension_is_offered_to_nobody_and_agreed_with_nobody(proxy: Proxy, upstream: Upstream) -> None:
    lines = opened(
        proxy,
        ws(
            b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits", target=b"/v1/listen?standin_echo=1"
        ),
    )
    assert not [line for line in lines if line.startswith("sec-websocket-extensions")]
    assert_forwarded(upstream.only(), upstream, websocket=True)


@pytest.mark.parametrize("word", [b"token", b"bearer", b"Token"])
def test_w15_the_same_key_in_header_and_subprotocol_opens_a_stream(
    proxy: Proxy, upstream: Upstream, word: bytes
) -> None:
    lines = opened(proxy, ws(b"Sec-WebSocket-Protocol: " + word + b", KEY", target=b"/v1/listen?standin_echo=1"))
    chosen = [line for line in lines if line.startswith("sec-websocket-protocol")]
    assert chosen == [f"sec-websocket-protocol: {word.decode().lower()}"]
    assert_forwarded(upstream.only(), upstream, websocket=True)


OFFERS: Final[dict[str, tuple[bytes, bytes, int]]] = {
    "W14 token": (b"token", b"", 401),
    "W14 token,": (b"token,", b"", 401),
    "W14 bearer, a, b": (b"bearer, a, b", b"", 401),
    "W14 100 entries": (b"token, KEY" + b"".join(b", p%d" % n for n in range(98)), b"", 400),
    "W14 the key first": (b"KEY, token", b"", 401),
    "W14 the key twice": (b"token, KEY, KEY", b"", 400),
    "W14 two pairs": (b"token, KEY, bearer, KEY", b"", 400),
    "W14 the key alone": (b"KEY", b"", 401),
    "W15 another in the header": (b"token, KEY", b"Token another", 400),
    "W15 another in the subprotocol": (b"token, another", b"Token KEY", 400),
}


@pytest.mark.parametrize(("offer", "header", "status"), OFFERS.values(), ids=OFFERS)
def test_a_subprotocol_that_is_no_credential_is_refused_and_not_echoed(
    proxy: Proxy, upstream: Upstream, offer: bytes, header: bytes, status: int
) -> None:
    sent = ws(b"Sec-WebSocket-Protocol: " + offer).replace(
        b"Authorization: Token KEY\r\n", b"Authorization: " + header + b"\r\n" if header else b""
    )
    (answer,) = exchange(proxy, sent + SECOND)
    assert_refusal(answer, status, CODES[status])
    assert not answer.values("sec-websocket-protocol")
    assert proxy.key not in json.dumps([answer.headers, answer.body.decode()])
    assert_honest_is_served_and_nothing_else_was(proxy, upstream)
