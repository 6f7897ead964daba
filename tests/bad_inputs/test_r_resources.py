"""Group R of the catalogue, and T4 and T5: slow, silent and greedy clients, stalled peers, and what runs out.

Every row ends with an honest request on a new connection that works, and no slot held.
"""

import contextlib
import json
import os
import signal
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support import usage
from tests.support.clients import request
from tests.support.logs import is_event
from tests.support.proxy import DGPROXY, Proxy, dgproxy
from tests.support.scripted import PATIENCE, read_head, switching_protocols, upstream
from tests.support.upstreams import Upstream

ROWS: Final = ("R1", "R2", "R3", "R4", "R5", "R6", "R7", "R8", "R9", "T4", "T5")

# Most rows have upstreams of their own; the stand-in is there to be stopped as a process.
pytestmark = [
    pytest.mark.usefixtures("upstream_process"),
    pytest.mark.parametrize("upstream_process", ["standin"], indirect=True),
]

NewProxy = Callable[..., Proxy]
Misbehaviour = Callable[[socket.socket, bytes], None]

MIB: Final = 1 << 20
OK: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
SOON: Final = 10.0  # seconds in which a bound of one or two must have shown, on a busy machine too
FLAT: Final = 24 * MIB  # that a worker may grow by, whatever is sent through it
STEP: Final = 0.1  # seconds between two drips
IMPATIENT: Final = {
    "server.workers": "1",
    "timeouts.tls_handshake": '"1s"',
    "timeouts.request_head": '"1s"',
    "timeouts.upgrade": '"1s"',
    "timeouts.idle_keepalive": '"30s"',
    "timeouts.stream_idle": '"2s"',
    "timeouts.minimum_upload_rate": '"1KiB/s over 1s"',
    "upstream.response_timeout": '"1s"',
    "upstream.connect_timeout": '"1s"',
}
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends RST


# --- the two sides ---------------------------------------------------------------------------------------------------


def tcp(buffer: int | None) -> socket.socket:
    """A socket to be connected; with `buffer` the kernel holds about so many bytes each way."""
    sock = socket.socket()
    if buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    sock.settimeout(PATIENCE)
    return sock


def raw(proxy: Proxy, *, buffer: int | None = None) -> socket.socket:
    """A TCP connection."""
    sock = tcp(buffer)
    try:
        sock.connect(("127.0.0.1", proxy.port))
    except BaseException:
        sock.close()
        raise
    return sock


def dial(proxy: Proxy, *, buffer: int | None = None) -> ssl.SSLSocket:
    """A connection that has its handshake behind it."""
    sock = proxy.client_tls().wrap_socket(tcp(buffer), server_hostname="127.0.0.1", suppress_ragged_eofs=False)
    try:
        sock.connect(("127.0.0.1", proxy.port))  # wrapped before: one that is reset at once would not be closed
    except BaseException:
        sock.close()
        raise
    return sock


def head(proxy: Proxy, *lines: str, method: str = "POST", target: str = "/v1/listen", key: str = "") -> bytes:
    lines = (f"{method} {target} HTTP/1.1", "Host: dg", f"Authorization: Token {key or proxy.key}", *lines)
    return "\r\n".join([*lines, "", ""]).encode()


def upgrade(proxy: Proxy) -> bytes:
    return head(
        proxy,
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {'A' * 22}==",
        method="GET",
    )


def frame(payload: bytes) -> bytes:
    """A client's binary frame, masked with zeros."""
    return b"\x82\xfe" + struct.pack("!H", len(payload)) + bytes(4) + payload


