"""Where frames and messages begin and end in one direction of an open WebSocket, and whether they keep RFC 6455.

Rules of this file:
- Nothing is unmasked, merged or copied, but what must be whole to be judged: a frame's head (14 bytes at most) and a
  Close frame (139 at most) are held until they are. So what was passed on always ends between two frames or inside a
  payload, never inside a head, and a frame that breaks the rules is not begun.
- What a frame may be is two tables, by whether a fragmented message is open. All else is a fault, and a fault is final.
- After a Close nothing counts: RFC 6455 1.4 has the peer discard it.

Payloads are not looked at: whether text is UTF-8 is between the two ends (5.6, 8.1).
"""

import struct
from typing import Final

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA  # RFC 6455 5.2, 11.8
MAX_CONTROL_PAYLOAD: Final = 125  # RFC 6455 5.5
_CODE: Final = 2  # bytes, before a Close frame's reason

_FIN: Final = 0x80
_MASK: Final = 0x80
MAX_HEAD: Final = 14  # bytes: RFC 6455 5.2, a 64-bit length and a mask
_HEAD: Final = 2  # bytes, before a longer length and the mask
_MASK_KEY: Final = 4  # bytes
_SHORT, _MEDIUM = 126, 127  # RFC 6455 5.2: 126 and 127 stand for a 16-bit and a 64-bit length
_BAD, _LAST, _PART, _CONTROL, _CLOSING = range(5)  # what a frame's first byte makes it


def _kinds(opcodes: dict[int, int]) -> bytes:
    """A table by first byte (FIN, RSV 1-3, opcode); no extension is negotiated, so no RSV bit may be set."""
    table = bytearray(256)
    for opcode, kind in opcodes.items():
        table[_FIN | opcode] = kind
        if kind == _LAST:
            table[opcode] = _PART
    return bytes(table)


_CONTROLS: Final = {CLOSE: _CLOSING, PING: _CONTROL, PONG: _CONTROL}
_BETWEEN: Final = _kinds({TEXT: _LAST, BINARY: _LAST, **_CONTROLS})  # messages
_WITHIN: Final = _kinds({CONTINUATION: _LAST, **_CONTROLS})  # a fragmented message; RFC 6455 5.4


class Tracker:
    """One direction. `left` bytes of a payload are still to come; `fault` says what broke the rules.

    A caller whose data all belong to that payload may lower `left` itself, without a call.
    """

    __slots__ = ("_mask", "close_code", "closed", "fault", "fragmented", "held", "left")

    def __init__(self, *, masked: bool) -> None:
        """`masked`: the source is the client, whose every frame has a mask (RFC 6455 5.1); a server's has none."""
        self._mask = _MASK if masked else 0
        self.left = 0
        self.fragmented = False  # a message was begun and its last frame is still to come
        self.held = b""  # the beginning of a head or of a Close frame: not passed on yet, to come before what follows
        self.closed = False  # a Close frame has passed
        self.close_code: int | None = None  # in it, if it had one
        self.fault = ""

    @property
    def masked(self) -> bool:
        """Whether the source's frames must have a mask."""
        return bool(self._mask)

    @property
    def between_frames(self) -> bool:
        """Whether a control frame may be put in after what was passed on."""
        return not self.left

    @property
    def between_messages(self) -> bool:
        """Whether a message may be put in after what was passed on."""
        return not self.left and not self.fragmented

    def scan(self, data: bytes | bytearray | memoryview, size: int, *, stop: bool = False) -> int:
        """How many of the first `size` bytes of `data` may be passed on; `held` must have been put before them.

        Fewer than `size`: the rest is held, or there is a `fault`, or it came after a Close. With `stop`, no further
        than to the end of the message that is open (the rest was not looked at).
        """
        if self.closed:
            return 0
        at = self.left
        mask = self._mask
        fragmented = self.fragmented
        while at < size:  # hot: once a frame
            if stop and not fragmented:
                break
            kind = (_WITHIN if fragmented else _BETWEEN)[data[at]]
            if not kind:
                return self._broken(at, fragmented, "a reserved bit or opcode, or a message within another")
            if size - at < _HEAD:
                return self._hold(data, at, size, fragmented)
            head = _HEAD
            length = data[at + 1] ^ mask
            if length >= _SHORT:
                if length > _MEDIUM:
                    return self._broken(at, fragmented, "not masked" if mask else "masked")
                if kind >= _CONTROL:
                    return self._broken(at, fragmented, "a control frame of over 125 bytes")
                head, least = (_HEAD + 2, _SHORT) if length == _SHORT else (_HEAD + 8, 1 << 16)
                if size - at < head:
                    return self._hold(data, at, size, fragmented)
                length = int.from_bytes(data[at + _HEAD : at + head], "big")
                if length < least or length >> 63:
                    return self._broken(at, fragmented, "a length that is not minimal, or over 63 bits")
            if mask:
                head += _MASK_KEY
            if kind >= _CLOSING:
                return self._close(data, at, head, length, size, fragmented)
            if size - at < head:
                return self._hold(data, at, size, fragmented)
            if kind < _CONTROL:
                fragmented = kind == _PART
            at += head + length
        self.fragmented = fragmented
        self.left = at - size if at > size else 0
        self.held = b""
        return min(at, size)

    def _hold(self, data: bytes | bytearray | memoryview, at: int, size: int, fragmented: bool) -> int:  # noqa: FBT001
        self.fragmented = fragmented
        self.left = 0
        self.held = bytes(data[at:size])
        return at

    def _broken(self, at: int, fragmented: bool, fault: str) -> int:  # noqa: FBT001
        self.fragmented = fragmented
        self.left = 0
        self.held = b""
        self.fault = fault
        return at

    def _close(
        self,
        data: bytes | bytearray | memoryview,
        at: int,
        head: int,
        length: int,
        size: int,
        fragmented: bool,  # noqa: FBT001
    ) -> int:
        end = at + head + length
        if size < end:
            return self._hold(data, at, size, fragmented)
        payload = bytes(data[at + head : end])
        if self._mask:
            payload = _masked(payload, bytes(data[at + head - _MASK_KEY : at + head]))
        code, fault = _judge_close(payload)
        self.close_code = code
        if fault:
            return self._broken(at, fragmented, fault)
        self.fragmented = fragmented
        self.left = 0
        self.held = b""
        self.closed = True
        return end


