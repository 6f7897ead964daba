"""The pump, when what passes are frames: where it lets go of a stream, where it puts a Close in, and what never passes.

`rig.finish` and a violation put the same Close in: VIOLATION towards the client, VIOLATION_MASKED towards the server.
"""

import asyncio
import itertools
from collections.abc import Callable
from typing import Final

import pytest
from hypothesis import HealthCheck, Phase, given, settings, strategies as st

from dgproxy.net.relay import Direction, Side
from dgproxy.wire.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT
from tests.support.frames import conversations, frame
from tests.support.peers import Peer
from tests.support.pumps import all_forms  # noqa: F401 - a fixture for all of this
from tests.support.rig import SMALL, VIOLATION, VIOLATION_MASKED, Rig, blocked, kinds, run, settled, ticks

sides = pytest.mark.parametrize("side", Side)
some = settings(
    max_examples=15,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),  # a conversation that hangs would be shrunk for minutes
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
BIG: Final = 400_000  # bytes: more than small kernel buffers and one read hold


def direction(rig: Rig, source: Side) -> Direction:
    return rig.relay.up if source is Side.DOWNSTREAM else rig.relay.down


def ours(to: Side) -> bytes:
    """The Close of our own that a side gets."""
    return VIOLATION if to is Side.DOWNSTREAM else VIOLATION_MASKED


def other(side: Side) -> Side:
    return Side.UPSTREAM if side is Side.DOWNSTREAM else Side.DOWNSTREAM


def of(source: Side) -> Callable[..., bytes]:
    """Makes a frame as this side must send it."""

    def make(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0) -> bytes:
        return frame(opcode, payload, fin=fin, rsv=rsv, masked=source is Side.DOWNSTREAM)

    return make


def pieces(raw: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cuts), len(raw)]
    return [raw[begin:end] for begin, end in itertools.pairwise(edges)]


async def exactly(peer: Peer, size: int) -> bytes:
    """So many bytes, or more if they come."""
    got = b""
    while len(got) < size:
        piece = await peer.read()
        assert piece, f"ended after {got!r}"
        got += piece
    return got


async def looked_at(rig: Rig, source: Side, size: int) -> None:
    """Until so many bytes of a source have passed or are held."""
    way = direction(rig, source)
    while way.count + len(way.tracker.held) < size:
        await ticks(1)


async def arrived(rig: Rig, source: Side, data: bytes) -> None:
    """Sends, and sees it on the other side."""
    sender, receiver = rig.peer(source)
    await sender.send(data)
    assert await exactly(receiver, len(data)) == data


async def stuck(rig: Rig, source: Side, data: bytes) -> "asyncio.Task[None]":
    """Sends, while nobody reads on the other side, until bytes wait in the relay; the sending goes on."""
    sending = asyncio.ensure_future(rig.peer(source)[0].send(data))
    while not blocked(direction(rig, source)):
        await ticks(1)
    await settled(rig)
    return sending


# --- what keeps the rules passes -------------------------------------------------------------------------------------


@kinds
@some
@given(data=st.data(), up=conversations(masked=True), down=conversations(masked=False))
def test_any_conversation_passes_both_ways_in_any_pieces(
    *, secure_client: bool, secure_server: bool, data: st.DataObject, up: list[bytes], down: list[bytes]
) -> None:
    said = {Side.DOWNSTREAM: b"".join(up), Side.UPSTREAM: b"".join(down)}
    cut = {
        side: pieces(raw, data.draw(st.lists(st.integers(0, len(raw)), max_size=8), f"cuts of the {side}'s"))
        for side, raw in said.items()
    }

    async def say(peer: Peer, parts: list[bytes]) -> None:
        for part in parts:
            await peer.send(part)
            await ticks(3)

    async def work(rig: Rig) -> None:
        rig.start(frames=True)
        heard, answered, *_ = await asyncio.gather(
            exactly(rig.server, len(said[Side.DOWNSTREAM])),
            exactly(rig.client, len(said[Side.UPSTREAM])),
            say(rig.client, cut[Side.DOWNSTREAM]),
            say(rig.server, cut[Side.UPSTREAM]),
        )
        assert (heard, answered) == (said[Side.DOWNSTREAM], said[Side.UPSTREAM])
        assert (rig.relay.up.count, rig.relay.down.count) == (len(heard), len(answered))
        for side, sent in ((Side.DOWNSTREAM, up), (Side.UPSTREAM, down)):
            assert direction(rig, side).tracker.closed == bool(sent and sent[-1][0] == 0x80 | CLOSE)
        assert not rig.faults
        assert not rig.ends

    run(work, secure_client=secure_client, secure_server=secure_server, buffer=SMALL)


