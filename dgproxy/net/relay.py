"""The pump: both directions of an open stream, bytes as they come.

Rules of this file:
- Hot: per event one read and one send, no allocation that can be avoided, no log, lock or await; exceptions only
where a socket would block.
- One buffer serves all streams of a worker, since nothing is left in it between events: what can't be sent at once is
  copied into the direction's one pending slot, and its source is not read until that is gone (backpressure).
- After OpenSSL has said "want write", exactly the same bytes are offered again (else BAD_LENGTH); so the slot only
  shrinks from the front.
- An end of stream passes on as a half-close, after all that came before it. A source that breaks ends both directions;
  a sink that refuses ends its own, so that its last words, which may be on their way, are still read.
- Of a connection that was reset, libuv tells once and then polls it no more, even if bytes are left to read. So a sink
  that refuses has its other direction drained, and a stream on which nothing moves is looked at each second (check).

Read once per event: a read shorter than the buffer has emptied the socket, and the buffer holds four TLS records.
"""

import asyncio
import enum
from collections.abc import Callable
from typing import Final

from dgproxy.net.endpoint import CHUNK, Endpoint
from dgproxy.net.tls import WOULD_BLOCK, Ended


class Side(enum.StrEnum):
    """Which peer did something."""

    DOWNSTREAM = "client"
    UPSTREAM = "upstream"


class Ending(enum.Enum):
    """How a direction ended."""

    PASSED_ON = enum.auto()  # the source's end of stream, after all that came before it
    LOST = enum.auto()  # the source broke
    REFUSED = enum.auto()  # the sink takes no more


class Direction:
    """One way of a relay: what `source` sends goes to `sink`."""

    __slots__ = (
        "_buffer",
        "_ended",
        "_loop",
        "_on_end",
        "_paused",
        "_pending",
        "_read",
        "_send",
        "_sink",
        "_source",
        "_view",
        "count",
        "done",
        "side",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        source: Endpoint,
        sink: Endpoint,
        side: Side,
        buffer: bytearray,
        on_end: "Callable[[Direction, Ending], None]",
    ) -> None:
        self._loop = loop
        self._source = source
        self._sink = sink
        self._buffer = buffer
        self._view = memoryview(buffer)
        self._read = source.reader(buffer)
        self._send = sink.sender()
        self._pending: memoryview | None = None
        self._paused = True
        self._ended = False  # the source's end of stream was read
        self._on_end = on_end
        self.side: Final = side  # the source's
        self.count = 0  # bytes taken from the source
        self.done = False  # and passed on

    def start(self, early: bytes) -> None:
        """Begins with bytes that were read before the relay took over."""
        if early:
            self.count += len(early)
            self._pass_on(memoryview(early))
        if self._source.ended:
            self._end_of_stream()
        elif self._pending is None and not self.done:
            self._resume()

    def stop(self) -> None:
        """Leaves nothing in the loop."""
        self._loop.remove_reader(self._source.fd)
        self._loop.remove_writer(self._sink.fd)
        self._paused = True
        self._pending = None
        self.done = True

    @property
    def heard_end(self) -> bool:
        """Whether the source's end of stream was read."""
        return self._ended

    def drain(self) -> None:
        """Reads all that a source which is dead has left (see the rules on resets)."""
        before = -1
        while not self.done and not self._paused and self.count != before:
            before = self.count
            self._on_readable()

    def drain_if_dead(self) -> None:
        """drain(), if the source's connection was reset."""
        if not self.done and not self._paused and self._source.reset:
            self.drain()

    def _on_readable(self) -> None:  # hot: see bench/streams
        try:
            size = self._read()
        except WOULD_BLOCK:
            return
        except Ended:
            size = 0
        except OSError:
            self._lost()
            return
        if not size:
            self._end_of_stream()
            return
        self.count += size
        view = self._view[:size]
        try:
            sent = self._send(view)
        except WOULD_BLOCK:
            sent = 0
        except OSError:
            self._refused()
            return
        if sent != size:
            self._pass_on(view[sent:])

    def _pass_on(self, rest: memoryview) -> None:
        """Sends until all is gone or the sink takes no more; then keeps a copy and stops reading."""
        while rest:
            try:
                rest = rest[self._send(rest) :]
            except WOULD_BLOCK:
                self._pending = memoryview(bytes(rest))
                self._pause()
                self._loop.add_writer(self._sink.fd, self._on_writable)
                return
            except OSError:
                self._refused()
                return

    def _on_writable(self) -> None:
        rest = self._pending
        while rest:
            try:
                rest = rest[self._send(rest) :]
            except WOULD_BLOCK:
                self._pending = rest
                return
            except OSError:
                self._refused()
                return
        self._pending = None
        self._loop.remove_writer(self._sink.fd)
        if self._ended:
            self._finish()
        else:
            self._resume()

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            self._loop.add_reader(self._source.fd, self._on_readable)

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            self._loop.remove_reader(self._source.fd)

    def _end_of_stream(self) -> None:
        self._ended = True
        self._pause()
        if self._pending is None:
            self._finish()

    def _finish(self) -> None:
        """Everything has been passed on: so has the end."""
        if self.done:
            return
        try:
            readable = self._sink.half_close()
        except WOULD_BLOCK:  # a full socket takes no close_notify either
            self._loop.add_writer(self._sink.fd, self._on_writable)
            return
        self.done = True
        self._on_end(self, Ending.PASSED_ON if readable else Ending.REFUSED)

    def _lost(self) -> None:
        """The source broke: nothing of it is left to read."""
        if not self.done:
            self.done = True
            self._on_end(self, Ending.LOST)

    def _refused(self) -> None:
        """The sink takes no more; what it has sent may still be on its way, so only this direction ends."""
        if not self.done:
            self.done = True
            self._pause()
            self._pending = None
            self._loop.remove_writer(self._sink.fd)
            self._on_end(self, Ending.REFUSED)


