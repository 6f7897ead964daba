"""A message's body: bytes in as they come, its payload out, and where it ends to the byte (RFC 9112 6).

Rules of this file: a piece that is payload throughout is handed on as it came, not copied; bytes after the end are
never looked at.
"""

import enum
from collections import deque
from typing import Final, Protocol

from dgproxy.wire.chunked import BadChunks, Chunked


class Event(enum.Enum):
    """What a body, or a half of an exchange, has to say when it has no bytes."""

    NEED_DATA = enum.auto()
    END = enum.auto()


NEED_DATA: Final = Event.NEED_DATA
END: Final = Event.END


class BadBody(Exception):  # noqa: N818
    """A body breaks its own framing, or ended before it was whole; nothing after it may be parsed."""


class _Reader(Protocol):
    """One framing."""

    def feed(self, data: bytes) -> None:
        """The next bytes; b"" is the end of the stream."""

    def read(self) -> bytes | None:
        """More of the payload, never empty; None at the end, or when more must be fed."""

    @property
    def ended(self) -> bool:
        """Whether it was read to its end."""

    def rest(self) -> bytes:
        """What was fed and not read."""


class _Sized:
    """So many bytes."""

    def __init__(self, size: int) -> None:
        self.left = size
        self._fed: deque[bytes] = deque()

    def feed(self, data: bytes) -> None:
        if data:
            self._fed.append(data)

    def read(self) -> bytes | None:
        if not self.left or not self._fed:
            return None
        data = self._fed.popleft()
        if len(data) > self.left:
            self._fed.appendleft(data[self.left :])
            data = data[: self.left]
        self.left -= len(data)
        return data

    @property
    def ended(self) -> bool:
        return not self.left

    def rest(self) -> bytes:
        return b"".join(self._fed)


class _ToTheEnd:
    """Whatever comes until the stream ends."""

    def __init__(self) -> None:
        self._fed: deque[bytes] = deque()
        self._closed = False

    def feed(self, data: bytes) -> None:
        if data:
            self._fed.append(data)
        else:
            self._closed = True

    def read(self) -> bytes | None:
        return self._fed.popleft() if self._fed else None

    @property
    def ended(self) -> bool:
        return self._closed and not self._fed

    def rest(self) -> bytes:
        return b"".join(self._fed)


class Body:
    """A body that is read: `feed` it, then `read` until it needs data or has ended."""

    def __init__(self, *, chunked: bool, length: int | None) -> None:
        """`length` in bytes; None, and not chunked: until the stream ends."""
        self._sized = _Sized(length) if length is not None and not chunked else None
        self._reader: _Reader = Chunked() if chunked else self._sized or _ToTheEnd()
        self._closed = False
        self.begun = False
        self.ended = False

    def feed(self, data: bytes) -> None:
        """Bytes of the body, and perhaps of what follows it; b"" is the end of the stream."""
        self._closed |= not data
        self._reader.feed(data)

    def read(self) -> bytes | Event:
        """The next bytes, NEED_DATA, or END (again and again). Trailers are dropped.

        Raises:
            BadBody: the framing is broken, or the stream ended before the body did; again and again.
        """
        if self.ended:
            return END
        try:
            piece = self._reader.read()
        except BadChunks as error:
            raise BadBody(str(error)) from error
        if piece is not None:
            self.begun = True
            return piece
        if self._reader.ended:
            self.ended = True
            return END
        if self._closed:
            raise BadBody("truncated body")
        return NEED_DATA

    @property
    def to_come(self) -> int:
        """Bytes that a body of known length still has, of which none was fed; 0 if some were, or it has none."""
        return self._sized.left if self._sized is not None and not self._sized.rest() else 0

    def skip(self, size: int) -> None:
        """So many bytes of those went past; at most `to_come`."""
        assert self._sized is not None  # noqa: S101
        assert size <= self._sized.left  # noqa: S101
        self._sized.left -= size

    def rest(self) -> bytes:
        """What was fed after the end."""
        return self._reader.rest()

    @property
    def last(self) -> bool:
        """Whether nothing came after the end, not even the end of the stream."""
        return self.ended and not self._closed and not self.rest()
