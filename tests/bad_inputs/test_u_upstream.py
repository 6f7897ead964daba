"""Group U of the attack catalogue: upstreams that fail, and what their clients, the log and the next request see of it.

What else is a bad answer is group F's (F27 to F30). U8, an upstream's health, is not looked at by this release.
"""

import asyncio
import contextlib
import datetime as dt
import itertools
import json
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import pytest
import uvloop
from cryptography import x509

from dgproxy import bootstrap
from dgproxy.config import Upstream as Settings, Url
from dgproxy.upstream.pool import Pool
from dgproxy.wire.frames import BINARY
from tests.support.clients import assert_refusal, request
from tests.support.frames import frame
from tests.support.logs import is_event
from tests.support.processes import free_port
from tests.support.proxy import Proxy
from tests.support.raw_ws import RawStream, Stage, before, reset, stage
from tests.support.scripted import PATIENCE, read_head, switching_protocols

OK: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
SOON: Final = 4.0  # seconds, for what is bounded by one second here, on a machine that does other things too
Act = Callable[[socket.socket], None]


@dataclass(frozen=True)
class Answered:
    """What a client got, as it came: `how` it ended is as `RawStream.rest` says."""

    status: int
    head: bytes
    body: bytes
    how: str


def ask(
    proxy: Proxy, method: str, target: str, body: bytes = b"", *, after: int = 0, seen: threading.Event | None = None
) -> Answered:
    """One request on a connection of its own; `seen` is set once `after` bytes of the answer's body have come."""
    raw = socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE)
    with proxy.client_tls().wrap_socket(raw, server_hostname="127.0.0.1", suppress_ragged_eofs=False) as sock:
        lines = [f"{method} {target} HTTP/1.1", "Host: dg", f"Authorization: Token {proxy.key}", "Connection: close"]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        sock.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        got, how = b"", "orderly"
        try:
            while piece := sock.recv(65536):
                got += piece
                if seen is not None and len(got.partition(b"\r\n\r\n")[2]) >= after > 0:
                    seen.set()
        except ssl.SSLEOFError:
            how = "cut"
        except ConnectionResetError:
            how = "reset"
    head, _, rest = got.partition(b"\r\n\r\n")
    return Answered(int(head.split(b" ")[1]), head, rest, how)


def in_flight(proxy: Proxy) -> int:
    """Of the proxy's key; who has used nothing yet is not listed."""
    usage: dict[str, dict[str, int]] = proxy.status()["usage"]
    return usage.get(proxy.key_id, {}).get("in_flight", 0)


def served(proxy: Proxy) -> None:
    """The next request is answered, and the key holds nothing."""
    assert ask(proxy, "GET", "/v1/models").status == 200
    assert in_flight(proxy) == 0


def answer_all(sock: socket.socket) -> None:
    read_head(sock)
    sock.sendall(OK)


@pytest.fixture(scope="module")
def playing(tmp_path_factory: pytest.TempPathFactory, leaks: list[str]) -> Iterator[tuple[Stage, Proxy]]:
    """A proxy that waits a second for an answer, before an upstream that does as it is told."""
    settings = {"upstream__response_timeout": '"1s"', "timeouts__upgrade": '"1s"'}
    with stage() as made, before(made.url, tmp_path_factory.mktemp("u-stage"), leaks, **settings) as proxy:
        yield made, proxy


# --- U1: not to be reached -------------------------------------------------------------------------------------------


UNREACHABLE: Final[dict[str, Callable[[], str]]] = {
    "U1 refuses connections": lambda: f"http://127.0.0.1:{free_port()}",
    "U1 no such name": lambda: "http://nobody.invalid:8080",  # RFC 6761 6.4: it never resolves
    "U1 no route": lambda: "http://[2001:db8::1]:8080",  # RFC 3849: documentation
}


