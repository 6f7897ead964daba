"""One connected socket: waiting that is bounded by progress, reading ahead that is bounded in size, and its ends."""

import asyncio
import contextlib
import errno
import fcntl
import math
import os
import random
import socket
import ssl
import sys
import termios
from collections.abc import Callable, Coroutine
from typing import Any, Final

import pytest

from dgproxy.net import closing, tls
from dgproxy.net.budget import Budget
from dgproxy.net.endpoint import CHUNK, EARLY, Cause, Endpoint, Lost
from tests.support.peers import Peer, Watched, certificates, tcp_pair

LONG: Final = 3600.0  # no time passes but where a test says so
SMALL: Final = 8 * 1024

secured = pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])


class Clock(asyncio.SelectorEventLoop):
    """A loop whose time a test may put forward, so that no deadline is waited for."""

    ahead = 0.0

    def time(self) -> float:
        return super().time() + self.ahead


def clock() -> Clock:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, Clock)
    return loop


async def passes(seconds: float) -> None:
    """So many seconds pass for what waits now, and what was due runs."""
    await ticks(3)
    clock().ahead += seconds
    await ticks(3)


async def ticks(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def until(wanted: Callable[[], bool]) -> None:
    while not wanted():
        await ticks(1)


async def pair(
    *, secure: bool, buffer: int | None = None, server_side: bool = True, budget: Budget | None = None
) -> tuple[Endpoint, Peer, Watched]:
    """An endpoint, as the proxy has it towards a client (or an upstream), and its peer."""
    near, far = tcp_pair(buffer)
    loop = Watched(clock())
    endpoint = Endpoint(loop, near, "peer", budget)  # type: ignore[arg-type]
    contexts = (certificates().server(), certificates().client())
    if not server_side:
        contexts = contexts[::-1]
    peer = Peer(far, contexts[1] if secure else None, server_side=not server_side)
    if secure:
        name = None if server_side else "127.0.0.1"
        await asyncio.gather(
            endpoint.handshake(contexts[0], LONG, server_side=server_side, name=name), peer.handshake()
        )
    return endpoint, peer, loop


async def read_on(endpoint: Endpoint) -> None:
    while await endpoint.read(LONG):
        pass


async def write_on(endpoint: Endpoint) -> None:
    for _ in range(3):
        await endpoint.write(b"hello", LONG)
        await ticks(10)


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=Clock) as runner:
        runner.run(work())


# --- reading ---------------------------------------------------------------------------------------------------------


@secured
def test_what_comes_is_read_and_then_the_end(*, secure: bool) -> None:
    async def work() -> None:
        endpoint, peer, _ = await pair(secure=secure)
        await peer.send(b"hello")
        assert await endpoint.read(LONG) == b"hello"
        endpoint.unread(b"llo")
        endpoint.unread(b"he")
        assert await endpoint.read(LONG) == b"hello"
        await peer.half_close()
        assert await endpoint.read(LONG) == b""
        assert await endpoint.read(LONG) == b""
        assert endpoint.gone
        assert endpoint.ended
        endpoint.close()
        peer.close()

    run(work)


@secured
def test_a_read_gives_up_only_after_its_time_without_a_byte(*, secure: bool) -> None:
    async def work() -> None:
        endpoint, peer, _ = await pair(secure=secure)
        for _ in range(4):
            reading = asyncio.ensure_future(endpoint.read(10.0))
            await passes(9.0)  # 36 s in all
            assert not reading.done()
            await peer.send(b"x")
            assert await reading == b"x"
        reading = asyncio.ensure_future(endpoint.read(10.0))
        await passes(10.1)
        with pytest.raises(Lost) as lost:
            await reading
        assert lost.value.cause is Cause.TIMEOUT
        await peer.send(b"late")  # time was up for that read alone
        assert await endpoint.read(LONG) == b"late"
        endpoint.close()
        peer.close()

    run(work)


