"""The frame tracker sees the frames and messages that are there, whatever the pieces, and faults where wsproto does."""

import itertools
import struct
from dataclasses import dataclass
from typing import Any, Final

import pytest
from hypothesis import assume, given, strategies as st
from wsproto.frame_protocol import CloseReason, FrameProtocol, Opcode, ParseFailed

from dgproxy.wire import frames
from dgproxy.wire.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Tracker
from tests.support.frames import conversations, frame


@dataclass
class Run:
    """What a tracker made of bytes that came in pieces, driven as the relay drives it."""

    tracker: Tracker
    passed: bytes = b""

    def feed(self, data: bytes) -> None:
        if self.tracker.fault or self.tracker.closed:
            return
        data = self.tracker.held + data
        count = self.tracker.scan(data, len(data))
        self.passed += data[:count]


def run(data: bytes, cuts: list[int] | None = None, *, masked: bool = True) -> Run:
    result = Run(Tracker(masked=masked))
    edges = [0, *sorted(cuts or []), len(data)]
    for begin, end in itertools.pairwise(edges):
        if begin < end:
            result.feed(data[begin:end])
    return result


# --- properties ------------------------------------------------------------------------------------------------------


@given(data=st.data(), masked=st.booleans())
def test_whatever_keeps_the_rules_passes_whole_in_any_pieces_and_boundaries_are_known(
    data: st.DataObject,
    masked: bool,  # noqa: FBT001
) -> None:
    sent = data.draw(conversations(masked=masked))
    raw = b"".join(sent)
    cuts = data.draw(st.lists(st.integers(0, len(raw)), max_size=12))
    result = run(raw, cuts, masked=masked)
    assert result.passed == raw
    assert not result.tracker.fault
    assert result.tracker.between_messages
    assert not result.tracker.held
    assert result.tracker.closed == bool(sent and sent[-1][0] == 0x80 | CLOSE)


@given(data=st.data(), masked=st.booleans())
def test_what_was_passed_on_ends_between_frames_or_inside_a_payload(data: st.DataObject, masked: bool) -> None:  # noqa: FBT001
    sent = data.draw(conversations(masked=masked))
    raw = b"".join(sent)
    upto = data.draw(st.integers(0, len(raw)))
    result = run(raw[:upto], masked=masked)
    tracker = result.tracker
    assert result.passed + tracker.held == raw[:upto]
    assert len(tracker.held) < 139
    begins = [0, *itertools.accumulate(len(one) for one in sent)]
    assert tracker.between_frames == (len(result.passed) in begins)
    if tracker.between_frames:
        done = sent[: begins.index(len(result.passed))]
        data_frames = [one for one in done if one[0] & 0x0F < CLOSE]
        assert tracker.between_messages == (not data_frames or bool(data_frames[-1][0] & 0x80))
    else:
        assert len(result.passed) + tracker.left in begins


def wsproto_reads(raw: bytes, *, client: bool) -> CloseReason | None:
    """What wsproto finds wrong with these bytes, up to a Close."""
    protocol = FrameProtocol(client=client, extensions=[])
    protocol.receive_bytes(raw)
    try:
        for event in protocol.received_frames():
            if event.opcode is Opcode.CLOSE and event.frame_finished:
                break
    except ParseFailed as failed:
        return failed.code
    return None


