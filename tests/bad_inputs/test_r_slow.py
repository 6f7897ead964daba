"""R1 and R2: clients that send slowly, and clients that do not read.

Every row ends with an honest request on a new connection that works, and no slot held.
"""

import contextlib
import json
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Final

import pytest

from dgproxy.wire.frames import BINARY
from tests.support import usage
from tests.support.frames import frame
from tests.support.impatient import (
    FLAT,
    MIB,
    SOON,
    STEP,
    NewProxy,
    assert_well,
    ended,
    hello,
    impatient_before,
    swallow,
    until,
    wait_for_end,
    worker,
)
from tests.support.logs import is_event
from tests.support.proxy import Proxy
from tests.support.raw import connect, post, read_answer, read_cut, send, tcp, ws
from tests.support.scripted import PATIENCE, switching_protocols

# The rows have upstreams of their own; which one the session has besides does not matter.
pytestmark = [
    pytest.mark.usefixtures("upstream_process"),
    pytest.mark.parametrize("upstream_process", ["standin"], indirect=True),
]

# --- R1: slow clients ------------------------------------------------------------------------------------------------


def drip(sock: socket.socket, data: bytes, *, size: int = 1) -> bool:
    """Sends so many bytes every STEP; whether all of it could be sent before the proxy ended it or said something."""
    sock.settimeout(STEP)
    for start in range(0, len(data), size):
        try:
            sock.sendall(data[start : start + size])
            if sock.recv(1) is not None:
                return False
        except TimeoutError:
            continue  # a read gives nothing for STEP: that is the pace
        except (ConnectionError, ssl.SSLEOFError):
            return False
    return True


SLOW: Final = {
    "R1 handshake, nothing": (b"", False, None),
    "R1 handshake, byte by byte": (hello(), False, None),
    "R1 handshake, garbage byte by byte": (b"\x16\x03\x01\x40\x00" + bytes(300), False, None),
    "R1 head, nothing": (b"", True, None),
    "R1 head, byte by byte": (b"GET /v1/models HTTP/1.1\r\nHost: dg\r\n" + b"X: y\r\n" * 100, True, 408),
    "R1 head, an empty line": (b"\r\n", True, None),
}


@pytest.mark.parametrize(("said", "secure", "status"), SLOW.values(), ids=SLOW)
def test_a_beginning_that_takes_too_long_is_cut_at_its_deadline(
    impatient: Proxy, said: bytes, *, secure: bool, status: int | None
) -> None:
    began = time.monotonic()
    with connect(impatient) if secure else tcp(impatient) as client:
        done = drip(client, said)
        assert not done or len(said) < 20, "the proxy took all of it, byte by byte"
        assert ended(client)
    if status is not None:
        impatient.stderr.wait_for(is_event("request.refused", status=status, phase="head"), SOON)
    assert 0.9 < time.monotonic() - began < SOON
    assert_well(impatient)


BODIES: Final = {
    "R1 body, a byte at a time": (b"Content-Length: 5000", b"a", "The request body arrived too slowly."),
    "R1 body, a byte in a chunk at a time": (
        b"Transfer-Encoding: chunked",
        b"1\r\na\r\n",
        "The request body arrived too slowly.",
    ),
    "R1 body, none": (b"Content-Length: 5000", b"", "The request body arrived too slowly."),
    "R1 long body, a byte at a time": (b"Content-Length: 50000000", b"a", "The request body arrived too slowly."),
    "R1 long body, none": (b"Content-Length: 50000000", b"", "The request body arrived too slowly."),
}


@pytest.mark.parametrize(("framing", "piece", "reason"), BODIES.values(), ids=BODIES)
def test_a_body_below_the_minimum_rate_is_given_up_with_a_408(
    impatient: Proxy, framing: bytes, piece: bytes, reason: str
) -> None:
    with connect(impatient) as client:
        send(client, impatient, post(framing))
        drip(client, piece * 300, size=len(piece) or 1)
        entry = impatient.stderr.wait_for(is_event("request.refused", status=408, reason=reason), SOON)
        assert json.loads(entry)["phase"] == "upstream"
    assert_well(impatient)


def test_r1_the_408_of_a_slow_body_reaches_its_client(impatient: Proxy) -> None:
    with connect(impatient) as client:
        send(client, impatient, post(b"Content-Length: 5000") + b"some")
        said = read_answer(client)
        assert said.status == 408
        assert said.json()["err_code"] == "REQUEST_TIMEOUT"
        assert client.recv(1) == b""
    assert_well(impatient)