def answer(sock: socket.socket) -> bytes:
    """One whole answer, framed by its length."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += sock.recv(65536) or pytest.fail(f"ended within a head: {data!r}")
    start, _, body = data.partition(b"\r\n\r\n")
    (length,) = [
        int(line.split(b":")[1]) for line in start.split(b"\r\n") if line.lower().startswith(b"content-length")
    ]
    while len(body) < length:
        body += sock.recv(65536) or pytest.fail("ended within a body")
    return start + b"\r\n\r\n" + body


def to_the_end(sock: socket.socket) -> tuple[bytes, bool]:
    """All that comes, and whether its end was an orderly one."""
    heard = b""
    try:
        while piece := sock.recv(65536):
            heard += piece
    except (ConnectionError, ssl.SSLEOFError):
        return heard, False
    return heard, True


def ended(sock: socket.socket, within: float = SOON) -> bool:
    """Whether the proxy ends this raw connection in time, one way or another; what it says before is thrown away."""
    sock.settimeout(within)
    try:
        while socket.socket.recv(sock, 65536):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


def full(sock: socket.socket, data: bytes, quiet: float = 0.5) -> int:
    """Sends until nothing has been taken for so many seconds, or the proxy ends it; how many bytes were."""
    sock.settimeout(quiet)
    sent = 0
    with contextlib.suppress(TimeoutError, ConnectionError, ssl.SSLEOFError):
        while sent < 1 << 30:
            sent += sock.send(data)
    sock.settimeout(PATIENCE)
    return sent


def serving(misbehave: Misbehaviour) -> Callable[[socket.socket], None]:
    """An upstream that answers what is asked of /v1/models, and with all else does as it is told."""

    def serve(sock: socket.socket) -> None:
        with contextlib.suppress(AssertionError):
            while True:
                asked = read_head(sock)
                if not asked.startswith(b"GET /v1/models"):
                    misbehave(sock, asked)
                    return
                sock.sendall(OK)

    return serve


def swallow(sock: socket.socket, asked: bytes) -> None:
    """Reads a body of a length, then answers with its size; a chunked one until it is cut."""
    start, _, body = asked.partition(b"\r\n\r\n")
    lengths = [int(line.split(b":")[1]) for line in start.split(b"\r\n") if line.lower().startswith(b"content-len")]
    got = len(body)
    while not lengths or got < lengths[0]:
        piece = sock.recv(65536)
        if not piece:
            return
        got += len(piece)
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%d" % (len(str(got)), got))


def wait_for_end(sock: socket.socket) -> None:
    """Until the proxy ends the connection, reading all of it."""
    with contextlib.suppress(ConnectionError):
        while sock.recv(65536):
            pass


# --- what every row ends with ----------------------------------------------------------------------------------------


def until(what: str, holds: Callable[[], Any], within: float = SOON) -> Any:
    """Asks again and again until there is a true answer, for what tells nobody that it happened."""
    deadline = time.monotonic() + within
    while not (found := holds()):
        assert time.monotonic() < deadline, f"not within {within} s: {what}"
        time.sleep(0.02)
    return found


def models(proxy: Proxy, key: str = "") -> int:
    """The status of an honest request on a new connection."""
    headers = [("Authorization", f"Token {key or proxy.key}")]
    return request(proxy.base_url, proxy.client_tls(), "GET", "/v1/models", headers).status


def in_flight(proxy: Proxy) -> int:
    return sum(int(key["in_flight"]) for key in proxy.status()["usage"].values())


def connections(proxy: Proxy) -> int:
    return sum(int(worker["connections"]) for worker in proxy.status()["workers"])


def assert_well(proxy: Proxy, within: float = SOON) -> None:
    """An honest request works, and nothing is held any more."""
    assert models(proxy) == 200
    until("no slot is held", lambda: in_flight(proxy) == 0, within)
    assert not [line for line in proxy.log_lines() if line.get("event") == "worker.fault"]


@contextlib.contextmanager
def before(new_proxy: NewProxy, misbehave: Misbehaviour, **settings: str) -> Iterator[Proxy]:
    """An impatient proxy with one worker before such an upstream; well at the end."""
    with upstream(serving(misbehave)) as url:
        mine = {name.replace("__", "."): value for name, value in settings.items()}
        with new_proxy({"upstream.urls": f'["{url}"]', **IMPATIENT, **mine}) as proxy:
            assert models(proxy) == 200
            yield proxy
            assert_well(proxy)


def worker(proxy: Proxy) -> int:
    """The process id of its only worker."""
    (pid,) = proxy.worker_pids()
    return pid


# --- R1: slow clients ------------------------------------------------------------------------------------------------


def hello() -> bytes:
    """The beginning of a handshake."""
    outgoing = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="dg")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


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


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory, leaks: list[str]) -> Iterator[Proxy]:
    """One impatient proxy for the rows that leave it as it was."""
    with upstream(serving(swallow)) as url:
        proxy = Proxy(tmp_path_factory.mktemp("impatient"), url, IMPATIENT)
        try:
            with proxy:
                yield proxy
        finally:
            leaks += proxy.leaks()


@pytest.mark.parametrize(("said", "secure", "status"), SLOW.values(), ids=SLOW)
def test_a_beginning_that_takes_too_long_is_cut_at_its_deadline(
    impatient: Proxy, said: bytes, *, secure: bool, status: int | None
) -> None:
    began = time.monotonic()
    with dial(impatient) if secure else raw(impatient) as client:
        done = drip(client, said)
        assert not done or len(said) < 20, "the proxy took all of it, byte by byte"
        assert ended(client)
    if status is not None:
        impatient.stderr.wait_for(is_event("request.refused", status=status, phase="head"), SOON)
    assert 0.9 < time.monotonic() - began < SOON
    assert_well(impatient)


BODIES: Final = {
    "R1 body, a byte at a time": ("Content-Length: 5000", b"a", "The request body arrived too slowly."),
    "R1 body, a byte in a chunk at a time": (
        "Transfer-Encoding: chunked",
        b"1\r\na\r\n",
        "The request body arrived too slowly.",
    ),
    "R1 body, none": ("Content-Length: 5000", b"", "The request body arrived too slowly."),
}


@pytest.mark.parametrize(("framing", "piece", "reason"), BODIES.values(), ids=BODIES)
def test_a_body_below_the_minimum_rate_is_given_up_with_a_408(
    impatient: Proxy, framing: str, piece: bytes, reason: str
) -> None:
    with dial(impatient) as client:
        client.sendall(head(impatient, framing))
        drip(client, piece * 300, size=len(piece) or 1)
        entry = impatient.stderr.wait_for(is_event("request.refused", status=408, reason=reason), SOON)
        assert json.loads(entry)["phase"] == "upstream"
    assert_well(impatient)


def test_r1_the_408_of_a_slow_body_reaches_its_client(impatient: Proxy) -> None:
    with dial(impatient) as client:
        client.sendall(head(impatient, "Content-Length: 5000") + b"some")
        said = answer(client)
        assert said.startswith(b"HTTP/1.1 408 ")
        assert json.loads(said.partition(b"\r\n\r\n")[2])["err_code"] == "REQUEST_TIMEOUT"
        assert client.recv(1) == b""
    assert_well(impatient)


def test_r1_an_honest_slow_upload_survives_however_long_it_takes(impatient: Proxy) -> None:
    pieces, size = 45, 1500  # more than four windows and twice stream_idle; a single piece is a window's minimum
    with dial(impatient) as client:
        client.sendall(head(impatient, f"Content-Length: {pieces * size}"))
        for _ in range(pieces):
            client.sendall(bytes(size))
            time.sleep(STEP)  # the pace of the upload, not a wait for something
        said = answer(client)
    assert said.startswith(b"HTTP/1.1 200 ")
    assert said.endswith(b"\r\n\r\n%d" % (pieces * size))
    assert_well(impatient)


def test_r1_without_a_minimum_a_body_may_drip_but_not_stop(new_proxy: NewProxy) -> None:
    settings = {"timeouts__minimum_upload_rate": '"0/s over 30s"'}
    with before(new_proxy, swallow, **settings) as proxy, dial(proxy) as client:
        client.sendall(head(proxy, "Content-Length: 5000"))
        assert drip(client, bytes(30))
        client.settimeout(SOON)
        said = answer(client)
        assert said.startswith(b"HTTP/1.1 408 ")
        assert b"stopped" in said


def test_r1_what_an_upstream_takes_slowly_is_not_held_against_the_client(new_proxy: NewProxy) -> None:
    """Far less than the minimum goes through in three windows, since the upstream takes no more."""
    begin = threading.Event()
    size = 8 * MIB

    def late(sock: socket.socket, asked: bytes) -> None:
        begin.wait(PATIENCE)
        swallow(sock, asked)

    with (
        before(new_proxy, late, timeouts__stream_idle='"20s"', upstream__response_timeout='"20s"') as proxy,
        dial(proxy, buffer=4096) as client,
    ):
        client.sendall(head(proxy, f"Content-Length: {size}"))
        sending = threading.Thread(target=client.sendall, args=(bytes(size),))
        sending.start()
        try:
            time.sleep(3.5)  # windows must pass, and nothing tells when they have
        finally:
            begin.set()
            sending.join(PATIENCE)
        said = answer(client)
        assert said.startswith(b"HTTP/1.1 200 ")
        assert said.endswith(b"\r\n\r\n%d" % size)


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


@pytest.mark.parametrize(("greeting", "piece"), FLOODS.values(), ids=FLOODS)
def test_what_a_client_never_reads_holds_its_upstream_up_takes_no_memory_and_is_cut(
    new_proxy: NewProxy, greeting: Callable[[bytes], bytes], piece: bytes
) -> None:
    flood = Flood(greeting, piece)
    with before(new_proxy, flood) as proxy, dial(proxy, buffer=4096) as client:
        pid = worker(proxy)
        first = usage.memory(pid)
        client.sendall(upgrade(proxy) if greeting is switching_protocols else head(proxy, "Content-Length: 0"))
        until("something was sent", lambda: flood.sent)
        most = 0
        while not flood.over.wait(0.05):
            most = max(most, usage.memory(pid))
            assert flood.sent < 256 * MIB, "no backpressure"
        assert most - first < FLAT
        _, orderly = to_the_end(client)
        assert not orderly  # the client can't take what it got for the whole


def test_r2_a_websocket_client_that_sends_and_never_reads_is_held_up_and_cut(new_proxy: NewProxy) -> None:
    def echo(sock: socket.socket, asked: bytes) -> None:
        sock.sendall(switching_protocols(asked))
        while sock.recv(65536):
            sock.sendall(b"\x82\x7e\x7d\x00" + bytes(32_000))

    with before(new_proxy, echo) as proxy, dial(proxy, buffer=4096) as client:
        pid = worker(proxy)
        first = usage.memory(pid)
        client.sendall(upgrade(proxy))
        sent = full(client, frame(bytes(32_000)), quiet=1.0)
        assert sent < 256 * MIB
        assert usage.memory(pid) - first < FLAT
        proxy.stderr.wait_for(is_event("stream.close"), SOON)
        _, orderly = to_the_end(client)
        assert not orderly


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

    with before(new_proxy, flood) as proxy, dial(proxy, buffer=4096) as client:
        client.sendall(upgrade(proxy))
        over = threading.Event()

        def talk() -> None:
            with contextlib.suppress(OSError):
                while not over.wait(STEP):
                    client.sendall(frame(bytes(200)))

        talking = threading.Thread(target=talk)
        talking.start()
        try:
            proxy.stderr.wait_for(is_event("stream.close", end="idle"), SOON)
        finally:
            over.set()
            talking.join()


# --- R3: connections that say nothing --------------------------------------------------------------------------------


def test_r3_at_the_limit_new_connections_wait_and_are_served_when_one_leaves(new_proxy: NewProxy) -> None:
    settings = {"limits__connections": "8", "timeouts__tls_handshake": '"60s"', "timeouts__request_head": '"60s"'}
    with before(new_proxy, swallow, **settings) as proxy, contextlib.ExitStack() as staying:
        silent = [staying.enter_context(raw(proxy)) for _ in range(4)]
        silent += [staying.enter_context(dial(proxy)) for _ in range(4)]
        until("all eight are in", lambda: connections(proxy) == 8)
        with ThreadPoolExecutor(1) as pool:
            honest = pool.submit(models, proxy)
            with pytest.raises(TimeoutError):
                honest.result(1.0)
            assert connections(proxy) == 8
            silent[0].close()
            assert honest.result(SOON) == 200
        until("one has left", lambda: connections(proxy) == 7)


def test_r3_a_crowd_that_says_nothing_is_cut_at_its_deadline_and_an_honest_client_has_its_turn(
    new_proxy: NewProxy,
) -> None:
    with before(new_proxy, swallow, limits__connections="50") as proxy, contextlib.ExitStack() as staying:
        pid = worker(proxy)
        at_rest = usage.descriptors(pid)
        for _ in range(300):
            staying.enter_context(raw(proxy))
        assert (
            request(  # behind all of them in the queue: six times fifty, a second each
                proxy.base_url, proxy.client_tls(), "GET", "/v1/models", [("Authorization", f"Token {proxy.key}")]
            ).status
            == 200
        )
        assert usage.descriptors(pid) <= at_rest + 60
        until("all of them are gone", lambda: usage.descriptors(pid) <= at_rest + 2, 20)


PER_ADDRESS: Final = 10


def seated(proxy: Proxy) -> ssl.SSLSocket | None:
    """A connection that has its seat, or None where it was reset."""
    try:
        return dial(proxy)
    except (ConnectionError, ssl.SSLError):
        return None


def fill(proxy: Proxy, staying: contextlib.ExitStack, count: int) -> list[ssl.SSLSocket]:
    """So many connections, tried until they have their seats."""

    def one() -> ssl.SSLSocket:
        found: ssl.SSLSocket = until("a seat is free", lambda: seated(proxy))
        return staying.enter_context(found)

    return [one() for _ in range(count)]


def test_r3_an_address_has_its_connections_exactly_over_both_workers(new_proxy: NewProxy) -> None:
    settings = {
        "server.workers": "2",
        "limits.connections_per_address": str(PER_ADDRESS),
        "timeouts.request_head": '"120s"',
    }
    with new_proxy(settings) as proxy, contextlib.ExitStack() as staying:
        assert models(proxy) == 200
        until("its seat is free again", lambda: connections(proxy) == 0)
        with ThreadPoolExecutor(40) as pool:  # all at once
            found = [one for one in pool.map(lambda _: seated(proxy), range(40)) if one is not None]
        clients = [staying.enter_context(one) for one in found]
        assert len(clients) == PER_ADDRESS
        assert seated(proxy) is None
        for _ in range(3):
            clients.pop().close()
            clients += fill(proxy, staying, 1)
            assert seated(proxy) is None

        # One sends a request, upgrades or is refused: it has one seat all the same.
        clients[0].sendall(upgrade(proxy))
        assert clients[0].recv(65536).startswith(b"HTTP/1.1 101 ")
        clients[1].sendall(head(proxy, method="GET", target="/nowhere"))
        assert answer(clients[1]).startswith(b"HTTP/1.1 404 ")
        assert seated(proxy) is None
        clients.pop(0).close()
        clients += fill(proxy, staying, 1)
        assert seated(proxy) is None

        # kill -9 gives back what the dead one held, and no more.
        pid = proxy.kill_worker(0)
        proxy.stderr.wait_for(is_event("worker.died", pid=pid), SOON)
        until("it is replaced", lambda: pid not in proxy.worker_pids() and proxy.status()["ready"])
        alive = [one for one in clients if not dead(one)]
        clients = alive + fill(proxy, staying, PER_ADDRESS - len(alive))
        assert seated(proxy) is None
        for client in clients:
            client.close()
        until("all have left", lambda: connections(proxy) == 0)
        assert_well(proxy)


def dead(sock: ssl.SSLSocket) -> bool:
    """Whether its other end is gone."""
    sock.settimeout(0.05)
    try:
        return sock.recv(1) == b""
    except (ConnectionError, ssl.SSLEOFError):
        return True
    except TimeoutError:
        return False
    finally:
        sock.settimeout(PATIENCE)


# --- R4: no file descriptor left -------------------------------------------------------------------------------------

_LIMITED: Final = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (96, 96))
os.execvp(sys.argv[1], sys.argv[1:])
"""


