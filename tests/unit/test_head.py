"""What a request's head may be: one reading of its bytes, or a refusal (bad-inputs.md F and H)."""

import re
from typing import Final

import h11
import pytest
from hypothesis import example, given, strategies as st

from dgproxy.wire import refusals
from dgproxy.wire.exchange import Downstream
from dgproxy.wire.fields import MAX_HEADERS
from dgproxy.wire.head import MAX_HEAD, Head, find_end, judge
from dgproxy.wire.refusals import Refusal

HOST: Final = b"Host: dg\r\n"
TOKEN: Final = "!#$%&'*+.^_`|~0123456789ABCXYZabcxyz-"


def of(*lines: bytes, first: bytes = b"POST /v1/listen HTTP/1.1") -> bytes:
    """A head with a Host, and these lines beside it."""
    return b"\r\n".join([first, b"Host: dg", *lines, b"", b""])


def accepted(raw: bytes) -> Head:
    head = judge(raw)
    assert isinstance(head, Head), head
    return head


# --- what passes -----------------------------------------------------------------------------------------------------


def test_a_head_is_read_as_its_bytes_say() -> None:
    raw = of(
        b"X-One:a",
        b"x-two: \t b\tc \t",
        b"X-ONE: caf\xe9",
        b"Connection: Keep-Alive , Foo",
        b"Content-Length: 5",
        first=b"POST /v1/listen?a=%20+&b=?c HTTP/1.1",
    )
    head = accepted(raw)
    assert (head.method, head.target, head.minor) == (b"POST", b"/v1/listen?a=%20+&b=?c", 1)
    assert (head.path, head.query) == (b"/v1/listen", b"a=%20+&b=?c")
    assert head.headers == [
        (b"host", b"dg"),
        (b"x-one", b"a"),
        (b"x-two", b"b\tc"),
        (b"x-one", b"caf\xe9"),
        (b"connection", b"Keep-Alive , Foo"),
        (b"content-length", b"5"),
    ]
    assert head.raw == raw
    assert head.connection == {b"keep-alive", b"foo"}
    assert (head.content_length, head.chunked, head.has_body) == (5, False, True)
    assert head.all(b"x-one") == [b"a", b"caf\xe9"]
    assert (head.one(b"x-one"), head.one(b"x-two"), head.one(b"x-three")) == (None, b"b\tc", None)


@pytest.mark.parametrize(
    ("lines", "length", "chunked", "has_body"),
    [
        ([], None, False, False),
        ([b"Content-Length: 0"], 0, False, False),
        ([b"Content-Length: 1"], 1, False, True),
        ([b"Content-Length: 007"], 7, False, True),
        ([b"Content-Length: 999999999999999999"], 10**18 - 1, False, True),
        ([b"Transfer-Encoding: chunked"], None, True, True),
        ([b"transfer-encoding:ChUnKeD"], None, True, True),  # F8
    ],
)
def test_a_body_is_framed_by_one_length_or_by_chunks(
    lines: list[bytes], length: int | None, *, chunked: bool, has_body: bool
) -> None:
    head = accepted(of(*lines))
    assert (head.content_length, head.chunked, head.has_body) == (length, chunked, has_body)


