"""One exchange without I/O: how bodies are framed both ways, and where one message ends and the next begins."""

import itertools
import random
from collections.abc import Iterable
from typing import Final

import msgspec
import pytest
from hypothesis import given, strategies as st

from dgproxy.wire.exchange import END, NEED_DATA, BadBody, Downstream, Upstream
from dgproxy.wire.head import Head, judge
from dgproxy.wire.refusals import BAD_FRAMING
from dgproxy.wire.response import MAX_INFORMATIONAL, Answer, BadAnswer

HOST: Final = (b"Host", b"dg:8080")


def downstream(*lines: bytes, first: bytes = b"POST /v1/listen HTTP/1.1") -> Downstream:
    head = judge(b"\r\n".join([first, b"Host: dg", *lines, b"", b""]))
    assert isinstance(head, Head), head
    exchange = Downstream.begin(head)
    assert isinstance(exchange, Downstream)
    return exchange


def read_all(half: Downstream | Upstream) -> bytes:
    """What can be read of a body now."""
    got = b""
    while isinstance(event := half.body(), bytes):
        got += event
    return got


def pieces(raw: bytes, cuts: Iterable[int]) -> list[bytes]:
    places = sorted({min(cut, len(raw)) for cut in cuts} | {0, len(raw)})
    return [raw[start:stop] for start, stop in itertools.pairwise(places)]


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks if chunk) + b"0\r\n\r\n"


bodies = st.lists(st.binary(max_size=50), max_size=6)
cuts = st.lists(st.integers(0, 400), max_size=12)


# --- the client's half -----------------------------------------------------------------------------------------------


@given(bodies, cuts, st.binary(max_size=60), st.booleans())
def test_a_body_ends_where_its_framing_says_and_the_rest_is_handed_back(
    chunks: list[bytes],
    at: list[int],
    rest: bytes,
    as_chunks: bool,  # noqa: FBT001
) -> None:
    body = b"".join(chunks)
    if as_chunks:
        exchange, raw = downstream(b"Transfer-Encoding: chunked"), chunked(*chunks)
    else:
        exchange, raw = downstream(b"Content-Length: %d" % len(body)), body
    got = b""
    for piece in pieces(raw + rest, at):
        exchange.feed(piece)
        got += read_all(exchange)
    got += read_all(exchange)
    assert got == body
    assert exchange.body() is END
    assert exchange.body_ended
    assert exchange.rest() == rest


def test_bytes_that_go_past_are_counted_and_only_those_of_which_none_was_fed() -> None:
    exchange = downstream(b"Content-Length: 10")
    assert exchange.to_come == 10
    exchange.feed(b"ab")
    assert exchange.to_come == 0  # what was fed comes first
    assert exchange.body() == b"ab"
    assert exchange.to_come == 8
    exchange.skip(5)
    assert (exchange.to_come, exchange.body()) == (3, NEED_DATA)
    with pytest.raises(AssertionError):
        exchange.skip(4)
    exchange.feed(b"cdeGET /")
    assert (exchange.body(), exchange.body(), exchange.rest()) == (b"cde", END, b"GET /")
    for line in (b"Transfer-Encoding: chunked", b"Content-Length: 0", b"A: b"):
        assert downstream(line).to_come == 0


def test_a_body_that_is_not_all_there_needs_more() -> None:
    exchange = downstream(b"Content-Length: 5")
    assert exchange.body() is NEED_DATA
    exchange.feed(b"aud")
    assert (exchange.body(), exchange.body()) == (b"aud", NEED_DATA)
    assert not exchange.body_ended
    exchange.feed(b"io")
    assert (exchange.body(), exchange.body(), exchange.body()) == (b"io", END, END)


def test_a_request_without_a_body_ends_with_its_head() -> None:
    for exchange in (downstream(first=b"GET /v1/models HTTP/1.1"), downstream(b"Content-Length: 0")):
        assert exchange.body() is END
        assert exchange.rest() == b""