def test_r4_without_descriptors_connections_wait_nothing_spins_and_it_recovers(
    new_proxy: NewProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = {"timeouts.tls_handshake": '"60s"', "limits.connections": "1000"}
    with upstream(serving(swallow)) as url, contextlib.ExitStack() as staying:
        proxy = new_proxy({"upstream.urls": f'["{url}"]', **IMPATIENT, **patient})
        with monkeypatch.context() as limited:
            limited.setattr("tests.support.proxy.DGPROXY", [sys.executable, "-c", _LIMITED, *DGPROXY])
            proxy.start()
        with contextlib.ExitStack() as stopping:
            stopping.callback(proxy.kill)
            assert models(proxy) == 200
            pid = worker(proxy)
            at_rest = usage.descriptors(pid)
            crowd = [staying.enter_context(raw(proxy)) for _ in range(150)]
            until("no descriptor is left", lambda: usage.descriptors(pid) >= 95)
            before, began = usage.processor_time(pid), time.monotonic()
            with raw(proxy) as waiting:
                waiting.sendall(hello())
                waiting.settimeout(2.0)
                with pytest.raises(TimeoutError):
                    waiting.recv(1)
            spent = usage.processor_time(pid) - before
            assert spent < 0.25 * (time.monotonic() - began), "it spins"
            assert connections(proxy) > 0  # the control socket answers
            proxy.new_key("while nothing is left")
            for one in crowd:
                one.close()
            assert models(proxy) == 200
            until("all are gone", lambda: usage.descriptors(pid) <= at_rest + 2)
            assert_well(proxy)
            stopping.pop_all()
        proxy.stop()


# --- R5: many stalled uploads ----------------------------------------------------------------------------------------


def peek(sock: socket.socket) -> bytes:
    """The next head, left where it is."""
    while b"\r\n\r\n" not in (seen := sock.recv(4096, socket.MSG_PEEK)):
        assert seen, "ended"
        time.sleep(0.001)  # it has a byte already, so that nothing would tell of more
    return seen


@contextlib.contextmanager
def deaf() -> Iterator[str]:
    """An upstream that reads only what is honest; small buffers keep the kernel from taking the rest of it."""
    over = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
    held: list[socket.socket] = []

    def serve(sock: socket.socket) -> None:
        with contextlib.suppress(AssertionError, OSError):
            sock.settimeout(PATIENCE)
            while (seen := peek(sock)).startswith(b"GET") or b"x-honest" in seen.lower():
                if seen.startswith(b"GET"):
                    read_head(sock)
                    sock.sendall(OK)
                else:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MIB)
                    swallow(sock, read_head(sock))
            over.wait()

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                held.append(sock)
                threading.Thread(target=serve, args=(sock,), daemon=True).start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        over.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join(PATIENCE)
        for sock in held:
            sock.close()


