"""What supervisor and workers say to each other survives the wire, and what is no message ends the talk."""

import contextlib
import io
import struct
from typing import Any, Final

import msgspec
import pytest
from hypothesis import example, given, strategies as st
from rich.console import Console
from rich.pretty import pprint

from dgproxy import ipc
from dgproxy.access.keys import Delta, KeyId, Pepper, Record, State
from dgproxy.access.limits import Slot
from dgproxy.config import Config, Overrides
from dgproxy.wire import refusals
from dgproxy.wire.deepgram import Class

PEPPER: Final = bytes(range(100, 132))
TICKETS: Final = bytes(range(80))
DIGEST: Final = b"\xd1\x6e\x57" * 10 + b"!!"

slots = st.integers(0, 2**62).map(Slot)
texts = st.text(max_size=20)
key_ids = st.text("abcXYZ019", min_size=10, max_size=10).map(KeyId)
records = st.builds(
    ipc.Record,
    key_id=key_ids,
    cls=st.sampled_from(Class),
    plan=texts,
    websocket=st.booleans(),
    status=st.integers(0, 599),
    bytes_in=st.integers(0, 2**60),
    bytes_out=st.integers(0, 2**60),
    started=st.floats(0, 2e9),
    wall=st.floats(0, 1e6),
    request_id=texts,
    end=texts,
)
questions = st.builds(ipc.Question, slots, key_ids, st.sampled_from(Class))
verdicts = st.sampled_from([None, refusals.PLAN_UNKNOWN, refusals.BAD_WS_VERSION, refusals.too_many_streams(5, 5, "x")])


def setup() -> ipc.Setup:
    return ipc.Setup(
        version=ipc.VERSION,
        index=1,
        workers=2,
        config=Config(),
        pepper=PEPPER,
        ticket_keys=TICKETS,
        listeners=("0.0.0.0:443", "[::]:443"),
    )


def change(generation: int = 7) -> ipc.Change:
    record = Record(
        id=KeyId("0123456789"),
        digest=DIGEST,
        name="customer",
        pepper_id="00112233",
        plan="default",
        overrides=Overrides(),
        state=State.DISABLED,
        created=1,
        not_before=0,
        expires=None,
        foreign=False,
    )
    return ipc.Change(Delta(generation, (record,), (KeyId("9876543210"),)))


downs: st.SearchStrategy[ipc.Down] = st.one_of(
    st.builds(setup),
    st.builds(ipc.Snapshot, st.integers(0, 2**62), st.integers(0, 2**62)),
    st.builds(change, st.integers(0, 2**62)),
    st.builds(ipc.Verdicts, st.lists(st.tuples(slots, verdicts), max_size=5).map(tuple)),
    st.builds(ipc.Stop, st.floats(0, 1e6)),
)
ups: st.SearchStrategy[ipc.Up] = st.one_of(
    st.builds(ipc.Ready, st.integers(0, 9), st.integers(1, 2**31)),
    st.builds(ipc.Applied, st.integers(0, 2**62)),
    st.builds(ipc.Questions, st.lists(questions, max_size=5).map(tuple)),
    st.builds(ipc.GiveBack, st.lists(slots, max_size=5).map(tuple)),
    st.builds(
        ipc.Usage, st.lists(records, max_size=5).map(tuple), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)
    ),
)
streams = st.one_of(
    st.tuples(st.just(ipc.DOWN), st.lists(downs, max_size=6)), st.tuples(st.just(ipc.UP), st.lists(ups, max_size=6))
)


@given(streams, st.lists(st.integers(0, 5000), max_size=20))
def test_messages_arrive_whole_and_in_order_whatever_pieces_they_come_in(
    stream: tuple[msgspec.msgpack.Decoder[Any], list[ipc.Message]], cuts: list[int]
) -> None:
    decoder, messages = stream
    raw = b"".join(ipc.encode(message) for message in messages)
    unpacker: ipc.Unpacker[Any] = ipc.Unpacker(decoder)
    places = sorted({min(cut, len(raw)) for cut in cuts})
    got = []
    for start, stop in zip([0, *places], [*places, len(raw)], strict=True):
        got += unpacker.feed(raw[start:stop])
    assert got == messages
    assert not unpacker._buffer


def test_a_message_byte_by_byte_comes_with_its_last_byte() -> None:
    raw = ipc.encode(setup())
    unpacker = ipc.Unpacker(ipc.DOWN)
    for at in range(len(raw) - 1):
        assert unpacker.feed(raw[at : at + 1]) == []
    assert unpacker.feed(raw[-1:]) == [setup()]


GARBAGE: Final = {
    "no msgpack": struct.pack("=I", 3) + b"\xc1\xc1\xc1",
    "an empty message": struct.pack("=I", 0),
    "another type": ipc.encode(ipc.Ready(1, 1)),  # up, where down is spoken
    "an unknown tag": struct.pack("=I", 7) + msgspec.msgpack.encode(["Xyzzy"]),
    "a field missing": struct.pack("=I", 6) + msgspec.msgpack.encode(["Stop"]),
    "a field of another type": struct.pack("=I", 8) + msgspec.msgpack.encode(["Stop", "a"]),
    "more behind it": struct.pack("=I", 8) + msgspec.msgpack.encode(["Stop", 1]) + b"\x00",
    "64 MiB and a byte": struct.pack("=I", ipc.MAX_MESSAGE + 1),
    "4 GiB": b"\xff\xff\xff\xff",
    "text that is no UTF-8": struct.pack("=I", 4) + b"\x91\xa2\xff\xfe",
    "a nest without end": struct.pack("=I", 100_000) + b"\x91" * 100_000,
}


@pytest.mark.parametrize("raw", GARBAGE.values(), ids=GARBAGE)
def test_what_is_no_message_is_told_at_once(raw: bytes) -> None:
    with pytest.raises(ipc.BadMessage) as told:
        ipc.Unpacker(ipc.DOWN).feed(raw)
    assert str(told.value) in {"unknown message", "oversized message"}  # nothing of what was sent


@given(st.binary(max_size=200))
@example(b"\x04\0\0\0\x91\xa2\xff\xfe")
def test_no_bytes_make_it_raise_anything_else(raw: bytes) -> None:
    for decoder in (ipc.DOWN, ipc.UP):
        for framed in (raw, struct.pack("=I", len(raw)) + raw):
            unpacker: ipc.Unpacker[Any] = ipc.Unpacker(decoder)
            with contextlib.suppress(ipc.BadMessage):
                unpacker.feed(framed)


def test_an_oversized_message_is_refused_before_it_is_held() -> None:
    unpacker = ipc.Unpacker(ipc.UP)
    with pytest.raises(ipc.BadMessage):
        unpacker.feed(struct.pack("=I", ipc.MAX_MESSAGE + 1) + bytes(100))
    assert len(unpacker._buffer) < 200


def test_no_repr_shows_a_secret() -> None:
    pepper = Pepper(PEPPER)
    for message in (setup(), change()):
        out = io.StringIO()
        pprint(message, console=Console(file=out, width=200))
        for shown in (repr(message), str(message), out.getvalue(), f"{[message]}"):
            for secret in (PEPPER, TICKETS, DIGEST):
                assert repr(secret)[2:20] not in shown
            assert "Setup" in shown or "0123456789" in shown
    assert pepper.id not in repr(setup())


def test_the_pepper_goes_to_a_worker_whole() -> None:
    (got,) = ipc.Unpacker(ipc.DOWN).feed(ipc.encode(setup()))
    assert isinstance(got, ipc.Setup)
    assert (got.pepper, got.ticket_keys) == (PEPPER, TICKETS)
    assert got.config == Config()