@pytest.mark.parametrize(
    "raw",
    [
        b"0x5\r\naudio\r\n",
        b"-1\r\n",
        b"+5\r\naudio\r\n",
        b"\r\naudio",
        b"g\r\n",
        b"5 5\r\naudio\r\n",
        b"5\r\naudioX\r\n0\r\n\r\n",
        b"5 \r\naudio\r\n0\r\n\r\n",
        b"5;a\x00\r\naudio\r\n0\r\n\r\n",
        b"5;" + b"x" * 2000,
        b"0\r\nA: b\n\n",
        b"0\r\nA: b\r\n c\r\n\r\n",
        b"0\n\n",
    ],
)
def test_f16_to_f19_a_body_with_broken_chunks_is_told_as_such(raw: bytes) -> None:
    exchange = downstream(b"Transfer-Encoding: chunked")
    exchange.feed(raw)
    for _ in range(2):
        with pytest.raises(BadBody):
            read_all(exchange)
    assert not exchange.body_ended
    assert not exchange.reusable


def test_f19_trailers_are_dropped() -> None:
    exchange = downstream(b"Transfer-Encoding: chunked")
    exchange.feed(b"5\r\naudio\r\n0\r\nAuthorization: Token x\r\n\r\nGET /")
    assert read_all(exchange) == b"audio"
    assert (exchange.body(), exchange.rest()) == (END, b"GET /")


def test_a_head_that_h11_reads_otherwise_is_refused() -> None:
    head = judge(b"GET /v1/models HTTP/1.1\r\nHost: dg\r\nA: b\r\n\r\n")
    assert isinstance(head, Head)
    for raw in (
        b"POST /v1/models HTTP/1.1\r\nHost: dg\r\nA: b\r\n\r\n",
        b"GET /v1/other HTTP/1.1\r\nHost: dg\r\nA: b\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: dg\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: dg\r\nA: b\r\n",
    ):
        other = Head(
            method=head.method,
            target=head.target,
            path=head.path,
            query=head.query,
            minor=head.minor,
            headers=head.headers,
            raw=raw,
            content_length=None,
            chunked=False,
            connection=head.connection,
            expects_continue=False,
            upgrade=None,
        )
        assert Downstream.begin(other) is BAD_FRAMING


@pytest.mark.parametrize("line", [b"Content-Length: 5", b"Content-Length: 6", b"A: b", b"Transfer-Encoding: gzip"])
def test_a_body_that_h11_would_frame_otherwise_is_refused_at_its_head(line: bytes) -> None:
    for ours in (b"Transfer-Encoding: chunked", b"Content-Length: 7"):
        head = judge(b"POST / HTTP/1.1\r\nHost: dg\r\n" + ours + b"\r\n\r\n")
        assert isinstance(head, Head)
        raw = b"POST / HTTP/1.1\r\nHost: dg\r\n" + line + b"\r\n\r\n"
        assert Downstream.begin(msgspec.structs.replace(head, raw=raw)) is BAD_FRAMING


def test_h11_is_asked_once_for_one_head_and_anew_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    head, bad = (judge(b"GET / HTTP/1.1\r\nHost: " + name + b"\r\n\r\n") for name in (b"dg", b"other"))
    assert isinstance(head, Head)
    assert isinstance(bad, Head)
    assert isinstance(Downstream.begin(head), Downstream)
    monkeypatch.setattr("h11.Connection.next_event", lambda _: None)  # it would agree with nothing any more
    assert isinstance(Downstream.begin(head, head), Downstream)
    assert Downstream.begin(bad, head) is BAD_FRAMING
    assert Downstream.begin(msgspec.structs.replace(head), head) is BAD_FRAMING


def test_f31_a_100_is_sent_once_and_only_to_who_waits_for_it() -> None:
    exchange = downstream(b"Content-Length: 5", b"Expect: 100-continue")
    assert exchange.proceed() == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert exchange.proceed() == b""
    assert downstream(b"Content-Length: 0", b"Expect: 100-continue").proceed()  # it is owed to whoever asks
    assert downstream(b"Content-Length: 5").proceed() == b""
    for line, body in ((b"Content-Length: 5", b"audio"), (b"Transfer-Encoding: chunked", b"5\r\naudio")):
        assert downstream(line, b"Expect: 100-continue").proceed()
        early = downstream(line, b"Expect: 100-continue")
        early.feed(body)
        assert read_all(early) == b"audio"
        assert early.proceed() == b""


def answered(exchange: Downstream, status: int, headers: list[tuple[bytes, bytes]], *body: bytes) -> bytes:
    out = exchange.respond(status, b"OK", headers)
    for piece in body:
        out += exchange.data(piece)
    return out + exchange.end()