CROWD: Final = {  # one that leaves with bytes of its own unread is known to have left after stream_idle
    **IMPATIENT,
    "timeouts.stream_idle": '"10s"',
    "timeouts.minimum_upload_rate": '"0/s over 30s"',
    "upstream.response_timeout": '"60s"',
    "limits.buffered": '"1MiB"',
    "plans.default.streams": "2000",
}


def stall(proxy: Proxy, key: str) -> ssl.SSLSocket:
    """An upload of which all is sent that is taken at once, and more than the kernels on its way hold."""
    client = dial(proxy)
    client.sendall(head(proxy, "Content-Length: 100000000", key=key))
    client.settimeout(0)
    with contextlib.suppress(ssl.SSLWantWriteError, ConnectionError, ssl.SSLEOFError):
        for _ in range(20):
            client.send(bytes(16_384))
    client.settimeout(PATIENCE)
    return client


def test_r5_five_hundred_stalled_uploads_hold_no_more_than_is_allowed_and_honest_requests_go_on(
    new_proxy: NewProxy,
) -> None:
    with deaf() as url, new_proxy({"upstream.urls": f'["{url}"]', **CROWD}) as proxy:
        assert models(proxy) == 200
        pid = worker(proxy)
        key = proxy.new_key("greedy", streams="2000").key
        with contextlib.ExitStack() as staying:
            first = 0
            crowd = []
            for number in range(500):
                crowd.append(staying.enter_context(stall(proxy, key)))
                if number == 50:
                    first = usage.memory(pid)
                if not number % 100:
                    assert models(proxy) == 200
            proxy.stderr.wait_for(is_event("worker.shed"), SOON)
            assert models(proxy) == 200
            # What 450 more of them cost is their TLS; their bytes would be over 64 MiB.
            assert usage.memory(pid) - first < 32 * MIB
            shed = json.loads(proxy.stderr.wait_for(is_event("request.close", end="shed", status=503), SOON))
            (client,) = [one for one in crowd if shed["peer"] == "{}:{}".format(*one.getsockname())]
            said = answer(client)
            assert said.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nRetry-After: " in said
        until(
            "all of them are gone", lambda: in_flight(proxy) == 0, 30
        )  # whose last bytes are not read yet: stream_idle
        assert_well(proxy)