@kinds
@sides
def test_w10_byte_by_byte_every_head_passes_once_it_is_whole(
    *, secure_client: bool, secure_server: bool, side: Side
) -> None:
    make = of(side)
    sent = [make(TEXT, b"abc", fin=False), make(PING, b"p"), make(CONTINUATION, b"d" * 130), make(CLOSE, b"\x03\xe8x")]
    raw = b"".join(sent)
    heads = [2, 2, 4, len(sent[-1]) - (4 if side is Side.DOWNSTREAM else 0)]  # before the mask; a Close is all head
    whole = [len(b"".join(sent[:n])) + size + (4 if side is Side.DOWNSTREAM else 0) for n, size in enumerate(heads)]

    async def work(rig: Rig) -> None:
        rig.start(frames=True)
        sender, receiver = rig.peer(side)
        way = direction(rig, side)
        begins = [0, *itertools.accumulate(map(len, sent))]
        got = b""
        for count in range(1, len(raw) + 1):
            await sender.send(raw[count - 1 : count])
            await looked_at(rig, side, count)
            number = next(n for n in range(len(sent)) if count <= begins[n + 1])
            passed = begins[number] if count < whole[number] else count
            assert way.count == passed, f"after {count} bytes"
            got += await exactly(receiver, passed - len(got)) if passed > len(got) else b""
            assert got == raw[:passed]
        assert got == raw

    run(work, secure_client=secure_client, secure_server=secure_server)


@kinds
@sides
def test_w10_a_thousand_frames_in_one_packet(*, secure_client: bool, secure_server: bool, side: Side) -> None:
    async def work(rig: Rig) -> None:
        rig.start(frames=True)
        await arrived(rig, side, b"".join(of(side)(BINARY, n.to_bytes(2, "big")) for n in range(1000)))

    run(work, secure_client=secure_client, secure_server=secure_server)


# --- what breaks them does not ---------------------------------------------------------------------------------------

BAD: Final[dict[str, tuple[Callable[[Side], bytes], int]]] = {  # with the number of bytes that don't give it away
    "RSV1": (lambda side: of(side)(TEXT, b"bad", rsv=4), 0),
    "a reserved opcode": (lambda side: of(side)(3, b"bad"), 0),
    "a continuation of nothing": (lambda side: of(side)(CONTINUATION, b"bad"), 0),
    "the wrong mask": (lambda side: of(other(side))(TEXT, b"bad"), 1),
    "a Close with half a code": (lambda side: of(side)(CLOSE, b"\x03"), 2),
}


async def both_get_our_close(rig: Rig, source: Side, before: bytes = b"") -> None:
    """The rest of what a side sent, then our Close, on both sides; nothing more, and all is over."""
    sender, receiver = rig.peer(source)
    assert await receiver.read_all() == before + ours(other(source))
    assert await sender.read_all() == ours(source)
    assert await rig.end() is None


@kinds
@sides
@pytest.mark.parametrize("bad", BAD)
def test_a_violation_ends_both_sides_with_a_close_and_nothing_of_it_passes(
    *, secure_client: bool, secure_server: bool, side: Side, bad: str
) -> None:
    async def work(rig: Rig) -> None:
        rig.start(frames=True)
        make, held = BAD[bad]
        good, evil = of(side)(BINARY, b"good"), make(side)
        sender, _ = rig.peer(side)
        await sender.send(good + evil[:held])
        await looked_at(rig, side, len(good) + held)
        await sender.send(evil[held:] + of(side)(BINARY, b"after"))
        await both_get_our_close(rig, side, good)
        assert rig.faults == [side]

    run(work, secure_client=secure_client, secure_server=secure_server)


