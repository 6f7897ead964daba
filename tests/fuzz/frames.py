"""Frames of a WebSocket: the tracker passes the same bytes on and finds the same fault in whatever pieces they come."""

from typing import Final

from dgproxy.wire.frames import MAX_CONTROL_PAYLOAD, Tracker
from tests.fuzz.harness import Harness


def _passed(pieces: list[bytes], *, masked: bool) -> tuple[bytes, bytes, tuple[object, ...]]:
    """What went on, what is held, and where the tracker stands."""
    tracker, passed = Tracker(masked=masked), b""
    for piece in pieces:
        data = tracker.held + piece
        count = tracker.scan(data, len(data))
        assert 0 <= count <= len(data)
        passed += data[:count]
        assert len(tracker.held) <= 14 + MAX_CONTROL_PAYLOAD
        assert not (tracker.left and tracker.held)
        if tracker.fault or tracker.closed:
            break
        assert data[count:] == tracker.held
    where = (tracker.left, tracker.fragmented, tracker.closed, tracker.close_code, tracker.fault)
    return passed, tracker.held, where


def _plain(data: bytes, *, masked: bool) -> tuple[int, bool]:
    """RFC 6455 5.2 to 5.5, 7.4, read once more: how far the bytes may go on, and whether what follows breaks it."""
    at, open_message = 0, False
    while len(data) > at:
        first, rest = data[at], data[at + 1 :]
        opcode, last, control = first & 15, first >> 7 == 1, first & 8 != 0
        allowed = (8, 9, 10, 0) if open_message else (8, 9, 10, 1, 2)
        if first & 0x70 or opcode not in allowed or (control and not last):
            return at, True
        if not rest:
            return at, False
        if (rest[0] >> 7 == 1) != masked or (control and rest[0] & 127 > 125):
            return at, True
        wide = {126: 2, 127: 8}.get(rest[0] & 127, 0)
        if len(rest) < 1 + wide:
            return at, False
        length = int.from_bytes(rest[1 : 1 + wide], "big") if wide else rest[0] & 127
        if wide and not {2: 126, 8: 65536}[wide] <= length < 1 << 63:
            return at, True
        mask = rest[1 + wide : 5 + wide] if masked else b""
        payload = rest[1 + wide + 4 * masked :]
        if len(mask) < 4 * masked or (opcode == 8 and len(payload) < length):
            return at, False
        end = at + 2 + wide + 4 * masked + length
        if opcode == 8:
            plain = bytes(byte ^ mask[n % 4] if mask else byte for n, byte in enumerate(payload[:length]))
            bad = length == 1 or (length > 1 and not _may_close(plain))
            return (at, True) if bad else (end, False)
        if not control:
            open_message = not last
        at = end
    return min(at, len(data)), False


def _may_close(payload: bytes) -> bool:
    code = int.from_bytes(payload[:2], "big")
    known = code in {1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014} or 3000 <= code <= 4999
    return known and payload[2:].decode("utf-8", "replace").encode() == payload[2:]


def check(data: bytes) -> None:
    """The whole property, for either direction."""
    half = len(data) // 2
    for masked in (False, True):
        whole = _passed([data], masked=masked)
        at, fault = _plain(data, masked=masked)
        assert whole[0] == data[:at]
        assert bool(whole[2][-1]) == fault
        for pieces in ([data[at : at + 1] for at in range(len(data))], [data[:half], data[half:]]):
            assert _passed(pieces, masked=masked) == whole


HARNESS: Final = Harness(
    check,
    seeds=(
        b"\x82\x05audio\x81\x02{}\x88\x02\x03\xe8",
        b"\x82\x85abcdaudio\x89\x80abcd\x88\x82abcd\x03\xe8",
        b"\x02\x7e\x00\x7e" + bytes(126) + b"\x89\x00\x80\x00",
        b"\x82\x7f" + (1 << 16).to_bytes(8, "big") + b"a",
        b"\x88\x04\x03\xe8by",
    ),
    words=(b"\x82\x05", b"\x82\x85", b"\x88\x80", b"\x88\x00", b"\x89\x7e", b"\x00\x01", b"\x80\x00", b"\x01", b"\x7f"),
    longest=512,
)
