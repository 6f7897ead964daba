"""Pipes of the kernel's, through which bytes go from one plain socket to another without being copied (splice(2)).

Rules of this file:
- A pipe is filled only when it is empty, and goes back to the pool only when it is empty, by our own count and by the
  kernel's: one that holds bytes is closed. What one client sent must never reach another.
- A pipe is held only while bytes are in it. So few serve a whole worker; where none is to be had, bytes are copied.
- splice(2) is believed when it says how many bytes it moved, that there are none now, or that the connection broke.
  All else (an end, urgent data before which it stops for good, a kernel that can't) is for an ordinary read to tell.
- Never SPLICE_F_MORE: what was moved would wait in the kernel for what may not come.
"""

import errno
import fcntl
import os
import termios
from typing import Final

SPAN: Final = 256 * 1024  # bytes that a pipe is asked to hold, 64 pages (default: 16); measured: see LEAST
MOST: Final = 16  # pipes of a worker: 4 MiB of what a user's pipes may hold (pipe-user-pages-soft, pipe(7): 64 MiB)
# Bytes still to come of one payload or body from which on splicing pays. Measured over loopback: CPU of a frame whose
# head is peeked at, against the native pump, one at a time / back to back. 3,200 bytes: 1.1 / 1.7 times; 16,000: 1.1 /
# 1.8; 65,536: 0.8 / 1.0 to 1.4; 100,000: 0.8 / 0.7; 131,072: 0.8 / 0.6; 262,144: 0.6 / 0.6; 1 MiB: 0.7 / 0.4.
# With pipes of 64 KiB, each of whose 16 pages takes one of the socket's, next to nothing is won at any size.
LEAST: Final = 96 * 1024
BULK: Final = 32 * 1024  # bytes that came at once, from which on more than that may be expected of the next time

_BARRED: Final = 1000  # times that no pipe is asked for after one could not be had
_FLAGS: Final = getattr(os, "SPLICE_F_MOVE", 0) | getattr(os, "SPLICE_F_NONBLOCK", 0)
_CANNOT: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ENOMEM, errno.EOPNOTSUPP})
_NONE: Final = bytes(4)  # an int of 0, as ioctl gives it
ABLE: Final = hasattr(os, "splice")  # not with every libc


def unable(error: OSError) -> bool:
    """Whether it says that these can't be spliced, and nothing of the connection."""
    return error.errno in _CANNOT


class Pipe:
    """A pipe, and how many bytes are in it."""

    __slots__ = ("_in", "_out", "_size")

    def __init__(self, span: int) -> None:
        """Raises OSError: there is none to be had that holds `span` bytes."""
        self._size = 0
        self._out, self._in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, span)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return self._size

    def fill(self, fd: int, most: int) -> None:
        """Moves in what a socket has, once; it must be empty.

        Raises:
            BlockingIOError: the socket has nothing that can be moved.
            OSError: it broke, or it is as `unable` says.
        """
        self._size = os.splice(fd, self._in, most, flags=_FLAGS)

    def pour(self, fd: int) -> None:
        """Moves all of it to a socket.

        Raises:
            BlockingIOError: the socket takes no more of it now.
            OSError: it broke, or it is as `unable` says.
        """
        while self._size:
            self._size -= os.splice(self._out, fd, self._size, flags=_FLAGS)

    def take(self) -> bytes:
        """All of it, copied after all."""
        data = b""
        while len(data) < self._size:
            data += os.read(self._out, self._size - len(data))
        self._size = 0
        return data

    @property
    def untouched(self) -> bool:
        """Whether it is empty, for the kernel too."""
        if self._size:
            return False
        return fcntl.ioctl(self._out, termios.FIONREAD, _NONE) == _NONE

    def close(self) -> None:
        """Ends it with all that is in it; may be called twice."""
        fds, self._in, self._out = (self._in, self._out), -1, -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)


class Pipes:
    """A worker's. Whoever gets a pipe gives it back, empty or not, once."""

    __slots__ = ("_barred", "_idle", "_most", "_open", "_span", "bulk", "least")

    def __init__(self, *, most: int = MOST, span: int = SPAN, least: int = LEAST, bulk: int = BULK) -> None:
        """At most `most` pipes of `span` bytes; `least` and `bulk` are for those who ask themselves whether it pays."""
        self._idle: list[Pipe] = []
        self._open = 0
        self._most = most if ABLE else 0
        self._span = span
        self._barred = 0
        self.least: Final = least
        self.bulk: Final = bulk

    def filled(self, fd: int, most: int) -> Pipe | None:
        """A pipe with what a plain socket has, `most` bytes at most; None: it has to be read, which tells more.

        Raises:
            BlockingIOError: it has nothing that can be moved.
            OSError: it broke, of which no read would tell again.
        """
        pipe = self._take()
        if pipe is None:
            return None
        try:
            pipe.fill(fd, min(most, self._span))
        except OSError as error:
            if not unable(error):
                raise
        finally:
            if not pipe:
                self.give_back(pipe)
        return pipe or None

    def give_back(self, pipe: Pipe) -> None:
        """Keeps it for the next one who asks, if it is empty."""
        if pipe.untouched:
            self._idle.append(pipe)
        else:
            self._open -= 1
            pipe.close()

    def emptied(self, pipe: Pipe, fd: int) -> memoryview:
        """Moves all of it to a socket and takes it back; what can't be spliced after all is copied out and yours.

        Raises:
            BlockingIOError: the socket takes no more of it now; the pipe is still yours.
            OSError: the socket broke; likewise.
        """
        rest = b""
        try:
            pipe.pour(fd)
        except OSError as error:
            if not unable(error):
                raise
            rest = pipe.take()
        self.give_back(pipe)
        return memoryview(rest)

    def close(self) -> None:
        """Ends those that nobody holds."""
        self._open -= len(self._idle)
        while self._idle:
            self._idle.pop().close()

    @property
    def open(self) -> int:
        """How many there are, in use or not."""
        return self._open

    @property
    def idle(self) -> int:
        """How many of them nobody holds."""
        return len(self._idle)

    def _take(self) -> Pipe | None:
        if self._idle:
            return self._idle.pop()
        if self._barred:
            self._barred -= 1
        elif self._open < self._most:
            try:
                pipe = Pipe(self._span)
            except OSError:  # no descriptor left, or no more pages for this user's pipes
                self._barred = _BARRED
                return None
            self._open += 1
            return pipe
        return None
