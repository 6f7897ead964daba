"""A body that pours from fd to fd: the same bytes whatever stalls or breaks, none too many, and nothing left behind."""

import asyncio
import contextlib
import functools
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Final

import pytest
from hypothesis import given, settings, strategies as st

from dgproxy.net import pump
from dgproxy.net.endpoint import Endpoint
from dgproxy.net.pipes import Pipes
from dgproxy.net.pour import AN_EVENT, Pour, Poured
from dgproxy.net.relay import make_buffer
from tests.support.peers import Peer, Watched, certificates, tcp_pair
from tests.support.pumps import FORMS, native_only, new_event_loop

LONG: Final = 60.0
SMALL: Final = 16 * 1024  # bytes of a socket's buffer, so that the sink stalls
Way = tuple[pump.Form, bool, bool]  # the pump, whether the client speaks TLS, and whether there are pipes

WAYS: Final = [
    pytest.param(
        (form, secure, pipes),
        id=f"{form}, {'TLS' if secure else 'spliced' if pipes else 'plain'}",
        marks=[native_only] if form == "native" else [],
    )
    for form in FORMS
    for secure, pipes in ((False, False), (False, True), (True, True))
]
each_way = pytest.mark.parametrize("way", WAYS)


class Rig:
    """A client before a source, and an upstream behind a sink."""

    def __init__(self, way: Way, client: Peer, source: Endpoint, sink: Endpoint, upstream: Peer) -> None:
        self.form, _, pipes = way
        self.pipes = Pipes(bulk=0) if pipes else None
        self.client, self.source, self.sink, self.upstream = client, source, sink, upstream
        self.loop = Watched(asyncio.get_running_loop())
        self.buffer = make_buffer()

    def pour(self, least: int) -> Pour:
        assert not self.source.release()
        return Pour(self.loop, self.source, self.sink, self.buffer, least, self.pipes, self.form)  # type: ignore[arg-type]

    @property
    def quiet(self) -> bool:
        """Whether nothing is accounted for, and nothing in the loop for either fd."""
        return not self.source.held and not self.sink.held and not self.loop.readers and not self.loop.writers


@contextlib.asynccontextmanager
async def rig(way: Way, buffer: int | None = None) -> AsyncIterator[Rig]:
    secure = way[1]
    loop = asyncio.get_running_loop()
    near, far = tcp_pair(buffer)
    below, above = tcp_pair(buffer)
    source, sink = Endpoint(loop, near, "client"), Endpoint(loop, below, "upstream")
    client = Peer(far, certificates().client() if secure else None)
    upstream = Peer(above)
    if secure:
        await asyncio.gather(source.handshake(certificates().server(), LONG, server_side=True), client.handshake())
    made = Rig(way, client, source, sink, upstream)
    try:
        yield made
    finally:
        source.abort()
        sink.abort()
        far.close()
        above.close()
        if made.pipes is not None:
            made.pipes.close()
            assert not made.pipes.open  # every one was given back


def run(work: Callable[[], Coroutine[Any, Any, None]], form: pump.Form) -> None:
    with asyncio.Runner(loop_factory=functools.partial(new_event_loop, form)) as runner:
        runner.run(asyncio.wait_for(work(), LONG))


async def outcome(pour: Pour) -> Poured:
    while (found := await pour.wait(0.05)) is None:  # as its owner looks at it each second
        pass
    return found


async def send_in_pieces(client: Peer, body: bytes, sizes: list[int]) -> None:
    at = 0
    turn = 0
    while at < len(body):
        size = sizes[turn % len(sizes)]
        await client.send(body[at : at + size])
        at += size
        turn += 1


async def read_at_least(peer: Peer, size: int) -> bytes:
    got = bytearray()
    while len(got) < size:
        piece = await peer.read()
        assert piece, f"the end after {len(got)} of {size}"
        got += piece
    return bytes(got)


@each_way
@settings(max_examples=25)
@given(
    narrow=st.booleans(),
    more=st.integers(0, 700_000),
    sizes=st.lists(st.sampled_from([1000, 3000, 16_384, 70_000, 300_000]), min_size=1, max_size=4),
    seed=st.integers(0, 1 << 30),
)
def test_what_is_poured_and_what_is_read_after_it_are_the_body(
    way: Way, *, narrow: bool, more: int, sizes: list[int], seed: int
) -> None:
    body = random.Random(seed).randbytes(AN_EVENT + more)

    async def work() -> None:
        async with rig(way, buffer=SMALL if narrow else None) as made:
            sending = asyncio.ensure_future(send_in_pieces(made.client, body, sizes))
            pour = made.pour(len(body) - AN_EVENT)
            reading = asyncio.ensure_future(read_at_least(made.upstream, len(body)))
            assert await outcome(pour) is Poured.ENOUGH
            assert len(body) - AN_EVENT <= pour.count <= len(body)
            assert made.quiet
            left = len(body) - pour.count
            while left:
                piece = await made.source.read(LONG)
                await made.sink.write(piece, LONG)
                left -= len(piece)
            assert await reading == body
            await sending

    run(work, way[0])


