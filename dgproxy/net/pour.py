"""Most of a body of known length, poured from one endpoint into another by the relay's pump.

Between plain sockets it is spliced (net.splice).

Rules of this file:
- Nobody looks at what is poured. So it is used only up to a point from which on a whole event's bytes are still the
  body's; whoever pours deals with the last ones, and with all that was read before.
- While it pours, both fds are driven from here: nothing else may read the source or write to the sink. It ends by
  itself when either is closed.
- As in the relay, what the sink does not take at once is kept, and the source not read until it is gone.
"""

import asyncio
import enum
from typing import Final

from dgproxy.net import pump
from dgproxy.net.endpoint import CHUNK, Endpoint
from dgproxy.net.pipes import SPAN, Pipe, Pipes
from dgproxy.net.splice import Splicer
from dgproxy.net.tls import WOULD_BLOCK
from dgproxy.wire.frames import Tracker

AN_EVENT: Final = max(4 * CHUNK, SPAN)  # bytes that a pump passes on in one event at most: ROUNDS in _pump.c, or a pipe
_ENDLESS: Final = 1 << 62  # to the pump's tracker, all of it is the payload of one frame


class Poured(enum.Enum):
    """Why no more is poured."""

    ENOUGH = enum.auto()
    LOST = enum.auto()  # the source ended or broke, or one of the two was closed
    REFUSED = enum.auto()  # the sink takes no more


class Pour:
    """Pours at least `least` bytes, and at most AN_EVENT more; `count` says how many, what the sink waits for included.

    The source must hold nothing that was read ahead (`Endpoint.release`).
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        source: Endpoint,
        sink: Endpoint,
        buffer: bytearray,
        least: int,
        pipes: Pipes | None = None,
        form: pump.Form | None = None,
    ) -> None:
        """`buffer` has CHUNK bytes and may be that of the relays, as the pipes may, through which plain bodies go."""
        self._loop = loop
        self._source = source
        self._sink = sink
        self._send = sink.sender()
        self._view = memoryview(buffer)
        self._least = least
        self._kept: memoryview | Pipe | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._outcome: Poured | None = None
        tracker = Tracker(masked=False)
        tracker.left = _ENDLESS
        self._pipes = pipes
        self._pump: pump.Pump = pump.make(form or pump.form(), source, sink, buffer, tracker, self)
        if not (pipes is None or source.secure or sink.secure):
            self._pump = Splicer(self._pump, source, sink, tracker, self, pipes)
        if source.closed or sink.closed:
            self._end(Poured.LOST)
        else:
            source.lend(self._lose)
            sink.lend(self._lose)
            self._resume()

    @property
    def count(self) -> int:
        """Bytes of the source so far."""
        return self._pump.count

    @property
    def blocked(self) -> bool:
        """Whether it is the sink that is waited for."""
        return self._kept is not None

    async def wait(self, seconds: float) -> Poured | None:
        """Waits for the end, so many seconds at most; None if it still pours."""
        if self._outcome is None:
            self._waiter = self._loop.create_future()
            timer = self._loop.call_later(seconds, self._wake)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None
        if self._outcome is None and self._source.reset:  # of which libuv may have told while nobody listened
            self._end(Poured.LOST)
        return self._outcome

    def close(self) -> None:
        """Pours no more, and leaves nothing in the loop; may be called twice."""
        if self._outcome is None:
            self._end(Poured.LOST)

    # --- the pump's handler -----------------------------------------------------------------------------------------

    def end_of_stream(self) -> None:
        """A body that ends before its length."""
        self._end(Poured.LOST)

    def lost(self) -> None:
        """The source broke."""
        self._end(Poured.LOST)

    def refused(self) -> None:
        """The sink takes no more; what it has sent may still be on its way."""
        self._end(Poured.REFUSED)

    def judge(self, size: int) -> None:
        """Never: to the tracker no frame ends."""
        raise AssertionError(size)

    def part(self, size: int) -> None:
        """Never, likewise."""
        raise AssertionError(size)

    def keep(self, at: int, size: int) -> None:
        """Bytes that the sink does not take now."""
        self._wait_with(memoryview(bytes(self._view[at:size])))

    def keep_pipe(self, pipe: Pipe) -> None:
        """A pipe whose bytes the sink does not take now."""
        self._wait_with(pipe)

    def _wait_with(self, rest: memoryview | Pipe) -> None:
        self._kept = rest
        self._source.call_when_readable(None)
        self._sink.call_when_writable(self._on_writable)
        self._sink.waits(len(rest))

    def again(self) -> None:
        """There is more of which no poll would tell."""
        self._loop.call_soon(self._on_again)

    # --- the loop ---------------------------------------------------------------------------------------------------

    def _resume(self) -> None:
        self._source.call_when_readable(self._on_readable)
        if self._pump.pending():
            self.again()

    def _on_again(self) -> None:
        if self._outcome is None and self._kept is None:
            self._on_readable()

    def _on_readable(self) -> None:
        self._pump.run()
        if self._outcome is None and self._kept is None and self._pump.count >= self._least:
            self._end(Poured.ENOUGH)

    def _on_writable(self) -> None:
        kept = self._kept
        assert kept is not None  # noqa: S101 - what it was called for
        before = len(kept)
        try:
            while kept:
                if isinstance(kept, Pipe):
                    assert self._pipes is not None  # noqa: S101 - where it came from
                    self._kept = kept = self._pipes.emptied(kept, self._sink.fd)
                else:
                    kept = kept[self._send(kept) :]
        except WOULD_BLOCK:
            self._kept = kept
            self._sink.waits(len(kept) - before)
            return
        except OSError:
            self.refused()
            return
        self._sink.waits(-before)
        self._kept = None
        self._sink.call_when_writable(None)
        if self._pump.count >= self._least:
            self._end(Poured.ENOUGH)
        else:
            self._resume()

    def _lose(self) -> None:
        """One of the two is being closed, and its fd will be another's."""
        self._end(Poured.LOST)

    def _end(self, outcome: Poured) -> None:
        if self._outcome is not None:
            return
        self._outcome = outcome
        self._pump.stop()
        if not self._source.closed:  # else its number may be another's already
            self._source.call_when_readable(None)
            self._source.lend(None)
        if not self._sink.closed:
            self._sink.call_when_writable(None)
            self._sink.lend(None)
            if self._kept is not None:
                self._sink.waits(-len(self._kept))
        if isinstance(self._kept, Pipe) and self._pipes is not None:
            self._pipes.give_back(self._kept)
        self._kept = None
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
