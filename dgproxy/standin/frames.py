"""The echo of load tests: frames in, the same frames out, without wsproto.

It serves 1,000 streams of 10 messages a second beside a proxy and a generator on the same machine, so it does the
least: a head is rewritten (no mask), a payload is unmasked with one XOR of two integers, and a frame of any size passes
in the pieces in which it comes, so that its size costs no memory and no second look. Pure. Source: RFC 6455 5.2.
"""

from typing import Final

_CLOSE: Final = 0x8
_PING: Final = 0x9
_PONG: Final = 0xA
_KNOWN: Final = frozenset({0x0, 0x1, 0x2, _CLOSE, _PING, _PONG})
_PROTOCOL_ERROR: Final = b"\x88\x02\x03\xea"  # close 1002


def unmask(data: bytes, mask: bytes) -> bytes:
    """`data` XOR the repeated mask; the mask begins with data's first byte."""
    size = len(data)
    key = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "little") ^ int.from_bytes(key, "little")).to_bytes(size, "little")


class Echo:
    """One WebSocket's echo: what came, byte for byte, as what goes back.

    Data frames come back as they are, fragments as fragments. A PING comes back as PONG, a PONG not at all, a CLOSE as
    itself, and ends it. A frame that is not masked, has reserved bits or an unknown opcode ends it with 1002.
    """

    def __init__(self) -> None:
        self.closed = False  # nothing that comes now is looked at
        self.clean = False  # closed by the client's CLOSE
        self.payload_bytes = 0  # of data frames
        self._head = b""  # an incomplete head
        self._left = 0  # bytes that the current frame still lacks
        self._mask = b""
        self._opcode = 0

    def receive(self, data: bytes) -> bytes:
        """Bytes that came; the answer to them."""
        out: list[bytes] = []
        if self._head:
            data, self._head = self._head + data, b""
        at, end = 0, len(data)
        while at < end and not self.closed:
            if self._left == 0:
                begin = self._begin(data, at, out)
                if begin == 0:
                    self._head = data[at:]
                    break
                at = begin
                if self._left == 0:
                    self._finish()
                continue
            piece = data[at : at + self._left]
            at += len(piece)
            self._pass(piece, out)
        return b"".join(out)

    def _begin(self, data: bytes, at: int, out: list[bytes]) -> int:
        """Reads the head at `at`; where the payload begins, or 0 if the head is incomplete."""
        have = len(data) - at
        if have < 2:  # noqa: PLR2004 - the least head
            return 0
        first, second = data[at], data[at + 1]
        if first & 0x70 or not second & 0x80 or first & 0x0F not in _KNOWN:
            out.append(_PROTOCOL_ERROR)
            self.closed = True
            return at + 2
        short = second & 0x7F
        extended = {126: 2, 127: 8}.get(short, 0)
        if have < 2 + extended + 4:
            return 0
        begin = at + 2 + extended
        self._left = int.from_bytes(data[at + 2 : begin], "big") if extended else short
        self._mask = data[begin : begin + 4]
        self._opcode = first & 0x0F
        if self._opcode == _PING:
            first = first & 0xF0 | _PONG
        if self._opcode != _PONG:
            out.append(bytes((first, short)) + data[at + 2 : begin])
        return begin + 4

    def _pass(self, piece: bytes, out: list[bytes]) -> None:
        if self._opcode != _PONG:
            out.append(unmask(piece, self._mask))
        if self._opcode < _CLOSE:
            self.payload_bytes += len(piece)
        turn = len(piece) % 4
        self._mask = self._mask[turn:] + self._mask[:turn]
        self._left -= len(piece)
        if self._left == 0:
            self._finish()

    def _finish(self) -> None:
        if self._opcode == _CLOSE:
            self.closed = self.clean = True
