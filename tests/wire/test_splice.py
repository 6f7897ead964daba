"""Which bytes of a stream are spliced, and that splicing changes nothing that can be seen but the cost.

That each form passes on the same bytes, whatever they are and however a stream ends, is in test_pump, test_relay,
test_relay_frames and test_relay_machine, all of which run with each form. Here is what there is to splicing alone.
"""

import asyncio
import contextlib
import errno
import itertools
import os
import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, Phase, given, settings, strategies as st

from dgproxy.net.pipes import BULK, LEAST, SPAN, Pipe, Pipes
from dgproxy.net.relay import Side
from dgproxy.net.splice import Splicer
from dgproxy.wire.frames import BINARY, CONTINUATION, PING, TEXT
from tests.support import pumps
from tests.support.frames import frame
from tests.support.pumps import FORMS
from tests.support.rig import PATIENCE, SMALL, VIOLATION_MASKED, Rig, blocked, build, kinds, run, settled, ticks

AUDIO: Final = 3200  # bytes: 100 ms of 16 kHz, what clients send


@pytest.fixture(scope="module", autouse=True, params=FORMS)
def copying(request: pytest.FixtureRequest) -> Iterator[None]:
    """All of this runs with either form behind the Splicer."""
    yield from pumps.of_form(request.param)


class Calls:
    """What splice(2) was asked and said, as it goes on."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._real = os.splice
        self.moved = 0  # bytes, into pipes and out of them
        self.made = 0
        self.most = SPAN  # bytes that a call moves
        self.fail: Callable[[int], OSError | None] = lambda _: None  # what a call is told, by its number
        patch.setattr(os, "splice", self._splice)

    def _splice(self, source: int, sink: int, count: int, *, flags: int) -> int:
        assert flags == os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
        self.made += 1
        error = self.fail(self.made)
        if error is not None:
            raise error
        moved = self._real(source, sink, min(count, self.most), flags=flags)
        self.moved += moved
        return moved


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


@contextlib.contextmanager
def pool(pipes: Pipes) -> Iterator[None]:
    """Rigs built here splice with these."""
    original, pumps.pipes = pumps.pipes, lambda: pipes
    try:
        yield
    finally:
        pumps.pipes = original


async def heard(rig: Rig, size: int) -> bytes:
    """So many bytes, as the server gets them."""
    got = bytearray()
    while len(got) < size:
        piece = await rig.server.read()
        assert piece, f"an end after {len(got)} of {size} bytes"
        got += piece
    return bytes(got)


async def passes(rig: Rig, data: bytes) -> None:
    """It is said and heard."""
    saying = asyncio.ensure_future(rig.client.send(data))
    assert await heard(rig, len(data)) == data
    await saying
    assert rig.relay.up.count >= len(data)


# --- what is spliced --------------------------------------------------------------------------------------------------


def test_a_large_payload_between_plain_sockets_is_spliced(calls: Calls) -> None:
    async def work(rig: Rig) -> None:
        rig.start(frames=True)
        message = frame(BINARY, random.Random(1).randbytes(4_000_000))
        await passes(rig, message)
        assert calls.moved > len(message)  # each byte twice, but for those that are read before
        assert rig.relay.up.count == len(message)
        assert rig.relay.up.tracker.between_messages

    with pool(Pipes()):
        run(work, secure_client=False, secure_server=False)


@kinds
def test_where_either_side_has_tls_nothing_is_spliced(
    calls: Calls, *, secure_client: bool, secure_server: bool
) -> None:
    async def work(rig: Rig) -> None:
        assert isinstance(rig.relay.up._pump, Splicer) == (not secure_client and not secure_server)
        rig.start(frames=True)
        await passes(rig, frame(BINARY, bytes(1_000_000)))
        assert bool(calls.made) == (not secure_client and not secure_server)

    with pool(Pipes()):
        run(work, secure_client=secure_client, secure_server=secure_server)


def test_frames_of_audio_are_copied_however_many_come(calls: Calls) -> None:
    """Two system calls and a look at the head cost more than 3,200 bytes do."""

    async def work(rig: Rig) -> None:
        rig.start(frames=True)
        message = frame(BINARY, bytes(AUDIO))
        for _ in range(20):
            await passes(rig, message)
        await passes(rig, message * 1000)
        assert calls.made == 0

    with pool(Pipes()):
        run(work, secure_client=False, secure_server=False)


def test_a_large_payload_that_comes_in_drops_is_copied(calls: Calls) -> None:
    async def work(rig: Rig) -> None:
        rig.start(frames=True)
        message = frame(BINARY, bytes(LEAST * 4))
        for start in range(0, len(message), BULK // 4):
            await passes(rig, message[start : start + BULK // 4])
        assert calls.made == 0

    with pool(Pipes()):
        run(work, secure_client=False, secure_server=False)


def test_what_comes_down_is_never_spliced(calls: Calls) -> None:
    """The meter's tap reads it."""

    async def work(rig: Rig) -> None:
        assert not isinstance(rig.relay.down._pump, Splicer)
        rig.start(frames=True)
        message = frame(TEXT, bytes(1_000_000), masked=False)
        saying = asyncio.ensure_future(rig.server.send(message))
        got = bytearray()
        while len(got) < len(message):
            got += await rig.client.read()
        await saying
        assert got == message
        assert calls.made == 0

    with pool(Pipes(least=1, bulk=0)):
        run(work, secure_client=False, secure_server=False)


