"""A supervisor and its workers as an operator meets them: who serves, who dies, what is left (spec parts 2 and 6)."""

import asyncio
import contextlib
import hashlib
import os
import signal
import socket
import ssl
import struct
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any, Final

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.support import processes
from tests.support.clients import Answer, assert_refusal, request
from tests.support.logs import is_event, parse
from tests.support.proxy import DGPROXY, MARK, Proxy, dgproxy
from tests.support.upstreams import Upstream

# What is shown here is the proxy's own; one upstream is enough, and this one echoes fastest.
pytestmark = pytest.mark.parametrize("upstream_process", ["standin"], indirect=True)

NewProxy = Callable[..., Proxy]

STREAMS: Final = 40
AT_ONCE: Final = 3.0  # seconds for a stop that waits for nobody
KEPT: Final = {"pepper", "keys.db", "usage.db", "dgproxy.lock"}  # of state/, when nothing runs
RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends RST
NOTHING: Final = signal.SIGCONT  # a running process does not notice it: Proxy.stop then only watches the end


# --- clients ---------------------------------------------------------------------------------------------------------


class Client:
    """One echo stream through the proxy. `marker` is its X-Request-Id, by which the log knows it."""

    def __init__(self, marker: str, ws: ClientConnection) -> None:
        self.marker = marker
        self.ws = ws
        self.echoed = 0

    async def echo(self) -> None:
        """One message there and back, unchanged."""
        message = os.urandom(640)
        await self.ws.send(message)
        assert await self.ws.recv() == message
        self.echoed += 1

    async def talk(self) -> None:
        """Messages there and back, 20 a second, until somebody ends it."""
        while True:
            await self.echo()
            await asyncio.sleep(0.05)  # the pace of speech, not a wait for something

    def reset(self) -> None:
        """Vanishes: no close frame, no close_notify, a RST."""
        sock: socket.socket = self.ws.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.ws.transport.abort()


async def opened(proxy: Proxy, key: str, tls: ssl.SSLContext) -> Client:
    """A new stream that was admitted."""
    marker = uuid.uuid4().hex
    headers = {"Authorization": f"Token {key}", "X-Request-Id": marker}
    ws = await connect(
        f"{proxy.wss_url}/v1/listen?standin_echo=1",
        ssl=tls,
        additional_headers=headers,
        open_timeout=30,
        close_timeout=5,
        ping_interval=None,
        proxy=None,
    )
    return Client(marker, ws)


async def tried(proxy: Proxy, key: str, tls: ssl.SSLContext) -> "Client | InvalidStatus":
    """A new stream, or how it was refused."""
    try:
        return await opened(proxy, key, tls)
    except InvalidStatus as refused:
        return refused


@contextlib.asynccontextmanager
async def closing(clients: Iterable[Client]) -> AsyncIterator[None]:
    """Closes these streams at the end, whatever became of them."""
    try:
        yield
    finally:
        await asyncio.gather(*(client.ws.close() for client in clients), return_exceptions=True)


async def spread(proxy: Proxy, key: str, tls: ssl.SSLContext, count: int) -> list[list[Client]]:
    """At least `count` new streams at once, and more (bounded) until each worker has two; by the worker's index."""
    by_worker: list[list[Client]] = [[], []]
    wanted = count
    for _ in range(10):
        clients = await asyncio.gather(*(opened(proxy, key, tls) for _ in range(wanted)))
        for client in clients:
            by_worker[await asyncio.to_thread(worker_of, proxy, client)].append(client)
        if min(map(len, by_worker)) > 1:
            return by_worker
        wanted = 4
    raise AssertionError(f"connections went to one worker only: {[len(own) for own in by_worker]}")


def worker_of(proxy: Proxy, client: Client) -> int:
    """The index of the worker that serves this stream, by the log."""
    (entry,) = parse([proxy.stderr.wait_for(is_event("stream.open", client_request_id=client.marker))])
    return int(entry["process"].removeprefix("worker "))


