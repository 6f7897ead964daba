"""The pump between two real sockets: every byte, both ways, whatever the sizes, stalls and ends."""

import asyncio
import random
import ssl
from dataclasses import dataclass
from typing import cast

import pytest
from hypothesis import HealthCheck, Phase, given, settings, strategies as st

from dgproxy.net.endpoint import CHUNK
from dgproxy.net.pipes import SPAN, Pipe
from dgproxy.net.relay import Relay, Side, make_buffer
from tests.support import pumps
from tests.support.peers import Peer
from tests.support.pumps import all_forms  # noqa: F401 - a fixture for all of this
from tests.support.rig import PATIENCE, SMALL, Rig, blocked, build, kinds, run, settled, ticks

# --- any conversation ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Script:
    """What a peer does: sends so much at a time, is slow to begin to read and between reads, by turns of the loop."""

    sends: list[int]
    before_reading: int
    between_reads: int

    def data(self, seed: int) -> list[bytes]:
        rng = random.Random(seed)
        return [rng.randbytes(size) for size in self.sends]


sizes = st.integers(0, 300) | st.integers(16_000, 17_000) | st.integers(60_000, 70_000) | st.integers(0, 300_000)
scripts = st.builds(Script, st.lists(sizes, max_size=5), st.integers(0, 60), st.integers(0, 5))
conversations = settings(
    max_examples=25,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),  # a conversation that hangs would be shrunk for minutes
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)


async def send(peer: Peer, pieces: list[bytes]) -> None:
    for piece in pieces:
        await peer.send(piece)
        await ticks(1)


async def read(peer: Peer, script: Script, into: bytearray) -> None:
    await ticks(script.before_reading)
    while piece := await peer.read():
        into += piece
        await ticks(script.between_reads)


@kinds
@conversations
@given(one=scripts, other=scripts, early=st.booleans())
def test_every_byte_passes_both_ways_and_then_both_ends(
    *, secure_client: bool, secure_server: bool, one: Script, other: Script, early: bool
) -> None:
    async def work(rig: Rig) -> None:
        up, down = one.data(1), other.data(2)
        got_up, got_down = bytearray(), bytearray()
        if early:  # what was read before the relay takes over is passed on like the rest
            await rig.client.send(b"early from client")
            await rig.server.send(b"early from server")
            rig.downstream.unread(await rig.downstream.read(PATIENCE))
            rig.upstream.unread(await rig.upstream.read(PATIENCE))
            up.insert(0, b"early from client")
            down.insert(0, b"early from server")
        rig.start()
        # The client ends first, having said all; the server hears that before it ends too: so both halves are seen.
        reading = asyncio.ensure_future(read(rig.client, one, got_down))
        hearing = asyncio.ensure_future(read(rig.server, other, got_up))
        answering = asyncio.ensure_future(send(rig.server, down[early:]))
        await send(rig.client, up[early:])
        if secure_client:
            await answering  # OpenSSL, in memory, takes no data after its own close_notify
            while len(got_down) < sum(map(len, down)):
                await ticks(1)
        await rig.client.half_close()
        await hearing
        await answering
        await rig.server.half_close()
        await reading
        assert await rig.end() is None
        assert (bytes(got_up), bytes(got_down)) == (b"".join(up), b"".join(down))
        assert (rig.relay.up.count, rig.relay.down.count) == (len(got_up), len(got_down))

    run(work, secure_client=secure_client, secure_server=secure_server, buffer=SMALL)


@kinds
@conversations
@given(one=scripts, other=scripts, side=st.sampled_from(Side), after=st.integers(0, 5), turns=st.integers(0, 40))
def test_an_abrupt_end_ends_both_sides_once_and_invents_nothing(
    *, secure_client: bool, secure_server: bool, one: Script, other: Script, side: Side, after: int, turns: int
) -> None:
    async def work(rig: Rig) -> None:
        breaker, witness = rig.peer(side)
        said, heard = one.data(1), bytearray()
        sent = other.data(2)
        rig.start()
        reading = asyncio.ensure_future(read(witness, other, heard))
        sending = asyncio.ensure_future(send(witness, sent))
        # The breaker sends some of it, and resets in the middle of whatever goes on.
        breaking = asyncio.ensure_future(send(breaker, said[:after]))
        await ticks(turns)
        breaking.cancel()
        await asyncio.wait((breaking,))
        breaker.reset()
        while not rig.over.is_set():
            rig.relay.check()  # as a Stream does each second: libuv need not tell of what is left after a reset
            await ticks(1)
        await asyncio.wait((reading, sending))
        assert await rig.end() is side
        reading.exception()
        sending.exception()
        assert b"".join(said).startswith(bytes(heard))

    run(work, secure_client=secure_client, secure_server=secure_server, buffer=SMALL)


