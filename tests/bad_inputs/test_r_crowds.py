"""R3 to R5: more connections, descriptors and stalled uploads than there is room for.

Every row ends with an honest request on a new connection that works, and no slot held.
"""

import contextlib
import json
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import pytest

from tests.support import usage
from tests.support.impatient import (
    IMPATIENT,
    MIB,
    OK,
    SOON,
    NewProxy,
    assert_well,
    connections,
    hello,
    impatient_before,
    in_flight,
    models,
    serving,
    swallow,
    until,
    worker,
)
from tests.support.logs import is_event
from tests.support.proxy import DGPROXY, Proxy
from tests.support.raw import connect, get, post, read_answer, send, tcp, ws
from tests.support.scripted import PATIENCE, read_head, upstream

# The rows have upstreams of their own; which one the session has besides does not matter.
pytestmark = [
    pytest.mark.usefixtures("upstream_process"),
    pytest.mark.parametrize("upstream_process", ["standin"], indirect=True),
]

# --- R3: connections that say nothing --------------------------------------------------------------------------------


def test_r3_at_the_limit_new_connections_wait_and_are_served_when_one_leaves(new_proxy: NewProxy) -> None:
    settings = {"limits__connections": "8", "timeouts__tls_handshake": '"60s"', "timeouts__request_head": '"60s"'}
    with impatient_before(new_proxy, swallow, **settings) as proxy, contextlib.ExitStack() as staying:
        silent = [staying.enter_context(tcp(proxy)) for _ in range(4)]
        silent += [staying.enter_context(connect(proxy)) for _ in range(4)]
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
    with impatient_before(new_proxy, swallow, limits__connections="50") as proxy, contextlib.ExitStack() as staying:
        pid = worker(proxy)
        at_rest = usage.descriptors(pid)
        for _ in range(300):
            staying.enter_context(tcp(proxy))
        assert models(proxy) == 200  # behind all of them in the queue: six times fifty, a second each
        assert usage.descriptors(pid) <= at_rest + 60
        until("all of them are gone", lambda: usage.descriptors(pid) <= at_rest + 2, 20)


PER_ADDRESS: Final = 10


def seated(proxy: Proxy) -> ssl.SSLSocket | None:
    """A connection that has its seat, or None where it was reset."""
    try:
        return connect(proxy)
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
        send(clients[0], proxy, ws())
        assert clients[0].recv(65536).startswith(b"HTTP/1.1 101 ")
        send(clients[1], proxy, get(target=b"/nowhere"))
        assert read_answer(clients[1]).status == 404
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
            crowd = [staying.enter_context(tcp(proxy)) for _ in range(150)]
            until("no descriptor is left", lambda: usage.descriptors(pid) >= 95)
            before, began = usage.processor_time(pid), time.monotonic()
            with tcp(proxy) as waiting:
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
            while (seen := peek(sock)).startswith(b"GET"):
                read_head(sock)
                sock.sendall(OK)
            if b"x-honest" in seen.lower():
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MIB)
                size = len(read_head(sock).partition(b"\r\n\r\n")[2])
                while size < HONEST and (piece := sock.recv(HONEST)):
                    size += len(piece)
                # Its room is for no other: a stalled upload that came next would fit into it.
                sock.sendall(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
                sock.shutdown(socket.SHUT_RDWR)
                return
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


HONEST: Final = 256 * 1024  # bytes of an upload that is read
RECORD: Final = 16 * 1024  # bytes of a TLS record: a stalled upload holds what of one the kernel did not take
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
    client = connect(proxy)
    client.sendall(post(b"Content-Length: 100000000").replace(b"KEY", key.encode()))
    client.settimeout(0)
    with contextlib.suppress(ssl.SSLWantWriteError, ConnectionError, ssl.SSLEOFError):
        for _ in range(20):
            client.send(bytes(RECORD))
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
            said = read_answer(client)
            assert said.status == 503
            assert said.value("retry-after")
        # Of those whose last bytes are not read yet it is seen after stream_idle.
        until("all of them are gone", lambda: in_flight(proxy) == 0, 30)
        assert_well(proxy)


def test_r5_a_busy_upload_outlives_the_stalled_ones(new_proxy: NewProxy) -> None:
    over = threading.Event()
    uploads = 0

    def upload(proxy: Proxy) -> int:
        nonlocal uploads
        with connect(proxy) as client:
            while True:  # one after another, until the crowd has been shed
                send(client, proxy, post(b"Content-Length: %d" % HONEST, b"X-Honest: yes"))
                client.sendall(bytes(HONEST))
                status = read_answer(client).status
                uploads += 1
                if over.is_set() or status != 200:
                    return status

    with deaf() as url, new_proxy({"upstream.urls": f'["{url}"]', **CROWD}) as proxy, ThreadPoolExecutor(1) as pool:
        honest = pool.submit(upload, proxy)
        try:
            until("an upload went through", lambda: uploads or honest.done())
            with contextlib.ExitStack() as staying:
                for _ in range(500):
                    staying.enter_context(stall(proxy, proxy.key))
                    if any(map(is_event("worker.shed"), proxy.stderr.lines())):
                        break
                proxy.stderr.wait_for(is_event("worker.shed"), SOON)
                seen = uploads
                until("more uploads went through", lambda: uploads > seen + 1 or honest.done())
        finally:
            over.set()
        assert honest.result(60) == 200
        assert_well(proxy, 30)
