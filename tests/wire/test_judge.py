"""Whatever dgproxy lets through, a strict parser that is not ours reads as exactly the request that was meant.

The judge is llhttp (tests/support/judge.py). What was meant is told by `plain`, the shortest reading of RFC 9112 that
there is: lines end with CRLF, a name ends at the first colon, a body is its length or its chunks.
"""

import contextlib
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, event, example, given, settings, strategies as st

from tests.support.clients import Answer
from tests.support.judge import Judge, Request, judge
from tests.support.proxy import Proxy
from tests.support.raw import (
    AUTH,
    HOST,
    PATIENCE,
    SECOND,
    answers,
    connect,
    exchange,
    get,
    post,
    read_all,
    read_head,
    send,
    ws,
)

EVERY_CLASS: Final = '["batch", "stream", "flux", "speak", "read", "agent", "models"]'
HOP_BY_HOP: Final = (
    *(b"keep-alive", b"proxy-connection", b"te", b"trailer", b"http2-settings"),
    *(b"authorization", b"proxy-authorization", b"x-api-key", b"cookie", b"sec-websocket-protocol", b"expect"),
)


@dataclass(frozen=True)
class Court:
    """A judge, and the proxy before it."""

    judge: Judge
    proxy: Proxy

    def verdict(self) -> list[Request]:
        """What the judge saw, each of it clean."""
        requests = self.judge.take()
        for request in requests:
            assert_clean(request, self.proxy)
        return requests


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, leaks: list[str]) -> Iterator[Court]:
    with judge() as (judging, url):
        proxy = Proxy(tmp_path_factory.mktemp("court"), url, {"plans.default.classes": EVERY_CLASS})
        with proxy:
            yield Court(judging, proxy)
        leaks += proxy.leaks()


@pytest.fixture
def court(house: Court) -> Court:
    """The court, with nothing left of a test that failed."""
    house.judge.forget()
    return house


def assert_clean(request: Request, proxy: Proxy) -> None:
    """What holds of every request that goes on, whatever was sent."""
    assert request.version == "1.1"
    assert len(request.all(b"host")) == 1
    assert len(request.all(b"content-length")) + len(request.all(b"transfer-encoding")) <= 1
    assert [value.lower() for value in request.all(b"transfer-encoding")] in ([], [b"chunked"])
    for name in HOP_BY_HOP:
        assert not request.all(name), name
    if request.all(b"upgrade"):
        assert (request.all(b"upgrade"), request.all(b"connection")) == ([b"websocket"], [b"Upgrade"])
    else:
        assert not request.all(b"connection")
    head = b"".join((request.target, *(part for line in request.headers for part in line)))
    assert proxy.key.encode() not in head + request.body


# --- the judge himself -----------------------------------------------------------------------------------------------

UNCLEAR: Final[dict[str, bytes]] = {
    "length, chunked": b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\naudio!",
    "gzip": b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\naudio",
    "bare LF": b"GET / HTTP/1.1\nHost: a\n\n",
    "obs-fold": b"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
    "bare CR": b"GET / HTTP/1.1\r\nA: b\rc\r\n\r\n",
    "space before the colon": b"GET / HTTP/1.1\r\nA : b\r\n\r\n",
    "a bad chunk": b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\naudio\r\n0\r\n\r\n",
    "two at once": b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
}


@pytest.mark.parametrize("sent", UNCLEAR.values(), ids=UNCLEAR)
def test_the_judge_finds_fault_with_what_is_not_exactly_one_request(sent: bytes) -> None:
    with judge() as (judging, url):
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port), timeout=PATIENCE) as sock:
            sock.sendall(sent)
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(1) == b""
        with pytest.raises(AssertionError):
            judging.take()


# --- what was meant --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Meant:
    """A request, read plainly; a body that breaks its framing, or is not all there, is None."""

    method: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes | None

    def is_what_came(self, request: Request) -> bool:
        """Whether the judge read the same; the headers that are not ours or hop-by-hop are looked at alone."""
        said = b",".join(value for name, value in self.headers if name.lower() == b"connection")
        hop = {option.strip(b" \t") for option in said.lower().split(b",")}  # RFC 9110 7.6.1
        fields = [(name.lower(), value) for name, value in self.headers]
        mine = [(name, value) for name, value in fields if name.startswith(b"x-mine") and name not in hop]
        came = [(name.lower(), value) for name, value in request.headers if name.lower().startswith(b"x-mine")]
        read = (request.method, request.target, request.body, request.whole)
        return read == (self.method, self.target, self.body, True) and mine == came