def test_r1_an_honest_slow_upload_survives_however_long_it_takes(impatient: Proxy) -> None:
    pieces, size = 45, 1500  # more than four windows and twice stream_idle; a single piece is a window's minimum
    with connect(impatient) as client:
        send(client, impatient, post(b"Content-Length: %d" % (pieces * size)))
        for _ in range(pieces):
            client.sendall(bytes(size))
            time.sleep(STEP)  # the pace of the upload, not a wait for something
        said = read_answer(client)
    assert said.status == 200
    assert said.body == b"%d" % (pieces * size)
    assert_well(impatient)


@pytest.mark.parametrize("length", [5000, 50_000_000])
def test_r1_without_a_minimum_a_body_may_drip_but_not_stop(new_proxy: NewProxy, length: int) -> None:
    settings = {"timeouts__minimum_upload_rate": '"0/s over 30s"'}
    with impatient_before(new_proxy, swallow, **settings) as proxy, connect(proxy) as client:
        send(client, proxy, post(b"Content-Length: %d" % length))
        assert drip(client, bytes(30))
        client.settimeout(SOON)
        said = read_answer(client)
        assert said.status == 408
        assert b"stopped" in said.body


def test_r1_what_an_upstream_takes_slowly_is_not_held_against_the_client(new_proxy: NewProxy) -> None:
    """Far less than the minimum goes through in three windows, since the upstream takes no more."""
    begin = threading.Event()
    size = 8 * MIB

    def late(sock: socket.socket, asked: bytes) -> None:
        begin.wait(PATIENCE)
        swallow(sock, asked)

    with (
        impatient_before(new_proxy, late, timeouts__stream_idle='"20s"', upstream__response_timeout='"20s"') as proxy,
        connect(proxy, buffer=4096) as client,
    ):
        send(client, proxy, post(b"Content-Length: %d" % size))
        sending = threading.Thread(target=client.sendall, args=(bytes(size),))
        sending.start()
        try:
            time.sleep(3.5)  # windows must pass, and nothing tells when they have
        finally:
            begin.set()
            sending.join(PATIENCE)
        said = read_answer(client)
        assert said.status == 200
        assert said.body == b"%d" % size


@pytest.mark.parametrize("framing", [b"Content-Length: 50000000", b"Transfer-Encoding: chunked"])
def test_an_upstream_that_takes_no_more_of_a_body_is_given_up_with_a_504(new_proxy: NewProxy, framing: bytes) -> None:
    over = threading.Event()

    def deaf(sock: socket.socket, _: bytes) -> None:  # whose socket must outlive it
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        over.wait(PATIENCE)

    piece = bytes(65536) if framing.startswith(b"Content") else b"10000\r\n" + bytes(65536) + b"\r\n"
    with impatient_before(new_proxy, deaf) as proxy, connect(proxy) as client:
        send(client, proxy, post(framing))
        try:
            assert full(client, piece) < 50_000_000
            proxy.stderr.wait_for(is_event("request.refused", status=504, detail="takes no more of the body"), SOON)
        finally:
            over.set()


# --- R2: what is never read ------------------------------------------------------------------------------------------


class Flood:
    """An upstream that sends without end, and counts what was taken of it."""

    def __init__(self, greeting: Callable[[bytes], bytes], piece: bytes) -> None:
        self._greeting = greeting
        self._piece = piece
        self.sent = 0
        self.over = threading.Event()

    def __call__(self, sock: socket.socket, asked: bytes) -> None:
        with contextlib.suppress(OSError):
            sock.sendall(self._greeting(asked))
            while self.sent < 2 << 30:
                sock.sendall(self._piece)
                self.sent += len(self._piece)
        self.over.set()