def _judge_close(payload: bytes) -> tuple[int | None, str]:
    """The code of a Close frame, and what is wrong with the frame (RFC 6455 5.5.1, 7.4; IANA's registry of codes)."""
    if not payload:
        return None, ""
    if len(payload) < _CODE:
        return None, "a Close frame with half a code"
    code = int.from_bytes(payload[:_CODE], "big")
    # 1004 is reserved; 1005, 1006 and 1015 say what was never sent; below 3000 only registered codes may be sent.
    if not ((1000 <= code <= 1014 and code not in (1004, 1005, 1006)) or 3000 <= code <= 4999):  # noqa: PLR2004
        return code, "a Close frame with a code that may not be sent"
    try:
        payload[_CODE:].decode()
    except UnicodeDecodeError:
        return code, "a Close frame whose reason is not UTF-8"
    return code, ""


# --- frames of our own ------------------------------------------------------------------------------------------


def close(code: int, reason: str, mask: bytes | None = None) -> bytes:
    """A Close frame; `mask` is 4 fresh random bytes towards an upstream, None towards a client (RFC 6455 5.3).

    Raises:
        ValueError: the reason has over 123 bytes.
    """
    payload = struct.pack("!H", code) + reason.encode()
    if len(payload) > MAX_CONTROL_PAYLOAD:
        raise ValueError("a Close frame's reason has 123 bytes at most")
    return _frame(CLOSE, payload, mask)


def text(message: str, mask: bytes | None = None) -> bytes:
    """A text message of up to 65,535 bytes in one frame; `mask` as for `close`.

    Raises:
        ValueError: it is longer.
    """
    return _frame(TEXT, message.encode(), mask)


def _frame(opcode: int, payload: bytes, mask: bytes | None) -> bytes:
    bit = 0 if mask is None else _MASK
    if len(payload) < _SHORT:
        head = bytes((_FIN | opcode, bit | len(payload)))
    elif len(payload) < 1 << 16:
        head = struct.pack("!BBH", _FIN | opcode, bit | _SHORT, len(payload))
    else:
        raise ValueError("a frame of our own has 65,535 bytes at most")
    return head + payload if mask is None else head + mask + _masked(payload, mask)


def _masked(payload: bytes, mask: bytes) -> bytes:
    size = len(payload)
    key = int.from_bytes((mask * (size // _MASK_KEY + 1))[:size], "big")
    return (int.from_bytes(payload, "big") ^ key).to_bytes(size, "big")