def answer_of(refused: InvalidStatus) -> Answer:
    """A refused handshake as the answer that it is."""
    response = refused.response
    headers = [(name.lower(), value) for name, value in response.headers.raw_items()]
    return Answer(response.status_code, headers, bytes(response.body or b""))


def assert_too_many(refused: object, limit: int) -> None:
    """Deepgram's 429, which says the limit and when to come back."""
    assert isinstance(refused, InvalidStatus)
    answer = answer_of(refused)
    assert_refusal(answer, 429, "TOO_MANY_REQUESTS")
    assert int(answer.value("retry-after")) >= 1
    assert str(limit) in answer.json()["err_msg"]


def models(proxy: Proxy, key: str, tls: ssl.SSLContext) -> int:
    """The status of one small request on a connection of its own."""
    return request(proxy.base_url, tls, "GET", "/v1/models", [("Authorization", f"Token {key}")]).status


# --- waiting ---------------------------------------------------------------------------------------------------------


def until(what: str, holds: Callable[[], Any], within: float) -> Any:
    """Asks again and again until there is a true answer, for what tells nobody that it happened."""
    deadline = time.monotonic() + within
    while not (found := holds()):
        assert time.monotonic() < deadline, f"not within {within} s: {what}"
        time.sleep(0.02)
    return found


async def admitted_again(proxy: Proxy, key: str, tls: ssl.SSLContext, within: float = 2.0) -> Client:
    """A stream as soon as there is a slot for it: giving back is one-way, so nobody is told when it has arrived."""
    deadline = time.monotonic() + within
    while isinstance(found := await tried(proxy, key, tls), InvalidStatus):
        assert time.monotonic() < deadline, f"no slot was given back within {within} s"
    return found