def plain(raw: bytes) -> Iterator[Meant | None]:
    """Each request in what was sent; None, and no more, where that can't be told."""
    while raw:
        raw = raw.removeprefix(b"\r\n")
        head, end, raw = raw.partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        words = first.split(b" ")
        pairs = [line.partition(b":") for line in lines]
        if not end or len(words) != 3 or not all(colon for _, colon, _ in pairs):
            yield None
            return
        headers = [(name, value.strip(b" \t")) for name, _, value in pairs]
        length = [value for name, value in headers if name.lower() == b"content-length"]
        chunked = [value for name, value in headers if name.lower() == b"transfer-encoding"]
        body: bytes | None = b""
        if chunked:
            body, raw = unchunked(raw)
        elif length and length[0].isdigit():
            size = int(length[0])
            body, raw = (raw[:size] if len(raw) >= size else None), raw[size:]
        yield Meant(words[0], words[1], headers, body)
        if body is None:
            return


def unchunked(raw: bytes) -> tuple[bytes | None, bytes]:
    """A chunked body, and what comes after it; None if it is broken."""
    body = b""
    while match := re.match(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[^\r\n]*)?\r\n", raw):
        size = int(match[1], 16)
        raw = raw[match.end() :]
        if size == 0:
            trailers = re.match(rb"(?:[^\r\n:]+:[^\r\n]*\r\n)*\r\n", raw)
            return (None, b"") if trailers is None else (body, raw[trailers.end() :])
        if raw[size : size + 2] != b"\r\n":
            break
        body, raw = body + raw[:size], raw[size + 2 :]
    return None, b""


# --- what passes -----------------------------------------------------------------------------------------------------

CHUNKED: Final = b"Transfer-Encoding: chunked"
KEYTERMS: Final = b"&".join(b"keyterm=term%%20%03d+" % n + b"x" * 280 for n in range(100))
LISTEN: Final = b"/v1/listen?model=nova-3"
CHUNKS: Final = {
    "one": b"5\r\naudio\r\n0\r\n\r\n",
    "none": b"0\r\n\r\n",
    "byte by byte": b"1\r\na\r\n1\r\nu\r\n01\r\nd\r\n001\r\ni\r\n1\r\no\r\n00\r\n\r\n",
    "hex": b"A\r\n0123456789\r\n1a\r\nabcdefghijklmnopqrstuvwxyz\r\n0\r\n\r\n",
    "extensions": b'5;a=b;c="d"\r\naudio\r\n0;last\r\n\r\n',
    "trailers": b"5\r\naudio\r\n0\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n",
    "what looks like the end": b"8\r\n0\r\n\r\n0\r\n\r\n0\r\n\r\n",
    "what looks like a request": b"1d\r\nGET /v1/models HTTP/1.1\r\n\r\nab\r\n0\r\n\r\n",
}