@secured
def test_no_more_is_held_than_the_bound_and_nothing_of_it_is_lost(*, secure: bool) -> None:
    async def work() -> None:
        endpoint, peer, loop = await pair(secure=secure, buffer=SMALL)
        endpoint.watch()
        data = random.Random(5).randbytes(1_000_000)
        sending = asyncio.ensure_future(peer.send(data))
        await until(lambda: endpoint.fd not in loop.readers)
        await ticks(100)
        assert EARLY <= endpoint._size < EARLY + CHUNK  # the bound, and the read that went over it
        assert not sending.done()
        got = bytearray()
        while len(got) < len(data):
            got += await endpoint.read(LONG)
            assert endpoint._size < EARLY + CHUNK
        await sending
        assert got == data
        endpoint.close()
        peer.close()

    run(work)


@pytest.mark.parametrize("watched", [False, True], ids=["read", "watched"])
def test_a_peer_that_sends_a_byte_a_record_keeps_the_loop_from_nobody_and_takes_no_more_room(*, watched: bool) -> None:
    async def work() -> None:
        endpoint, peer, _ = await pair(secure=True)
        if watched:
            endpoint.watch(lambda: None)
        others_since = most = 0
        reading = endpoint._recv

        def counted() -> bytes:
            nonlocal others_since, most
            others_since += 1
            most = max(most, others_since)
            return reading()

        async def others() -> None:
            nonlocal others_since
            while True:
                others_since = 0
                await asyncio.sleep(0)

        for _ in range(2000):
            await peer.send(b"x")
        endpoint._recv = counted
        other = asyncio.ensure_future(others())
        if watched:
            await until(lambda: endpoint.held == 2000)
            assert sum(map(sys.getsizeof, endpoint._chunks)) < 2 * 2000
        got = b""
        while len(got) < 2000:
            got += await endpoint.read(LONG)
        other.cancel()
        assert got == b"x" * 2000
        assert most < 200
        endpoint.close()
        peer.close()

    run(work)


@secured
@pytest.mark.parametrize("how", ["ends", "is lost"])
def test_whoever_watches_is_told_once_that_the_peer_is_gone(*, secure: bool, how: str) -> None:
    async def work() -> None:
        endpoint, peer, loop = await pair(secure=secure)
        told: list[int] = []
        endpoint.watch(on_gone=lambda: told.append(1))
        await peer.send(b"before")
        await ticks(5)
        assert (told, endpoint.gone) == ([], False)
        if how == "ends":
            await peer.half_close()
        else:
            peer.reset()
        await until(lambda: endpoint.gone)
        await ticks(5)
        assert told == [1]
        assert endpoint.fd not in loop.readers
        if how == "ends":
            assert await endpoint.read(LONG) == b"before"
            assert await endpoint.read(LONG) == b""
        else:
            with pytest.raises(Lost) as lost:  # what it had said may come first
                await read_on(endpoint)
            assert lost.value.cause in {Cause.RESET, Cause.TLS}
        endpoint.watch(on_gone=lambda: told.append(2))  # too late to see it go, not to be told
        await ticks(3)
        assert told == [1, 2]
        endpoint.close()
        peer.close()

    run(work)


def test_tls_that_is_cut_without_close_notify_is_an_error() -> None:
    async def work() -> None:
        endpoint, peer, _ = await pair(secure=True)
        await peer.send(b"half a bo")
        await peer.half_close(notify=False)
        assert await endpoint.read(LONG) == b"half a bo"
        with pytest.raises(Lost) as lost:
            await endpoint.read(LONG)
        assert lost.value.cause is Cause.TLS
        assert isinstance(lost.value.__cause__, ssl.SSLError)
        assert not endpoint.ended
        endpoint.close()
        peer.close()

    run(work)


@secured
def test_after_our_own_end_the_peer_is_still_read_to_its_orderly_end(*, secure: bool) -> None:
    async def work() -> None:
        endpoint, peer, _ = await pair(secure=secure)
        assert endpoint.half_close()
        assert endpoint.half_close()
        assert await peer.read() == b""
        await peer.send(b"an answer")
        assert await endpoint.read(LONG) == b"an answer"
        await peer.half_close()
        assert await endpoint.read(LONG) == b""
        assert endpoint.ended
        endpoint.close()
        peer.close()

    run(work)


def test_tls_that_is_cut_after_our_own_end_is_an_error_still() -> None:
    async def work() -> None:
        endpoint, peer, _ = await pair(secure=True)
        endpoint.half_close()
        assert await peer.read() == b""
        await peer.half_close(notify=False)
        with pytest.raises(Lost) as lost:
            await endpoint.read(LONG)
        assert lost.value.cause is Cause.TLS
        endpoint.close()
        peer.close()

    run(work)