def test_r5_a_busy_upload_outlives_the_stalled_ones(new_proxy: NewProxy) -> None:
    size = 256 * 1024
    over = threading.Event()
    uploads = 0

    def upload(proxy: Proxy) -> bytes:
        nonlocal uploads
        with dial(proxy) as client:
            while True:  # one after another, until the crowd has been shed
                client.sendall(head(proxy, f"Content-Length: {size}", "X-Honest: yes"))
                client.sendall(bytes(size))
                said = answer(client)
                uploads += 1
                if over.is_set() or not said.startswith(b"HTTP/1.1 200 "):
                    return said

    with deaf() as url, new_proxy({"upstream.urls": f'["{url}"]', **CROWD}) as proxy, ThreadPoolExecutor(1) as pool:
        honest = pool.submit(upload, proxy)
        try:
            until("an upload went through", lambda: uploads or honest.done())
            with contextlib.ExitStack() as staying:
                for _ in range(60):
                    staying.enter_context(stall(proxy, proxy.key))
                proxy.stderr.wait_for(is_event("worker.shed"), SOON)
                seen = uploads
                until("more uploads went through", lambda: uploads > seen + 1 or honest.done())
        finally:
            over.set()
        assert honest.result(60).startswith(b"HTTP/1.1 200 ")
        assert_well(proxy, 30)


