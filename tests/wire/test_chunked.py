"""Chunked bodies over real TLS: a body that breaks its framing is cut upstream, not completed; so is such an answer.

Rows carry their ids from bad-inputs.md. Each row's upload has begun, and its first chunk has reached the upstream, when
the bad bytes come. Behind them comes a request that would be served, if anybody parsed it.
"""

import contextlib
import queue
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from tests.conftest import second_only
from tests.support import scripted
from tests.support.clients import assert_chunked_kept, assert_refusal
from tests.support.proxy import Proxy
from tests.support.raw import (
    CODES,
    SECOND,
    answers,
    assert_honest_is_served_and_nothing_else_was,
    connect,
    exchange,
    post,
    read_all,
)
from tests.support.scripted import PATIENCE
from tests.support.upstreams import Upstream, values

pytestmark = [second_only]

NewProxy = Callable[..., Proxy]
BEGUN: Final = post(b"Transfer-Encoding: chunked") + b"5\r\naudio\r\n"
LAST: Final = b"0\r\n\r\n"
KIB: Final = 1024

CUT: Final[dict[str, bytes]] = {
    **{
        f"F16 {size!r}": size + b"\r\naudio\r\n" + LAST
        for size in (
            b"0x5",
            b"+5",
            b"-5",
            b" 5",
            b"5 ",
            b"5\t",
            b"5 ;a",
            b"0_5",
            b"",
            b"00000000000000005",
            b"10000000000000005",
            b"8000000000000005",
            b"ffffffffffffffff",
            b"\xd9\xa5",
        )
    },
    "F17 longer": b"5\r\naudioX\r\n" + LAST,
    "F17 shorter": b"5\r\naudi\r\n" + LAST,
    "F17 no CRLF": b"5\r\naudio" + LAST,
    "F17 LF after the data": b"5\r\naudio\n" + LAST,
    "F17 LF after the size": b"5\naudio\r\n" + LAST,
    "F17 LF after the last size": b"0\n\r\n",
    "F17 LF for the empty line": b"0\r\n\n",
    **{f"F18 {byte!r}": b"5;a=" + byte + b"\r\naudio\r\n" + LAST for byte in (b"\n", b"\r", b"\x00", b"\x01", b"\x7f")},
    "F18 over 1 KiB": b"5;" + b"x" * (KIB + 1) + b"\r\naudio\r\n" + LAST,
    "F18 over 1 KiB, of the last": b"0;" + b"x" * (KIB + 1) + b"\r\n\r\n",
    "F18 over 8 KiB in all": (b"1;" + b"x" * KIB + b"\r\na\r\n") * 9 + LAST,
    "F19 over 8 KiB": b"0\r\nX: " + b"x" * 8 * KIB + b"\r\n\r\n",
    "F19 over 8 KiB in lines": b"0\r\n" + b"X: y\r\n" * 2 * KIB + b"\r\n",
    **{
        f"F19 {line!r}": b"0\r\n" + line + b"\r\n\r\n"
        for line in (
            b"Content-Length : 5",
            b" X: y",
            b"X: a\r\n b",
            b"X: a\nY: b",
            b"X: a\rb",
            b"X: \x00",
            b"X",
            b": a",
            b"X(: a",
        )
    },
}


@pytest.mark.parametrize("bad", CUT.values(), ids=CUT)
def test_a_body_that_breaks_its_framing_is_refused_and_its_upstream_request_cut(
    proxy: Proxy, upstream: Upstream, bad: bytes
) -> None:
    with connect(proxy) as sock:
        sock.sendall(BEGUN.replace(b"KEY", proxy.key.encode()))
        upstream.wait_for(lambda heads: [head["body_bytes"] for head in heads] == [5])
        sock.sendall((bad + SECOND).replace(b"KEY", proxy.key.encode()))
        (answer,) = answers(read_all(sock))
    assert_refusal(answer, 400, CODES[400])
    assert answer.value("connection") == "close"
    (head,) = upstream.wait_for(lambda heads: any(head["cut"] for head in heads))
    assert not head["complete"]
    assert head["target"] == "/v1/listen"
    upstream.clear()
    assert_honest_is_served_and_nothing_else_was(proxy, upstream)