@kinds
@sides
def test_a_violation_among_what_came_before_the_relay(*, secure_client: bool, secure_server: bool, side: Side) -> None:
    async def work(rig: Rig) -> None:
        good = of(side)(BINARY, b"good")
        await rig.peer(side)[0].send(good + of(side)(3, b"bad"))
        endpoint = rig.downstream if side is Side.DOWNSTREAM else rig.upstream
        endpoint.unread(await endpoint.read(1.0))
        rig.start(frames=True)
        await both_get_our_close(rig, side, good)
        assert rig.faults == [side]

    run(work, secure_client=secure_client, secure_server=secure_server)


def test_after_a_violation_among_the_early_bytes_of_one_side_those_of_the_other_do_not_pass() -> None:
    async def work(rig: Rig) -> None:
        early = of(Side.UPSTREAM)(BINARY, bytes(BIG))
        rig.upstream.unread(early + of(Side.UPSTREAM)(3, b"bad"))
        rig.downstream.unread(of(Side.DOWNSTREAM)(TEXT, b"after our Close"))
        rig.start(frames=True)
        assert blocked(rig.relay.down)  # so this direction's own end is still to come
        assert await exactly(rig.server, 1) == VIOLATION_MASKED
        assert await rig.client.read_all() == early + VIOLATION
        assert await rig.end() is None
        assert await rig.server.read_all() == b""

    run(work, secure_client=False, secure_server=False, buffer=SMALL)


@kinds
@sides
def test_our_close_after_a_violation_comes_behind_the_bytes_that_wait(
    *, secure_client: bool, secure_server: bool, side: Side
) -> None:
    """The bad frame is in the very read whose beginning does not go out at once."""

    async def work(rig: Rig) -> None:
        rig.start(frames=True)
        sender, receiver = rig.peer(side)
        good = b"".join(of(side)(BINARY, bytes([n]) * 1000) for n in range(200)) * 2
        sending = await stuck(rig, side, good + of(side)(3, b"bad"))
        got = await receiver.read()
        while not rig.faults:
            got += await receiver.read()
        if blocked(direction(rig, side)):
            assert rig.budget.used == rig.relay.held > 0
        await sending
        assert got + await receiver.read_all() == good + ours(other(side))
        assert await sender.read_all() == ours(side)
        assert await rig.end() is None

    run(work, secure_client=secure_client, secure_server=secure_server, buffer=SMALL)


@sides
def test_our_close_waits_for_the_end_of_a_frame_that_the_other_side_is_in(side: Side) -> None:
    async def work(rig: Rig) -> None:
        rig.start(frames=True)
        innocent, breaker = rig.peer(other(side))
        half = of(other(side))(BINARY, b"0123456789")
        await arrived(rig, other(side), half[:-3])
        await breaker.send(of(side)(3, b"bad"))
        assert await innocent.read() == ours(other(side))  # this way nothing was under way
        assert not rig.ends
        await innocent.send(half[-3:] + of(other(side))(TEXT, b"too late"))
        assert await breaker.read_all() == half[-3:] + ours(side)
        assert await rig.end() is None

    run(work, secure_client=False, secure_server=True)


# --- finish ----------------------------------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("between_messages", [False, True])
def test_finish_on_an_idle_stream_is_at_once(
    *, secure_client: bool, secure_server: bool, between_messages: bool
) -> None:
    async def work(rig: Rig) -> None:
        rig.start(frames=True)
        await arrived(rig, Side.DOWNSTREAM, of(Side.DOWNSTREAM)(TEXT, b"hello"))
        rig.finish(between_messages=between_messages)
        assert rig.ends == [None]
        assert (rig.relay.up.finished, rig.relay.down.finished) == (True, True)
        await both_get_our_close(rig, Side.DOWNSTREAM)

    run(work, secure_client=secure_client, secure_server=secure_server)


@kinds
@sides
def test_finish_lets_the_frame_that_is_under_way_end_and_nothing_more(
    *, secure_client: bool, secure_server: bool, side: Side
) -> None:
    async def work(rig: Rig) -> None:
        rig.start(frames=True)
        sender, receiver = rig.peer(side)
        under_way = of(side)(BINARY, bytes(BIG))
        await arrived(rig, side, under_way[:1000])
        rig.finish()
        assert await sender.read() == ours(side)
        sending = asyncio.ensure_future(sender.send(under_way[1000:] + of(side)(TEXT, b"nothing of this")))
        assert await receiver.read_all() == under_way[1000:] + ours(other(side))
        assert await rig.end() is None
        await sending

    run(work, secure_client=secure_client, secure_server=secure_server, buffer=SMALL)