@given(data=st.data(), masked=st.booleans())
def test_it_refuses_what_wsproto_refuses_and_nothing_else(data: st.DataObject, masked: bool) -> None:  # noqa: FBT001
    """Over conversations with one byte of one head changed to anything."""
    sent = data.draw(conversations(masked=masked))
    number = data.draw(st.integers(0, len(sent)))
    broken = bytearray(data.draw(st.sampled_from([*sent, frame(BINARY, b"a", masked=masked)])))
    broken[data.draw(st.integers(0, 1))] = data.draw(st.integers(0, 255))
    raw = b"".join([*sent[:number], bytes(broken), *sent[number:]])
    ours = run(raw, data.draw(st.lists(st.integers(0, len(raw)), max_size=5)), masked=masked)
    theirs = wsproto_reads(raw, client=not masked)
    assume(theirs is not CloseReason.INVALID_FRAME_PAYLOAD_DATA)  # a text's encoding isn't ours to judge
    if ours.tracker.fault and theirs is None:  # one byte of a head was enough for us; wsproto waits for two
        theirs = wsproto_reads(raw + bytes(1), client=not masked)
    assert bool(ours.tracker.fault) == (theirs is not None), (ours.tracker.fault, theirs)


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=8), st.booleans())
def test_any_bytes_in_any_pieces_come_to_the_same(raw: bytes, cuts: list[int], masked: bool) -> None:  # noqa: FBT001
    whole = run(raw, masked=masked)
    pieces = run(raw, [cut for cut in cuts if cut <= len(raw)], masked=masked)
    assert whole.passed == pieces.passed
    assert raw.startswith(whole.passed)
    for name in ("fault", "closed", "close_code", "left", "fragmented", "held"):
        assert getattr(whole.tracker, name) == getattr(pieces.tracker, name)


# --- the rules, one by one -------------------------------------------------------------------------------------------

FAULTS: Final[dict[str, tuple[list[bytes], str]]] = {
    "W6 reserved opcode": ([frame(3)], "reserved"),
    "W6 reserved control opcode": ([frame(11)], "reserved"),
    "W5 RSV1": ([frame(TEXT, b"a", rsv=4)], "reserved"),
    "W6 RSV2": ([frame(TEXT, b"a", rsv=2)], "reserved"),
    "W6 RSV3": ([frame(TEXT, b"a", rsv=1)], "reserved"),
    "W6 not masked": ([frame(TEXT, b"a", masked=False)], "not masked"),
    "W6 fragmented ping": ([frame(PING, b"a", fin=False)], "reserved"),
    "W6 fragmented close": ([frame(CLOSE, fin=False)], "reserved"),
    "W6 ping of 126": ([frame(PING, bytes(126))], "control"),
    "W6 pong with a 64-bit length": ([frame(PONG, length=b"\x7f" + bytes(8))], "control"),
    "W6 16-bit length of 125": ([frame(BINARY, bytes(125), length=b"\x7e\x00\x7d")], "minimal"),
    "W6 64-bit length of 65,535": ([frame(BINARY, length=b"\x7f" + struct.pack("!Q", 65_535))], "minimal"),
    "W6 64-bit length, top bit": ([frame(BINARY, length=b"\x7f" + struct.pack("!Q", 1 << 63))], "63 bits"),
    "W7 continuation of nothing": ([frame(CONTINUATION, b"a")], "message"),
    "W7 continuation after the last": ([frame(TEXT, b"a"), frame(CONTINUATION, b"a")], "message"),
    "W7 a message within another": ([frame(TEXT, b"a", fin=False), frame(BINARY, b"a")], "message"),
    "W7 another fragment begun": ([frame(TEXT, b"a", fin=False), frame(TEXT, b"a", fin=False)], "message"),
    "W11 close of one byte": ([frame(CLOSE, b"\x03")], "half a code"),
    "W11 bad UTF-8": ([frame(CLOSE, b"\x03\xe8\xff")], "UTF-8"),
    **{
        f"W11 close {code}": ([frame(CLOSE, struct.pack("!H", code))], "may not be sent")
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535)
    },
}


@pytest.mark.parametrize("row", FAULTS)
@pytest.mark.parametrize("in_pieces", [False, True])
def test_a_frame_that_breaks_the_rules_is_not_begun(row: str, in_pieces: bool) -> None:  # noqa: FBT001
    sent, why = FAULTS[row]
    good = frame(BINARY, b"before")
    raw = good + b"".join(sent) + frame(BINARY, b"after")
    result = run(raw, list(range(len(raw))) if in_pieces else [])
    assert why in result.tracker.fault
    assert result.passed == good + b"".join(sent[:-1])