@pytest.mark.parametrize("row", UNREACHABLE, ids=list(UNREACHABLE))
def test_an_upstream_that_cannot_be_reached_is_a_502_in_time_and_the_next_one_serves(
    tmp_path: Path, leaks: list[str], row: str
) -> None:
    url = UNREACHABLE[row]()
    with stage() as spare:
        spare.act = answer_all
        (tmp_path / "alone").mkdir()
        with before(url, tmp_path / "alone", leaks, upstream__connect_timeout='"1s"') as proxy:
            begun = time.monotonic()
            answer = request(
                proxy.base_url, proxy.client_tls(), "GET", "/v1/models", [("Authorization", f"Token {proxy.key}")]
            )
            assert_refusal(answer, 502, "BAD_GATEWAY")
            with RawStream(proxy, proxy.key) as stream:
                assert stream.head.startswith(b"HTTP/1.1 502")
            assert time.monotonic() - begun < 2 * SOON
            line = json.loads(proxy.stderr.wait_for(is_event("request.refused", phase="upstream")))
            assert url in line["detail"]
            assert in_flight(proxy) == 0
        (tmp_path / "both").mkdir()
        both = f'{url}", "{spare.url}'
        with before(
            url, tmp_path / "both", leaks, upstream__connect_timeout='"1s"', upstream__urls=f'["{both}"]'
        ) as proxy:
            served(proxy)


class Names:
    """A loop for which one name has these addresses."""

    def __init__(self, addresses: list[tuple[str, int]]) -> None:
        self._loop = asyncio.get_running_loop()
        self._addresses = addresses

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    async def getaddrinfo(self, host: str, port: int, **_: Any) -> list[Any]:
        assert (host, port) == ("ten.example", 80)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in self._addresses]


@pytest.mark.parametrize("alive", [0, 4, 9])
@pytest.mark.parametrize("silent", [False, True], ids=["refuse", "are silent"])
def test_u1_of_ten_addresses_of_a_name_nine_are_dead(alive: int, *, silent: bool) -> None:
    async def work() -> None:
        full = socket.socket()
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        queued = []
        for _ in range(3):  # a queue that is full takes no more: whoever connects hears nothing
            waiting = socket.socket()
            waiting.setblocking(False)  # noqa: FBT003
            waiting.connect_ex(full.getsockname())
            queued.append(waiting)
        dead = full.getsockname() if silent else ("127.0.0.1", free_port())
        with socket.create_server(("127.0.0.1", 0)) as listener:
            addresses = [dead] * 10
            addresses[alive] = listener.getsockname()
            names = cast("asyncio.AbstractEventLoop", Names(addresses))
            pool = Pool(names, Settings(urls=(Url("http", "ten.example", 80),), connect_timeout=2.0))
            begun = time.monotonic()
            lease = await pool.lease()
            assert lease.endpoint.sock.getpeername() == listener.getsockname()
            assert time.monotonic() - begun < SOON
            pool.give_back(lease, reusable=False)
        for sock in (full, *queued):
            sock.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work())


# --- U2, U5: slow, and too much --------------------------------------------------------------------------------------


def silent(sock: socket.socket) -> None:
    read_head(sock)
    sock.settimeout(PATIENCE)
    with contextlib.suppress(ConnectionResetError):
        while sock.recv(65536):
            pass


@pytest.mark.parametrize("row", ["U2 GET", "U2 POST", "U2 WebSocket"], ids=["U2 GET", "U2 POST", "U2 WebSocket"])
def test_an_upstream_that_says_nothing_is_a_504_after_response_timeout(playing: tuple[Stage, Proxy], row: str) -> None:
    set_, proxy = playing
    set_.act = silent
    begun = time.monotonic()
    if row == "U2 WebSocket":
        with RawStream(proxy, proxy.key) as stream:
            assert stream.head.startswith(b"HTTP/1.1 504")
    elif row == "U2 POST":
        assert ask(proxy, "POST", "/v1/listen", b"audio" * 1000).status == 504
    else:
        assert ask(proxy, "GET", "/v1/models").status == 504
    assert 0.9 < time.monotonic() - begun < SOON
    set_.act = answer_all
    served(proxy)