@sides
def test_finish_waits_for_a_source_that_is_silent_within_a_frame_until_its_owner_gives_up(side: Side) -> None:
    async def work(rig: Rig) -> None:
        rig.start(frames=True)
        sender, receiver = rig.peer(side)
        await arrived(rig, side, of(side)(BINARY, b"0123456789")[:-1])
        rig.finish()
        assert await sender.read() == ours(side)
        await ticks(50)
        assert not rig.ends
        assert not direction(rig, side).finished
        rig.relay.stop()
        assert not rig.watched()
        rig.downstream.abort()
        rig.upstream.abort()
        with pytest.raises(ConnectionResetError):
            await receiver.read()
        assert not rig.ends

    run(work, secure_client=False, secure_server=False)


@kinds
@sides
def test_between_messages_a_fragmented_message_ends_first_with_the_control_frames_in_it(
    *, secure_client: bool, secure_server: bool, side: Side
) -> None:
    make = of(side)
    begun = make(TEXT, b"one", fin=False)
    rest = [make(PING, b"p"), make(CONTINUATION, b"two", fin=False), make(PONG), make(CONTINUATION, b"three")]

    async def work(rig: Rig) -> None:
        rig.start(frames=True)
        sender, receiver = rig.peer(side)
        await arrived(rig, side, begun)
        rig.finish(between_messages=True)
        assert await sender.read() == ours(side)
        for part in rest[:-1]:
            await arrived(rig, side, part)
            assert not rig.ends
        await sender.send(rest[-1] + make(PING, b"nothing of this"))
        assert await receiver.read_all() == rest[-1] + ours(other(side))
        assert await rig.end() is None

    run(work, secure_client=secure_client, secure_server=secure_server)


@sides
@pytest.mark.parametrize("at", range(1, 7))
def test_between_messages_a_head_that_was_held_is_part_of_the_message(side: Side, at: int) -> None:
    make = of(side)
    begun, last = make(BINARY, b"one", fin=False), make(CONTINUATION, bytes(200))

    async def work(rig: Rig) -> None:
        rig.start(frames=True)
        sender, receiver = rig.peer(side)
        await sender.send(begun + last[:at])
        await looked_at(rig, side, len(begun) + at)
        rig.finish(between_messages=True)
        await sender.send(last[at:])
        assert await receiver.read_all() == begun + last + ours(other(side))
        assert await rig.end() is None

    run(work, secure_client=False, secure_server=False)


@sides
def test_between_frames_a_head_that_was_held_does_not_pass(side: Side) -> None:
    async def work(rig: Rig) -> None:
        rig.start(frames=True)
        sender, receiver = rig.peer(side)
        good = of(side)(BINARY, b"good", fin=False)
        await sender.send(good + of(side)(CONTINUATION, bytes(200))[:3])
        await looked_at(rig, side, len(good) + 3)
        rig.finish()  # a Close may come in the middle of a message, RFC 6455 5.4
        assert await receiver.read_all() == good + ours(other(side))
        assert await rig.end() is None

    run(work, secure_client=False, secure_server=False)


@sides
def test_between_messages_a_violation_within_the_message_leaves_no_place_for_our_frame(side: Side) -> None:
    async def work(rig: Rig) -> None:
        rig.start(frames=True)
        sender, receiver = rig.peer(side)
        begun = of(side)(BINARY, b"one", fin=False)
        await arrived(rig, side, begun)
        rig.finish(between_messages=True)
        await sender.send(of(side)(BINARY, b"two"))
        assert await rig.end() is None
        assert not direction(rig, side).finished
        assert not rig.faults  # it ends anyway
        assert await receiver.read_all() == b""

    run(work, secure_client=False, secure_server=False)


