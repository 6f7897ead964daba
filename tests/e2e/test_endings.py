"""How a request ends when one side does not do as it should: who is told, what is freed, and who else notices."""

import contextlib
import fcntl
import itertools
import os
import queue
import signal
import socket
import ssl
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from tests.support.clients import request
from tests.support.logs import is_event
from tests.support.proxy import Proxy
from tests.support.raw import connect, post, read_all, read_cut
from tests.support.scripted import PATIENCE, read_head, switching_protocols, upstream

# The proxies here have upstreams of their own; which one `new_proxy` is made for does not matter.
pytestmark = pytest.mark.parametrize("upstream_process", ["second"], indirect=True)

NewProxy = Callable[..., Proxy]
SOON: Final = 2.0  # seconds; spec part 5 gives one, and the rest is this machine's
OK: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@contextlib.contextmanager
def before(new_proxy: NewProxy, url: str) -> Iterator[Proxy]:
    """A proxy with one worker before this upstream."""
    with new_proxy({"upstream.urls": f'["{url}"]', "server.workers": "1"}) as proxy:
        yield proxy


def dial(proxy: Proxy) -> ssl.SSLSocket:
    raw = socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE)
    return proxy.client_tls().wrap_socket(raw, server_hostname="127.0.0.1")


def head(key: str, *lines: str, target: str = "/v1/listen", method: str = "POST") -> bytes:
    return "\r\n".join(
        [f"{method} {target} HTTP/1.1", "Host: dg", f"Authorization: Token {key}", *lines, "", ""]
    ).encode()