# --- writing ---------------------------------------------------------------------------------------------------------


@secured
def test_a_write_goes_on_as_long_as_the_peer_takes_a_byte_in_time(*, secure: bool) -> None:
    async def work() -> None:
        endpoint, peer, loop = await pair(secure=secure, buffer=SMALL)
        data = random.Random(6).randbytes(400_000)
        writing = asyncio.ensure_future(endpoint.write(data, 10.0))
        got = bytearray()
        while not writing.done():
            await until(lambda: writing.done() or endpoint.fd in loop.writers)
            await passes(9.0)
            waited = endpoint._ready
            while not writing.done() and endpoint._ready is waited:  # until some of it is taken
                got += await peer.read()
        await writing
        assert clock().ahead > 20.0  # much longer than the bound in all
        endpoint.half_close()
        assert bytes(got) + await peer.read_all() == data
        endpoint.close()
        peer.close()

    run(work)


@secured
def test_a_write_gives_up_when_the_peer_takes_nothing_in_time(*, secure: bool) -> None:
    async def work() -> None:
        endpoint, peer, loop = await pair(secure=secure, buffer=SMALL)
        writing = asyncio.ensure_future(endpoint.write(bytes(4_000_000), 10.0))
        await until(lambda: endpoint.fd in loop.writers)
        await ticks(50)
        await passes(10.1)
        with pytest.raises(Lost) as lost:
            await writing
        assert lost.value.cause is Cause.TIMEOUT
        assert endpoint.fd not in loop.writers
        endpoint.abort()
        peer.close()

    run(work)


@secured
def test_nothing_follows_a_write_that_was_broken_off(*, secure: bool) -> None:
    async def work() -> None:
        endpoint, peer, loop = await pair(secure=secure, buffer=SMALL)
        writing = asyncio.ensure_future(endpoint.write(bytes(4_000_000), 10.0))
        await until(lambda: endpoint.fd in loop.writers)
        await ticks(50)
        writing.cancel()
        await asyncio.wait((writing,))
        assert writing.cancelled()
        with pytest.raises(Lost):
            await endpoint.write(b"HTTP/1.1 200 OK", 10.0)
        endpoint.abort()
        peer.close()

    run(work)


@secured
def test_a_write_to_a_peer_that_is_gone_says_so(*, secure: bool) -> None:
    async def work() -> None:
        endpoint, peer, _ = await pair(secure=secure)
        peer.reset()
        with pytest.raises(Lost) as lost:
            await write_on(endpoint)
        assert lost.value.cause in {Cause.RESET, Cause.TLS}
        endpoint.close()
        with pytest.raises(Lost) as lost:
            await endpoint.write(b"hello", LONG)
        assert lost.value.cause is Cause.CLOSED

    run(work)


# --- handshake and connect -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01\x02\x00\x01"], ids=["nothing", "the beginning"])
def test_a_handshake_that_does_not_finish_is_given_up_in_its_time_whatever_trickles_in(said: bytes) -> None:
    async def work() -> None:
        near, far = tcp_pair()
        endpoint = Endpoint(clock(), near, "peer")
        shaking = asyncio.ensure_future(endpoint.handshake(certificates().server(), 10.0, server_side=True))
        await ticks(3)
        for byte in said:  # 10 s in all, not for each byte
            far.send(bytes((byte,)))
            await passes(1.5)
        assert not shaking.done()
        await passes(10.1 - 1.5 * len(said))
        with pytest.raises(Lost) as lost:
            await shaking
        assert lost.value.cause is Cause.TIMEOUT
        endpoint.close()
        far.close()

    run(work)