@kinds
@sides
def test_whoever_has_said_close_gets_ours_but_its_peer_gets_no_second(
    *, secure_client: bool, secure_server: bool, side: Side
) -> None:
    async def work(rig: Rig) -> None:
        rig.start(frames=True)
        sender, receiver = rig.peer(side)
        await arrived(rig, side, of(side)(CLOSE, b"\x03\xe8bye"))
        rig.finish()
        assert await sender.read_all() == ours(side)
        assert await receiver.read_all() == b""
        assert await rig.end() is None
        assert direction(rig, side).tracker.close_code == 1000

    run(work, secure_client=secure_client, secure_server=secure_server)


@sides
def test_a_close_that_comes_while_we_wait_for_a_place_is_the_last_that_passes(side: Side) -> None:
    async def work(rig: Rig) -> None:
        rig.start(frames=True)
        sender, receiver = rig.peer(side)
        await arrived(rig, side, of(side)(BINARY, b"one", fin=False))
        rig.finish(between_messages=True)
        assert await sender.read() == ours(side)
        close = of(side)(CLOSE, b"\x03\xe8bye")
        await sender.send(close + of(side)(CONTINUATION, b"two"))
        assert await receiver.read_all() == close
        assert await rig.end() is None

    run(work, secure_client=False, secure_server=False)


@kinds
@sides
@pytest.mark.parametrize("whole", [True, False], ids=["between two frames", "within a frame"])
def test_to_a_sink_that_does_not_read_our_close_goes_behind_what_waits(
    *, secure_client: bool, secure_server: bool, side: Side, whole: bool
) -> None:
    async def work(rig: Rig) -> None:
        rig.start(frames=True)
        sender, receiver = rig.peer(side)
        way = direction(rig, side)
        good = of(side)(BINARY, bytes(BIG))
        sending = await stuck(rig, side, good)
        assert rig.budget.used == rig.relay.held > 0
        got = b""
        if whole:  # let so much out that the frame's end waits in the relay, and nothing is left of it at its source
            while way.tracker.left:
                got += await receiver.read()
            await settled(rig)
        rig.finish()
        assert await sender.read() == ours(side)
        await ticks(20)
        assert way.finished == (not blocked(way) and not way.tracker.left)
        assert bool(rig.ends) == way.finished
        assert got + await receiver.read_all() == good + ours(other(side))
        assert await rig.end() is None
        assert way.finished
        await sending
        assert rig.budget.used == 0

    run(work, secure_client=secure_client, secure_server=secure_server, buffer=SMALL)


@sides
def test_a_sink_that_resets_while_our_close_waits_for_it_is_the_end_of_its_direction(side: Side) -> None:
    async def work(rig: Rig) -> None:
        rig.start(frames=True)
        sender, receiver = rig.peer(side)
        sending = await stuck(rig, side, of(side)(BINARY, bytes(BIG)))
        rig.finish()
        assert await sender.read() == ours(side)
        assert not rig.ends
        receiver.reset()
        assert await rig.end() is None
        assert not direction(rig, side).finished
        assert direction(rig, other(side)).finished
        assert rig.budget.used == 0
        sending.cancel()
        await asyncio.wait((sending,))

    run(work, secure_client=False, secure_server=False, buffer=SMALL)


@sides
@pytest.mark.parametrize("how", ["reset", "end"])
def test_a_source_that_goes_while_we_wait_for_the_end_of_its_frame_leaves_no_place_for_ours(
    side: Side, how: str
) -> None:
    async def work(rig: Rig) -> None:
        rig.start(frames=True)
        sender, receiver = rig.peer(side)
        await arrived(rig, side, of(side)(BINARY, b"0123456789")[:-1])
        rig.finish()
        assert await sender.read() == ours(side)
        if how == "reset":
            sender.reset()
        else:
            await sender.half_close()
        assert await rig.end() is None
        assert not direction(rig, side).finished
        assert await receiver.read_all() == b""

    run(work, secure_client=False, secure_server=False)