TAKEN: Final[dict[str, bytes]] = {
    "as it is": LAST,
    "16 digits": b"0" * 16 + b"\r\n\r\n",
    "F18 1 KiB": b"0;" + b"x" * KIB + b"\r\n\r\n",
    "F18 signed": b'0;chunk-signature=0123abc; b="\xe9"\r\n\r\n',
    "F19 8 KiB": b"0\r\nX: " + b"x" * (8 * KIB - 5) + b"\r\n\r\n",
    "F19 named": b"0\r\nContent-Length: 500\r\nAuthorization: Token another\r\nTransfer-Encoding: gzip\r\n\r\n",
}


@pytest.mark.parametrize("end", TAKEN.values(), ids=TAKEN)
def test_extensions_and_trailers_are_dropped_and_the_next_request_begins_where_the_body_ends(
    proxy: Proxy, upstream: Upstream, end: bytes
) -> None:
    statuses = [answer.status for answer in exchange(proxy, BEGUN + end + SECOND)]
    assert statuses == [200, 200]
    first, second = upstream.heads()
    assert_chunked_kept(first)
    assert (first["body_bytes"], first["complete"], first["cut"]) == (5, True, False)
    assert not values(first, "Authorization")
    assert second["target"] == "/v1/models?second"


def test_a_body_may_come_byte_by_byte_with_the_next_request_in_its_last_packet(
    proxy: Proxy, upstream: Upstream
) -> None:
    body = b"5;a=b\r\naudio\r\n00A\r\n0123456789\r\n0\r\nX: y\r\n\r"
    pieces = [bytes((byte,)) for byte in body]
    statuses = [
        answer.status for answer in exchange(proxy, post(b"Transfer-Encoding: chunked"), *pieces, b"\n" + SECOND)
    ]
    assert statuses == [200, 200]
    assert [head["body_bytes"] for head in upstream.heads()] == [15, 0]


# --- what the upstream sees, and what the client sees of an upstream's answer ----------------------------------------


@contextlib.contextmanager
def before(new_proxy: NewProxy, url: str) -> Iterator[Proxy]:
    """A proxy with one worker before this upstream: a connection that is kept is the one that is used."""
    with new_proxy({"upstream.urls": f'["{url}"]', "server.workers": "1"}) as proxy:
        yield proxy


def head_of(raw: bytes) -> bytes:
    return raw.partition(b"\r\n\r\n")[0]


HONEST: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def test_f16_a_cut_upload_has_no_last_chunk_upstream_and_its_connection_serves_nobody_else(
    new_proxy: NewProxy,
) -> None:
    began = queue.Queue[bytes]()
    ended = queue.Queue[tuple[bytes, str]]()

    def serve(sock: socket.socket) -> None:
        got = scripted.read_head(sock)
        if got.startswith(b"GET"):
            sock.sendall(HONEST)
            return
        how = "orderly"
        try:
            while b"audio" not in got:
                got += sock.recv(65536)
            began.put(got)
            while piece := sock.recv(65536):
                got += piece
        except ConnectionError:
            how = "reset"
        ended.put((got, how))

    with scripted.upstream(serve) as url, before(new_proxy, url) as proxy:
        with connect(proxy) as sock:
            sock.sendall(BEGUN.replace(b"KEY", proxy.key.encode()))
            began.get(timeout=PATIENCE)
            sock.sendall(b"5 \r\naudio\r\n" + LAST)
            (answer,) = answers(read_all(sock))
        assert answer.status == 400
        got, how = ended.get(timeout=PATIENCE)
        assert got.partition(b"\r\n\r\n")[2] == b"5\r\naudio\r\n"
        assert how == "reset"
        (answer,) = exchange(proxy, SECOND)
        assert (answer.status, answer.body) == (200, b"ok")


def until_its_end(sock: ssl.SSLSocket) -> tuple[bytes, bool]:
    """All that comes, and whether it was ended in good order (`connect` makes any other end an error)."""
    got = b""
    try:
        while piece := sock.recv(65536):
            got += piece
    except (ConnectionError, ssl.SSLError):
        return got, False
    return got, True


CHUNKED: Final = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
BROKEN: Final[dict[str, bytes]] = {
    "F27 a size with a space": b"5 \r\nhello\r\n" + LAST,
    "F27 a size with LF": b"5\nhello\r\n" + LAST,
    "F27 too long": b"5\r\nhelloX\r\n" + LAST,
    "F27 an extension of 2 KiB": b"5;" + b"x" * 2 * KIB + b"\r\nhello\r\n" + LAST,
    "F27 a trailer with a space": b"0\r\nX : y\r\n\r\n",
    "U4 no last chunk": b"",
    "U4 half a chunk": b"5\r\nhe",
    "U4 no empty line": b"0\r\n",
}