def test_a_session_ticket_comes_with_the_first_answer_and_not_while_a_client_may_still_write_its_request() -> None:
    """Else a client that reads in another thread (websockets.sync) is in SSL_read and SSL_write at once, and hangs."""

    async def work() -> None:
        endpoint, peer, _ = await pair(secure=True)
        with pytest.raises(BlockingIOError):
            peer.sock.recv(1)
        # But its last bytes are acknowledged: Nagle would keep the request back until they are, for 40 ms.
        assert fcntl.ioctl(peer.sock, termios.TIOCOUTQ, bytes(4)) == bytes(4)
        await peer.send(b"request")
        assert await endpoint.read(LONG) == b"request"
        with pytest.raises(BlockingIOError):
            peer.sock.recv(1)
        await endpoint.write(b"answer", LONG)
        assert await peer.read() == b"answer"
        assert peer.has_ticket
        await endpoint.write(b"another", LONG)
        assert await peer.read() == b"another"
        endpoint.close()
        assert await peer.read() == b""
        peer.sock.close()

    run(work)


NO_TLS: Final = {"HTTP": b"GET / HTTP/1.1\r\n\r\n", "noise": b"\x00" * 64, "an end": b""}


@pytest.mark.parametrize("said", NO_TLS.values(), ids=NO_TLS)
def test_what_is_no_tls_is_told_as_such(said: bytes) -> None:
    async def work() -> None:
        near, far = tcp_pair()
        endpoint = Endpoint(clock(), near, "peer")
        far.send(said)
        far.shutdown(socket.SHUT_WR)
        with pytest.raises(Lost) as lost:
            await endpoint.handshake(certificates().server(), LONG, server_side=True)
        assert lost.value.cause in {Cause.TLS, Cause.RESET}
        assert lost.value.__cause__ is not None
        assert tls.spoke_plain_http(lost.value.__cause__) is said.startswith(b"GET")
        endpoint.close()
        far.close()

    run(work)


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01"], ids=["silent", "with the beginning of a handshake"])
def test_a_client_that_is_gone_before_its_handshake_is_lost_and_leaves_no_file_descriptor(said: bytes) -> None:
    async def work() -> None:
        near, far = tcp_pair()
        endpoint = Endpoint(clock(), near, "peer")
        far.send(said)
        Peer(far).reset()
        with pytest.raises(Lost) as lost:
            await endpoint.handshake(certificates().server(), LONG, server_side=True)
        assert lost.value.cause in {Cause.RESET, Cause.TLS}
        endpoint.close()
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            os.fstat(endpoint.fd)

    run(work)


def test_a_connection_that_is_refused_says_so_and_one_that_hangs_is_given_up() -> None:
    async def work() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = listener.getsockname()
            endpoint = Endpoint(clock(), socket.socket(), "peer")
            await endpoint.connect(address, LONG)
            endpoint.close()
        endpoint = Endpoint(clock(), socket.socket(), "peer")
        with pytest.raises(Lost) as lost:
            await endpoint.connect(address, LONG)
        assert lost.value.cause is Cause.RESET
        endpoint.close()
        with socket.socket() as listener:  # its queue takes no more, and the kernel then answers nobody
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            waiting = []
            while True:
                sock = socket.socket()
                endpoint = Endpoint(clock(), sock, "peer")
                waiting.append(endpoint)
                connecting = asyncio.ensure_future(endpoint.connect(listener.getsockname(), 10.0))
                await ticks(20)
                if not connecting.done():
                    break
                await connecting
            await passes(10.1)
            with pytest.raises(Lost) as lost:
                await connecting
            assert lost.value.cause is Cause.TIMEOUT
            for endpoint in waiting:
                endpoint.close()

    run(work)


# --- ends ------------------------------------------------------------------------------------------------------------


@secured
@pytest.mark.parametrize("how", ["close", "abort"])
def test_an_end_of_our_own_wakes_whoever_waits_and_leaves_nothing_in_the_loop(*, secure: bool, how: str) -> None:
    async def work() -> None:
        endpoint, peer, loop = await pair(secure=secure, buffer=SMALL)
        reading = asyncio.ensure_future(endpoint.read(LONG))
        writing = asyncio.ensure_future(endpoint.write(bytes(4_000_000), LONG))
        await until(lambda: endpoint.fd in loop.writers)
        assert endpoint.fd in loop.readers
        for _ in range(2):
            getattr(endpoint, how)()
        for waiting in (reading, writing):
            with pytest.raises(Lost) as lost:
                await waiting
            assert lost.value.cause is Cause.CLOSED
        assert not (loop.readers | loop.writers) & {endpoint.fd}
        assert endpoint.gone
        peer.close()

    run(work)


