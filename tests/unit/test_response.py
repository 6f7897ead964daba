"""An upstream's answer is held to the framing that clients are held to (bad-inputs.md F27, RFC 9112 4 and 6)."""

from typing import Final

import pytest
from hypothesis import given, strategies as st

from dgproxy.wire.fields import MAX_HEADERS
from dgproxy.wire.response import Answer, BadAnswer, judge


def of(*lines: bytes, first: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"\r\n".join([first, *lines, b"", b""])


def test_an_answer_is_read_as_its_bytes_say() -> None:
    raw = of(b"Content-Length: 5", b"dg-Request-Id:r", b"X: \t a\tb \t", b"Set-Cookie: caf\xe9", b"set-cookie: b")
    answer = judge(raw)
    assert (answer.status, answer.reason, answer.raw) == (200, b"OK", raw)
    assert (answer.content_length, answer.chunked) == (5, False)
    assert answer.headers == [
        (b"content-length", b"5"),
        (b"dg-request-id", b"r"),
        (b"x", b"a\tb"),
        (b"set-cookie", b"caf\xe9"),
        (b"set-cookie", b"b"),
    ]
    assert (answer.one(b"x"), answer.one(b"set-cookie"), answer.one(b"y")) == (b"a\tb", None, None)


GOOD: Final[dict[str, tuple[bytes, int, bytes]]] = {
    "no reason": (of(first=b"HTTP/1.1 204"), 204, b""),
    "an empty reason": (of(first=b"HTTP/1.1 404 "), 404, b""),
    "a reason of words": (of(first=b"HTTP/1.0 429 Too Many Requests"), 429, b"Too Many Requests"),
    "a status nobody knows": (of(first=b"HTTP/1.1 599 \xe9"), 599, b"\xe9"),
    "informational": (of(first=b"HTTP/1.1 100 Continue"), 100, b"Continue"),
    "a 101 with an empty body": (of(b"Content-Length: 0", first=b"HTTP/1.1 101 Switch"), 101, b"Switch"),
    "F30 a 204 with a length": (of(b"Content-Length: 5", first=b"HTTP/1.1 204 X"), 204, b"X"),
    "H14": (of(b"Connection: X-Secret, close, , Content-Lengths", b"X-Secret: 1"), 200, b"OK"),
    "chunked": (of(b"Transfer-Encoding: Chunked"), 200, b"OK"),
    "until the end": (of(b"Connection: close"), 200, b"OK"),
    "100 headers": (of(*[b"a: b"] * MAX_HEADERS), 200, b"OK"),
}


@pytest.mark.parametrize(("raw", "status", "reason"), GOOD.values(), ids=GOOD)
def test_a_valid_answer_is_taken(raw: bytes, status: int, reason: bytes) -> None:
    answer = judge(raw)
    assert (answer.status, answer.reason) == (status, reason)
    assert answer.chunked is (b"Chunked" in raw)


BAD: Final[dict[str, bytes]] = {
    "F27 length and chunked": of(b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    "F27 two lengths": of(b"Content-Length: 5", b"Content-Length: 5"),
    "F27 a list": of(b"Content-Length: 5, 5"),
    **{f"F27 length {value!r}": of(b"Content-Length: " + value) for value in (b"", b"-1", b"+1", b"0x1", b"1" * 19)},
    **{
        f"F27 coding {value!r}": of(b"Transfer-Encoding: " + value)
        for value in (b"", b"gzip", b"gzip, chunked", b"identity", b"chunked, chunked")
    },
    "F27 coding twice": of(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    "F27 chunked in 1.0": of(b"Transfer-Encoding: chunked", first=b"HTTP/1.0 200 OK"),
    **{
        f"F27 Connection: {value!r}": of(b"Connection: " + value, b"Content-Length: 5")
        for value in (b"Content-Length", b"close,\tcontent-length", b"x, Transfer-Encoding ,y")
    },
    "F27 named in the second Connection": of(b"Connection: close", b"Connection: Content-Length"),
    **{
        f"F27 {status!r} with {line!r}": of(line, first=b"HTTP/1.1 " + status)
        for status in (b"100 Continue", b"101 Switch", b"103 Hints")
        for line in (b"Content-Length: 5", b"Transfer-Encoding: chunked")
    },
    "F27 informational in 1.0": of(first=b"HTTP/1.0 101 Switching Protocols"),
    "F27 obs-fold": of(b"A: b", b" c"),
    "F27 bare LF": b"HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n",
    "F27 two status lines": of(b"HTTP/1.1 200 OK"),
    "space before the colon": of(b"Content-Length : 5"),
    "no colon": of(b"Content-Length"),
    "empty name": of(b": a"),
    "NUL": of(b"A: \x00"),
    "bare CR": of(b"A: a\rb"),
    "F27 a tab before a length": of(b"Content-Length:\t2"),
    "F27 a tab behind chunked": of(b"Transfer-Encoding: chunked\t"),
    "U5 101 headers": of(*[b"a: b"] * (MAX_HEADERS + 1)),
    **{
        f"status line {line!r}": of(first=line)
        for line in (
            b"HTTP/1.1 20 OK",
            b"HTTP/1.1 2000 OK",
            b"HTTP/1.1 099 x",
            b"HTTP/1.1 600 x",
            b"HTTP/1.1  200 OK",
            b"HTTP/1.1\t200 OK",
            b"HTTP/1.1 200OK",
            b"HTTP/1.1",
            b"HTTP/2.0 200 OK",
            b"HTTP/1.2 200 OK",
            b"http/1.1 200 OK",
            b"ICY 200 OK",
            b" HTTP/1.1 200 OK",
            b"HTTP/1.1 200 O\x00K",
            b"",
        )
    },
}


@pytest.mark.parametrize("raw", BAD.values(), ids=BAD)
def test_an_answer_that_no_client_should_have_to_read_is_refused(raw: bytes) -> None:
    with pytest.raises(BadAnswer):
        judge(raw)


@given(st.binary(max_size=100), st.binary(max_size=30))
def test_no_bytes_make_it_raise_anything_else(raw: bytes, inside: bytes) -> None:
    for text in (raw, of(raw), of(b"A: " + inside, b"Content-Length: " + inside)):
        try:
            answer = judge(text)
        except BadAnswer:
            continue
        assert isinstance(answer, Answer)
        assert answer.raw == text
        assert not (answer.chunked and answer.content_length is not None)