# --- any stream of large and small frames -----------------------------------------------------------------------------

_FRAMES: Final = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 125, 126, AUDIO, LEAST - 1, LEAST, LEAST + 1, SPAN + 1, 700_000]),
        st.booleans(),  # ends its message
        st.booleans(),  # a ping goes before it
    ),
    min_size=1,
    max_size=8,
)


@settings(
    max_examples=40,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    sizes=_FRAMES,
    cuts=st.lists(st.integers(0, 1 << 22), max_size=6),
    stall=st.integers(0, 40),
    least=st.sampled_from([1, 200, LEAST]),
    bulk=st.sampled_from([0, BULK]),
    buffer=st.sampled_from([SMALL, 64 * 1024]),
    at_the_end=st.sampled_from(["nothing", "half-close", "reset", "our close"]),
)
def test_frames_of_any_size_in_any_pieces_pass_whole_and_are_counted(
    sizes: list[tuple[int, bool, bool]],
    cuts: list[int],
    stall: int,
    least: int,
    bulk: int,
    buffer: int,
    at_the_end: str,
) -> None:
    said = bytearray()
    ends = {0}
    fragmented = False
    for number, (size, final, ping) in enumerate(sizes):
        if ping:
            said += frame(PING, bytes(number))
            ends.add(len(said))
        opcode = CONTINUATION if fragmented else BINARY
        said += frame(opcode, random.Random(number).randbytes(size), fin=final)
        ends.add(len(said))
        fragmented = not final
    places = sorted({0, len(said), *(cut % len(said) for cut in cuts)})

    async def speak(rig: Rig) -> None:
        for start, stop in itertools.pairwise(places):
            await rig.client.send(bytes(said[start:stop]))
            await ticks(2)

    async def work(rig: Rig) -> None:
        rig.start(frames=True)
        speaking = asyncio.ensure_future(speak(rig))
        await ticks(stall)
        if at_the_end == "our close":
            rig.finish()
        if at_the_end == "reset":
            got = await heard(rig, min(len(said), 1000 * stall)) if stall else b""
            speaking.cancel()
            await asyncio.wait((speaking,))
            rig.client.reset()
            with contextlib.suppress(ConnectionError):
                while piece := await rig.server.read():
                    got += piece
                    rig.relay.check()  # as a Stream does each second
            assert bytes(said).startswith(got)
            assert await rig.end() is Side.DOWNSTREAM
            return
        if at_the_end == "our close":
            got = await rig.server.read_all()
            assert got.endswith(VIOLATION_MASKED)
            got = got.removesuffix(VIOLATION_MASKED)
            assert len(got) in ends
            assert bytes(said).startswith(got)
            assert rig.relay.up.count == len(got)
            speaking.cancel()
            await asyncio.wait((speaking,))
            return
        assert await heard(rig, len(said)) == said
        await speaking
        assert rig.relay.up.count == rig.relay.up.moved == len(said)
        assert rig.relay.up.tracker.fragmented == fragmented
        assert rig.relay.up.tracker.between_frames
        if at_the_end == "half-close":
            await rig.client.half_close()
            assert await rig.server.read() == b""

    with pool(Pipes(least=least, bulk=bulk)):
        run(work, secure_client=False, secure_server=False, buffer=buffer)


# --- what splice does not say -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ENOMEM])
@pytest.mark.parametrize("which", ["in", "out", "some"])
def test_where_splice_can_not_the_same_bytes_are_copied(calls: Calls, number: int, which: str) -> None:
    every, of = {"in": (2, 1), "out": (2, 0), "some": (3, 2)}[which]
    calls.fail = lambda call: OSError(number, "cannot") if call % every == of else None

    async def work(rig: Rig) -> None:
        rig.start(frames=True)
        data = b"".join(frame(BINARY, random.Random(size).randbytes(size)) for size in (700_000, 3, 200_000, 100_000))
        await passes(rig, data)
        assert calls.made
        await rig.client.half_close()
        assert await rig.server.read() == b""

    with pool(Pipes(least=1, bulk=0)):
        run(work, secure_client=False, secure_server=False, buffer=SMALL)


