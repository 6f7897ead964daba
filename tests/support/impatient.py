"""A proxy that waits for nobody, an upstream that does as it is told, and what must hold when a bad client is gone."""

import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from tests.support.clients import request
from tests.support.proxy import Proxy
from tests.support.scripted import read_head, upstream

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
def impatient_before(new_proxy: NewProxy, misbehave: Misbehaviour, **settings: str) -> Iterator[Proxy]:
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


def hello() -> bytes:
    """The beginning of a handshake."""
    outgoing = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="dg")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()