@secured
def test_an_abort_is_seen_as_one_and_a_close_as_an_end(*, secure: bool) -> None:
    async def work() -> None:
        endpoint, peer, _ = await pair(secure=secure)
        await endpoint.write(b"whole", LONG)
        endpoint.close()
        assert await peer.read_all() == b"whole"
        peer.close()
        endpoint, peer, _ = await pair(secure=secure)
        endpoint.abort()
        with pytest.raises((ConnectionError, ssl.SSLError)):
            await peer.read_all()
        peer.close()

    run(work)


@secured
def test_a_last_answer_reaches_a_client_that_is_still_sending(*, secure: bool) -> None:
    async def work() -> None:
        endpoint, peer, _ = await pair(secure=secure)

        async def upload() -> None:
            with contextlib.suppress(ConnectionError):
                await peer.send(bytes(8_000_000))

        uploading = asyncio.ensure_future(upload())
        await endpoint.read(LONG)
        await endpoint.write(b"401", LONG)
        lingering = asyncio.ensure_future(closing.linger(endpoint))
        await uploading  # all of it is taken and thrown away
        assert await peer.read_all() == b"401"
        peer.close()
        await lingering

    run(work)


LINGER: Final = {
    "says nothing": (b"", 1, closing.IDLE),
    "says a little now and then": (b"x", 8, closing.SECONDS),
}


@pytest.mark.parametrize(("said", "times", "within"), LINGER.values(), ids=LINGER)
def test_lingering_is_bounded_whatever_the_client_does(said: bytes, times: int, within: float) -> None:
    async def work() -> None:
        endpoint, peer, _ = await pair(secure=False)
        lingering = asyncio.ensure_future(closing.linger(endpoint))
        await ticks(3)
        for _ in range(times):
            if said and not lingering.done():
                with contextlib.suppress(ConnectionError):
                    await peer.send(said)
                await ticks(5)
            await passes(closing.IDLE * 0.9)
        await passes(closing.IDLE)
        assert clock().ahead > within
        assert lingering.done()
        await lingering
        peer.close()

    run(work)


def test_lingering_takes_no_more_than_its_bound_of_bytes() -> None:
    async def work() -> None:
        endpoint, peer, _ = await pair(secure=False, buffer=SMALL)
        sending = asyncio.ensure_future(peer.send(bytes(3_000_000)))
        await endpoint.discard(LONG, LONG, 1_000_000)
        assert not sending.done()
        endpoint.abort()
        with pytest.raises(ConnectionError):
            await sending
        peer.close()

    run(work)


@secured
def test_released_it_is_out_of_the_loop_with_what_was_read_ahead(*, secure: bool) -> None:
    async def work() -> None:
        endpoint, peer, loop = await pair(secure=secure)
        told: list[int] = []
        endpoint.watch(on_gone=lambda: told.append(1))
        await peer.send(b"early")
        await until(lambda: bool(endpoint._size))
        assert endpoint.release() == b"early"
        assert endpoint.release() == b""
        assert endpoint.fd not in loop.readers
        await peer.half_close()
        await ticks(10)
        assert told == []
        endpoint.close()
        peer.close()

    run(work)


@secured
@pytest.mark.parametrize("how", ["close", "abort", "truncate"])
def test_an_end_leaves_nothing_that_reads_or_writes_whoever_has_its_number_next(*, secure: bool, how: str) -> None:
    async def work() -> None:
        endpoint, peer, loop = await pair(secure=secure)
        near, far = tcp_pair()
        getattr(endpoint, how)()
        os.dup2(near.fileno(), endpoint.fd)  # a connection that is accepted now has the lowest number that is free
        try:
            far.send(b"of another client")
            for use in (endpoint.read(LONG), endpoint.write(b"x", LONG), endpoint.discard(LONG, LONG, 100)):
                with contextlib.suppress(Lost):
                    await use
            endpoint.watch(on_gone=lambda: None)
            endpoint.half_close()
            endpoint.shut()
            endpoint.close()
            await ticks(10)
            with pytest.raises(Lost) as lost:
                await endpoint.read(LONG)
            assert lost.value.cause is Cause.CLOSED
            assert near.recv(100) == b"of another client"
            with pytest.raises(BlockingIOError):
                far.recv(100)
            assert endpoint.fd not in loop.readers | loop.writers
        finally:
            os.close(endpoint.fd)
        for sock in (near, far):
            sock.close()
        peer.close()

    run(work)