@pytest.mark.parametrize(
    "host",
    [b"dg", b"dg.example:443", b"127.0.0.1:1", b"[::1]:8443", b"[fe80::1]", b"a:", b"https://dg.example", b"ws://h:1"],
)
def test_any_host_that_an_sdk_sends_will_do(host: bytes) -> None:
    assert accepted(b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n").one(b"host") == host


def test_every_character_of_a_token_may_stand_in_a_name() -> None:
    assert accepted(of(*(f"{character}: a".encode() for character in TOKEN))).headers[1:] == [
        (character.lower().encode(), b"a") for character in TOKEN
    ]


def test_a_head_of_exactly_the_bounds_passes() -> None:
    assert (MAX_HEAD, MAX_HEADERS) == (32 * 1024, 100)
    lines = [b"a: b"] * (MAX_HEADERS - 1)
    assert len(accepted(of(*lines)).headers) == MAX_HEADERS
    bare = len(of(b"a: "))
    full = of(b"a: " + b"x" * (MAX_HEAD - bare))
    assert len(full) == MAX_HEAD
    assert find_end(full) == MAX_HEAD
    accepted(full)


def test_upgrade_and_expect_are_told() -> None:
    head = accepted(of(b"Upgrade: WebSocket", b"Connection: Upgrade", b"Expect: 100-Continue"))
    assert (head.upgrade, head.websocket, head.expects_continue) == (b"websocket", True, True)
    assert accepted(of(b"Upgrade: h2c")).websocket is False
    assert accepted(of(b"Upgrade: foo, websocket")).websocket  # so that it is judged as a handshake, and refused
    assert accepted(of(b"Upgrade: foo", b"Upgrade: websocket")).upgrade == b"foo, websocket"
    assert accepted(of(b"Upgrade: websocket", b"Upgrade: foo")).websocket
    assert accepted(of()).expects_continue is False


# --- what is refused -------------------------------------------------------------------------------------------------

POST: Final = b"POST /v1/listen HTTP/1.1\r\n"
FRAMING: Final[dict[str, bytes]] = {
    "F1 length then chunked": of(b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    "F1 chunked then length": of(b"Transfer-Encoding: chunked", b"Content-Length: 5"),
    "F1 length 0 and chunked": of(b"Content-Length: 0", b"Transfer-Encoding: chunked"),
    "F2 two lengths": of(b"Content-Length: 5", b"Content-Length: 6"),
    "F2 two equal lengths": of(b"Content-Length: 5", b"Content-Length: 5"),
    "F2 a list of lengths": of(b"Content-Length: 5, 5"),
    **{
        f"F3 length {value!r}": of(b"Content-Length: " + value)
        for value in (
            b"",
            b"+5",
            b"-5",
            b"0x5",
            b"5.0",
            b"5 5",
            b"5\t0",
            b"1_000",
            b"\xd9\xa5",
            b"\xb2",
            b"5;",
            b"'5'",
            b"1e3",
        )
    },
    "F4 a length of 20 digits": of(b"Content-Length: 00000000000000000005"),
    "F4 2^63": of(b"Content-Length: 9223372036854775808"),
    "F4 2^64+1": of(b"Content-Length: 18446744073709551617"),
    "F6 chunked in 1.0": of(b"Transfer-Encoding: chunked", first=b"POST /v1/listen HTTP/1.0"),
    **{
        f"F7 coding {value!r}": of(b"Transfer-Encoding: " + value)
        for value in (
            b"",
            b"gzip",
            b"gzip, chunked",
            b"chunked, gzip",
            b"identity",
            b"chunked, chunked",
            b"chunked,",
            b",chunked",
            b"chunked;q=1",
            b'"chunked"',
            b"chunked chunked",
            b"xchunked",
            b"chunked\xa0",
            b"\xc5\xbfchunked",
        )
    },
    "F7 coding twice": of(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    "F9 VT": of(b"Transfer-Encoding: \x0bchunked"),
    "F9 FF": of(b"Transfer-Encoding: chunked\x0c"),
    "F9 NUL": of(b"Transfer-Encoding: chunked\x00"),
    "F9 VT in the name": of(b"Transfer-Encoding\x0b: chunked"),
    "F10 space before the colon": of(b"Content-Length : 5"),
    "F9 a tab before chunked": of(b"Transfer-Encoding:\tchunked"),
    "F9 a tab behind chunked": of(b"Transfer-Encoding: chunked \t"),
    "F9 a tab before a length": of(b"Content-Length: \t5"),
    "F9 a tab behind a length": of(b"Content-Length: 5\t"),
    "F10 tab before the colon": of(b"Content-Length\t: 5"),
    "F11 obs-fold by space": of(b"X-A: b", b" c"),
    "F11 obs-fold by tab": of(b"X-A: b", b"\tc"),
    "F11 first header begins with a space": POST + b" Host: dg\r\n\r\n",
    "F12 bare LF": POST + b"Host: dg\nX: y\r\n\r\n",
    "F12 LF in a value": of(b"X: a\nb"),
    "F12 a line that ends with LF": of(b"X: a\nY: b"),
    "F12 bare LF after the request line": b"POST / HTTP/1.1\nHost: dg\r\n\r\n",
    "F13 bare CR in a value": of(b"X: a\rb"),
    "F13 CR CR LF": POST + b"Host: dg\r\r\n\r\n",
    **{
        f"F14 {byte!r} in a {where}": raw
        for byte in (b"\x00", b"\x01", b"\x08", b"\x0b", b"\x0c", b"\x1b", b"\x1f", b"\x7f")
        for where, raw in {
            "name": of(b"X" + byte + b"Y: a"),
            "value": of(b"X: a" + byte + b"b"),
            "target": of(first=b"POST /v1/listen?a" + byte + b" HTTP/1.1"),
            "method": of(first=b"PO" + byte + b"ST /v1/listen HTTP/1.1"),
        }.items()
    },
    "F15 no colon": of(b"X"),
    "F15 empty name": of(b": a"),
    **{
        f"F15 {byte!r} in a name": of(b"X" + byte + b"Y: a")
        for byte in (b"(", b"@", b'"', b"\xc3\xa9", b",", b"[", b"=")
    },
    **{
        f"F24 request line {line!r}": line + b"\r\n" + HOST + b"\r\n"
        for line in (
            b"GET  / HTTP/1.1",
            b"GET /  HTTP/1.1",
            b"GET\t/ HTTP/1.1",
            b"GET /\tHTTP/1.1",
            b" GET / HTTP/1.1",
            b"GET / HTTP/1.1 ",
            b"get / HTTP/1.1",
            b"Get / HTTP/1.1",
            b"GET /",
            b"GET / ",
            b"GET",
            b"",
            b"/ HTTP/1.1",
            b"GET / HTTP/1.1 extra",
            b"GET /a\tb HTTP/1.1",
            b"GET /a b HTTP/1.1",
            b"GETTINGMODELSFROM / HTTP/1.1",
        )
    },
    **{
        f"F26 version {version!r}": b"GET / " + version + b"\r\n" + HOST + b"\r\n"
        for version in (
            b"HTTP/0.9",
            b"HTTP/1.2",
            b"HTTP/1.10",
            b"HTTP/2.0",
            b"HTTP/2",
            b"HTTP/3",
            b"http/1.1",
            b"HTTP/1,1",
            b"HTTP/01.1",
            b"HTTP/1.\xb2",
            b"ICY/1.1",
        )
    },
    "more than a head": of() + b"GET",
    "F26 HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\n",
    "H6 raw non-ASCII in the target": of(first="GET /v1/listen?keyterm=é HTTP/1.1".encode()),
    "H8 Connection names Content-Length": of(b"Connection: close, Content-Length"),
    "H8 Connection names Transfer-Encoding": of(b"Connection: transfer-encoding"),
    "H8 Connection names it after a tab": of(b"Connection: close,\tContent-Length\t, a"),
    "H8 Connection names Host": of(b"Connection: a", b"Connection: HOST"),
}


@pytest.mark.parametrize("raw", FRAMING.values(), ids=FRAMING)
def test_ambiguous_framing_is_refused_and_ends_the_connection(raw: bytes) -> None:
    refusal = judge(raw)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.close) == (400, True)


OTHER: Final[dict[str, tuple[bytes, Refusal]]] = {
    "H1 no Host": (b"GET / HTTP/1.1\r\n\r\n", refusals.BAD_HOST),
    "H1 no Host in 1.0": (b"GET / HTTP/1.0\r\n\r\n", refusals.BAD_HOST),
    "H1 two": (of(b"Host: other"), refusals.BAD_HOST),
    "H1 the same twice": (of(b"Host: dg"), refusals.BAD_HOST),
    **{
        f"H1 {value!r}": (b"GET / HTTP/1.1\r\nHost: " + value + b"\r\n\r\n", refusals.BAD_HOST)
        for value in (
            b"",
            b"user@dg",
            b"dg/path",
            b"dg path",
            b"dg:port",
            b"dg:123456",
            b"[::1",
            b"[dg]",
            b"dg?",
            b"dg#",
            b"d\xe9",
            b"https://u@dg",
            b"https://dg/x",
            b"https://dg/",
            b"https://dg:123456",
            b"file://dg",
            b"dg, dg",
        )
    },
    "H2 absolute-form": (of(first=b"GET http://other.example/v1/listen HTTP/1.1"), refusals.BAD_TARGET),
    "H2 authority-form": (of(first=b"GET other.example:80 HTTP/1.1"), refusals.BAD_TARGET),
    "H2 asterisk": (of(first=b"OPTIONS * HTTP/1.1"), refusals.BAD_TARGET),
    "H2 CONNECT": (of(first=b"CONNECT other.example:443 HTTP/1.1"), refusals.BAD_METHOD),
    "H2 CONNECT of a path": (of(first=b"CONNECT /v1/listen HTTP/1.1"), refusals.BAD_METHOD),
    "H2 TRACE": (of(first=b"TRACE /v1/listen HTTP/1.1"), refusals.BAD_METHOD),
    "H4 fragment": (of(first=b"GET /v1/models#x HTTP/1.1"), refusals.BAD_TARGET),
    "H7 101 headers": (of(*[b"a: b"] * MAX_HEADERS), refusals.HEAD_TOO_LARGE),
    "F32 Expect": (of(b"Expect: 200-maybe"), refusals.EXPECTATION_FAILED),
    "F32 Expect twice": (of(b"Expect: 100-continue", b"Expect: 100-continue"), refusals.EXPECTATION_FAILED),
    "F32 Expect in 1.0": (of(b"Expect: 100-continue", first=b"POST / HTTP/1.0"), refusals.EXPECTATION_FAILED),
}


@pytest.mark.parametrize(("raw", "refusal"), OTHER.values(), ids=OTHER)
def test_a_head_that_asks_for_what_is_not_served_is_told_so(raw: bytes, refusal: Refusal) -> None:
    assert judge(raw) is refusal
    assert refusal.close


# --- where it ends ---------------------------------------------------------------------------------------------------

ENDS: Final[dict[str, tuple[bytes, int | Refusal | None]]] = {
    "nothing": (b"", None),
    "no end yet": (b"GET / HTTP/1.1\r\nHost: dg\r\n", None),
    "an end and more": (b"GET / HTTP/1.1\r\n\r\nGET /", 18),
    "F12 bare LF ends nothing": (b"GET / HTTP/1.1\n\n", refusals.BAD_FRAMING),
    "F12 bare LF at once": (b"GET / HTTP/1.1\nHo", refusals.BAD_FRAMING),
    "F12 CRLF LF": (b"GET / HTTP/1.1\r\nHost: dg\r\n\n", refusals.BAD_FRAMING),
    "F13 CR CR LF": (b"GET / HTTP/1.1\r\r\n", refusals.BAD_FRAMING),
    "a CR may yet become CRLF": (b"GET / HTTP/1.1\r", None),
    "F14 NUL at once": (b"GET /\x00", refusals.BAD_FRAMING),
    "H7 32 KiB without an end": (b"x" * MAX_HEAD, None),
    "H7 a byte more": (b"x" * (MAX_HEAD + 1), refusals.HEAD_TOO_LARGE),
    "H7 an end at the bound": (b"x" * (MAX_HEAD - 4) + b"\r\n\r\n", MAX_HEAD),
    "H7 an end beyond": (b"x" * (MAX_HEAD - 3) + b"\r\n\r\n", refusals.HEAD_TOO_LARGE),
    "H7 an end far beyond": (b"x" * (9 * MAX_HEAD) + b"\r\n\r\n", refusals.HEAD_TOO_LARGE),
}


@pytest.mark.parametrize(("buffer", "end"), ENDS.values(), ids=ENDS)
def test_where_a_head_ends(buffer: bytes, end: int | Refusal | None) -> None:
    assert find_end(buffer) == end
    assert find_end(bytearray(buffer)) == end


def in_pieces(raw: bytes, cuts: list[int]) -> int | Refusal | None:
    """As a connection asks, with each piece that comes."""
    buffer = bytearray()
    seen = 0
    places = sorted({min(cut, len(raw)) for cut in cuts} | {len(raw)})
    for start, stop in zip([0, *places], places, strict=False):
        buffer += raw[start:stop]
        end = find_end(buffer, seen)
        if end is not None:
            return end
        seen = len(buffer)
    return None


@given(
    st.one_of(
        st.sampled_from(list(FRAMING.values())),
        st.sampled_from([raw for raw, _ in OTHER.values()]),
        st.lists(
            st.sampled_from([b"\r", b"\n", b"a", b": ", b"\r\n", b"\r\n\r\n", b"GET / HTTP/1.1\r\n", b"\x00"])
        ).map(b"".join),
    ),
    st.lists(st.integers(0, 400)),
)
def test_a_head_in_pieces_is_taken_only_where_the_whole_one_is(raw: bytes, cuts: list[int]) -> None:
    whole, pieces = find_end(raw), in_pieces(raw, cuts)
    if isinstance(pieces, int):
        assert pieces == whole
    elif pieces is None:
        assert whole is None
    elif isinstance(whole, int):  # refused on sight of a stray byte: then the whole head is no good either
        assert isinstance(judge(raw[:whole]), Refusal) or b"\r\n\r\n" not in raw[:whole]


@given(st.integers(1, 60))
def test_a_good_head_in_pieces_is_taken_as_one(step: int) -> None:
    raw = of(b"A: b", b"Content-Length: 3")
    assert in_pieces(raw + b"abc", list(range(0, len(raw) + 3, step))) == len(raw)


def test_a_head_byte_by_byte_costs_no_more_than_its_bytes() -> None:
    """Each look may go back three bytes and no further."""

    class Watched(bytearray):
        starts: list[int]

        def find(self, sub: object, start: int | None = 0, stop: int | None = None, /) -> int:  # type: ignore[override]
            assert start is not None
            self.starts.append(start)
            return bytes(self).find(sub, start, stop)  # type: ignore[arg-type]

    buffer = Watched()
    buffer.starts = []
    for seen, byte in enumerate(of()[:-1]):
        buffer.append(byte)
        assert find_end(buffer, seen) is None
        assert buffer.starts[-1] >= seen - 3


# --- against other parsers -------------------------------------------------------------------------------------------

names = st.text(TOKEN, min_size=1, max_size=12).map(str.encode)
values = st.lists(st.integers(0x21, 0xFF).filter(lambda byte: byte != 0x7F) | st.sampled_from(b" \t"), max_size=20).map(
    bytes
)
odd = st.binary(max_size=3)
lines = st.one_of(
    st.tuples(names, values).map(b": ".join),
    st.tuples(names, odd, values).map(b"".join),
    st.sampled_from(
        [b"Content-Length: 3", b"Transfer-Encoding: chunked", b"Host: b", b"Connection: close", b" x", b""]
    ),
)
first_lines = st.one_of(
    st.sampled_from([b"GET / HTTP/1.1", b"POST /v1/listen?a=b HTTP/1.1", b"GET / HTTP/1.0", b"GET /a#b HTTP/1.1"]),
    st.binary(max_size=24),
)


@given(first_lines, st.lists(lines, max_size=6))
@example(b"GET / HTTP/1.1", [b"\x80: a"])
def test_whatever_passes_is_read_alike_by_h11_and_by_splitting_lines(first: bytes, block: list[bytes]) -> None:
    raw = of(*block, first=first)
    end = find_end(raw)
    if not isinstance(end, int):
        return
    head = judge(raw[:end])
    if isinstance(head, Refusal):
        assert head.status >= 400
        return
    exchange = Downstream.begin(head)
    assert isinstance(exchange, Downstream)
    peer = h11.Connection(h11.SERVER)
    peer.receive_data(head.raw)
    request = peer.next_event()
    assert isinstance(request, h11.Request)
    assert (request.method, request.target) == (head.method, head.target)
    assert [(name, bytes(value)) for name, value in request.headers] == [
        (name, value.lower() if name == b"transfer-encoding" else value) for name, value in head.headers
    ]
    plain = [line.split(b":", 1) for line in head.raw.split(b"\r\n")[1:-2]]
    assert [(name.lower(), value.strip(b" \t")) for name, value in plain] == head.headers
    assert head.target.partition(b"?")[::2] == (head.path, head.query)
    assert len(head.all(b"host")) == 1
    assert not (head.chunked and head.all(b"content-length"))


@given(st.binary(max_size=200))
def test_no_bytes_make_it_raise(raw: bytes) -> None:
    find_end(raw)
    assert isinstance(judge(raw), Head | Refusal)
    assert isinstance(judge(of() + raw), Head | Refusal)


def test_a_refusal_holds_nothing_of_what_was_sent() -> None:
    for raw in (*FRAMING.values(), *(raw for raw, _ in OTHER.values())):
        refusal = judge(raw.replace(b"dg", b"sentinel"))
        assert isinstance(refusal, Refusal)
        assert not re.search("sentinel|other", refusal.message)


def test_no_credential_is_in_what_a_head_shows_of_itself() -> None:
    raw = of(b"Authorization: Token secret", first=b"GET /secret?token=secret HTTP/1.1")
    head = judge(raw)
    assert isinstance(head, Head)
    assert "secret" not in repr(head)
    assert "secret" not in repr([head])
    assert "secret" not in str(head)