@kinds
def test_finish_twice_puts_one_close_in(*, secure_client: bool, secure_server: bool) -> None:
    async def work(rig: Rig) -> None:
        rig.start(frames=True)
        half = of(Side.UPSTREAM)(BINARY, b"0123456789")
        await arrived(rig, Side.UPSTREAM, half[:-1])
        rig.finish()
        rig.finish()
        await rig.server.send(half[-1:])
        assert await rig.client.read_all() == half[-1:] + VIOLATION
        assert await rig.end() is None
        rig.finish()
        assert await rig.server.read_all() == VIOLATION_MASKED
        assert rig.ends == [None]

    run(work, secure_client=secure_client, secure_server=secure_server)


@kinds
@sides
def test_finish_after_a_half_close_still_tells_the_side_that_made_it(
    *, secure_client: bool, secure_server: bool, side: Side
) -> None:
    async def work(rig: Rig) -> None:
        rig.start(frames=True)
        ender, witness = rig.peer(side)
        await ender.half_close()
        assert await witness.read() == b""
        rig.finish()
        assert await ender.read_all() == ours(side)
        assert await rig.end() is None
        assert not direction(rig, side).finished

    run(work, secure_client=secure_client, secure_server=secure_server)


@kinds
@pytest.mark.parametrize("place", ["between two frames", "within a head", "within a frame", "behind bytes that wait"])
def test_after_the_upstream_was_lost_the_client_gets_our_close_where_there_is_a_place(
    *, secure_client: bool, secure_server: bool, place: str
) -> None:
    async def work(rig: Rig) -> None:
        rig.close_when_lost = True
        rig.start(frames=True)
        good = of(Side.UPSTREAM)(TEXT, b"so far")
        begun = {"within a head": b"\x82", "within a frame": b"\x82\x05abc"}.get(place, b"")
        if place == "behind bytes that wait":
            good = of(Side.UPSTREAM)(BINARY, bytes(BIG))
            sending = await stuck(rig, Side.UPSTREAM, good)
            got = b""
            while rig.relay.down.tracker.left:
                got += await rig.client.read()
            await sending
        else:
            await rig.server.send(good + begun)
            await looked_at(rig, Side.UPSTREAM, len(good + begun))
            got = b""
        rig.server.reset()
        while not rig.lost:
            rig.relay.check()  # as a Stream does each second
            got += await rig.client.read() if blocked(rig.relay.down) else b""
            await ticks(1)
        got += await rig.client.read_all()
        assert await rig.end() is None
        assert rig.lost == [Side.UPSTREAM]
        if place == "within a frame":
            assert got == good + begun
            assert not rig.relay.down.finished
        else:
            assert got == good + VIOLATION
            assert rig.relay.down.finished

    run(work, secure_client=secure_client, secure_server=secure_server, buffer=SMALL)


# --- after a Close ---------------------------------------------------------------------------------------------------


@kinds
@sides
@pytest.mark.parametrize("together", [True, False], ids=["in one packet", "apart"])
def test_after_a_close_nothing_passes_but_the_end(
    *, secure_client: bool, secure_server: bool, side: Side, together: bool
) -> None:
    async def work(rig: Rig) -> None:
        rig.start(frames=True)
        sender, receiver = rig.peer(side)
        close, late = of(side)(CLOSE, b"\x03\xe8"), of(side)(BINARY, b"late")
        if together:
            await sender.send(close + late)
            assert await exactly(receiver, len(close)) == close
        else:
            await arrived(rig, side, close)
        progress = rig.relay.up.count + rig.relay.down.count
        await sender.send(late * 20_000)  # flooding is no sign of life
        assert await settled(rig) == progress == len(close)
        await arrived(rig, other(side), of(other(side))(TEXT, b"the other way goes on"))
        await sender.half_close()
        assert await receiver.read() == b""
        await receiver.half_close()
        assert await sender.read_all() == b""
        assert await rig.end() is None

    run(work, secure_client=secure_client, secure_server=secure_server)


# --- the budget ------------------------------------------------------------------------------------------------------


@kinds
@sides
def test_bytes_that_wait_count_while_they_wait(*, secure_client: bool, secure_server: bool, side: Side) -> None:
    async def work(rig: Rig) -> None:
        rig.start(frames=True)
        data = of(side)(BINARY, bytes(BIG))
        sending = await stuck(rig, side, data)
        assert rig.budget.used == rig.relay.held > 0
        assert await exactly(rig.peer(side)[1], len(data)) == data
        await sending
        assert rig.budget.used == rig.relay.held == 0

    run(work, secure_client=secure_client, secure_server=secure_server, buffer=SMALL)