def test_without_pipes_the_same_bytes_are_copied(calls: Calls) -> None:
    async def work(rig: Rig) -> None:
        rig.start(frames=True)
        await passes(rig, frame(BINARY, bytes(1_000_000)))
        assert calls.made == 0

    with pool(Pipes(most=0)):
        run(work, secure_client=False, secure_server=False)


@pytest.mark.parametrize("at", [0, 1, 13, 14, 15, 1000])
def test_urgent_data_before_which_splice_stops_neither_ends_nor_holds_up_a_stream(at: int) -> None:
    """tcp(7): the urgent byte is not of the stream; splice says that there is nothing, and the loop that there is."""
    messages = [frame(BINARY, random.Random(size).randbytes(size)) for size in (200_000, 300_000)]

    async def work(rig: Rig) -> None:
        rig.start(frames=True)
        await passes(rig, messages[0])
        await rig.client.send(messages[1][:at])
        rig.client.sock.send(b"!", socket.MSG_OOB)
        saying = asyncio.ensure_future(rig.client.send(messages[1][at:]))
        assert await heard(rig, len(messages[1])) == messages[1]
        await saying
        rig.client.sock.send(b"!", socket.MSG_OOB)
        await rig.client.half_close()
        assert await rig.server.read() == b""

    with pool(Pipes(least=1, bulk=0)):
        run(work, secure_client=False, secure_server=False)


def test_a_head_of_which_less_moves_than_was_peeked_at_passes_whole(calls: Calls) -> None:
    async def work(rig: Rig) -> None:
        rig.start(frames=True)
        await passes(rig, frame(BINARY, bytes(200_000)))
        calls.most = 5
        await rig.client.send(frame(BINARY, bytes(range(200))))
        assert await heard(rig, 208) == frame(BINARY, bytes(range(200)))
        calls.most = SPAN
        await passes(rig, frame(BINARY, bytes(200_000)))
        assert rig.relay.up.tracker.between_messages

    with pool(Pipes(least=1, bulk=0)):
        run(work, secure_client=False, secure_server=False)


# --- a sink that is full ----------------------------------------------------------------------------------------------


async def stuck(rig: Rig, data: bytes) -> "asyncio.Future[None]":
    """Bytes that the server does not take wait in a pipe; the one who says them."""
    saying = asyncio.ensure_future(rig.client.send(data))
    while not (blocked(rig.relay.up) and isinstance(rig.relay.up._pending, Pipe)):
        await settled(rig)
        assert not saying.done() or blocked(rig.relay.up)
        if not isinstance(rig.relay.up._pending, Pipe):
            await rig.server.read()
    await settled(rig)
    return saying


def test_what_a_full_sink_does_not_take_stays_in_its_pipe_and_counts(calls: Calls) -> None:
    message = frame(BINARY, random.Random(5).randbytes(3_000_000))

    async def work(rig: Rig) -> None:
        got = bytearray()
        rig.start(frames=True)
        saying = asyncio.ensure_future(rig.client.send(message))
        while not isinstance(rig.relay.up._pending, Pipe):
            got += await rig.server.read()
            await settled(rig)
        assert rig.budget.used == rig.relay.held == rig.relay.up._taken <= SPAN
        assert rig.downstream.fd not in rig.loop.readers
        assert rig.relay.up.moved == rig.relay.up.count - len(rig.relay.up._pending)
        before = calls.moved
        assert await settled(rig) < len(message)
        assert calls.moved == before
        got += await heard(rig, len(message) - len(got))
        assert got == message
        await saying
        assert rig.budget.used == 0
        assert rig.pipes is not None
        assert rig.pipes.open == rig.pipes.idle

    with pool(Pipes(least=1, bulk=0)):
        run(work, secure_client=False, secure_server=False, buffer=SMALL)