# --- ends ------------------------------------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("first", Side)
def test_a_half_close_passes_on_after_all_bytes_and_the_other_direction_still_works(
    *, secure_client: bool, secure_server: bool, first: Side
) -> None:
    async def work(rig: Rig) -> None:
        ender, other = rig.peer(first)
        rig.start()
        last = random.Random(3).randbytes(1_000_000)
        sending = asyncio.ensure_future(ender.send(last))
        await settled(rig)  # the other is not reading: bytes wait in the relay when the end comes
        heard = asyncio.ensure_future(other.read_all())
        await sending
        await ender.half_close()
        assert await heard == last
        assert rig.ends == []
        for _ in range(3):
            await other.send(b"still here")
            assert await ender.read() == b"still here"
        await other.half_close()
        assert await ender.read() == b""
        assert await rig.end() is None

    run(work, secure_client=secure_client, secure_server=secure_server, buffer=SMALL)


@kinds
@pytest.mark.parametrize("side", Side)
def test_a_reset_ends_both_even_where_nothing_is_said(*, secure_client: bool, secure_server: bool, side: Side) -> None:
    async def work(rig: Rig) -> None:
        rig.start()
        await ticks(5)
        rig.peer(side)[0].reset()
        assert await rig.end() is side

    run(work, secure_client=secure_client, secure_server=secure_server)


@pytest.mark.parametrize("side", Side)
def test_tls_that_is_cut_without_close_notify_is_broken_and_not_ended(side: Side) -> None:
    async def work(rig: Rig) -> None:
        rig.start()
        cut, other = rig.peer(side)
        await cut.send(b"half a mess")
        assert await other.read() == b"half a mess"
        await cut.half_close(notify=False)
        assert await rig.end() is side

    run(work, secure_client=True, secure_server=True)


@kinds
def test_who_was_told_the_end_and_drops_the_connection_has_broken_nothing(
    *, secure_client: bool, secure_server: bool
) -> None:
    async def work(rig: Rig) -> None:
        rig.start()
        await rig.client.half_close()
        assert await rig.server.read() == b""
        await rig.server.send(b"bye")
        await rig.server.half_close()
        assert await rig.client.read_all() == b"bye"
        rig.client.reset()
        assert await rig.end() is None

    run(work, secure_client=secure_client, secure_server=secure_server)


@kinds
def test_a_peer_that_ended_before_the_relay_began_is_passed_on(*, secure_client: bool, secure_server: bool) -> None:
    async def work(rig: Rig) -> None:
        gone = asyncio.Event()
        rig.upstream.watch(on_gone=gone.set)
        await rig.server.send(b"last words")
        await rig.server.half_close()
        await gone.wait()
        rig.start()
        assert await rig.client.read_all() == b"last words"
        assert rig.ends == []
        await rig.client.send(b"heard")
        assert await rig.server.read() == b"heard"

    run(work, secure_client=secure_client, secure_server=secure_server)


def test_nothing_is_told_after_stop() -> None:
    async def work(rig: Rig) -> None:
        rig.start()
        rig.relay.stop()
        rig.client.reset()
        await rig.server.half_close()
        await ticks(20)
        assert rig.ends == []
        assert not (rig.loop.readers | rig.loop.writers) & {rig.downstream.fd, rig.upstream.fd}
        rig.relay.stop()

    run(work, secure_client=False, secure_server=False)