def refuses_connections(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        pass  # the listener was on its way out
    return False


def family(proxy: Proxy) -> set[int]:
    """Every process of this proxy."""
    return processes.marked(f"{MARK}={proxy._mark}") | processes.children(proxy.pid) | {proxy.pid}


def assert_clean(proxy: Proxy, before: set[Path]) -> None:
    """What a stopped proxy leaves is what was there before it ran, and its state."""
    after = {path for path in proxy.directory.rglob("*") if not path.is_dir()}
    assert before <= after
    left = {path.relative_to(proxy.directory) for path in after - before}
    assert all(path.parent == Path("state") and path.name in KEPT for path in left), left


def files(proxy: Proxy) -> set[Path]:
    return {path for path in proxy.directory.rglob("*") if not path.is_dir()}


class Upload:
    """A POST of which the first half is on its way: admitted, and with the upstream waiting for the rest."""

    def __init__(self, proxy: Proxy) -> None:
        self.body = os.urandom(64 * 1024)
        self._sock = proxy.client_tls().wrap_socket(
            socket.create_connection(("127.0.0.1", proxy.port), timeout=20), server_hostname="127.0.0.1"
        )
        head = (
            f"POST /v1/listen?model=nova-3 HTTP/1.1\r\nHost: 127.0.0.1:{proxy.port}\r\n"
            f"Authorization: Token {proxy.key}\r\nContent-Type: audio/wav\r\n"
            f"Content-Length: {len(self.body)}\r\nExpect: 100-continue\r\n\r\n"
        )
        self._sock.sendall(head.encode())
        assert self._until(b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        self._sock.sendall(self.body[: len(self.body) // 2])

    def finish(self) -> bytes:
        """Sends the rest; the whole answer, up to the end of the connection."""
        self._sock.sendall(self.body[len(self.body) // 2 :])
        answer = self._until(None)
        self.close()
        return answer

    def close(self) -> None:
        self._sock.close()

    def _until(self, end: bytes | None) -> bytes:
        found = b""
        while end is None or end not in found:
            data = self._sock.recv(65536)
            if not data:
                assert end is None, found
                break
            found += data
        return found


# --- who serves ------------------------------------------------------------------------------------------------------


def test_both_workers_serve(proxy: Proxy) -> None:
    tls = proxy.client_tls()
    first = {worker["pid"]: worker["requests"] for worker in proxy.status()["workers"]}
    assert len(first) == 2

    def both() -> bool:
        for _ in range(10):
            assert models(proxy, proxy.key, tls) == 200
        now = {worker["pid"]: worker["requests"] for worker in proxy.status()["workers"]}
        assert now.keys() == first.keys()
        return all(now[pid] > first[pid] for pid in now)

    until("both workers have served a request", both, 15)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_tls_session_goes_on_whichever_worker_began_it(proxy: Proxy, version: ssl.TLSVersion) -> None:
    tls = proxy.client_tls()
    tls.minimum_version = tls.maximum_version = version
    ask = b"GET /v1/models HTTP/1.1\r\nHost: proxy\r\nConnection: close\r\n\r\n"
    session: ssl.SSLSession | None = None
    resumed: list[bool] = []

    def refusals() -> Counter[str]:
        return Counter(line["process"] for line in proxy.log_lines() if line["event"] == "request.refused")

    before = refusals()

    def both() -> bool:
        nonlocal session
        with (
            socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as sock,
            tls.wrap_socket(sock, server_hostname="127.0.0.1", session=session) as wrapped,
        ):
            wrapped.sendall(ask)
            assert wrapped.recv(65536).startswith(b"HTTP/1.1 401 ")
            resumed.append(bool(wrapped.session_reused))
            session = wrapped.session
        served = refusals() - before
        return len(resumed) >= 20 and len(served) == 2

    until("both workers have served", both, 15)
    assert resumed == [False] + [True] * (len(resumed) - 1)


def test_a_new_key_works_on_every_worker_as_soon_as_the_command_returns(proxy: Proxy) -> None:
    async def conversation() -> None:
        tls = proxy.client_tls()
        key = (await asyncio.to_thread(proxy.new_key, "brand new", streams="100")).key
        clients = await asyncio.gather(*(opened(proxy, key, tls) for _ in range(20)))
        async with closing(clients):
            await asyncio.gather(*(client.echo() for client in clients))
            seen = Counter([worker_of(proxy, client) for client in clients])
            assert seen.keys() == {0, 1}, seen  # 1 in 500,000 that 20 connections miss one of two

    asyncio.run(conversation())


def test_a_stopped_worker_does_not_keep_the_other_from_serving(new_proxy: NewProxy) -> None:
    async def conversation(proxy: Proxy) -> None:
        tls = proxy.client_tls()
        pids = proxy.worker_pids()
        by_worker = await spread(proxy, proxy.key, tls, 4)
        streams = [*by_worker[0], *by_worker[1]]
        new: set[asyncio.Task[Client]] = set()
        async with closing(streams):
            os.kill(pids[0], signal.SIGSTOP)
            try:
                async with asyncio.timeout(10):
                    await asyncio.gather(*(client.echo() for client in by_worker[1]))
                    while sum(task.done() for task in new) < 8:  # the kernel gives each worker about half of them
                        new |= {asyncio.create_task(opened(proxy, proxy.key, tls)) for _ in range(4)}
                        await asyncio.wait(new, timeout=0.5, return_when=asyncio.ALL_COMPLETED)
                    key = (await asyncio.to_thread(proxy.new_key, "while one sleeps")).key
                served = [task.result() for task in new if task.done()]
                streams += served
                assert {worker_of(proxy, client) for client in served} == {1}
                waiting = {task for task in new if not task.done()}
            finally:
                os.kill(pids[0], signal.SIGCONT)
            async with asyncio.timeout(10):
                woken = await asyncio.gather(*waiting)
                streams += woken
                assert {worker_of(proxy, client) for client in woken} <= {0}
                await asyncio.gather(*(client.echo() for client in streams))
                late = await asyncio.gather(*(opened(proxy, key, tls) for _ in range(8)))
                streams += late
        assert proxy.worker_pids() == pids

    with new_proxy() as proxy:
        asyncio.run(conversation(proxy))


# --- limits over all workers -----------------------------------------------------------------------------------------


def test_a_stream_more_than_the_plan_has_is_refused_until_one_ends(proxy: Proxy) -> None:
    async def conversation() -> None:
        tls = proxy.client_tls()
        key = proxy.new_key("three", streams="3").key
        clients = [await opened(proxy, key, tls) for _ in range(3)]
        async with closing(clients):
            assert_too_many(await tried(proxy, key, tls), 3)
            await clients.pop().ws.close()
            clients.append(await admitted_again(proxy, key, tls))
            assert_too_many(await tried(proxy, key, tls), 3)
            await asyncio.gather(*(client.echo() for client in clients))

    asyncio.run(conversation())


def test_a_client_that_vanishes_frees_its_slot(proxy: Proxy) -> None:
    async def conversation() -> None:
        tls = proxy.client_tls()
        key = proxy.new_key("vanishing", streams="3").key
        clients = [await opened(proxy, key, tls) for _ in range(3)]
        async with closing(clients):
            assert_too_many(await tried(proxy, key, tls), 3)
            for client in clients:
                client.reset()
            clients += [await admitted_again(proxy, key, tls) for _ in range(3)]
            assert_too_many(await tried(proxy, key, tls), 3)

    asyncio.run(conversation())


def test_slots_are_exact_over_both_workers(proxy: Proxy) -> None:
    async def conversation() -> str:
        tls = proxy.client_tls()
        key = proxy.new_key("fifty", streams="50")
        found = await asyncio.gather(*(tried(proxy, key.key, tls) for _ in range(200)))
        clients = [one for one in found if isinstance(one, Client)]
        async with closing(clients):
            refused = [one for one in found if not isinstance(one, Client)]
            assert Counter(one.response.status_code for one in refused) == {429: 150}
            assert len(clients) == 50
            assert_too_many(refused[0], 50)
            await asyncio.gather(*(client.echo() for client in clients))
        return key.id

    def decided() -> Counter[str]:
        """Who admitted and who refused: all 50 may be one worker's, if it was the first to ask 50 times."""
        mine = [line for line in proxy.log_lines() if line.get("key_id") == key_id]
        return Counter(line["process"] for line in mine if line["event"] in {"stream.open", "request.refused"})

    key_id = asyncio.run(conversation())
    until("all 200 are in the log", lambda: decided().total() == 200, 5)
    assert decided().keys() == {"worker 0", "worker 1"}


def test_a_rate_is_exact_over_both_workers_for_streams_and_requests_alike(proxy: Proxy) -> None:
    """One an hour, so that none comes to the twenty while this runs."""
    tls = proxy.client_tls()
    key = proxy.new_key("hourly", streams="200", rate="1/h", burst="20").key

    async def conversation() -> None:
        streams = asyncio.gather(*(tried(proxy, key, tls) for _ in range(100)))
        requests = asyncio.gather(*(asyncio.to_thread(models, proxy, key, tls) for _ in range(100)))
        opened_or_not, statuses = await asyncio.gather(streams, requests)
        clients = [one for one in opened_or_not if isinstance(one, Client)]
        async with closing(clients):
            refused = [one for one in opened_or_not if not isinstance(one, Client)]
            assert {one.response.status_code for one in refused} <= {429}
            assert Counter(statuses).keys() <= {200, 429}
            assert len(clients) + statuses.count(200) == 20
            assert_too_many(await tried(proxy, key, tls), 20)
            await asyncio.gather(*(client.echo() for client in clients))  # what has begun is not touched

    asyncio.run(conversation())
    answer = request(proxy.base_url, tls, "GET", "/v1/models", [("Authorization", f"Token {key}")])
    assert_refusal(answer, 429, "TOO_MANY_REQUESTS")
    wait = int(answer.value("retry-after"))
    assert 3500 < wait <= 3600
    told = {name: int(value) for name, value in answer.headers if name.startswith("ratelimit-")}
    assert told == {"ratelimit-limit": 20, "ratelimit-remaining": 0, "ratelimit-reset": wait}
    assert f"{wait} s" in answer.json()["err_msg"]
    assert "1/h" in answer.json()["err_msg"]


# --- death -----------------------------------------------------------------------------------------------------------


def test_a_killed_worker_takes_only_its_own_streams_and_is_replaced(new_proxy: NewProxy) -> None:
    async def conversation(proxy: Proxy) -> None:
        tls = proxy.client_tls()
        key = proxy.new_key("forty", streams=str(STREAMS)).key
        pids = proxy.worker_pids()
        by_worker = await spread(proxy, key, tls, STREAMS)
        lost, kept = by_worker
        streams = [*lost, *kept]
        assert len(streams) == STREAMS
        assert_too_many(await tried(proxy, key, tls), STREAMS)
        talks = {client: asyncio.create_task(client.talk()) for client in streams}
        async with closing(streams):
            try:
                await asyncio.to_thread(until, "all talk", lambda: all(client.echoed for client in streams), 10)
                os.kill(pids[0], signal.SIGKILL)
                killed = time.monotonic()
                # For those that the kernel gives to the dead worker's socket as for the others: 2 s.
                async with asyncio.timeout(2):
                    new = await asyncio.gather(*(opened(proxy, proxy.key, tls) for _ in range(8)))
                    streams += new
                    await asyncio.gather(*(client.echo() for client in new))

                died = await asyncio.to_thread(proxy.stderr.wait_for, is_event("worker.died", pid=pids[0]))
                (entry,) = parse([died])
                assert entry["exit"] == "SIGKILL"
                assert entry["slots_freed"] == len(lost)

                async with asyncio.timeout(5):
                    ended = await asyncio.gather(*(talks[client] for client in lost), return_exceptions=True)
                assert all(isinstance(end, ConnectionClosed) for end in ended), ended

                again = await asyncio.gather(*(opened(proxy, key, tls) for _ in lost))
                streams += again
                assert_too_many(await tried(proxy, key, tls), STREAMS)
                await asyncio.gather(*(client.echo() for client in again))
                assert {worker_of(proxy, client) for client in (*new, *again)} == {0, 1}

                said = {client: client.echoed for client in kept}
                go_on = lambda: all(client.echoed > said[client] + 5 for client in kept)  # noqa: E731
                await asyncio.to_thread(until, "the other worker's streams go on", go_on, 10)
                assert not any(talks[client].done() for client in kept)
                assert time.monotonic() - killed < 20
            finally:
                for talk in talks.values():
                    talk.cancel()
                await asyncio.gather(*talks.values(), return_exceptions=True)
        now = proxy.worker_pids()
        assert now[1] == pids[1]
        assert now[0] not in {0, *pids}
        assert not processes.alive(pids[0])
        assert proxy.status()["ready"]

    with new_proxy() as proxy:
        asyncio.run(conversation(proxy))


def test_nothing_outlives_a_killed_supervisor(new_proxy: NewProxy) -> None:
    """Nor is what it left in the way of the next one."""

    async def conversation(proxy: Proxy) -> None:
        by_worker = await spread(proxy, proxy.key, proxy.client_tls(), 4)
        async with closing([*by_worker[0], *by_worker[1]]):
            everyone = family(proxy)
            assert len(everyone) == 3
            os.kill(proxy.pid, signal.SIGKILL)
            left = await asyncio.to_thread(processes.wait_gone, everyone, 5)
            assert not left
            assert refuses_connections(proxy.port)
            assert not processes.marked(f"{MARK}={proxy._mark}")

    proxy = new_proxy().start()
    asyncio.run(conversation(proxy))
    assert proxy.sockets(), "a kill -9 leaves the control socket; else this shows nothing"
    proxy.kill()
    with proxy:
        assert proxy.status()["ready"]
        assert models(proxy, proxy.key, proxy.client_tls()) == 200


def test_a_supervisor_can_be_started_while_orphans_still_drain(new_proxy: NewProxy) -> None:
    async def conversation(proxy: Proxy) -> None:
        tls = proxy.client_tls()
        by_worker = await spread(proxy, proxy.key, tls, 4)
        async with closing([*by_worker[0], *by_worker[1]]):
            orphans = family(proxy) - {proxy.pid}
            assert proxy._process is not None
            os.kill(proxy.pid, signal.SIGKILL)
            proxy._process.wait(5)
            proxy._process = None
            await asyncio.to_thread(proxy.start)
            assert models(proxy, proxy.key, tls) == 200
            assert not processes.wait_gone(orphans, 5)
            assert models(proxy, proxy.key, tls) == 200

    proxy = new_proxy().start()
    asyncio.run(conversation(proxy))
    proxy.stop()


# --- the end ---------------------------------------------------------------------------------------------------------


def test_sigterm_lets_streams_and_uploads_go_on_to_their_end(new_proxy: NewProxy, upstream: Upstream) -> None:
    async def conversation(proxy: Proxy) -> None:
        client = await opened(proxy, proxy.key, proxy.client_tls())
        upload = await asyncio.to_thread(Upload, proxy)
        with contextlib.closing(upload):
            async with closing([client]):
                await client.echo()
                stopped = asyncio.create_task(asyncio.to_thread(proxy.stop, signal.SIGTERM, 30))
                await asyncio.to_thread(proxy.stderr.wait_for, is_event("proxy.stopping", signal="SIGTERM"))
                refused = lambda: refuses_connections(proxy.port)  # noqa: E731
                await asyncio.to_thread(until, "new connections are refused", refused, 2)
                assert proxy.status()["stopping"]
                for _ in range(10):
                    await client.echo()
                answer = await asyncio.to_thread(upload.finish)
                assert answer.startswith(b"HTTP/1.1 200 ")
                await client.echo()
                assert not stopped.done()
                await client.ws.close(1000, "good bye")
                assert (client.ws.close_code, client.ws.close_reason) == (1000, "good bye")
            await stopped
        (post,) = [head for head in upstream.heads() if head["method"] == "POST"]
        assert post["sha256"] == hashlib.sha256(upload.body).hexdigest()

    proxy = new_proxy()
    before = files(proxy)
    proxy.start()
    asyncio.run(conversation(proxy))
    assert_clean(proxy, before)
    assert [line["end"] for line in proxy.log_lines() if line["event"] == "stream.close"] == ["complete"]


def test_an_idle_proxy_ends_with_sigterm(new_proxy: NewProxy) -> None:
    proxy = new_proxy()
    before = files(proxy)
    proxy.start()
    tls = proxy.client_tls()
    with tls.wrap_socket(socket.create_connection(("127.0.0.1", proxy.port), timeout=5), server_hostname="127.0.0.1"):
        proxy.stop(signal.SIGTERM, AT_ONCE)  # a connection that asks for nothing holds nobody up
    assert_clean(proxy, before)


def ends_at_once(proxy: Proxy, ask: Callable[[], None]) -> None:
    """With a stream open and an upload half done: `ask`, and see all of it end."""

    async def conversation() -> None:
        client = await opened(proxy, proxy.key, proxy.client_tls())
        upload = await asyncio.to_thread(Upload, proxy)
        with contextlib.closing(upload):
            async with closing([client]):
                await client.echo()
                everyone = family(proxy)
                await asyncio.to_thread(ask)
                await asyncio.to_thread(proxy.stop, NOTHING, AT_ONCE)
                assert not processes.wait_gone(everyone, 0)
                with pytest.raises(ConnectionClosed):
                    await client.ws.recv()
                with contextlib.suppress(OSError):
                    assert not upload.finish().startswith(b"HTTP/1.1 200 ")

    before = files(proxy)
    proxy.start()
    asyncio.run(conversation())
    assert_clean(proxy, before)
    assert not any("Traceback" in line for line in (*proxy.stderr.lines(), *proxy.stdout.lines()))


def test_a_second_sigterm_ends_at_once(new_proxy: NewProxy) -> None:
    proxy = new_proxy()

    def twice() -> None:
        os.kill(proxy.pid, signal.SIGTERM)
        proxy.stderr.wait_for(is_event("proxy.stopping"))
        assert proxy.status()["stopping"]
        os.kill(proxy.pid, signal.SIGTERM)

    ends_at_once(proxy, twice)


def test_sigint_ends_at_once(new_proxy: NewProxy) -> None:
    proxy = new_proxy()
    ends_at_once(proxy, lambda: os.kill(proxy.pid, signal.SIGINT))


def test_ctrl_c_at_a_terminal_which_reaches_every_process_ends_at_once(new_proxy: NewProxy) -> None:
    proxy = new_proxy()
    ends_at_once(proxy, lambda: os.killpg(proxy.pid, signal.SIGINT))


def test_a_second_ctrl_c_changes_nothing(new_proxy: NewProxy) -> None:
    proxy = new_proxy()

    def twice() -> None:
        os.killpg(proxy.pid, signal.SIGINT)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(proxy.pid, signal.SIGINT)

    ends_at_once(proxy, twice)


SIGNALS: Final = pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: signal.Signals(number).name
)


@SIGNALS
def test_it_can_be_ended_while_it_starts(new_proxy: NewProxy, number: signal.Signals) -> None:
    """From its first word on, workers on their way up included."""
    proxy = new_proxy()
    before = files(proxy)
    for last_word in ("proxy.start", "worker.ready"):
        with subprocess.Popen(
            [*DGPROXY, "run", "-c", str(proxy.config)],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, MARK: proxy._mark},
            start_new_session=True,
        ) as process:
            assert process.stderr is not None
            wanted = is_event(last_word)
            while not wanted(line := process.stderr.readline()):
                assert line, f"it never said {last_word}"
            os.killpg(process.pid, number)
            _, rest = process.communicate(timeout=AT_ONCE)
        assert process.returncode == 0, rest
        assert len(parse(rest.splitlines())) == len(rest.splitlines()), rest
        assert not processes.marked(f"{MARK}={proxy._mark}")
        assert_clean(proxy, before)


@SIGNALS
def test_workers_do_not_end_by_signals_that_are_the_supervisors(new_proxy: NewProxy, number: signal.Signals) -> None:
    with new_proxy() as proxy:
        pids = proxy.worker_pids()
        for pid in pids:
            os.kill(pid, number)
        for _ in range(4):
            assert models(proxy, proxy.key, proxy.client_tls()) == 200
        assert proxy.worker_pids() == pids


# --- start -----------------------------------------------------------------------------------------------------------


def refusal_to_start(proxy: Proxy) -> str:
    """What `dgproxy run` says when it cannot: exit 1 and one line, beside its log."""
    done = dgproxy("run", "-c", str(proxy.config), check=False, env={MARK: proxy._mark})
    assert done.returncode == 1
    assert not done.stdout
    told = [line for line in done.stderr.splitlines() if not parse([line])]
    assert len(told) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return told[0]


def test_a_second_run_on_the_same_state_is_refused_and_harms_nothing(new_proxy: NewProxy) -> None:
    with new_proxy() as proxy:
        everyone = family(proxy)
        said = refusal_to_start(proxy)
        assert "in use by another dgproxy" in said
        assert f"process {proxy.pid}" in said
        assert str(proxy.directory / "state") in said
        assert family(proxy) == everyone
        assert proxy.status()["pid"] == proxy.pid
        for _ in range(4):
            assert models(proxy, proxy.key, proxy.client_tls()) == 200


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "with SO_REUSEPORT"])
def test_a_port_that_another_program_has_is_not_shared(new_proxy: NewProxy, *, shared: bool) -> None:
    proxy = new_proxy()
    before = files(proxy)
    with socket.create_server(("127.0.0.1", proxy.port), reuse_port=shared):
        said = refusal_to_start(proxy)
    assert said.startswith(f"dgproxy: cannot listen on 127.0.0.1:{proxy.port}: ")
    assert "in use" in said
    assert not processes.marked(f"{MARK}={proxy._mark}")
    assert_clean(proxy, before)
    with proxy:  # and once it is free, nothing is in the way
        assert models(proxy, proxy.key, proxy.client_tls()) == 200