def test_a_pipe_is_given_back_once_where_neither_splicing_nor_copying_gets_its_bytes_out(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipes = Pipes(least=1, bulk=0)

    def refuse(_: object) -> int:
        raise BrokenPipeError(errno.EPIPE, "gone")

    async def work(rig: Rig) -> None:
        rig.start(frames=True)
        saying = await stuck(rig, frame(BINARY, bytes(1_000_000)))
        calls.fail = lambda _: OSError(errno.EINVAL, "cannot")
        monkeypatch.setattr(rig.relay.up, "_send", refuse)
        while not rig.relay.up.done:
            await rig.server.read()
            await ticks(1)
        assert pipes.open == pipes.idle == 1
        saying.cancel()
        await asyncio.wait((saying,))

    with pool(pipes):
        run(work, secure_client=False, secure_server=False, buffer=SMALL)


@pytest.mark.parametrize("how", ["client resets", "server resets", "stopped"])
def test_a_pipe_with_bytes_in_it_is_closed_with_its_stream_and_the_next_client_gets_its_own_bytes(how: str) -> None:
    pipes = Pipes(most=1, least=1, bulk=0)
    secret, mine = b"S", b"m"

    async def first(rig: Rig) -> None:
        rig.start(frames=True)
        saying = await stuck(rig, frame(BINARY, secret * 2_000_000))
        assert (pipes.open, pipes.idle) == (1, 0)
        if how == "client resets":
            saying.cancel()
            await asyncio.wait((saying,))
            rig.client.reset()
            await ticks(5)
            rig.relay.check()
            assert await rig.end() is Side.DOWNSTREAM
        elif how == "server resets":
            rig.server.reset()
            while not rig.ends:
                rig.relay.check()
                await ticks(1)
        else:
            rig.relay.stop()
        assert (pipes.open, pipes.idle) == (0, 0)
        saying.cancel()
        await asyncio.wait((saying,))

    async def second(rig: Rig) -> None:
        rig.start(frames=True)
        message = frame(BINARY, mine * 1_000_000)
        await passes(rig, message)
        await passes(rig, message)

    with pool(pipes):
        for _ in range(3):
            run(first, secure_client=False, secure_server=False, buffer=SMALL)
            run(second, secure_client=False, secure_server=False)


def test_streams_beyond_the_pool_are_copied_and_none_gets_another_ones_bytes() -> None:
    pipes = Pipes(most=1, least=1, bulk=0)

    async def work(rig: Rig) -> None:
        rig.start(frames=True)
        saying = await stuck(rig, frame(BINARY, b"S" * 2_000_000))
        assert pipes.idle == 0
        other = await build(secure_client=False, secure_server=False, buffer=SMALL)
        other.start(frames=True)
        await passes(other, frame(BINARY, b"m" * 1_000_000))
        other.relay.stop()
        for end in (other.downstream, other.upstream):
            end.abort()
        for peer in (other.client, other.server):
            peer.close()
        saying.cancel()
        await asyncio.wait((saying,))

    with pool(pipes):
        run(work, secure_client=False, secure_server=False, buffer=SMALL)


def test_our_close_goes_behind_what_waits_in_a_pipe_and_the_rest_of_its_frame() -> None:
    message = frame(BINARY, random.Random(6).randbytes(2_000_000))

    async def work(rig: Rig) -> None:
        got = bytearray()
        rig.start(frames=True)
        saying = asyncio.ensure_future(rig.client.send(message))
        while not isinstance(rig.relay.up._pending, Pipe):
            got += await rig.server.read()
            await settled(rig)
        rig.finish()
        got += await rig.server.read_all()
        assert got == message + VIOLATION_MASKED
        await saying

    with pool(Pipes(least=1, bulk=0)):
        run(work, secure_client=False, secure_server=False, buffer=SMALL)


def test_an_end_comes_after_what_waits_in_a_pipe() -> None:
    message = frame(BINARY, bytes(400_000))

    async def work(rig: Rig) -> None:
        got = bytearray()
        rig.start(frames=True)
        saying = asyncio.ensure_future(rig.client.send(message))
        while not (isinstance(rig.relay.up._pending, Pipe) and saying.done()):
            got += await rig.server.read()
            await settled(rig)
        await rig.client.half_close()
        got += await rig.server.read_all()
        assert got == message

    with pool(Pipes(least=1, bulk=0)):
        run(work, secure_client=False, secure_server=False, buffer=64 * 1024)


def test_descriptors_stay_few_over_a_thousand_streams_that_end_in_mid_payload() -> None:
    pipes = Pipes(least=1, bulk=0)

    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    async def work() -> None:
        seen = set()
        for number in range(1000):
            each = await build(secure_client=False, secure_server=False, buffer=SMALL)
            each.start(frames=True)
            each.client.sock.send(frame(BINARY, bytes(200_000))[: 30_000 + number])
            for _ in range(4):
                await ticks(1)
                if number % 3:
                    with contextlib.suppress(BlockingIOError):
                        each.server.sock.recv(65536)
            each.relay.stop()
            for end in (each.downstream, each.upstream):
                end.abort()
            for peer in (each.client, each.server):
                peer.close()
            if number % 100 == 99:
                seen.add(descriptors() - 2 * pipes.open)
            assert pipes.open == pipes.idle <= 1
        assert len(seen) == 1

    with pool(pipes), asyncio.Runner(loop_factory=pumps.new_event_loop) as runner:
        runner.run(asyncio.wait_for(work(), 20 * PATIENCE))
    pipes.close()