# --- backpressure ----------------------------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("side", Side)
def test_the_source_is_not_read_while_the_sink_is_stuck(
    *, secure_client: bool, secure_server: bool, side: Side
) -> None:
    async def work(rig: Rig) -> None:
        source, sink = rig.peer(side)
        direction = rig.relay.up if side is Side.DOWNSTREAM else rig.relay.down
        fd = rig.downstream.fd if side is Side.DOWNSTREAM else rig.upstream.fd
        rig.start()
        data = random.Random(4).randbytes(4_000_000)
        sending = asyncio.ensure_future(source.send(data))
        while not blocked(direction):
            await ticks(1)
        taken = await settled(rig)
        assert taken < 1_000_000  # the kernel's buffers and one pending read
        assert fd not in rig.loop.readers
        assert direction._pending is not None
        assert len(direction._pending) <= (SPAN if isinstance(direction._pending, Pipe) else CHUNK)
        assert not sending.done()
        # The other direction is free meanwhile.
        await sink.send(b"hello")
        assert await source.read() == b"hello"
        # And nothing was lost by it.
        got = bytearray()
        while len(got) < len(data):
            got += await sink.read()
        await sending
        assert got == data
        assert not blocked(direction)
        assert fd in rig.loop.readers

    run(work, secure_client=secure_client, secure_server=secure_server, buffer=SMALL)


@pytest.mark.parametrize("total", range(20_000, 60_000, 1_111))
def test_an_end_that_tls_alone_tells_of_is_passed_on_however_full_the_sink_was_when_it_came(total: int) -> None:
    """What OpenSSL has read of it no poll of the socket tells of again."""

    async def work(rig: Rig) -> None:
        async def say_all() -> None:
            for start in range(0, total, 331):
                await rig.client.send(bytes(min(331, total - start)))
            await rig.client.half_close(fin=False)

        rig.start()
        saying = asyncio.ensure_future(say_all())
        await settled(rig)
        assert len(await rig.server.read_all()) == total
        await saying

    run(work, secure_client=True, secure_server=False, buffer=SMALL)


@pytest.mark.parametrize("total", range(20_000, 60_000, 1_111))
def test_the_end_of_tls_is_told_however_full_the_sink_is(total: int) -> None:
    """close_notify needs room in the kernel too; without it a peer that was only slow sees a truncation."""

    async def work(rig: Rig) -> None:
        async def say_all() -> None:
            for start in range(0, total, 331):
                await rig.server.send(bytes(min(331, total - start)))
            await rig.server.half_close()

        rig.start()
        saying = asyncio.ensure_future(say_all())
        await settled(rig)  # as much as goes without a reader: for some of the totals, all but the end
        assert len(await rig.client.read_all()) == total
        await saying

    run(work, secure_client=True, secure_server=False, buffer=SMALL)


def test_a_buffer_is_shared_by_streams_without_mixing_them() -> None:
    async def work() -> None:
        async with asyncio.timeout(PATIENCE):
            rigs = [await build(secure_client=False, secure_server=False, buffer=SMALL) for _ in range(3)]
            buffer, pipes = make_buffer(), pumps.pipes()
            for rig in rigs:
                typed = cast("asyncio.AbstractEventLoop", rig.loop)
                rig.relay = Relay(
                    typed,
                    rig.downstream,
                    rig.upstream,
                    buffer,
                    rig.budget,
                    rig.ends.append,
                    pytest.fail,
                    pumps.form,
                    pipes,
                )
                rig.relay.up.expect_bulk()
                rig.start()
            data = [bytes([number]) * 500_000 for number in range(3)]
            sending = [asyncio.ensure_future(rig.client.send(data[n])) for n, rig in enumerate(rigs)]
            await settled(rigs[2])
            for n, rig in enumerate(rigs):
                got = bytearray()
                while len(got) < len(data[n]):
                    got += await rig.server.read()
                assert got == data[n]
            await asyncio.gather(*sending)
            for rig in rigs:
                rig.relay.stop()
                rig.downstream.close()
                rig.upstream.close()
                rig.client.close()
                rig.server.close()

    with asyncio.Runner(loop_factory=pumps.new_event_loop) as runner:
        runner.run(work())


def test_a_broken_tls_record_breaks_its_side() -> None:
    async def work(rig: Rig) -> None:
        rig.start()
        await rig.client.send_raw(b"\x17\x03\x03\x00\x20" + b"x" * 32)
        assert await rig.end() is Side.DOWNSTREAM
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await rig.client.read_all()

    run(work, secure_client=True, secure_server=False)