# --- what is held counts ---------------------------------------------------------------------------------------------


@secured
@pytest.mark.parametrize("how", ["close", "abort"])
def test_what_an_end_leaves_unsent_and_unread_is_given_back_at_once(*, secure: bool, how: str) -> None:
    async def work() -> None:
        budget = Budget(1 << 20, lambda: None)
        endpoint, peer, loop = await pair(secure=secure, buffer=SMALL, budget=budget)
        endpoint.watch()
        await peer.send(b"not asked for")
        await until(lambda: budget.used > 0)
        writing = asyncio.ensure_future(endpoint.write(bytes(4_000_000), LONG))
        await until(lambda: endpoint.fd in loop.writers)
        await ticks(20)
        assert budget.used == endpoint.held > len(b"not asked for")
        getattr(endpoint, how)()
        assert (budget.used, endpoint.held) == (0, 0)  # before the writer wakes: whoever sheds counts on it
        with pytest.raises(Lost):
            await writing
        assert (budget.used, endpoint.held) == (0, 0)
        peer.close()

    run(work)


@secured
@pytest.mark.parametrize("how", ["times out", "is cancelled", "ends", "finds the peer gone"])
def test_whatever_ends_a_write_gives_back_what_it_took(*, secure: bool, how: str) -> None:
    async def work() -> None:
        budget = Budget(1 << 20, lambda: None)
        endpoint, peer, loop = await pair(secure=secure, buffer=SMALL, budget=budget)
        writing = asyncio.ensure_future(endpoint.write(bytes(400_000), 10.0))
        await until(lambda: endpoint.fd in loop.writers)
        await ticks(20)
        assert budget.used == endpoint.held > 0
        match how:
            case "times out":
                await passes(10.1)
            case "is cancelled":
                writing.cancel()
            case "finds the peer gone":
                peer.reset()
            case _:
                got = 0
                while got < 400_000:
                    got += len(await peer.read())
        await asyncio.wait((writing,))
        assert (budget.used, endpoint.held) == (0, 0)
        assert (how == "ends") is (not writing.cancelled() and writing.exception() is None)
        endpoint.close()
        peer.close()

    run(work)


def test_what_is_read_ahead_counts_until_it_is_taken() -> None:
    async def work() -> None:
        budget = Budget(1 << 20, lambda: None)
        endpoint, peer, _ = await pair(secure=False, budget=budget)
        endpoint.watch()
        await peer.send(b"hello")
        await until(lambda: budget.used == 5)
        assert await endpoint.read(LONG) == b"hello"
        assert budget.used == 0
        endpoint.unread(b"llo")
        assert budget.used == 3
        assert endpoint.release() == b"llo"
        assert budget.used == 0
        endpoint.close()
        assert budget.used == 0
        peer.close()

    run(work)


@secured
def test_what_is_held_is_known_to_stand_still_since_its_peer_last_took_some(*, secure: bool) -> None:
    async def work() -> None:
        endpoint, peer, loop = await pair(secure=secure, buffer=SMALL)
        assert endpoint.held_since == math.inf
        writing = asyncio.ensure_future(endpoint.write(bytes(400_000), LONG))
        await until(lambda: endpoint.fd in loop.writers)
        await ticks(20)
        await passes(5.0)
        stalled = endpoint.held_since
        assert clock().time() - stalled >= 5.0
        while endpoint.held_since == stalled:
            await peer.read()
        assert clock().time() - endpoint.held_since < 5.0
        writing.cancel()
        await asyncio.wait((writing,))
        assert endpoint.held_since == math.inf
        endpoint.watch()
        await peer.send(b"read ahead")
        await until(lambda: endpoint._size > 0)
        ahead = endpoint.held_since
        await passes(5.0)
        assert endpoint.held_since == ahead
        assert await endpoint.read(LONG) == b"read ahead"
        assert endpoint.held_since == math.inf
        endpoint.close()
        peer.close()

    run(work)
