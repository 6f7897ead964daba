"""A pump that moves large payloads from one plain socket to the other without copying them (splice, see pipes).

Rules of this file:
- It is a copying pump of either form, in front of which stands one question: is so much of a payload to come that
  splicing pays? Only then, and only for bytes that belong to that payload and the heads before it, is it asked at all.
- Frames are judged by the tracker alone: inside a payload there is nothing to judge, and before one its head is peeked
  at, so that the tracker has seen it when it moves.
- The tracker, and the count, have what is in the pipe, as they have what a copying pump has read.

Towards the upstream only: what comes down passes the meter's tap, which reads it.
"""

import errno
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from dgproxy.net.endpoint import Endpoint
from dgproxy.net.pipes import Pipes, unable
from dgproxy.net.tls import WOULD_BLOCK
from dgproxy.wire.frames import MAX_HEAD, Tracker

if TYPE_CHECKING:
    from dgproxy.net.pump import Handler, Pump

_PEEK: Final = socket.MSG_PEEK


class Splicer:
    """One direction's inner loop, between plain sockets: a buffer, or a pipe, an event."""

    __slots__ = (
        "_copy",
        "_flow",
        "_handler",
        "_large",
        "_peek",
        "_pipes",
        "_sink",
        "_source",
        "_tracker",
    )

    def __init__(
        self,
        copy: "Pump",
        source: Endpoint,
        sink: Endpoint,
        tracker: Tracker,
        handler: "Handler",
        pipes: Pipes,
    ) -> None:
        """`copy`: the pump of these two for all else."""
        self._copy = copy
        self._source = source.fd
        self._sink = sink.fd
        self._peek: Callable[[int, int], bytes] = source.sock.recv
        self._tracker = tracker
        self._handler = handler
        self._pipes = pipes
        self._flow = 0  # bytes of the last event, or a trace of those before
        self._large = False  # the last payload was spliced

    @property
    def count(self) -> int:
        """Bytes of the source that were passed on."""
        return self._copy.count

    @count.setter
    def count(self, count: int) -> None:
        self._copy.count = count

    def run(self) -> bool:  # hot: see bench/streams
        """Pumps what is there. Whether there may be more to read at once."""
        tracker = self._tracker
        left = tracker.left
        flow = self._flow
        if flow >= self._pipes.bulk:
            if left >= self._pipes.least or (left and self._large):
                return self._splice(left, fragmented=tracker.fragmented)
            if not left and (self._large or flow >= self._pipes.least) and not (tracker.held or tracker.closed):
                return self._splice_frame()
        return self._run_copy()

    def _run_copy(self) -> bool:
        copy = self._copy
        before = copy.count
        more = copy.run()
        self._flow = max(copy.count - before, self._flow // 2)
        return more

    def _splice_frame(self) -> bool:
        """At a boundary: the next frame, if it is large."""
        try:
            head = self._peek(MAX_HEAD, _PEEK)
        except WOULD_BLOCK:
            return self._run_copy()
        except OSError:
            self._handler.lost()
            return False
        tracker = self._tracker
        ahead = Tracker(masked=tracker.masked)
        ahead.fragmented = tracker.fragmented
        if not head or ahead.scan(head, len(head)) < len(head) or ahead.left < self._pipes.least:
            self._large = False
            return self._run_copy()
        return self._splice(len(head) + ahead.left, fragmented=ahead.fragmented)

    def _splice(self, left: int, *, fragmented: bool) -> bool:
        """So many bytes until the payload's end may pass, and are in the middle of a frame until then."""
        pipes = self._pipes
        try:
            pipe = pipes.filled(self._source, left)
        except WOULD_BLOCK:  # or there is urgent data, for which the loop would call us for ever
            return self._run_copy()
        except OSError:
            self._handler.lost()
            return False
        if pipe is None:
            self._large = False
            return self._run_copy()
        size = len(pipe)
        tracker = self._tracker
        tracker.fragmented = fragmented
        tracker.left = left - size
        self._large = True
        self._flow = max(size, self._flow // 2)
        self._copy.count += size
        try:
            pipe.pour(self._sink)
        except OSError as error:
            if isinstance(error, WOULD_BLOCK) or unable(error):
                self._handler.keep_pipe(pipe)
            else:
                pipes.give_back(pipe)
                self._handler.refused()
            return True
        pipes.give_back(pipe)
        return True

    def pending(self) -> bool:
        """Never: plain sockets hold nothing back."""
        return self._copy.pending()

    def stop(self) -> None:
        """Uses neither peer any more; may be called twice."""
        self._copy.stop()
        self._source = self._sink = -1
        self._flow = 0
        self._peek = _nothing_more


def _nothing_more(_size: int, _flags: int) -> bytes:
    raise OSError(errno.EBADF, os.strerror(errno.EBADF))
