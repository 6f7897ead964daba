"""A request's head: two other parsers read the same in whatever `judge` accepts; where it ends, however it comes.

The other parsers are more lenient than we are, so that only what we accept is put to them.
"""

import contextlib
import re
from typing import Final

import h11
import httptools

from dgproxy.wire import refusals
from dgproxy.wire.fields import MAX_HEADERS
from dgproxy.wire.head import MAX_HEAD, Head, find_end, judge
from dgproxy.wire.refusals import Refusal
from tests.fuzz.harness import Harness

_REFUSALS: Final = frozenset(
    refusal.message for refusal in vars(refusals).values() if isinstance(refusal, Refusal)
)  # sentences of the table: none is made from what was sent
_METHODS: Final = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"})


# Of random bytes few are a head. Those that are a good part of one lead further in.
_AROUND: Final = (
    (b"GET /", b" HTTP/1.1\r\nHost: dg\r\n\r\n"),
    (b"GET / HTTP/1.1\r\nHost: ", b"\r\n\r\n"),
    (b"GET / HTTP/1.1\r\nHost: dg\r\n", b"\r\n\r\n"),
    (b"GET / HTTP/1.1\r\nHost: dg\r\nX: ", b"\r\n\r\n"),
    (b"POST / HTTP/1.1\r\nHost: dg\r\nContent-Length: ", b"\r\n\r\n"),
    (b"POST / HTTP/1.1\r\nHost: dg\r\nTransfer-Encoding: ", b"\r\n\r\n"),
)


def check(data: bytes) -> None:
    """The whole property, for these bytes and for heads that they are a part of."""
    _check(data)
    for before, after in _AROUND:
        _check(before + data + after)


def _check(data: bytes) -> None:
    end = find_end(data)
    _arrives_in_pieces(data, end)
    if not isinstance(end, int):
        return
    assert 4 <= end <= MAX_HEAD
    assert data[end - 4 : end] == b"\r\n\r\n"
    raw = data[:end]
    head = judge(raw)
    if isinstance(head, Refusal):
        assert head.message in _REFUSALS
        assert head.close
        return
    _is_what_its_bytes_say(head, raw)
    _h11_agrees(head, raw)
    _llhttp_agrees(head, raw)


def _arrives_in_pieces(data: bytes, whole: int | Refusal | None) -> None:
    """The same end, or a refusal, if the first half was looked at before; what refuses a part refuses the whole."""
    half = len(data) // 2
    first = find_end(data[:half])
    if isinstance(first, int):
        assert whole == first
    elif first is None:
        assert find_end(data, half) == whole


def _is_what_its_bytes_say(head: Head, raw: bytes) -> None:
    assert not re.search(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?!\n)|\n[ \t]", raw)
    assert head.raw == raw
    assert raw.startswith(b"%b %b HTTP/1.%d\r\n" % (head.method, head.target, head.minor))
    assert head.target.startswith(b"/")
    assert b"#" not in head.target
    assert head.target == head.path + (b"?" + head.query if b"?" in head.target else b"")
    assert len(head.headers) == raw.count(b"\r\n") - 2 <= MAX_HEADERS
    assert len(head.all(b"host")) == 1
    lengths, codings = head.all(b"content-length"), head.all(b"transfer-encoding")
    assert len(lengths) + len(codings) <= 1
    assert head.chunked == bool(codings)
    assert head.content_length == (int(lengths[0]) if lengths else None)


def _h11_agrees(head: Head, raw: bytes) -> None:
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=2 * MAX_HEAD)
    parser.receive_data(raw)
    event = parser.next_event()
    assert isinstance(event, h11.Request)
    assert (event.method, event.target) == (head.method, head.target)
    assert event.http_version == b"1.%d" % head.minor
    if not head.chunked:  # h11 lowers the coding's case
        assert [(name, value) for name, value in event.headers] == head.headers
    assert len(event.headers) == len(head.headers)


class _Heard:
    """llhttp's callbacks, as httptools gives them."""

    def __init__(self) -> None:
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.complete = True


def _llhttp_agrees(head: Head, raw: bytes) -> None:
    if head.method not in _METHODS:
        return  # llhttp knows a list, some of them with another protocol's rules; we know a syntax
    heard = _Heard()
    parser = httptools.HttpRequestParser(heard)
    # llhttp takes white space behind a value for a part of it, and refuses `chunked<SP><HTAB>` for that; RFC 9112 5
    # has it stripped, and we write each header anew.
    with contextlib.suppress(httptools.HttpParserUpgrade):
        parser.feed_data(re.sub(rb"[ \t]+\r\n", b"\r\n", raw))
    assert heard.complete
    assert (parser.get_method(), heard.target) == (head.method, head.target)
    assert parser.get_http_version() == f"1.{head.minor}"
    assert heard.headers == head.headers


def _of(*lines: bytes, first: bytes = b"POST /v1/listen HTTP/1.1") -> bytes:
    return b"\r\n".join([first, b"Host: dg", *lines, b"", b""])


HARNESS: Final = Harness(
    check,
    seeds=(
        _of(),
        _of(b"Content-Length: 5", b"Content-Type: audio/wav") + b"audio",
        _of(b"Transfer-Encoding: chunked", b"Expect: 100-continue") + b"0\r\n\r\n",
        _of(b"X-Empty:", b"X-Latin: caf\xe9 \t", b"Connection: close, X", first=b"GET /v1/models?a=%20&b HTTP/1.0"),
        _of(b"Upgrade: websocket", b"Connection: Upgrade", first=b"GET /v1/listen HTTP/1.1"),
        b"GET / HTTP/1.1\r\nHost: https://[::1]:80\r\n\r\n",
        _of(b"X: a\r\n b"),
        _of(b"X: a\nY: b"),
        _of(b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    ),
    words=(
        b"\r\n", b"\r\n\r\n", b"\n", b"\r", b": ", b" ", b"\t", b"\0", b"Host: ", b"Content-Length: ",
        b"Expect: 100-continue", b"Transfer-Encoding: ", b"chunked", b"Connection: ", b"Upgrade: ", b"HTTP/1.0",
        b"HTTP/1.1", b"#", b"?", b"https://",
    ),
)  # fmt: skip