def test_an_answer_keeps_its_framing() -> None:
    first = b"GET /v1/models HTTP/1.1"
    exchange = downstream(first=first)
    exchange.body()
    raw = answered(exchange, 200, [(b"content-length", b"5")], b"he", b"llo")
    assert raw == b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
    assert exchange.reusable
    exchange = downstream(first=first)
    exchange.body()
    raw = answered(exchange, 200, [(b"transfer-encoding", b"chunked"), (b"x", b"y")], b"he", b"llo")
    assert raw.partition(b"\r\n\r\n")[2] == b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"
    assert b"content-length" not in raw.lower()
    assert exchange.reusable


@pytest.mark.parametrize(
    ("first", "status"), [(b"HEAD /v1/models HTTP/1.1", 200), (b"GET / HTTP/1.1", 204), (b"GET / HTTP/1.1", 304)]
)
def test_f30_an_answer_that_has_no_body_gets_none(first: bytes, status: int) -> None:
    exchange = downstream(first=first)
    exchange.body()
    raw = answered(exchange, status, [(b"content-length", b"5")] if status != 204 else [])
    assert raw.endswith(b"\r\n\r\n")
    assert raw.count(b"\r\n\r\n") == 1
    assert exchange.reusable


@pytest.mark.parametrize("framing", [(b"content-length", b"5"), (b"Transfer-Encoding", b"chunked")])
def test_f30_a_204_announces_no_body_whatever_the_upstream_said(framing: tuple[bytes, bytes]) -> None:
    exchange = downstream(first=b"GET / HTTP/1.1")
    exchange.body()
    assert answered(exchange, 204, [framing, (b"x", b"y")]) == b"HTTP/1.1 204 OK\r\nx: y\r\n\r\n"
    assert exchange.reusable


@pytest.mark.parametrize(
    ("lines", "first", "close"),
    [
        ([b"Connection: close"], b"GET / HTTP/1.1", False),
        ([], b"GET / HTTP/1.0", False),
        ([], b"GET / HTTP/1.1", True),
    ],
)
def test_a_connection_that_either_side_ends_is_not_used_again(lines: list[bytes], first: bytes, *, close: bool) -> None:
    exchange = downstream(*lines, first=first)
    exchange.body()
    raw = exchange.respond(200, b"OK", [(b"content-length", b"0")], close=close) + exchange.end()
    assert not exchange.reusable
    assert b"connection: close" in raw.lower()


def test_an_answer_of_unknown_length_goes_out_in_chunks_or_to_the_connections_end() -> None:
    exchange = downstream(first=b"GET / HTTP/1.1")
    exchange.body()
    raw = answered(exchange, 200, [(b"x", b"y")], b"hello")
    assert raw == b"HTTP/1.1 200 OK\r\nx: y\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    assert exchange.reusable
    for framing in [], [(b"transfer-encoding", b"chunked")]:
        exchange = downstream(first=b"GET / HTTP/1.0")
        exchange.body()
        assert answered(exchange, 200, framing, b"hello") == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello"
        assert not exchange.reusable


def test_an_empty_piece_does_not_end_a_chunked_body() -> None:
    exchange = downstream(first=b"GET / HTTP/1.1")
    exchange.respond(200, b"OK", [])
    assert (exchange.data(b""), exchange.end()) == (b"", b"0\r\n\r\n")
    half = upstream(b"POST", [(b"Transfer-Encoding", b"chunked")])
    assert (half.data(b""), half.end()) == (b"", b"0\r\n\r\n")


def test_a_client_that_says_so_and_has_sent_all_sends_no_more() -> None:
    for lines, first, wanted in (
        ([b"Connection: close"], b"POST / HTTP/1.1", True),
        ([], b"POST / HTTP/1.0", True),
        ([], b"POST / HTTP/1.1", False),
    ):
        exchange = downstream(b"Content-Length: 2", *lines, first=first)
        exchange.feed(b"o")
        assert read_all(exchange) == b"o"
        assert not exchange.last
        exchange.feed(b"k")
        assert read_all(exchange) == b"k"
        assert exchange.body() is END
        assert exchange.last is wanted
        exchange.feed(b"more, in spite of what it said")
        assert not exchange.last


def test_a_connection_whose_body_was_not_read_is_not_used_again() -> None:
    exchange = downstream(b"Content-Length: 5")
    answered(exchange, 401, [(b"content-length", b"0")])
    assert not exchange.reusable