def answer(sock: socket.socket) -> bytes:
    """One whole answer, framed by its length."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += sock.recv(65536) or pytest.fail("ended within a head")
    start, _, body = data.partition(b"\r\n\r\n")
    (length,) = [
        int(line.split(b":")[1]) for line in start.split(b"\r\n") if line.lower().startswith(b"content-length")
    ]
    while len(body) < length:
        body += sock.recv(65536) or pytest.fail("ended within a body")
    return start + b"\r\n\r\n" + body


@pytest.mark.parametrize("size", [1_000, 40_000, 1_000_000])
def test_a_client_that_leaves_after_its_whole_upload_cancels_it_upstream(new_proxy: NewProxy, size: int) -> None:
    seen: queue.Queue[str] = queue.Queue()

    def silent(sock: socket.socket) -> None:
        got = len(read_head(sock).partition(b"\r\n\r\n")[2])
        while got < size:
            got += len(sock.recv(65536))
        seen.put("whole")
        with contextlib.suppress(ConnectionError):
            assert sock.recv(1) == b""
        seen.put("gone")

    with upstream(silent) as url, before(new_proxy, url) as proxy:
        with dial(proxy) as client:
            client.sendall(head(proxy.key, f"Content-Length: {size}") + bytes(size))
            assert seen.get(timeout=PATIENCE) == "whole"
        assert seen.get(timeout=SOON) == "gone"


def test_a_client_that_is_gone_when_it_is_told_to_go_on_cancels_its_request_upstream(new_proxy: NewProxy) -> None:
    seen: queue.Queue[str] = queue.Queue()

    def silent(sock: socket.socket) -> None:
        read_head(sock)
        seen.put("head")
        with contextlib.suppress(ConnectionError):
            while sock.recv(65536):
                pass
        seen.put("gone")

    with upstream(silent) as url, before(new_proxy, url) as proxy:
        client = dial(proxy)
        os.kill(proxy.pid, signal.SIGSTOP)  # no slot yet
        try:
            # More than is read ahead, so that only the 100 Continue can find the client gone.
            client.sendall(head(proxy.key, "Content-Length: 100000", "Expect: 100-continue") + bytes(60_000))
            time.sleep(0.3)  # in which it is read ahead; without it this test would find nothing, and not fail
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        finally:
            os.kill(proxy.pid, signal.SIGCONT)
        assert seen.get(timeout=PATIENCE) == "head"
        assert seen.get(timeout=SOON) == "gone"


@pytest.mark.parametrize(
    ("lines", "version"),
    [((b"Host: other",), b"1.1"), ((b"Transfer-Encoding: chunked",), b"1.0"), ((b"X: \n",), b"1.1")],
    ids=["two hosts", "chunked in HTTP/1.0", "a bare LF"],
)
def test_a_refused_head_of_head_is_answered_without_a_body(proxy: Proxy, lines: tuple[bytes], version: bytes) -> None:
    with connect(proxy) as client:
        client.sendall(post(*lines, first=b"HEAD /v1/models HTTP/" + version))
        start, end, body = read_all(client).partition(b"\r\n\r\n")
    assert start.startswith(b"HTTP/1.1 400 ")
    assert (end, body) == (b"\r\n\r\n", b"")


def test_a_body_that_breaks_when_the_answer_has_begun_is_the_clients_fault_in_the_log(new_proxy: NewProxy) -> None:
    def hasty(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nbegun")
        with contextlib.suppress(ConnectionError):
            while sock.recv(65536):
                pass

    with upstream(hasty) as url, before(new_proxy, url) as proxy, connect(proxy) as client:
        client.sendall(head(proxy.key, "Transfer-Encoding: chunked") + b"5\r\naudio\r\n")
        told = b""
        while not told.endswith(b"begun"):
            told += client.recv(65536)
        client.sendall(b"x\r\n")
        assert not read_cut(client)
        assert proxy.stderr.wait_for(is_event("request.close", status=200, end="client_fault"))


def test_what_was_pipelined_behind_a_request_that_failed_upstream_is_still_a_request(new_proxy: NewProxy) -> None:
    def broken(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(b"this is no answer\r\n\r\n")

    with upstream(broken) as url, before(new_proxy, url) as proxy, dial(proxy) as client:
        second = head(proxy.key, method="GET", target="/v1/models")
        client.sendall(head(proxy.key, "Content-Length: 5") + b"hello" + second[:9])
        first = answer(client)
        assert first.startswith(b"HTTP/1.1 502")
        assert b"connection: close" not in first.lower()
        client.sendall(second[9:])
        assert answer(client).startswith(b"HTTP/1.1 502")


def test_a_slot_is_free_as_soon_as_the_answer_is_out_however_long_the_client_stays(new_proxy: NewProxy) -> None:
    def serve(sock: socket.socket) -> None:
        with contextlib.suppress(AssertionError):
            while True:
                read_head(sock)
                sock.sendall(OK)

    with upstream(serve) as url, before(new_proxy, url) as proxy:
        key = proxy.new_key(streams="1").key
        with contextlib.ExitStack() as staying:
            for _ in range(3):
                client = staying.enter_context(dial(proxy))
                client.sendall(head(key, "Connection: close", method="GET", target="/v1/models"))
                assert answer(client).startswith(b"HTTP/1.1 200")


def test_a_client_that_sends_the_smallest_chunks_does_not_keep_a_worker_from_others(new_proxy: NewProxy) -> None:
    def swallow(sock: socket.socket) -> None:
        if read_head(sock).startswith(b"GET"):
            sock.sendall(OK)
        else:
            while sock.recv(65536):
                pass

    over = threading.Event()

    def flood(client: ssl.SSLSocket) -> None:
        with contextlib.suppress(OSError):
            client.sendall(head(proxy.key, "Transfer-Encoding: chunked"))
            for _ in itertools.takewhile(lambda _: not over.is_set(), range(100_000)):
                client.sendall(b"1\r\na\r\n" * 2_500)

    with upstream(swallow) as url, before(new_proxy, url) as proxy, dial(proxy) as client:
        flooding = threading.Thread(target=flood, args=(client,))
        flooding.start()
        try:
            for _ in range(20):
                honest = request(
                    proxy.base_url, proxy.client_tls(), "GET", "/v1/models", [("Authorization", f"Token {proxy.key}")]
                )
                assert honest.status == 200
            assert flooding.is_alive()
        finally:
            over.set()
            client.shutdown(socket.SHUT_RDWR)
            flooding.join(PATIENCE)


def test_the_last_words_of_an_upstream_reach_a_client_that_is_still_sending(new_proxy: NewProxy) -> None:
    text = b"x" * 65_535
    last = b"\x81\x7e" + struct.pack("!H", len(text)) + text + b"\x88\x0a" + struct.pack("!H", 1011) + b"NET-0001"

    def speak_and_leave(sock: socket.socket) -> None:
        sock.sendall(switching_protocols(read_head(sock)))
        sock.recv(1)
        sock.sendall(last)
        while struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]:  # tcp(7): not yet acknowledged
            threading.Event().wait(0.001)
        # And it closes, with the client's bytes unread: a reset follows.

    audio = b"\x82\xfe" + struct.pack("!H", 3200) + bytes(4) + bytes(3200)
    upgrade = (
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {'A' * 22}==",
    )
    with upstream(speak_and_leave) as url, before(new_proxy, url) as proxy:
        for _ in range(8):
            with dial(proxy) as client:
                client.sendall(head(proxy.key, *upgrade, method="GET"))
                for _ in range(300):
                    client.sendall(audio)
                heard = b""
                with contextlib.suppress(ssl.SSLEOFError):  # the upstream's own end was no orderly one
                    while piece := client.recv(65536):
                        heard += piece
                assert heard.partition(b"\r\n\r\n")[2] == last


def test_status_shows_a_key_whose_only_request_is_still_in_flight(new_proxy: NewProxy) -> None:
    arrived = threading.Event()

    def silent(sock: socket.socket) -> None:
        read_head(sock)
        arrived.set()
        with contextlib.suppress(ConnectionError):
            sock.recv(1)

    with upstream(silent) as url, before(new_proxy, url) as proxy, dial(proxy) as client:
        client.sendall(head(proxy.key, method="GET", target="/v1/models"))
        assert arrived.wait(PATIENCE)
        assert proxy.status()["usage"][proxy.key_id]["in_flight"] == 1


# --- a client that goes with much of what it sent still unread -------------------------------------------------------


def leave(sock: ssl.SSLSocket, *, reset: bool) -> None:
    if reset:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        socket.socket.close(sock)
    else:
        socket.socket.shutdown(sock, socket.SHUT_WR)


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "end of stream"])
def test_a_client_that_leaves_behind_much_that_was_not_read_cancels_its_request_all_the_same(
    new_proxy: NewProxy,
    reset: bool,  # noqa: FBT001
) -> None:
    asked, gone = threading.Event(), threading.Event()

    def silent(sock: socket.socket) -> None:
        read_head(sock)
        asked.set()
        with contextlib.suppress(ConnectionError):
            assert sock.recv(1) == b""
        gone.set()

    with upstream(silent) as url, before(new_proxy, url) as proxy, dial(proxy) as client:
        client.sendall(head(proxy.key, method="GET", target="/v1/models"))
        assert asked.wait(PATIENCE)
        client.sendall(head(proxy.key, "X-Pad: " + "x" * 8000, method="GET", target="/v1/models") * 12)
        leave(client, reset=reset)
        assert gone.wait(2 * SOON)
        proxy.stderr.wait_for(is_event("request.close", end="client_gone"))


def test_a_client_that_resets_while_its_upstream_takes_nothing_is_gone_at_once(new_proxy: NewProxy) -> None:
    asked, over, gone = threading.Event(), threading.Event(), threading.Event()

    def stuck(sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        read_head(sock)
        asked.set()
        assert over.wait(PATIENCE)
        with contextlib.suppress(ConnectionError):
            while sock.recv(65536):
                pass
        gone.set()

    with upstream(stuck) as url, before(new_proxy, url) as proxy, dial(proxy) as client:
        client.sendall(head(proxy.key, "Content-Length: 1000000000"))
        assert asked.wait(PATIENCE)
        client.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            while True:
                client.sendall(bytes(65536))
        leave(client, reset=True)
        proxy.stderr.wait_for(is_event("request.close", end="client_gone"), 2 * SOON)
        over.set()
        assert gone.wait(PATIENCE)


# --- what is tried again, and what waits -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "target", "tries"), [("GET", "/v1/models", 2), ("POST", "/v1/listen", 1)], ids=["GET", "POST"]
)
def test_a_request_that_a_kept_connection_took_whole_is_tried_again_only_if_its_method_is_safe(
    new_proxy: NewProxy, method: str, target: str, tries: int
) -> None:
    heads: queue.Queue[bytes] = queue.Queue()

    def closes_the_second(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(OK)
        if again := sock.recv(65536):
            heads.put(again)

    with upstream(closes_the_second) as url, before(new_proxy, url) as proxy, dial(proxy) as client:
        client.sendall(head(proxy.key, method="GET", target="/v1/models"))
        assert answer(client).startswith(b"HTTP/1.1 200 ")
        client.sendall(head(proxy.key, "Content-Length: 0", method=method, target=target))
        said = answer(client)
        assert heads.get(timeout=PATIENCE).startswith(method.encode())
        assert said.startswith(b"HTTP/1.1 200 " if tries == 2 else b"HTTP/1.1 502 ")
        client.close()
    assert heads.empty()


def test_an_answer_that_pauses_too_long_in_its_body_is_cut(new_proxy: NewProxy) -> None:
    over = threading.Event()

    def pauses(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nbegun")
        over.wait(PATIENCE)

    settings = {"server.workers": "1", "timeouts.stream_idle": '"1s"'}
    with (
        upstream(pauses) as url,
        new_proxy({"upstream.urls": f'["{url}"]', **settings}) as proxy,
        connect(proxy) as client,
    ):
        client.sendall(head(proxy.key, method="GET", target="/v1/models"))
        try:
            proxy.stderr.wait_for(is_event("request.close", end="upstream_gone"), PATIENCE)
        finally:
            over.set()
        read_cut(client)