# --- R6: many requests, many connections -----------------------------------------------------------------------------


def test_r6_thousands_of_requests_on_one_connection_leave_nothing(impatient: Proxy) -> None:
    pid = worker(impatient)
    asked = head(impatient, method="GET", target="/v1/models") * 10  # pipelined, ten at a time
    with dial(impatient) as client:

        def ten() -> None:
            client.sendall(asked)
            heard = b""
            while heard.count(b"\r\n\r\nok") < 10:
                heard += client.recv(65536) or pytest.fail("ended")
            assert heard.count(b"HTTP/1.1 200 ") == 10

        for _ in range(50):
            ten()
        memory, descriptors = usage.memory(pid), usage.descriptors(pid)
        for _ in range(200):
            ten()
        assert usage.descriptors(pid) <= descriptors + 1
        assert usage.memory(pid) - memory < 8 * MIB
    assert_well(impatient)


def test_r6_thousands_of_connections_that_come_and_go_leave_nothing(impatient: Proxy) -> None:
    pid = worker(impatient)
    opening = hello()

    def come_and_go(number: int) -> None:
        match number % 4:
            case 0:
                assert models(impatient) == 200
            case 1:
                raw(impatient).close()
            case 2:  # in the middle of a handshake
                with raw(impatient) as client:
                    client.sendall(opening[: 1 + number % len(opening)])
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            case _:  # in the middle of a head or a body
                with dial(impatient) as client:
                    client.sendall(head(impatient, "Content-Length: 5")[: 20 + number % 100])
                    if number % 8 < 4:
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    def churn(count: int) -> None:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(come_and_go, range(count)))
        until("all have left", lambda: connections(impatient) == 0, 20)

    churn(400)
    memory, descriptors = usage.memory(pid), usage.descriptors(pid)
    churn(1600)
    assert usage.descriptors(pid) <= descriptors + 4  # upstream connections that are kept
    assert usage.memory(pid) - memory < 8 * MIB
    assert_well(impatient)