def chunked(_: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


FLOODS: Final = {
    "R2 response": (chunked, b"10000\r\n" + bytes(65536) + b"\r\n"),
    "R2 WebSocket": (switching_protocols, b"\x82\x7e\xff\xff" + bytes(65535)),
}


def full(sock: socket.socket, data: bytes, quiet: float = 0.5) -> int:
    """Sends until nothing has been taken for so many seconds, or the proxy ends it; how many bytes were."""
    sock.settimeout(quiet)
    sent = 0
    with contextlib.suppress(TimeoutError, ConnectionError, ssl.SSLEOFError):
        while sent < 1 << 30:
            sent += sock.send(data)
    sock.settimeout(PATIENCE)
    return sent


@pytest.mark.parametrize(("greeting", "piece"), FLOODS.values(), ids=FLOODS)
def test_what_a_client_never_reads_holds_its_upstream_up_takes_no_memory_and_is_cut(
    new_proxy: NewProxy, greeting: Callable[[bytes], bytes], piece: bytes
) -> None:
    flood = Flood(greeting, piece)
    with impatient_before(new_proxy, flood) as proxy, connect(proxy, buffer=4096) as client:
        pid = worker(proxy)
        first = usage.memory(pid)
        send(client, proxy, ws() if greeting is switching_protocols else post(b"Content-Length: 0"))
        until("something was sent", lambda: flood.sent)
        most = 0
        while not flood.over.wait(0.05):
            most = max(most, usage.memory(pid))
            assert flood.sent < 256 * MIB, "no backpressure"
        assert most - first < FLAT
        read_cut(client)  # the client can't take what it got for the whole


def test_r2_a_websocket_client_that_sends_and_never_reads_is_held_up_and_cut(new_proxy: NewProxy) -> None:
    def echo(sock: socket.socket, asked: bytes) -> None:
        sock.sendall(switching_protocols(asked))
        while sock.recv(65536):
            sock.sendall(b"\x82\x7e\x7d\x00" + bytes(32_000))

    with impatient_before(new_proxy, echo) as proxy, connect(proxy, buffer=4096) as client:
        pid = worker(proxy)
        first = usage.memory(pid)
        send(client, proxy, ws())
        sent = full(client, frame(BINARY, bytes(32_000)), quiet=1.0)
        assert sent < 256 * MIB
        assert usage.memory(pid) - first < FLAT
        proxy.stderr.wait_for(is_event("stream.close"), SOON)
        read_cut(client)


def test_r2_a_client_that_never_reads_is_cut_though_its_own_frames_still_pass(new_proxy: NewProxy) -> None:
    """What moves one way says nothing of what waits the other way."""

    def flood(sock: socket.socket, asked: bytes) -> None:
        sock.sendall(switching_protocols(asked))
        reading = threading.Thread(target=wait_for_end, args=(sock,))
        reading.start()
        with contextlib.suppress(OSError):
            while True:
                sock.sendall(b"\x82\x7e\x7d\x00" + bytes(32_000))
        reading.join()

    with impatient_before(new_proxy, flood) as proxy, connect(proxy, buffer=4096) as client:
        send(client, proxy, ws())
        over = threading.Event()

        def talk() -> None:
            with contextlib.suppress(OSError):
                while not over.wait(STEP):
                    client.sendall(frame(BINARY, bytes(200)))

        talking = threading.Thread(target=talk)
        talking.start()
        try:
            proxy.stderr.wait_for(is_event("stream.close", end="idle"), SOON)
        finally:
            over.set()
            talking.join()


def test_r2_small_chunks_that_come_together_go_on_together(new_proxy: NewProxy) -> None:
    """One by one, a client's 6 bytes would cost the proxy a send and the engine a read each."""
    bodies: queue.Queue[bytes] = queue.Queue()

    def take(sock: socket.socket, asked: bytes) -> None:
        _, _, body = asked.partition(b"\r\n\r\n")
        while not body.endswith(b"0\r\n\r\n"):
            body += sock.recv(65536)
        bodies.put(body)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    with impatient_before(new_proxy, take) as proxy, connect(proxy) as client:
        send(client, proxy, post(b"Transfer-Encoding: chunked"), b"1\r\nx\r\n" * 2000 + b"0\r\n\r\n")
        assert read_answer(client).status == 200
        body = bodies.get(timeout=PATIENCE)
        assert body.count(b"x") == 2000
        assert body.count(b"\r\n") // 2 < 2000 / 16


def test_r2_a_body_that_is_too_large_before_it_breaks_is_too_large(new_proxy: NewProxy) -> None:
    body = b"400\r\n" + bytes(1024) + b"\r\n1\r\nx\r\nbroken"
    with (
        impatient_before(new_proxy, swallow, plans__default__max_body='"1KiB"') as proxy,
        connect(proxy) as client,
    ):
        send(client, proxy, post(b"Transfer-Encoding: chunked"), body)
        assert read_answer(client).status == 413