@each_way
@pytest.mark.parametrize("least", [1, 100_000, 1_000_000])
def test_no_more_than_an_events_bytes_go_past_what_was_asked_for(way: Way, least: int) -> None:
    """What comes behind them may be another request, which nobody would have judged."""

    async def work() -> None:
        async with rig(way) as made:
            sending = asyncio.ensure_future(made.client.send(bytes(least + 4 * AN_EVENT)))
            reading = asyncio.ensure_future(read_at_least(made.upstream, least))
            pour = made.pour(least)
            assert await outcome(pour) is Poured.ENOUGH
            assert least <= pour.count <= least + AN_EVENT
            await reading
            sending.cancel()

    run(work, way[0])


@each_way
def test_a_sink_that_takes_nothing_stops_the_source_and_is_seen_to(way: Way) -> None:
    async def work() -> None:
        async with rig(way, buffer=SMALL) as made:
            body = random.Random(2).randbytes(4 << 20)
            sending = asyncio.ensure_future(made.client.send(body))
            pour = made.pour(len(body) - AN_EVENT)
            count = -1
            while not pour.blocked or pour.count != count:  # the kernel's buffers fill first
                count = pour.count
                assert await pour.wait(0.05) is None
            assert count < 1 << 20
            assert 0 < made.sink.held <= AN_EVENT
            got = await read_at_least(made.upstream, count)
            assert got == body[: len(got)]
            while pour.count == count:
                assert await pour.wait(0.01) is None
            pour.close()
            assert made.quiet
            sending.cancel()

    run(work, way[0])


Breaks = Callable[[Rig], None]
BREAKS: Final[dict[str, Breaks]] = {
    "the client vanishes": lambda made: made.client.reset(),
    "the client's connection is closed here": lambda made: made.source.abort(),
    "the upstream's connection is closed here": lambda made: made.sink.abort(),
}


@each_way
@pytest.mark.parametrize("breaks", BREAKS.values(), ids=BREAKS)
@pytest.mark.parametrize("stalled", [False, True], ids=["flowing", "stalled"])
def test_whatever_ends_it_leaves_nothing_behind(breaks: Breaks, way: Way, *, stalled: bool) -> None:
    async def work() -> None:
        async with rig(way, buffer=SMALL) as made:
            pour = made.pour(64 << 20)
            if stalled:
                sending = asyncio.ensure_future(made.client.send(bytes(4 << 20)))
                while not pour.blocked:
                    assert await pour.wait(0.01) is None
                sending.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await sending
            else:
                await made.client.send(b"hello")
                assert await read_at_least(made.upstream, 5) == b"hello"
            breaks(made)
            assert await outcome(pour) is Poured.LOST
            pour.close()
            assert made.quiet

    run(work, way[0])


@each_way
@pytest.mark.parametrize("side", ["source", "sink"])
def test_a_connection_that_is_closed_already_is_not_touched(side: str, way: Way) -> None:
    """Its number may be another connection's by then."""

    async def work() -> None:
        async with rig(way) as made:
            closed: Endpoint = getattr(made, side)
            closed.abort()
            pour = made.pour(64 << 20)
            made.loop.readers.add(closed.fd)  # the next connection's
            made.loop.writers.add(closed.fd)
            assert await outcome(pour) is Poured.LOST
            pour.close()
            assert (made.loop.readers, made.loop.writers) == ({closed.fd}, {closed.fd})

    run(work, way[0])


@each_way
def test_a_client_that_ends_early_is_lost(way: Way) -> None:
    async def work() -> None:
        async with rig(way) as made:
            pour = made.pour(64 << 20)
            await made.client.send(b"hello")
            assert await read_at_least(made.upstream, 5) == b"hello"
            await made.client.half_close()
            assert await outcome(pour) is Poured.LOST
            assert made.quiet

    run(work, way[0])


@each_way
def test_an_upstream_that_resets_refuses(way: Way) -> None:
    async def work() -> None:
        async with rig(way) as made:
            pour = made.pour(64 << 20)
            made.upstream.reset()
            sending = asyncio.ensure_future(send_in_pieces(made.client, bytes(16 << 20), [10_000]))
            assert await outcome(pour) is Poured.REFUSED
            assert made.quiet
            sending.cancel()

    run(work, way[0])


# --- pipes -----------------------------------------------------------------------------------------------------------


def test_what_a_sink_that_breaks_leaves_in_a_pipe_is_nobodys() -> None:
    async def work() -> None:
        async with rig(("pure", False, True)) as made:
            pour = made.pour(64 << 20)
            made.upstream.reset()
            sending = asyncio.ensure_future(send_in_pieces(made.client, b"secret" * (1 << 20), [100_000]))
            assert await outcome(pour) is Poured.REFUSED
            sending.cancel()
            pipes = made.pipes
        async with rig(("pure", False, True)) as made:
            made.pipes = pipes
            pour = made.pour(1000)
            await made.client.send(b"public" * 1000)
            assert await outcome(pour) is Poured.ENOUGH
            assert await read_at_least(made.upstream, 6000) == b"public" * 1000

    run(work, "pure")