@pytest.mark.parametrize(
    "header",
    [(b"bad name", b"x"), (b"x", b"a\r\nb: c"), (b"x", b"\x00"), (b"", b"x"), (b"x\r\ny", b"z"), (b"x", b"\n")],
)
def test_a_header_that_splits_a_head_is_never_written(header: tuple[bytes, bytes]) -> None:
    exchange = downstream(first=b"GET / HTTP/1.1")
    exchange.body()
    with pytest.raises(ValueError, match="headers"):
        exchange.respond(200, b"OK", [header])
    with pytest.raises(ValueError, match="headers"):
        upstream(headers=[header])


@pytest.mark.parametrize("reason", [b"OK\r\nX: y", b"OK\nX: y"])
def test_a_reason_that_splits_an_answer_is_never_written(reason: bytes) -> None:
    with pytest.raises(ValueError, match="headers"):
        downstream(first=b"GET / HTTP/1.1").respond(200, reason, [])


# --- the container's half --------------------------------------------------------------------------------------------


def upstream(method: bytes = b"GET", headers: Iterable[tuple[bytes, bytes]] = ()) -> Upstream:
    return Upstream(method, b"/v1/models?a=b", [HOST, *headers])


def asked(method: bytes = b"GET") -> Upstream:
    """One whose request has gone out whole."""
    half = upstream(method)
    half.end()
    return half


def answer_to(half: Upstream, raw: bytes) -> Answer:
    half.feed(raw)
    answer = half.answer()
    assert isinstance(answer, Answer)
    return answer


def test_the_request_keeps_the_bodys_framing() -> None:
    half = upstream(b"POST", [(b"Content-Length", b"5"), (b"X", b"y")])
    assert half.head == b"POST /v1/models?a=b HTTP/1.1\r\nHost: dg:8080\r\nContent-Length: 5\r\nX: y\r\n\r\n"
    assert (half.data(b"he"), half.data(b"llo"), half.end()) == (b"he", b"llo", b"")
    half = upstream(b"POST", [(b"Transfer-Encoding", b"chunked")])
    assert (half.data(b"hello"), half.end()) == (b"5\r\nhello\r\n", b"0\r\n\r\n")


@given(bodies, cuts, st.sampled_from(["length", "chunks", "end"]))
def test_an_answer_in_any_pieces_is_read_whole(chunks: list[bytes], at: list[int], framing: str) -> None:
    body = b"".join(chunks)
    half = asked()
    head = b"HTTP/1.1 200 OK\r\nA: b\r\n"
    raw = {
        "length": head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body),
        "chunks": head + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(*chunks),
        "end": head + b"\r\n" + body,
    }[framing]
    got, answer = b"", None
    for piece in pieces(raw, at):
        half.feed(piece)
        if answer is None:
            event = half.answer()
            if not isinstance(event, Answer):
                continue
            answer = event
        got += read_all(half)
    assert answer is not None
    assert answer.status == 200
    if framing == "end":
        assert half.body() is NEED_DATA
        half.feed(b"")
        got += read_all(half)
    assert half.body() is END
    assert got == body
    assert half.reusable is (framing != "end")


def test_u4_an_answer_that_ends_before_its_length_is_bad_and_not_ended() -> None:
    for raw in (
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nA: b\r\n\r",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    ):
        half = asked()
        answer_to(half, raw)
        read_all(half)
        half.feed(b"")
        for _ in range(2):
            with pytest.raises(BadAnswer):
                half.body()
        assert not half.reusable
        at_once = asked()
        at_once.feed(raw)
        at_once.feed(b"")
        assert isinstance(at_once.answer(), Answer)
        with pytest.raises(BadAnswer):
            read_all(at_once)
        assert not at_once.reusable


@pytest.mark.parametrize(
    "raw",
    [
        b"zz\r\n",
        b"5\r\nhelloX",
        b"-5\r\n",
        b"5 \r\nhello\r\n0\r\n\r\n",
        b"5\nhello\r\n0\r\n\r\n",
        b"5;" + b"x" * 2000,
        b"0\r\nContent-Length : 5\r\n\r\n",
        b"0\r\n\n",
    ],
)
def test_f27_an_answer_with_broken_chunks_is_bad(raw: bytes) -> None:
    half = asked()
    answer_to(half, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + raw)
    with pytest.raises(BadAnswer):
        read_all(half)
    assert not half.reusable


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"\x00",
        b"hello, world\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 33_000,
    ],
    ids=["LF", "CL+TE", "two status lines", "101 unasked", "NUL", "no HTTP", "a head without end"],
)
def test_f27_an_answer_that_is_malformed_is_bad(raw: bytes) -> None:
    half = asked()
    half.feed(raw)
    with pytest.raises(BadAnswer):
        half.answer()
    assert not half.reusable


