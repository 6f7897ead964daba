"""T4 and T5: ends of TLS that are none, or that nobody answers.

Every row ends with an honest request on a new connection that works, and no slot held.
"""

import contextlib
import socket
import ssl
import threading
from typing import Final

import pytest

from dgproxy.wire.frames import BINARY
from tests.support import usage
from tests.support.frames import frame
from tests.support.impatient import (
    SOON,
    NewProxy,
    connections,
    ended,
    impatient_before,
    swallow,
    until,
    wait_for_end,
    worker,
)
from tests.support.logs import is_event
from tests.support.proxy import Proxy
from tests.support.raw import connect, get, post, send, tcp, ws
from tests.support.scripted import switching_protocols

# The rows have upstreams of their own; which one the session has besides does not matter.
pytestmark = [
    pytest.mark.usefixtures("upstream_process"),
    pytest.mark.parametrize("upstream_process", ["standin"], indirect=True),
]

# --- T4, T5: ends of TLS ---------------------------------------------------------------------------------------------


def cut_short(client: ssl.SSLSocket) -> None:
    """A FIN without close_notify."""
    socket.socket.shutdown(client, socket.SHUT_WR)


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 1000", b"Transfer-Encoding: chunked"], ids=["T4 length", "T4 chunked"]
)
def test_a_body_that_is_cut_without_close_notify_is_not_completed_upstream(new_proxy: NewProxy, framing: bytes) -> None:
    got: list[bytes] = []
    over = threading.Event()

    def record(sock: socket.socket, asked: bytes) -> None:
        got.append(asked)
        try:
            while piece := sock.recv(65536):
                got.append(piece)
        except ConnectionError:
            got.append(b"<reset>")
        over.set()

    with impatient_before(new_proxy, record) as proxy, connect(proxy) as client:
        send(client, proxy, post(framing) + b"5\r\nhello\r\n")
        until("it is on its way", lambda: b"hello" in b"".join(got))
        cut_short(client)
        assert over.wait(SOON)
        body = b"".join(got).partition(b"\r\n\r\n")[2]
        assert body.endswith(b"<reset>")
        assert b"0\r\n\r\n" not in body
        proxy.stderr.wait_for(is_event("request.close", end="client_gone"), SOON)


def test_t4_a_stream_that_is_cut_without_close_notify_is_ended_and_recorded(new_proxy: NewProxy) -> None:
    over = threading.Event()

    def listen(sock: socket.socket, asked: bytes) -> None:
        sock.sendall(switching_protocols(asked))
        wait_for_end(sock)
        over.set()

    with impatient_before(new_proxy, listen) as proxy, connect(proxy) as client:
        send(client, proxy, ws())
        assert client.recv(65536).startswith(b"HTTP/1.1 101 ")
        client.sendall(frame(BINARY, bytes(1000))[:500])
        cut_short(client)
        assert over.wait(SOON)
        proxy.stderr.wait_for(is_event("stream.close", end="client_gone"), SOON)
        assert ended(client)


T5: Final = {
    "T5 before a request": (b"", 0),
    "T5 in the middle of a head": (b"GET /v1/models HT", 0),
    "T5 after an answer": (None, 1),
    "T5 after a refusal": (b"GET /nowhere HTTP/1.1\r\nHost: dg\r\nConnection: close\r\n\r\n", 1),
}


@pytest.mark.parametrize(("said", "answers"), T5.values(), ids=T5)
@pytest.mark.parametrize("notify", [True, False], ids=["close_notify, then silence", "silence"])
def test_who_says_nothing_at_the_end_and_reads_nothing_costs_a_descriptor_for_a_while_only(
    new_proxy: NewProxy, said: bytes | None, answers: int, *, notify: bool
) -> None:
    with impatient_before(new_proxy, swallow, timeouts__idle_keepalive='"1s"') as proxy:
        pid = worker(proxy)
        until("the first one is gone", lambda: connections(proxy) == 0)
        at_rest = usage.descriptors(pid)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        with tcp(proxy) as sock:
            client = proxy.client_tls().wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
            while True:
                try:
                    client.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    sock.sendall(outgoing.read())
                    incoming.write(sock.recv(65536))
            client.write((get() if said is None else said).replace(b"KEY", proxy.key.encode()))
            if answers:
                sock.sendall(outgoing.read())
                until("it was answered", lambda: len(proxy.log_lines()) and answered(proxy))
            if notify:
                with contextlib.suppress(ssl.SSLWantReadError):
                    client.unwrap()
            sock.sendall(outgoing.read())
            # Our end of the TCP connection stays open, and nothing is read.
            until("its descriptor is free", lambda: usage.descriptors(pid) <= at_rest, 20)


def answered(proxy: Proxy) -> bool:
    closed = [line for line in proxy.log_lines() if line.get("event") in {"request.close", "request.refused"}]
    return len(closed) > 1  # the first was `before`'s own