@kinds
@sides
@pytest.mark.parametrize("finishing", [False, True])
def test_bytes_that_wait_are_given_back_when_the_relay_is_stopped(
    *, secure_client: bool, secure_server: bool, side: Side, finishing: bool
) -> None:
    async def work(rig: Rig) -> None:
        rig.start(frames=True)
        sending = await stuck(rig, side, of(side)(BINARY, bytes(BIG)))
        if finishing:
            rig.finish()
        assert rig.budget.used > 0
        rig.relay.stop()
        assert rig.budget.used == rig.relay.held == 0
        sending.cancel()
        await asyncio.wait((sending,))

    run(work, secure_client=secure_client, secure_server=secure_server, buffer=SMALL)


# --- gone while bytes wait -------------------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("both_ways", [True, False])
def test_a_client_that_resets_while_its_upstream_takes_nothing_is_found_out_by_the_next_check(
    *, secure_client: bool, secure_server: bool, both_ways: bool
) -> None:
    """Its fd is not in the loop then: nothing of it is read, and perhaps nothing waits for it."""

    async def work(rig: Rig) -> None:
        rig.start(frames=True)
        sending = [await stuck(rig, Side.DOWNSTREAM, of(Side.DOWNSTREAM)(BINARY, bytes(BIG * 10)))]
        if both_ways:
            sending.append(await stuck(rig, Side.UPSTREAM, of(Side.UPSTREAM)(BINARY, bytes(BIG * 10))))
        for task in sending:
            task.cancel()
        await asyncio.wait(sending)
        rig.relay.check()
        assert not rig.ends  # slow is not gone
        rig.client.reset()
        await ticks(20)
        rig.relay.check()
        assert await rig.end() is Side.DOWNSTREAM

    run(work, secure_client=secure_client, secure_server=secure_server, buffer=SMALL)


def test_an_upstream_that_resets_while_its_client_is_slow_has_its_last_words_delivered() -> None:
    async def work(rig: Rig) -> None:
        rig.start(frames=True)
        last = of(Side.UPSTREAM)(BINARY, bytes(BIG))
        sending = await stuck(rig, Side.UPSTREAM, last)
        got = b""
        while rig.relay.down.tracker.left:
            got += await rig.client.read()
        await sending
        rig.server.reset()
        await ticks(20)
        rig.relay.check()
        if blocked(rig.relay.down):
            assert not rig.ends
        while len(got) < len(last):
            got += await rig.client.read()
        assert got == last
        while not rig.ends:
            rig.relay.check()
            await ticks(1)
        assert await rig.end() is Side.UPSTREAM

    run(work, secure_client=False, secure_server=False, buffer=SMALL)


@sides
@kinds
def test_a_stream_whose_source_was_reset_with_bytes_left_can_be_cut(
    *, secure_client: bool, secure_server: bool, side: Side
) -> None:
    """libuv gives up a connection that it saw reset, and uvloop then refuses to call anybody else for its fd."""

    async def work(rig: Rig) -> None:
        rig.start(frames=True)
        sender, _ = rig.peer(side)
        await sender.send(of(side)(BINARY, bytes(BIG))[: BIG // 2])
        sender.reset()
        while not direction(rig, side).count:
            await ticks(1)
        assert direction(rig, side).dead
        rig.finish()
        rig.relay.check()
        await rig.end()

    run(work, secure_client=secure_client, secure_server=secure_server)


@kinds
def test_what_a_client_cannot_take_any_more_which_was_reset_with_bytes_left_ends_the_stream(
    *, secure_client: bool, secure_server: bool
) -> None:
    async def work(rig: Rig) -> None:
        rig.start(frames=True)
        await rig.client.send(of(Side.DOWNSTREAM)(BINARY, bytes(BIG))[: BIG // 2])
        rig.client.reset()
        while not rig.relay.up.count:
            await ticks(1)
        rig.relay.down.start(frame(BINARY, bytes(BIG), masked=False))
        rig.relay.check()
        assert await rig.end() is Side.DOWNSTREAM

    run(work, secure_client=secure_client, secure_server=secure_server)