class Relay:
    """Both directions. `on_end` is called once: with the side that broke, or None after both ended in good order."""

    __slots__ = ("_broken", "_on_end", "_over", "down", "up")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        downstream: Endpoint,
        upstream: Endpoint,
        buffer: bytearray,
        on_end: Callable[[Side | None], None],
    ) -> None:
        """`buffer` has CHUNK bytes and may be shared by all relays of a loop."""
        self._on_end = on_end
        self._over = False
        self._broken: Side | None = None  # who refused bytes while its own were still awaited
        self.up: Final = Direction(loop, downstream, upstream, Side.DOWNSTREAM, buffer, self._ended)
        self.down: Final = Direction(loop, upstream, downstream, Side.UPSTREAM, buffer, self._ended)

    def start(self, from_downstream: bytes, from_upstream: bytes) -> None:
        """Begins to pump, with what either side had sent before."""
        self.down.start(from_upstream)
        if not self._over:
            self.up.start(from_downstream)

    def stop(self) -> None:
        """Leaves nothing in the loop; on_end is not called any more."""
        self._over = True
        self.up.stop()
        self.down.stop()

    def check(self) -> None:
        """Ends what died unnoticed (see the rules on resets); for a stream on which nothing has moved for a while."""
        self.up.drain_if_dead()
        if not self._over:
            self.down.drain_if_dead()

    @property
    def progress(self) -> int:
        """Bytes taken so far, both ways: as long as it rises, the stream lives."""
        return self.up.count + self.down.count

    def _ended(self, direction: Direction, ending: Ending) -> None:
        if self._over:
            return
        both = self.up.done and self.down.done
        if ending is Ending.REFUSED and not both:
            self._broken = _other(direction.side)
            opposite = self.down if direction is self.up else self.up
            opposite.drain()
            return
        if both or ending is Ending.LOST:
            self.stop()
            # Whoever was told the end and then drops the connection, as most clients do, has broken nothing.
            self._on_end(self._broken if both else direction.side)


def _other(side: Side) -> Side:
    return Side.UPSTREAM if side is Side.DOWNSTREAM else Side.DOWNSTREAM


def make_buffer() -> bytearray:
    """The buffer that the relays of one loop share."""
    return bytearray(CHUNK)
