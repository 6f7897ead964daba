"""A chunked body: raw bytes in, its payload out, and where it ends to the byte (RFC 9112 7.1).

Rules of this file:
- What is not exactly the grammar is `BadChunks`: h11, and parsers that we don't know, forgive each their own.
- Lines are judged as their bytes come, each byte once, and none is kept: neither the pieces in which a body arrives nor
  a line that never ends cost anything, and a stray byte is told at once.
- Extensions and trailers are judged, counted and dropped: they are hop-by-hop, and a trailer is a header that comes
  after everything was decided by headers.
- The bytes after the body are not looked at.
"""

import enum
import re
from collections import deque
from dataclasses import dataclass
from typing import Final

from dgproxy.wire.fields import TOKEN, VALUE

MAX_SIZE_DIGITS: Final = 16  # of which the value must fit 63 bits, as a length must: nobody's parser may overflow
MAX_EXTENSION: Final = 1024  # bytes in one line, after the ';' (bad-inputs.md F18)
# Bytes over a whole body, or one byte of payload a line would carry 1 KiB of extension, for as long as its sender
# likes, and no limit that counts payload would see it. Nobody honest sends any; this is what trailers may have.
MAX_EXTENSIONS: Final = 8 * 1024
MAX_TRAILERS: Final = 8 * 1024  # bytes of all lines, with their ends (bad-inputs.md F19)


class BadChunks(Exception):  # noqa: N818
    """The body is not chunked as RFC 9112 7.1 says, or has too much besides payload. Says which, and quotes nothing."""


class _State(enum.Enum):
    SIZE = enum.auto()
    EXTENSION = enum.auto()
    SIZE_LF = enum.auto()
    DATA = enum.auto()
    DATA_CR = enum.auto()
    DATA_LF = enum.auto()
    TRAILER = enum.auto()  # the first byte of a trailer, or of the empty line
    NAME = enum.auto()
    VALUE = enum.auto()
    VALUE_LF = enum.auto()
    LAST_LF = enum.auto()
    END = enum.auto()


@dataclass(frozen=True, slots=True)
class _Part:
    """Part of a line: a run of bytes, how long it is, and what the byte behind it leads to; any other is a fault."""

    run: re.Pattern[bytes]
    then: dict[int, _State]
    fault: str
    least: int = 0
    most: int = 0


_CR, _LF, _SEMICOLON, _COLON = b"\r\n;:"
_NONE = re.compile(rb"")
_HEX = re.compile(rb"[0-9A-Fa-f]*+")
_EXTENSION = re.compile(rb"[\x20-\x7e\x80-\xff]*+")
_TOKEN = re.compile(TOKEN + rb"*+")
_VALUE = re.compile(VALUE + rb"*+")
_S = _State

_GRAMMAR: Final = {
    _S.SIZE: _Part(
        _HEX, {_SEMICOLON: _S.EXTENSION, _CR: _S.SIZE_LF}, "malformed chunk size", least=1, most=MAX_SIZE_DIGITS
    ),
    _S.EXTENSION: _Part(_EXTENSION, {_CR: _S.SIZE_LF}, "malformed or oversized chunk extension", most=MAX_EXTENSION),
    _S.SIZE_LF: _Part(_NONE, {_LF: _S.DATA}, "malformed chunk size"),
    _S.DATA_CR: _Part(_NONE, {_CR: _S.DATA_LF}, "chunk longer than its size"),
    _S.DATA_LF: _Part(_NONE, {_LF: _S.SIZE}, "chunk longer than its size"),
    _S.NAME: _Part(_TOKEN, {_COLON: _S.VALUE}, "malformed trailer", least=1, most=MAX_TRAILERS),
    _S.VALUE: _Part(_VALUE, {_CR: _S.VALUE_LF}, "malformed trailer", most=MAX_TRAILERS),
    _S.VALUE_LF: _Part(_NONE, {_LF: _S.TRAILER}, "malformed trailer"),
    _S.LAST_LF: _Part(_NONE, {_LF: _S.END}, "malformed end of the body"),
}
_IN_TRAILERS = frozenset({_S.NAME, _S.VALUE, _S.VALUE_LF})


class Chunked:
    """Reads one chunked body: `feed` it, then `read` until None; `ended` says whether that was all."""

    def __init__(self) -> None:
        self._state = _S.SIZE
        self._fed: deque[bytes] = deque()
        self._data = b""  # of what was fed, the piece that is being read
        self._at = 0
        self._run = 0  # bytes so far of the part of a line that is being read
        self._digits = b""
        self._left = 0  # bytes of the chunk that are still to come
        self._extensions = 0
        self._trailers = 0

    def feed(self, data: bytes) -> None:
        """The next bytes, of the body and perhaps of what follows it."""
        if data:
            self._fed.append(data)

    def read(self) -> bytes | None:
        """More of the payload, never empty; None at the end, or when more must be fed.

        Raises:
            BadChunks: the body breaks its framing, however often it is asked.
        """
        while self._state is not _S.END:
            if self._at == len(self._data):
                self._data, self._at = (self._fed.popleft() if self._fed else b""), 0
                if not self._data:
                    return None
            if self._state is _S.DATA:
                return self._payload()
            if self._state is _S.TRAILER:
                self._trailer()
            else:
                self._part(_GRAMMAR[self._state])
        return None

    @property
    def ended(self) -> bool:
        """Whether the body was read to its end."""
        return self._state is _S.END

    def rest(self) -> bytes:
        """What was fed and not read: once it has ended, the bytes after it."""
        return self._data[self._at :] + b"".join(self._fed)

    def _payload(self) -> bytes:
        piece = self._data[self._at : self._at + self._left]
        self._at += len(piece)
        self._left -= len(piece)
        if not self._left:
            self._state = _S.DATA_CR
        return piece

    def _trailer(self) -> None:
        """A trailer begins, or the empty line."""
        if self._data[self._at] == _CR:
            self._at += 1
            self._state = _S.LAST_LF
        else:
            self._state = _S.NAME

    def _part(self, part: _Part) -> None:
        """As much as there is of one part of a line, and the byte behind it."""
        data, start = self._data, self._at
        match = part.run.match(data, start)
        assert match is not None  # noqa: S101 - an empty run matches everywhere
        end = match.end()
        run = self._run + end - start
        if run > part.most:
            raise BadChunks(part.fault)
        if end == len(data):  # more of it may come
            self._count(data[start:end], end - start)
            self._at, self._run = end, run
            return
        then = part.then.get(data[end])
        if then is None or run < part.least:
            raise BadChunks(part.fault)
        self._count(data[start:end], end + 1 - start)
        self._at, self._run = end + 1, 0
        self._enter(then)

    def _count(self, run: bytes, size: int) -> None:
        """What is kept of a part, or counted: its run, and its size with the byte behind it. Or it is too much."""
        if self._state is _S.SIZE:
            digits = self._digits + run
            if digits and int(digits, 16) >> 63:
                raise BadChunks("oversized chunk")
            self._digits = digits
        elif self._state is _S.EXTENSION:
            if self._extensions + len(run) > MAX_EXTENSIONS:
                raise BadChunks("too many chunk extensions")
            self._extensions += len(run)
        elif self._state in _IN_TRAILERS:
            if self._trailers + size > MAX_TRAILERS:
                raise BadChunks("oversized trailers")
            self._trailers += size

    def _enter(self, state: _State) -> None:
        if state is _S.DATA:
            self._left = int(self._digits, 16)
            self._digits = b""
            if not self._left:
                state = _S.TRAILER
        self._state = state