def test_u2_an_answer_after_response_timeout_is_nobodys(playing: tuple[Stage, Proxy]) -> None:
    set_, proxy = playing
    late = threading.Event()

    def act(sock: socket.socket) -> None:
        read_head(sock)
        assert late.wait(PATIENCE)
        sock.sendall(OK)

    set_.act = act
    assert ask(proxy, "GET", "/v1/models").status == 504
    late.set()
    set_.act = answer_all
    served(proxy)


TOO_MUCH: Final[dict[str, Act]] = {
    "U5 1 MB of headers": lambda sock: _flood(
        sock, b"HTTP/1.1 200 OK\r\n", b"X-Header: " + b"x" * 1000 + b"\r\n", 1000
    ),
    "U5 one header of 1 MB": lambda sock: _flood(sock, b"HTTP/1.1 200 OK\r\nX-Header: ", b"x" * 1000, 1000),
    "U5 10,000 1xx": lambda sock: _flood(sock, b"", b"HTTP/1.1 102 Processing\r\n\r\n", 10_000),
    "U5 a status line without end": lambda sock: _flood(sock, b"HTTP/1.1 200 ", b"O" * 1000, 1000),
}


def _flood(sock: socket.socket, begin: bytes, piece: bytes, count: int) -> None:
    read_head(sock)
    sock.sendall(begin)
    for _ in range(count):
        sock.sendall(piece)
    silent_end = sock.recv(1)
    assert silent_end == b""


@pytest.mark.parametrize("row", TOO_MUCH, ids=list(TOO_MUCH))
@pytest.mark.parametrize("websocket", [False, True], ids=["HTTP", "WebSocket"])
def test_an_upstream_whose_head_has_no_end_is_a_502(playing: tuple[Stage, Proxy], row: str, *, websocket: bool) -> None:
    set_, proxy = playing
    set_.act = TOO_MUCH[row]
    begun = time.monotonic()
    if websocket:
        with RawStream(proxy, proxy.key) as stream:
            assert stream.head.startswith(b"HTTP/1.1 502")
    else:
        assert ask(proxy, "GET", "/v1/models").status == 502
    assert time.monotonic() - begun < SOON
    set_.act = answer_all
    served(proxy)


def test_u5_an_answer_whose_head_drips_is_given_up(playing: tuple[Stage, Proxy]) -> None:
    set_, proxy = playing
    over = threading.Event()

    def act(sock: socket.socket) -> None:
        read_head(sock)
        for byte in b"HTTP/1.1 200 OK\r\nX-Header: x":
            sock.sendall(bytes([byte]))
            if over.wait(0.2):
                return

    set_.act = act
    begun = time.monotonic()
    try:
        assert ask(proxy, "GET", "/v1/models").status == 504
    finally:
        over.set()
    assert time.monotonic() - begun < SOON
    set_.act = answer_all
    served(proxy)


# --- U3: a kept connection -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_u3_a_kept_connection_that_closes_as_we_write_is_tried_again_if_nothing_of_a_body_was_sent(
    playing: tuple[Stage, Proxy], method: str
) -> None:
    set_, proxy = playing
    numbers = itertools.count()
    heads: queue.Queue[tuple[int, bytes]] = queue.Queue()

    def act(sock: socket.socket) -> None:
        number = next(numbers)
        answer_all(sock)
        heads.put((number, read_head(sock)))  # and it closes

    set_.act = act
    target = "/v1/models" if method == "GET" else "/v1/listen"
    assert ask(proxy, "GET", "/v1/models").status == 200
    answer = ask(proxy, method, target, b"" if method == "GET" else b"audio")
    number, head = heads.get(timeout=PATIENCE)
    assert (number, head.split(b" ")[0]) == (0, method.encode())
    if method == "GET":
        assert answer.status == 200  # by a second connection
        assert next(numbers) == 2
    else:
        assert answer.status == 502
        assert next(numbers) == 1  # no second connection: it may have been acted upon
    set_.act = answer_all
    served(proxy)


# --- U4: an answer that breaks off -----------------------------------------------------------------------------------

