"""Bytes that go from one plain socket to another without being copied into this process (splice(2)).

Rules of this file:
- One pipe serves a whole process, since it is empty whenever `run` returns: what the sink does not take is read out of
  it and kept as bytes. A pipe that may hold bytes after a fault is closed, never used again: they are another client's.
- Only for plain sockets, and only where nobody looks at the bytes: a body, never frames.
- SPLICE_F_MORE is never set: it would have the kernel wait for more before it sends the end of a message.
"""

import errno
import os
from typing import Any, Final, Protocol

from dgproxy.net.endpoint import CHUNK, Endpoint

_FLAGS: Final = getattr(os, "SPLICE_F_MOVE", 0) | getattr(os, "SPLICE_F_NONBLOCK", 0)
_ROUNDS: Final = 4  # buffers an event at most: others have their turn


class Handler(Protocol):
    """What is told; see `net.pump`."""

    def end_of_stream(self) -> None:
        """The source has ended."""

    def lost(self) -> None:
        """The source broke."""

    def refused(self) -> None:
        """The sink takes no more."""

    def hold(self, rest: bytes) -> None:
        """Bytes that were counted, and that the sink does not take now."""


class _Pipe:
    """The process's pipe, made when first needed; None where there can't be one."""

    def __init__(self) -> None:
        self._ends: tuple[int, int] | None = None

    def ends(self) -> tuple[int, int] | None:
        """Its reading and its writing end; it is empty."""
        if self._ends is None:
            try:
                self._ends = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError:  # no descriptor left: bytes are copied then
                return None
        return self._ends

    def drop(self) -> None:
        """Bytes may be left in it: nobody uses it again."""
        if self._ends is not None:
            for end in self._ends:
                os.close(end)
            self._ends = None


PIPE: Final = _Pipe()


def possible(source: Endpoint, sink: Endpoint) -> bool:
    """Whether bytes of these two may be spliced."""
    return hasattr(os, "splice") and not source.secure and not sink.secure and PIPE.ends() is not None


class Splice:
    """A pump (`net.pump.Pump`) of bytes that nobody looks at."""

    __slots__ = ("_handler", "_sink", "_source", "count")

    def __init__(self, source: Endpoint, sink: Endpoint, handler: Handler) -> None:
        self._source = source.fd
        self._sink = sink.fd
        self._handler: Any = handler
        self.count = 0

    def run(self) -> bool:
        """Pumps what is there. Whether there may be more to read at once."""
        for _ in range(_ROUNDS):
            ends = PIPE.ends()
            if ends is None or self._source < 0:
                self._handler.lost()
                return False
            out, into = ends
            try:
                size = os.splice(self._source, into, CHUNK, flags=_FLAGS)
            except BlockingIOError:
                return False
            except OSError:
                self._handler.lost()
                return False
            if not size:
                self._handler.end_of_stream()
                return False
            self.count += size
            if not self._give(out, size):
                return True
        return True

    def _give(self, out: int, size: int) -> bool:
        """Empties the pipe. Whether the sink took it all."""
        left = size
        try:
            while left:
                left -= os.splice(out, self._sink, left, flags=_FLAGS)
        except BlockingIOError:
            rest = os.read(out, left)
            if len(rest) != left:  # it can't be; but nothing may be left in it
                PIPE.drop()
                raise OSError(errno.EIO, os.strerror(errno.EIO)) from None
            self._handler.hold(rest)
            return False
        except OSError:
            PIPE.drop()
            self._handler.refused()
            return False
        return True

    def pending(self) -> bool:
        """Never: the kernel tells of all that there is."""
        return False

    def stop(self) -> None:
        """Uses neither peer any more; may be called twice."""
        self._source = self._sink = -1