def test_informational_answers_are_dropped_up_to_a_bound() -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    final = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    assert answer_to(asked(), interim * MAX_INFORMATIONAL + final).status == 200
    half = asked()
    half.feed(interim * (MAX_INFORMATIONAL + 1) + final)
    with pytest.raises(BadAnswer):
        half.answer()


@pytest.mark.parametrize("more", [b"x", b"HTTP/1.1 200 OK\r\n\r\n", b""], ids=["a byte", "an answer", "the end"])
@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ],
    ids=["length", "chunked"],
)
def test_f29_bytes_after_the_answer_are_nobodys_and_end_the_connection(raw: bytes, more: bytes) -> None:
    for late in (False, True) if more else (True,):
        half = asked()
        answer_to(half, raw if late else raw + more)
        assert read_all(half) == b"ok"
        assert half.body() is END
        if late:
            assert half.reusable
            half.feed(more)
        assert not half.reusable


@pytest.mark.parametrize("come", [b"", b"ok", b"2\r\nok\r\n0\r\n\r\n"])
@pytest.mark.parametrize(
    "framing", [b"Content-Length: 2", b"Transfer-Encoding: chunked", b"Content-Length: 0", b"A: b"]
)
@pytest.mark.parametrize(("method", "status"), [(b"HEAD", b"200 OK"), (b"GET", b"204 No Content"), (b"GET", b"304 X")])
def test_f30_a_body_where_none_may_be_is_dropped_and_ends_the_connection_be_it_late(
    method: bytes, status: bytes, framing: bytes, come: bytes
) -> None:
    half = asked(method)
    answer_to(half, b"HTTP/1.1 " + status + b"\r\n" + framing + b"\r\n\r\n" + come)
    assert half.body() is END
    assert half.reusable is (not come and framing in {b"Content-Length: 0", b"A: b"})


def test_f28_an_answer_before_the_request_is_whole_can_be_read_but_the_connection_not_used_again() -> None:
    half = upstream(b"POST", [(b"Content-Length", b"1000")])
    half.data(b"x")
    assert answer_to(half, b"HTTP/1.1 429 Slow\r\nContent-Length: 4\r\n\r\nslow").status == 429
    assert read_all(half) == b"slow"
    assert half.body() is END
    assert not half.reusable


def test_a_connection_that_the_container_ends_is_not_used_again() -> None:
    half = asked()
    answer_to(half, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    assert half.body() is END
    assert not half.reusable


SWITCH: Final = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"


@given(st.binary(max_size=200), cuts)
def test_what_comes_behind_a_101_is_the_tunnels(rest: bytes, at: list[int]) -> None:
    half = Upstream.of_upgrade()
    interim = b"HTTP/1.1 100 Continue\r\n\r\n"
    answer: Answer | None = None
    behind = b""
    for piece in pieces(interim + SWITCH + rest, at):
        if answer is not None:
            behind += piece  # the connection reads on by itself then
            continue
        half.feed(piece)
        event = half.answer()
        answer = event if isinstance(event, Answer) else None
    assert answer is not None
    assert (answer.status, answer.raw) == (101, SWITCH)
    assert half.rest() + behind == rest
    assert not half.reusable


def test_a_refused_handshake_has_an_answer_like_any_other() -> None:
    half = Upstream.of_upgrade()
    answer = answer_to(half, b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 4\r\n\r\nnope")
    assert answer.status == 401
    assert read_all(half) == b"nope"
    assert half.body() is END


def test_an_answer_byte_by_byte_is_the_same() -> None:
    half = asked()
    body = random.Random(1).randbytes(100)
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + body
    seen, got = False, b""
    for byte in raw:
        half.feed(bytes((byte,)))
        if not seen:
            seen = isinstance(half.answer(), Answer)
        else:
            got += read_all(half)
    assert got == body
    assert half.reusable