@pytest.mark.parametrize("bad", BROKEN.values(), ids=BROKEN)
def test_an_answer_that_breaks_its_framing_is_visibly_cut_and_its_connection_serves_nobody_else(
    new_proxy: NewProxy, bad: bytes
) -> None:
    seen = queue.Queue[None]()  # the client has the head and the first chunk
    served = queue.Queue[str]()

    def serve(sock: socket.socket) -> None:
        got = scripted.read_head(sock)
        if b"?second" in head_of(got):
            served.put("second")
            sock.sendall(HONEST)
            return
        sock.sendall(CHUNKED)
        seen.get(timeout=PATIENCE)
        sock.sendall(bad)
        if not bad.endswith(b"\r\n\r\n"):
            return  # and it closes
        with contextlib.suppress(ConnectionError):
            served.put("again" if sock.recv(65536) else "closed")

    with scripted.upstream(serve) as url, before(new_proxy, url) as proxy:
        with connect(proxy) as sock:
            sock.sendall(post(first=b"GET /v1/models HTTP/1.1").replace(b"KEY", proxy.key.encode()))
            got = b""
            while b"hello" not in got:
                got += sock.recv(65536)
            seen.put(None)
            more, orderly = until_its_end(sock)
        assert not orderly
        assert not (got + more).endswith(LAST)
        (answer,) = exchange(proxy, SECOND)
        assert (answer.status, answer.body) == (200, b"ok")
        while (what := served.get(timeout=PATIENCE)) != "second":
            assert what == "closed"


FAULTY: Final = {name: bad for name, bad in BROKEN.items() if name.startswith("F27")}


@pytest.mark.parametrize("bad", FAULTY.values(), ids=FAULTY)
def test_an_answer_of_which_the_client_has_nothing_yet_is_a_502_instead(new_proxy: NewProxy, bad: bytes) -> None:
    def serve(sock: socket.socket) -> None:
        broken = b"?broken" in head_of(scripted.read_head(sock))
        sock.sendall(CHUNKED + bad if broken else HONEST)
        with contextlib.suppress(ConnectionError):
            assert not sock.recv(1), "used again"

    with scripted.upstream(serve) as url, before(new_proxy, url) as proxy:
        first, second = exchange(proxy, post(first=b"GET /v1/models?broken HTTP/1.1") + SECOND)
    assert_refusal(first, 502, "BAD_GATEWAY")
    assert (second.status, second.body) == (200, b"ok")  # the client's connection is none the worse


@pytest.mark.parametrize("announced", [b"Content-Length: 38", b"Transfer-Encoding: chunked"])
@pytest.mark.parametrize("first", [b"HEAD", b"GET"])
def test_f30_a_body_that_comes_late_where_none_may_be_is_not_the_next_answer(
    new_proxy: NewProxy, first: bytes, announced: bytes
) -> None:
    status = b"200 OK" if first == b"HEAD" else b"204 No Content"
    false = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfalse"

    def serve(sock: socket.socket) -> None:
        if b"?second" in head_of(scripted.read_head(sock)):
            sock.sendall(HONEST)
            return
        sock.sendall(b"HTTP/1.1 " + status + b"\r\n" + announced + b"\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            if sock.recv(65536):  # the next request, on this connection: what was late comes first
                sock.sendall(false)

    with scripted.upstream(serve) as url, before(new_proxy, url) as proxy:
        raw = exchange_head(proxy, first)
        assert raw.startswith(b"HTTP/1.1 " + status[:3])
        assert (announced.lower() in raw.lower()) is (first == b"HEAD")
        (answer,) = exchange(proxy, SECOND)
        assert (answer.status, answer.body) == (200, b"ok")


def exchange_head(proxy: Proxy, method: bytes) -> bytes:
    """What comes for one request that gets no body."""
    with connect(proxy) as sock:
        asked = post(b"Connection: close", first=method + b" /v1/models HTTP/1.1")
        sock.sendall(asked.replace(b"KEY", proxy.key.encode()))
        return read_all(sock)