PASSES: Final[dict[str, bytes]] = {
    "models": get(),
    "a model": get(target=b"/v1/models/9d9f6a0e-5d0f-4c70-8d6f-0c54f9d7f1a2"),
    "HEAD": post(first=b"HEAD /v1/models HTTP/1.1"),
    "an agent's models": get(target=b"/v1/agent/settings/think/models"),
    **{
        f"POST {path.decode()}": post(b"Content-Length: 5", first=b"POST " + path + b" HTTP/1.1") + b"audio"
        for path in (b"/v1/listen", b"/v1/speak", b"/v2/speak", b"/v1/read")
    },
    "a body of nothing": post(b"Content-Length: 0"),
    "no body at all": post(),
    "a length with zeros before it": post(b"Content-Length: 005") + b"audio",
    "100 KiB": post(b"Content-Length: 102400") + bytes(range(256)) * 400,
    "a body that looks like a request": post(b"Content-Length: 33") + b"GET /v1/models HTTP/1.1\r\nHost: dg",
    "a body that looks like chunks": post(b"Content-Length: 15") + b"5\r\naudio\r\n0\r\n\r\n",
    "GET with a body": get(b"Content-Length: 5") + b"audio",
    "GET with chunks": get(CHUNKED) + CHUNKS["one"],
    **{f"chunks: {name}": post(CHUNKED) + body for name, body in CHUNKS.items()},
    "chunked in odd case": post(b"TRANSFER-encoding:  cHuNkEd ") + CHUNKS["one"],
    "100 keyterms": post(b"Content-Length: 5", first=b"POST /v1/listen?" + KEYTERMS + b" HTTP/1.1") + b"audio",
    "escapes": get(target=b"/v1/models?a=%00&b=%0d%0aX:%20y%20HTTP/1.1%0d%0a&c=%&d=%zz&e=%C3%A9&f=a+b%2Bc&&=&g"),
    "every byte of a target": get(target=b"/v1/models?" + bytes(set(range(0x21, 0x7F)) - {ord("#")})),
    "an empty query": get(target=b"/v1/models?"),
    "two question marks": get(target=b"/v1/models??a?b"),
    "every byte of a value": get(b"X-Mine: a" + bytes({*range(0x20, 0x7F), 0x09, *range(0x80, 0x100)}) + b"z"),
    "obs-text": get(*(b"X-Mine-%02x: %c" % (byte, byte) for byte in range(0x80, 0xB0))),
    "white space around a value": get(b"X-Mine:\t  a \t b  \t", b"X-Mine:b"),
    "an empty value": get(b"X-Mine:", b"X-Mine: ", b"X-Mine:\t"),
    "every character of a name": get(b"X-Mine!#$%&'*+.^_`|~09AZaz-: a"),
    "a name many times": get(*[b"X-Mine: a"] * 90),
    "values that look like framing": get(b"X-Mine: Content-Length: 5", b"X-Mine: chunked", b"X-Mine: a: b, c;d"),
    "names that look like framing": get(
        b"X-Mine-Content-Length: 5", b"Content_Length: 5", b"Transfer_Encoding: chunked"
    ),
    "24 KiB in a value": get(b"X-Mine: " + b"\xe9" * 24 * 1024),
    "hop-by-hop": get(
        *(
            b"Connection: keep-alive, X-Gone",
            b"X-Gone: 1",
            b"Keep-Alive: timeout=5",
            b"TE: trailers",
            b"Trailer: X-Sum",
        ),
        *(b"Proxy-Connection: keep-alive", b"Cookie: a=b", b"Proxy-Authorization: Basic YTpi", b"X-Mine: a"),
    ),
    "an upgrade to h2c": get(
        b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings", b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"
    ),
    "an empty line before it": b"\r\n" + get(),
    "HTTP/1.0": get().replace(b"HTTP/1.1", b"HTTP/1.0"),
    "HTTP/1.0 with a body": post(b"Content-Length: 5", first=b"POST /v1/listen HTTP/1.0") + b"audio",
    "the key in two headers": get(b"X-Api-Key: KEY"),
    "Expect": post(b"Content-Length: 5", b"Expect: 100-continue") + b"audio",
    "Expect with chunks": post(CHUNKED, b"Expect: 100-Continue") + CHUNKS["extensions"],
}


@pytest.mark.parametrize("sent", PASSES.values(), ids=PASSES)
@pytest.mark.parametrize("step", [0, 7, 1], ids=["at once", "in sevens", "byte by byte"])
def test_what_passes_is_exactly_what_was_meant(court: Court, sent: bytes, step: int) -> None:
    sent = sent.replace(b"KEY", court.proxy.key.encode())
    if step and len(sent) > 4096:
        step *= 997
    pieces = [sent[at : at + step] for at in range(0, len(sent), step)] if step else [sent]
    if b"HTTP/1.0" in sent:
        got = exchange(court.proxy, *pieces)
    else:
        got = exchange(court.proxy, *pieces, SECOND, methods=[sent.split(b" ")[0].decode()])
    assert {answer.status for answer in got} == {200}
    requests = court.verdict()
    meant = [*plain(sent)]
    if b"HTTP/1.0" not in sent:
        meant += plain(SECOND)
    assert len(requests) == len(meant) == len(got)
    for one, request in zip(meant, requests, strict=True):
        assert one is not None
        assert one.is_what_came(request)