# --- R7: one key floods ----------------------------------------------------------------------------------------------


def test_r7_a_key_that_floods_gets_its_slots_and_429s_and_another_key_all_that_it_asks(new_proxy: NewProxy) -> None:
    with before(new_proxy, swallow) as proxy:
        greedy = proxy.new_key("greedy", streams="2").key
        over = threading.Event()

        def flood(_: int) -> set[int]:
            found = set()
            while not over.is_set():
                found.add(models(proxy, greedy))
            return found

        with ThreadPoolExecutor(8) as pool:
            flooding = [pool.submit(flood, number) for number in range(8)]
            try:
                assert {models(proxy) for _ in range(60)} == {200}
            finally:
                over.set()
            assert set().union(*(one.result(SOON) for one in flooding)) <= {200, 429}


# --- R8: stopped processes -------------------------------------------------------------------------------------------


def test_r8_while_its_upstream_is_stopped_clients_get_a_504_in_time_and_nothing_of_it_is_left(
    new_proxy: NewProxy, upstream: Upstream
) -> None:
    with new_proxy(IMPATIENT) as proxy:
        assert models(proxy) == 200
        pid = worker(proxy)
        at_rest = usage.descriptors(pid)
        asked = {
            "request": head(proxy, method="GET", target="/v1/models"),
            "upload": head(proxy, "Content-Length: 5") + b"hello",
            "handshake": upgrade(proxy),
        }
        os.kill(upstream._process.pid, signal.SIGSTOP)
        try:
            for what, said in asked.items():
                began = time.monotonic()
                with dial(proxy) as client:
                    client.sendall(said)
                    assert answer(client).startswith(b"HTTP/1.1 504 "), what
                assert time.monotonic() - began < SOON
            until("no slot is held", lambda: in_flight(proxy) == 0)
        finally:
            os.kill(upstream._process.pid, signal.SIGCONT)
        assert_well(proxy)
        until("nothing is left open", lambda: usage.descriptors(pid) <= at_rest + 2)