def test_a_masked_frame_from_a_server_is_a_fault() -> None:
    result = run(frame(TEXT, b"a", masked=True), masked=False)
    assert result.tracker.fault == "masked"
    assert not result.passed


PASSES: Final[dict[str, list[bytes]]] = {
    "W16 empty binary": [frame(BINARY)],
    "W16 empty text": [frame(TEXT)],
    "W16 text of 70 KB": [frame(TEXT, b"a" * 70_000)],
    "W16 CloseStream in binary": [frame(BINARY, b'{"type":"CloseStream"}')],
    "W8 pings among fragments": [frame(TEXT, b"a", fin=False), frame(PING, b"p"), frame(CONTINUATION, b"b")],
    "16-bit length of 126": [frame(BINARY, bytes(126))],
    "64-bit length of 65,536": [frame(BINARY, bytes(65_536))],
    "an empty last fragment": [frame(BINARY, b"a", fin=False), frame(CONTINUATION)],
    "close without a code": [frame(CLOSE)],
    **{
        f"W11 close {code}": [frame(CLOSE, struct.pack("!H", code) + "Tschüß".encode())]
        for code in (1000, 1001, 1003, 1007, 1011, 1014, 3000, 4000, 4999)
    },
}


@pytest.mark.parametrize("row", PASSES)
def test_what_the_rules_allow_passes(row: str) -> None:
    raw = b"".join(PASSES[row])
    result = run(raw)
    assert result.passed == raw
    assert not result.tracker.fault


def test_a_frame_that_announces_2_62_bytes_is_passed_as_it_comes_and_nothing_is_kept_of_it() -> None:
    head = frame(BINARY, length=b"\x7f" + struct.pack("!Q", 1 << 62))
    result = run(head + b"abc")
    assert result.passed == head + b"abc"
    assert result.tracker.left == (1 << 62) - 3
    assert not result.tracker.held


def test_a_close_is_passed_whole_with_its_code_and_nothing_after_it() -> None:
    close = frame(CLOSE, b"\x0f\xa1gone")
    result = run(close + frame(BINARY, b"late"), [1, 3, 7])
    assert result.passed == close
    assert result.tracker.closed
    assert result.tracker.close_code == 4001


def test_stopping_at_the_end_of_the_open_message() -> None:
    tracker = Tracker(masked=True)
    first = frame(TEXT, b"abc", fin=False)
    rest = frame(PING) + frame(CONTINUATION, b"def")
    after = frame(BINARY, b"next")
    assert tracker.scan(first, len(first)) == len(first)
    data = rest + after
    assert tracker.scan(data, len(data), stop=True) == len(rest)
    assert tracker.between_messages
    assert tracker.scan(after, len(after)) == len(after)


# --- our own frames --------------------------------------------------------------------------------------------------


@given(
    st.sampled_from([1000, 1001, 1008, 1012]),
    st.text(max_size=30),
    st.one_of(st.none(), st.binary(min_size=4, max_size=4)),
)
def test_our_close_is_read_by_wsproto_as_meant(code: int, reason: str, mask: bytes | None) -> None:
    protocol = FrameProtocol(client=mask is None, extensions=[])
    protocol.receive_bytes(frames.close(code, reason, mask))
    (event,) = protocol.received_frames()
    payload: Any = event.payload
    assert (event.opcode, payload[0], payload[1]) == (Opcode.CLOSE, code, reason)


@given(st.text(max_size=300), st.one_of(st.none(), st.binary(min_size=4, max_size=4)))
def test_our_text_is_read_by_wsproto_as_meant(message: str, mask: bytes | None) -> None:
    protocol = FrameProtocol(client=mask is None, extensions=[])
    protocol.receive_bytes(frames.text(message, mask))
    (event,) = protocol.received_frames()
    assert (event.opcode, event.payload, event.message_finished) == (Opcode.TEXT, message, True)


def test_frames_of_our_own_are_bounded() -> None:
    with pytest.raises(ValueError, match="123"):
        frames.close(1008, "x" * 124)
    with pytest.raises(ValueError, match=r"65,535"):
        frames.text("x" * 65_536)