LENGTH: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
CHUNKED: Final = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
BROKEN_OFF: Final[dict[str, tuple[bytes, bool]]] = {
    "U4 resets within its length": (LENGTH + b"x" * 50, True),
    "U4 ends before its length": (LENGTH + b"x" * 50, False),
    "U4 resets within a chunk": (CHUNKED + b"64\r\n" + b"x" * 50, True),
    "U4 ends within a chunk": (CHUNKED + b"64\r\n" + b"x" * 50, False),
    "U4 ends without the last chunk": (CHUNKED + b"32\r\n" + b"x" * 50 + b"\r\n", False),
    "U4 ends within the last chunk": (CHUNKED + b"32\r\n" + b"x" * 50 + b"\r\n0\r\n", False),
}


@pytest.mark.parametrize("row", BROKEN_OFF, ids=list(BROKEN_OFF))
def test_an_answer_that_breaks_off_is_not_made_whole(playing: tuple[Stage, Proxy], row: str) -> None:
    set_, proxy = playing
    sent, resets = BROKEN_OFF[row]
    seen = threading.Event()

    def act(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(sent)
        assert seen.wait(PATIENCE)  # a reset would overtake it
        if resets:
            reset(sock)

    set_.act = act
    already = len(proxy.log_lines())
    answer = ask(proxy, "GET", "/v1/models", after=50, seen=seen)
    assert answer.status == 200
    assert answer.body.count(b"x") == 50
    assert not answer.body.endswith(b"0\r\n\r\n")
    assert answer.how in {"cut", "reset"}  # whoever has no length to look at sees it all the same
    set_.act = answer_all
    served(proxy)
    ends = [line["end"] for line in proxy.log_lines()[already:] if line["event"] == "request.close"]
    assert ends[0] in {"upstream_gone", "upstream_fault"}
    assert ends[1:] == ["complete"]


# --- U6: what an upstream refuses ------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ["U6 429", "U6 503"], ids=["U6 429", "U6 503"])
@pytest.mark.parametrize("websocket", [False, True], ids=["HTTP", "WebSocket"])
def test_an_upstreams_refusal_is_passed_with_its_retry_after_and_asked_once(
    playing: tuple[Stage, Proxy], row: str, *, websocket: bool
) -> None:
    set_, proxy = playing
    status = int(row.split()[1])
    asked: queue.Queue[bytes] = queue.Queue()

    def act(sock: socket.socket) -> None:
        asked.put(read_head(sock))
        sock.sendall(b"HTTP/1.1 %d Later\r\nRetry-After: 7\r\nContent-Length: 5\r\n\r\nlater" % status)

    set_.act = act
    if websocket:
        with RawStream(proxy, proxy.key) as stream:
            head, (body, _) = stream.head, stream.rest()
    else:
        answer = ask(proxy, "GET", "/v1/models")
        head, body = answer.head, answer.body
    assert head.startswith(b"HTTP/1.1 %d" % status)
    assert b"retry-after: 7" in head.lower()
    assert body == b"later"
    assert asked.qsize() == 1
    set_.act = answer_all
    served(proxy)


# --- U7: a restart ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def listening(port: int, act: Act) -> Iterator[None]:
    """A server on this port; at its end all of its connections are reset, as a killed container's are."""
    listener = socket.create_server(("127.0.0.1", port))
    open_: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def one(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            act(sock)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                open_.append(sock)
                threads.append(threading.Thread(target=one, args=(sock,)))
                threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join(PATIENCE)
        for sock in open_:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            sock.shutdown(socket.SHUT_RD)  # wakes recv(), which close() would not
            sock.close()
        for thread in threads:
            thread.join(PATIENCE)


def test_u7_an_upstream_that_restarts_is_used_again_and_streams_on_others_live_on(
    tmp_path: Path, leaks: list[str]
) -> None:
    port = free_port()
    where: queue.Queue[str] = queue.Queue()

    def serve(name: str) -> Act:
        def act(sock: socket.socket) -> None:
            head = read_head(sock)
            where.put(name)
            if b"Upgrade: websocket" not in head:
                sock.sendall(OK)
                return
            sock.sendall(switching_protocols(head))
            while sock.recv(65536):
                sock.sendall(frame(BINARY, name.encode(), masked=False))

        return act

    with stage() as other:
        other.act = serve("other")
        urls = f'["http://127.0.0.1:{port}", "{other.url}"]'
        with before(other.url, tmp_path, leaks, upstream__urls=urls) as proxy:
            with listening(port, serve("first")):
                mortal, survivor = RawStream(proxy, proxy.key), RawStream(proxy, proxy.key)
                assert [where.get(timeout=PATIENCE) for _ in range(2)] == ["first", "other"]
            assert mortal.close_code() == 1011
            assert mortal.log()["end"] == "upstream_gone"
            assert ask(proxy, "GET", "/v1/models").status == 200
            assert where.get(timeout=PATIENCE) == "other"
            survivor.send(frame(BINARY, b"still there?"))
            assert survivor.frame() == (0x80 | BINARY, b"other")
            with listening(port, serve("again")):
                assert ask(proxy, "GET", "/v1/models").status == 200
                assert where.get(timeout=PATIENCE) == "again"
                survivor.send(frame(BINARY, b"and now?"))
                assert survivor.frame() == (0x80 | BINARY, b"other")
            mortal.sock.close()
            survivor.reset()


# --- U9: TLS to the upstream -----------------------------------------------------------------------------------------

BAD_CERTIFICATES: Final[dict[str, tuple[str, int, bool, str]]] = {
    # the certificate's name, days since it was made, whether its CA is trusted, what the log says of it
    "U9 a wrong name": ("other.example", 0, True, "mismatch"),
    "U9 an unknown CA": ("127.0.0.1", 0, False, "issuer"),
    "U9 expired": ("127.0.0.1", 900, True, "expired"),
    "U9 none of these": ("127.0.0.1", 0, True, ""),
}


@pytest.mark.parametrize("row", BAD_CERTIFICATES, ids=list(BAD_CERTIFICATES))
def test_an_https_upstream_whose_certificate_is_not_good_is_told_nothing(
    tmp_path: Path, leaks: list[str], monkeypatch: pytest.MonkeyPatch, row: str
) -> None:
    name, age, trusted, why = BAD_CERTIFICATES[row]
    if name != "127.0.0.1":
        monkeypatch.setattr(bootstrap, "_names", lambda host: [x509.DNSName(host)])  # and not this machine's too
    made = bootstrap.certificates(name, dt.datetime.now(dt.UTC) - dt.timedelta(days=age))
    for file, pem in made.items():
        (tmp_path / file).write_bytes(pem)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server-key.pem")
    clear: queue.Queue[bytes] = queue.Queue()
    heads: queue.Queue[bytes] = queue.Queue()

    def act(sock: socket.socket) -> None:
        clear.put(sock.recv(65536, socket.MSG_PEEK))
        with context.wrap_socket(sock, server_side=True) as secure:
            heads.put(read_head(secure))
            secure.sendall(OK)

    with stage() as set_:
        set_.act = act
        (tmp_path / "proxy").mkdir()
        with before(set_.url.replace("http:", "https:"), tmp_path / "proxy", leaks) as proxy:
            answer = ask(proxy, "GET", "/v1/models")
            if why:
                assert answer.status == 502
                line = json.loads(proxy.stderr.wait_for(is_event("request.refused")))
                assert why in line["detail"]
                with RawStream(proxy, proxy.key) as stream:
                    assert stream.head.startswith(b"HTTP/1.1 502")
                assert heads.empty()
            else:
                assert answer.status == 200
                assert heads.get(timeout=PATIENCE).startswith(b"GET /v1/models")
            assert clear.qsize() == (2 if why else 1)
            while not clear.empty():
                assert clear.get().startswith(b"\x16\x03")  # a TLS record: RFC 8446 5.1
            assert in_flight(proxy) == 0
