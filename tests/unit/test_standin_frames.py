import struct

import pytest
from hypothesis import given, settings, strategies as st

from dgproxy.standin.frames import Echo, unmask

MASK = b"\x01\xf2\x80\x7f"


def frame(opcode: int, payload: bytes, *, mask: bytes | None = MASK, fin: bool = True) -> bytes:
    size = len(payload)
    bit = 0x80 if mask is not None else 0
    if size < 126:
        length = bytes([bit | size])
    elif size < 65536:
        length = bytes([bit | 126]) + struct.pack(">H", size)
    else:
        length = bytes([bit | 127]) + struct.pack(">Q", size)
    head = bytes([opcode | (0x80 if fin else 0)]) + length
    if mask is None:
        return head + payload
    return head + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))


@given(data=st.binary(max_size=300), mask=st.binary(min_size=4, max_size=4))
def test_unmasking_is_xor_with_the_repeated_mask(data: bytes, mask: bytes) -> None:
    assert unmask(data, mask) == bytes(byte ^ mask[i % 4] for i, byte in enumerate(data))


@settings(deadline=None)  # a long frame byte by byte takes a while
@given(
    payloads=st.lists(st.tuples(st.sampled_from([1, 2, 9]), st.binary(max_size=125)), max_size=6),
    long=st.sampled_from([0, 126, 65535, 65536]),
    cut=st.integers(1, 5000),
)
def test_an_echo_is_the_same_however_the_bytes_come(payloads: list[tuple[int, bytes]], long: int, cut: int) -> None:
    payloads = [*payloads, (2, bytes(i % 253 for i in range(long)))]
    sent = b"".join(frame(opcode, payload) for opcode, payload in payloads)
    echo = Echo()
    got = b"".join(echo.receive(sent[at : at + cut]) for at in range(0, len(sent), cut))
    assert got == b"".join(frame(0xA if opcode == 9 else opcode, payload, mask=None) for opcode, payload in payloads)
    assert echo.payload_bytes == sum(len(payload) for opcode, payload in payloads if opcode != 9)
    assert not echo.closed


def test_fragments_stay_fragments_with_a_ping_between_them() -> None:
    echo = Echo()
    sent = [frame(1, b"Close", fin=False), frame(9, b"?"), frame(0, b"Stream")]
    assert echo.receive(b"".join(sent)) == b"\x01\x05Close\x8a\x01?\x80\x06Stream"


def test_a_long_frame_is_answered_before_its_last_byte_came() -> None:
    echo = Echo()
    sent = frame(2, bytes(1 << 20))
    assert echo.receive(sent[:100]) == b"\x82\x7f" + struct.pack(">Q", 1 << 20) + bytes(86)


def test_a_pong_is_not_answered() -> None:
    assert Echo().receive(frame(0xA, b"late") + frame(1, b"x")) == b"\x81\x01x"


@pytest.mark.parametrize("payload", [b"", b"\x03\xe8", struct.pack(">H", 4321) + b"bye"], ids=["empty", "1000", "4321"])
def test_a_close_comes_back_as_it_is_and_nothing_after_it(payload: bytes) -> None:
    echo = Echo()
    assert echo.receive(frame(8, payload) + frame(1, b"after")) == frame(8, payload, mask=None)
    assert echo.closed
    assert echo.clean


@pytest.mark.parametrize(
    "bad",
    [frame(1, b"plain", mask=None), b"\xc1\x80" + MASK, frame(3, b""), frame(0xB, b"")],
    ids=["unmasked", "rsv1", "opcode 3", "opcode 11"],
)
def test_a_frame_against_the_rules_ends_it_with_1002(bad: bytes) -> None:
    echo = Echo()
    assert echo.receive(bad) == b"\x88\x02\x03\xea"
    assert echo.closed
    assert not echo.clean
