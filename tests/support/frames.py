"""WebSocket frames as they are on the wire, written without dgproxy's code, and any conversation of them."""

import struct
from collections.abc import Iterator
from typing import Final

from hypothesis import strategies as st

from dgproxy.wire.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT

MASK: Final = b"\x12\x34\x56\x78"


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    masked: bool = True,
    length: bytes | None = None,
) -> bytes:
    """One frame, written without dgproxy's code; `length` in place of the right length bytes."""
    size = len(payload)
    if length is None:
        if size < 126:
            length = bytes([size])
        elif size < 1 << 16:
            length = b"\x7e" + struct.pack("!H", size)
        else:
            length = b"\x7f" + struct.pack("!Q", size)
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode, length[0] | (0x80 if masked else 0)]) + length[1:]
    if not masked:
        return head + payload
    return head + MASK + bytes(byte ^ MASK[at % 4] for at, byte in enumerate(payload))


SIZES: Final = st.one_of(
    st.integers(0, 20), st.sampled_from([124, 125, 126, 127, 128, 65_535, 65_536, 70_000]), st.integers(0, 2000)
)


@st.composite
def conversations(draw: st.DrawFn, *, masked: bool) -> list[bytes]:
    """Frames that keep the rules: messages, some in fragments, with control frames anywhere; perhaps a Close last."""
    out: list[bytes] = []

    def controls() -> Iterator[bytes]:
        for opcode in draw(st.lists(st.sampled_from([PING, PONG]), max_size=2)):
            yield frame(opcode, bytes(draw(st.integers(0, 125))), masked=masked)

    for _ in range(draw(st.integers(0, 4))):
        opcode = draw(st.sampled_from([TEXT, BINARY]))
        sizes = draw(st.lists(SIZES, min_size=1, max_size=4))
        for number, size in enumerate(sizes):
            out += controls()
            code = CONTINUATION if number else opcode
            out.append(frame(code, b"a" * size, fin=number == len(sizes) - 1, masked=masked))
    if draw(st.booleans()):
        body = draw(st.sampled_from([b"", b"\x03\xe8", b"\x03\xf0bye", b"\x0f\xa0" + b"r" * 123]))
        out.append(frame(CLOSE, body, masked=masked))
    return out