def test_r8_while_a_worker_is_stopped_the_other_serves_and_what_waited_is_served_after(new_proxy: NewProxy) -> None:
    with new_proxy() as proxy:
        assert models(proxy) == 200
        pids = proxy.worker_pids()
        os.kill(pids[0], signal.SIGSTOP)
        try:
            with ThreadPoolExecutor(12) as pool:
                asked = [pool.submit(models, proxy) for _ in range(12)]
                until("the other has served some", lambda: [one for one in asked if one.done()])
                shown = dgproxy("streams", "list", "--json", "-c", str(proxy.config))
                assert "a worker did not answer in time" in shown.stderr
                assert json.loads(shown.stdout) == []
                assert proxy.status()["ready"]
                time.sleep(3.0)  # the catalogue's: stopped for some seconds
                os.kill(pids[0], signal.SIGCONT)
                assert {one.result(SOON) for one in asked} == {200}
        finally:
            os.kill(pids[0], signal.SIGCONT)
        shown = dgproxy("streams", "list", "--json", "-c", str(proxy.config))
        assert shown.stderr == ""
        assert proxy.worker_pids() == pids
        assert_well(proxy)


# --- R9: the queue of new connections overflows ----------------------------------------------------------------------


def test_r9_a_queue_that_overflows_costs_nobody_more_than_a_retry(new_proxy: NewProxy) -> None:
    queue = min(4096, int(Path("/proc/sys/net/core/somaxconn").read_text()))
    with before(new_proxy, swallow, timeouts__tls_handshake='"30s"') as proxy, contextlib.ExitStack() as staying:
        pid = worker(proxy)
        at_rest = usage.descriptors(pid)
        os.kill(pid, signal.SIGSTOP)
        try:
            for _ in range(queue + 200):
                sock = staying.enter_context(socket.socket())
                sock.setblocking(False)  # noqa: FBT003
                with contextlib.suppress(BlockingIOError):
                    sock.connect(("127.0.0.1", proxy.port))
            with ThreadPoolExecutor(1) as pool:
                honest = pool.submit(models, proxy)
                os.kill(pid, signal.SIGCONT)
                assert honest.result(30) == 200
        finally:
            os.kill(pid, signal.SIGCONT)
        staying.close()
        until("all of them are gone", lambda: usage.descriptors(pid) <= at_rest + 2, 30)
        assert worker(proxy) == pid


# --- T4, T5: ends of TLS ---------------------------------------------------------------------------------------------


def cut_short(client: ssl.SSLSocket) -> None:
    """A FIN without close_notify."""
    socket.socket.shutdown(client, socket.SHUT_WR)


@pytest.mark.parametrize(
    "framing", ["Content-Length: 1000", "Transfer-Encoding: chunked"], ids=["T4 length", "T4 chunked"]
)
def test_a_body_that_is_cut_without_close_notify_is_not_completed_upstream(new_proxy: NewProxy, framing: str) -> None:
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

    with before(new_proxy, record) as proxy, dial(proxy) as client:
        client.sendall(head(proxy, framing) + b"5\r\nhello\r\n")
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

    with before(new_proxy, listen) as proxy, dial(proxy) as client:
        client.sendall(upgrade(proxy))
        assert client.recv(65536).startswith(b"HTTP/1.1 101 ")
        client.sendall(frame(bytes(1000))[:500])
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
    with before(new_proxy, swallow, timeouts__idle_keepalive='"1s"') as proxy:
        pid = worker(proxy)
        until("the first one is gone", lambda: connections(proxy) == 0)
        at_rest = usage.descriptors(pid)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        with raw(proxy) as sock:
            client = proxy.client_tls().wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
            while True:
                try:
                    client.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    sock.sendall(outgoing.read())
                    incoming.write(sock.recv(65536))
            client.write(head(proxy, method="GET", target="/v1/models") if said is None else said)
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