def test_pipelined_requests_reach_the_judge_one_by_one_and_in_order(court: Court) -> None:
    sent = b"".join(PASSES[name] for name in PASSES if "1.0" not in name and name != "HEAD")
    got = exchange(court.proxy, sent + SECOND)
    requests = court.verdict()
    meant = list(plain(sent + SECOND))
    assert len(requests) == len(meant) == len(got) > 40
    for one, request, answer in zip(meant, requests, got, strict=True):
        assert one is not None
        assert one.is_what_came(request)
        assert_answers(answer, request)


def assert_answers(answer: Answer, request: Request) -> None:
    assert answer.json() == {"method": request.method.decode(), "target": request.target.decode()}


HANDSHAKES: Final[dict[str, bytes]] = {
    **{
        path.decode(): ws(target=path)
        for path in (
            *(b"/v1/listen", b"/v1/listen/stream", b"/v2/listen", b"/v1/speak", b"/v2/speak", b"/v1/agent/converse"),
            b"/v1/listen?" + KEYTERMS,
        )
    },
    "a subprotocol": ws(b"Sec-WebSocket-Protocol: token, KEY").replace(AUTH, b""),
    "a subprotocol and a header": ws(b"Sec-WebSocket-Protocol: bearer,KEY, other"),
    "an extension": ws(b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"),
    "more in Connection": ws(b"Connection: keep-alive, UPGRADE, X-Gone", b"X-Gone: 1", without=b"Connection"),
    "Content-Length: 0": ws(b"Content-Length: 0"),
    "odd values": ws(b"X-Mine: \xff\t\x80 ", b"Origin: null", b"Cookie: a=b"),
}


@pytest.mark.parametrize("sent", HANDSHAKES.values(), ids=HANDSHAKES)
def test_a_handshake_passes_as_one_and_its_frames_behind_it(court: Court, sent: bytes) -> None:
    sent = sent.replace(b"KEY", court.proxy.key.encode())
    frame = b"\x82\x85\x01\x02\x03\x04`wgmn"
    with connect(court.proxy) as sock:
        send(sock, court.proxy, sent)
        assert read_head(sock).startswith(b"HTTP/1.1 101 ")
        send(sock, court.proxy, frame)
    (request,) = court.verdict()
    (meant,) = plain(sent)
    assert meant is not None
    assert meant.is_what_came(request)
    assert request.all(b"sec-websocket-version") == [b"13"]
    assert re.fullmatch(rb"[A-Za-z0-9+/]{22}==", request.all(b"sec-websocket-key")[0])
    assert request.all(b"sec-websocket-key") != [b"dGhlIHNhbXBsZSBub25jZQ=="]  # a nonce of ours
    assert not request.all(b"content-length")
    assert not request.all(b"sec-websocket-extensions")


# --- what might ------------------------------------------------------------------------------------------------------

ODD: Final = (
    *(
        b"\r",
        b"\n",
        b"\r\n",
        b"\n\n",
        b"\r\n\r\n",
        b"\x00",
        b"\x0b",
        b"\x0c",
        b"\t",
        b" ",
        b"\r\n ",
        b"\r\n\t",
        b":",
        b";",
    ),
    *(b",", b'"', b"#", b"\x7f", b"\x80", b"\xa0", b"\xff", b"\xc4\x8a", b"+", b"-", b"0", b"x", b"%0d%0a"),
)
GOOD: Final = (
    *(b"X-Mine: a", b"X-Mine:", b"x-mine: \xe9\t", b"X-Mine: GET / HTTP/1.1", b"X-Mine: 5;a, b", b"X-Forwarded-For: 1"),
    *(
        b"Connection: keep-alive",
        b"Connection: X-Gone",
        b"Upgrade: h2c",
        b"Cookie: a=b",
        b"TE: trailers",
        b"Trailer: X",
    ),
)
BAD: Final = (
    *(b"Content-Length: 5", b"Content-Length: 0", b"content-length:5", b"Content-Length: 5, 5", b"Content-Length: +5"),
    *(b"Content-Length : 5", b" Content-Length: 5", b"Content-Length: 0x5", b"Content-Length", b"Content-Length: 5;"),
    *(CHUNKED, b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding:\x0bchunked", b"Transfer-Encoding : chunked"),
    *(b"Transfer-Encoding: identity", b"Transfer-Encoding: xchunked", b"Transfer-Encoding: chunked, chunked"),
    *(b"Host: other", b"Connection: close", b"Connection: Content-Length", b"Connection: X-Mine, Transfer-Encoding"),
    *(b"Upgrade: websocket", b"Expect: 200-maybe", b"Authorization: Token KEY", b": a", b"a", b""),
)
TARGETS: Final = (
    *(b"/v1/models", b"/v1/models?a=b&%0d%0a", b"/v1/models/x", b"/v1/status", b"/v1/models/", b"//v1/models"),
    *(b"*", b"http://dg/v1/models"),
)
BODIES: Final = (
    (b"X-Mine: no body", b""),
    (b"Content-Length: 0", b""),
    (b"Content-Length: 5", b"audio"),
    (b"Content-Length: 15", CHUNKS["one"]),
    *((CHUNKED, chunks) for chunks in CHUNKS.values()),
)


@st.composite
def conversations(draw: st.DrawFn) -> bytes:
    """A good request, and up to two faults or harmless oddities put into it."""
    first = draw(st.sampled_from([b"POST /v1/listen?a=%00 HTTP/1.1", b"GET /v1/models HTTP/1.1"]))
    framing, body = draw(st.sampled_from(BODIES))
    good = draw(st.lists(st.sampled_from(GOOD), max_size=3))
    lines = [first, *draw(st.permutations([HOST[:-2], AUTH[:-2], framing, *good]))]
    faults = draw(st.lists(st.sampled_from(["line", "odd", "odd", "value", "value", "target", "word"]), max_size=2))
    if "line" in faults:
        lines.insert(draw(st.integers(1, len(lines))), draw(st.sampled_from(BAD)))
    if "value" in faults:
        lines.append(b"X-Mine: a" + draw(st.sampled_from(ODD) | st.binary(max_size=3)) + b"b")
    if "target" in faults:
        lines[0] = b" ".join([b"GET", draw(st.sampled_from(TARGETS)) + draw(st.sampled_from(ODD)), b"HTTP/1.1"])
    if "word" in faults:
        lines[0] = draw(st.sampled_from([first.lower(), first[:-1] + b"0", first + b" ", b" " + first, first[:-4]]))
    head = bytearray(b"\r\n".join([*lines, b"", b""]))
    if "odd" in faults:
        at = draw(st.integers(0, len(head)))
        head[at : at + draw(st.integers(0, 2))] = draw(st.sampled_from(ODD))
    return bytes(head) + body


def both(sent: bytes, first: bytes, second: bytes) -> bytes:
    """A request with one of its two lines twice, as no careless edit of it would leave it."""
    return sent.replace(b"\r\n\r\n", b"\r\n" + first + b"\r\n" + second + b"\r\n\r\n", 1)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(sent=conversations())
@example(sent=both(get(), b"Content-Length: 5", CHUNKED) + b"0\r\n\r\n")
@example(sent=both(get(), b"Content-Length: 5", b"Content-Length: 0") + b"audio")
@example(sent=get(b"X-Mine: a\n b"))
@example(sent=get(b"Connection: X-Mine,: Transfer-Encoding", b"X-Mine: dropped"))
@example(sent=get(b"Connection: close, X-Mine", b"X-Mine: dropped", b"X-Mine-Too: kept"))
@example(sent=get(b"X-Mine: a\r\n\r\nGET /v1/models?inner HTTP/1.1"))
def test_it_is_refused_unread_or_read_by_both_alike(house: Court, sent: bytes) -> None:
    court = house
    court.judge.forget()  # what an example that failed has left
    sent = (sent + SECOND).replace(b"KEY", court.proxy.key.encode())
    with connect(court.proxy) as sock:
        sock.sendall(sent)
        got = list(answers(read_all(sock)))
    # One that was cut, its head good and its body not, may come to the judge after its client has its 400: it counts
    # for nothing, as long as it never becomes whole.
    requests = [request for request in court.verdict() if request.whole]
    meant = plain(sent)
    event(str([a.status for a in got]))
    for number, answer in enumerate(got, start=1):
        one = next(meant, None)
        if answer.status == 200:
            assert one is not None
            request = requests.pop(0)
            assert one.is_what_came(request)
            assert_answers(answer, request)
        if answer.values("connection"):
            assert (answer.values("connection"), number) == (["close"], len(got))
    assert not requests
