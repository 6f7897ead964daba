"""F27-F30, H14: what an upstream may not answer, and what of its answers goes on to nobody."""

import socket
from typing import Final

import pytest

from tests.bad_inputs.conftest import Stage
from tests.support import scripted
from tests.support.clients import assert_refusal
from tests.support.logs import is_event
from tests.support.raw import CODES, SECOND, connect, exchange, get, post, read_cut, read_head, send

CUE: Final = get(target=b"/v1/models?cue")
OK: Final = b"HTTP/1.1 200 OK\r\n"
BAD_HEADS: Final[dict[str, bytes]] = {
    "F27 length, chunked": OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
    "F27 chunked, length": OK + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
    "F27 two lengths": OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "F27 the same twice": OK + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "F27 a list": OK + b"Content-Length: 2, 2\r\n\r\n{}",
    "F27 a negative length": OK + b"Content-Length: -2\r\n\r\n{}",
    "F27 gzip": OK + b"Transfer-Encoding: gzip\r\n\r\n{}",
    "F27 chunked twice": OK + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "F27 obs-fold": OK + b"X-A: b\r\n c\r\nContent-Length: 2\r\n\r\n{}",
    "F27 bare LF head": b"HTTP/1.1 200 OK\nContent-Length: 2\n\n{}",
    "F27 bare LF in the head": OK + b"X-A: b\nContent-Length: 2\r\n\r\n{}",
    "F27 bare CR": OK + b"X-A: b\rX-B: c\r\nContent-Length: 2\r\n\r\n{}",
    "F27 space before the colon": OK + b"Content-Length : 2\r\n\r\n{}",
    "F27 NUL": OK + b"X-A: \0\r\nContent-Length: 2\r\n\r\n{}",
    "F27 101 unasked": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: foo\r\nConnection: Upgrade\r\n\r\n",
    "F27 two status lines": OK + OK + b"Content-Length: 2\r\n\r\n{}",
    "F27 no status": b"HTTP/1.1 OK\r\nContent-Length: 2\r\n\r\n{}",
    "F27 HTTP/2": b"HTTP/2 200\r\nContent-Length: 2\r\n\r\n{}",
    "F27 no HTTP": b"-ERR unknown command\r\n\r\n",
}


@pytest.mark.parametrize("line", BAD_HEADS.values(), ids=BAD_HEADS)
def test_an_answer_that_could_be_read_in_two_ways_is_a_502_and_its_connection_is_not_used_again(
    stage: Stage, line: bytes
) -> None:
    stage.actor.learn(line)
    first, second = exchange(stage.proxy, CUE + SECOND)
    assert_refusal(first, 502, CODES[502])
    assert second.status == 200
    assert stage.actor.hung_up() == 0


CHUNKED: Final = OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\naudio\r\n"
BAD_CHUNKS: Final[dict[str, bytes]] = {
    "F27 a chunk's size": b"0x5\r\naudio\r\n0\r\n\r\n",
    "F27 a chunk with a sign": b"+5\r\naudio\r\n0\r\n\r\n",
    "F27 a chunk without size": b"\r\naudio\r\n0\r\n\r\n",
    "F27 a chunk too long": b"4\r\naudio\r\n0\r\n\r\n",
    "F27 a chunk too short": b"6\r\naudio\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("rest", BAD_CHUNKS.values(), ids=BAD_CHUNKS)
def test_an_answer_that_turns_bad_is_cut_where_the_client_can_see_it(stage: Stage, rest: bytes) -> None:
    """Neither the last chunk nor close_notify is sent, so that no client takes what it got for the whole."""
    stage.actor.learn(CHUNKED, rest)
    with connect(stage.proxy) as sock:
        send(sock, stage.proxy, CUE)
        told = read_head(sock)
        stage.actor.go_on()
        told += read_cut(sock)
    assert told.startswith(b"HTTP/1.1 200 ")
    assert b"\r\n0\r\n" not in told
    assert stage.actor.hung_up() == 0
    (answer,) = exchange(stage.proxy, SECOND)
    assert answer.status == 200


def test_f28_an_answer_that_comes_before_the_body_was_read_arrives(stage: Stage) -> None:
    """The upstream closes with the body unread, which resets the connection under the proxy's hands."""
    refusal = b"HTTP/1.1 413 Payload Too Large\r\nContent-Length: 4\r\n\r\nless"

    def hasty(sock: socket.socket) -> None:
        scripted.read_head(sock)
        sock.sendall(refusal)

    with scripted.upstream(hasty) as url:
        proxy = stage.beside(url)
        with proxy:
            for size in (5, 100_000, 8_000_000):
                (answer,) = exchange(proxy, post(b"Content-Length: %d" % size, b"Connection: close"), bytes(size))
                assert (answer.status, answer.body) == (413, b"less")
                assert proxy.stderr.wait_for(is_event("request.close", status=413))


EXTRA: Final[dict[str, tuple[bytes, bytes, bytes]]] = {
    "F29 more than its length": (b"GET", OK + b"Content-Length: 2\r\n\r\n{}{}", b"{}"),
    "F29 another answer": (b"GET", OK + b"Content-Length: 2\r\n\r\n{}" + OK + b"Content-Length: 1\r\n\r\nX", b"{}"),
    "F29 more than its chunks": (b"GET", CHUNKED + b"0\r\n\r\n{}", b"audio"),
    "F30 204": (b"GET", b"HTTP/1.1 204 No Content\r\n\r\naudio", b""),
    "F30 204 with a length": (b"GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\naudio", b""),
    "F30 304": (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\naudio", b""),
    "F30 HEAD": (b"HEAD", OK + b"Content-Length: 5\r\n\r\naudio", b""),
    "F30 HEAD, chunked": (b"HEAD", CHUNKED + b"0\r\n\r\n", b""),
    "F30 HEAD, another answer": (b"HEAD", OK + b"Content-Length: 5\r\n\r\n" + OK + b"\r\n", b""),
}


@pytest.mark.parametrize(("method", "line", "body"), EXTRA.values(), ids=EXTRA)
def test_what_comes_behind_an_answer_goes_to_nobody_and_its_connection_is_not_used_again(
    stage: Stage, method: bytes, line: bytes, body: bytes
) -> None:
    stage.actor.learn(line)
    asked = CUE.replace(b"GET", method, 1)
    first, second = exchange(stage.proxy, asked + SECOND, methods=[method.decode()])
    assert (first.status, first.body) == (int(line.split(b" ")[1]), body)
    assert (second.status, second.body) == (200, b"{}")
    assert stage.actor.hung_up() == 0


def test_h14_what_is_hop_by_hop_ends_here_and_what_connection_names_too(stage: Stage) -> None:
    stage.actor.learn(
        OK
        + b"Connection: X-Secret, close\r\nX-Secret: 1\r\nKeep-Alive: timeout=5\r\nUpgrade: h2c\r\nTrailer: X-Sum\r\n"
        b"Proxy-Authenticate: Basic\r\nProxy-Connection: close\r\nTE: trailers\r\nX-Passes: yes\r\n"
        b"Content-Length: 2\r\n\r\n{}"
    )
    first, second = exchange(stage.proxy, CUE + SECOND)  # its `close` is not ours: the client's connection goes on
    assert (first.status, first.headers, first.body) == (200, [("x-passes", "yes"), ("content-length", "2")], b"{}")
    assert second.status == 200
    assert stage.actor.hung_up() == 0
