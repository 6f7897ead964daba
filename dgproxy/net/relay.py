"""The pump: both directions of an open stream, bytes as they come.

Rules of this file:
- Hot: per event one read, one look at the frames that begin in it, one send; no allocation that can be avoided, no log,
  lock or await; exceptions only where a socket would block.
- One buffer serves all streams of a worker, since nothing is left in it between events: what can't be sent at once is
  copied into the direction's one pending slot, and its source is not read until that is gone (backpressure).
- What the sink does not take of a pipe (splice) stays in the pipe, likewise pending, and counts as much.
- After OpenSSL has said "want write", exactly the same bytes are offered again (else BAD_LENGTH); so the slot only
  shrinks from the front, and a frame of our own waits behind it.
- A frame of our own goes between two frames, or between two messages; then nothing more of the source is passed on.
  Where that place does not come, or the sink does not take it, whoever asked for it must abort (finish, stuck).
- An end of stream passes on as a half-close, after all that came before it. A source that breaks ends both directions;
  a sink that refuses ends its own, so that its last words, which may be on their way, are still read.
- Of a connection that was reset, libuv tells once and then polls it no more, even if bytes are left to read. So a sink
  that refuses has its other direction drained, and a stream on which nothing moves is looked at each second (check):
  a client that is gone is then not waited for, though bytes of its own wait for an upstream that does not take them.

Read once per event: a read shorter than the buffer has emptied the socket, and the buffer holds four TLS records.
"""

import asyncio
import enum
from collections.abc import Callable
from typing import Final

from dgproxy.net import pump
from dgproxy.net.budget import Budget
from dgproxy.net.endpoint import CHUNK, Endpoint
from dgproxy.net.pipes import Pipe, Pipes
from dgproxy.net.splice import Splicer
from dgproxy.net.tls import WOULD_BLOCK, Ended
from dgproxy.wire.frames import Tracker

_DRY: Final = -1  # a read that would have blocked


class Side(enum.StrEnum):
    """Which peer did something."""

    DOWNSTREAM = "client"
    UPSTREAM = "upstream"


class Ending(enum.Enum):
    """How a direction ended."""

    PASSED_ON = enum.auto()  # the source's end of stream, after all that came before it
    FINISHED = enum.auto()  # with a frame of our own
    LOST = enum.auto()  # the source broke
    REFUSED = enum.auto()  # the sink takes no more


class Direction:
    """One way of a relay: what `source` sends goes to `sink`."""

    __slots__ = (
        "_behind",
        "_budget",
        "_closing",
        "_ended",
        "_finish",
        "_loop",
        "_on_end",
        "_on_fault",
        "_on_source",
        "_paused",
        "_pending",
        "_pipes",
        "_pump",
        "_read",
        "_send",
        "_shut",
        "_sink",
        "_source",
        "_taken",
        "_view",
        "done",
        "finished",
        "side",
        "tracker",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        source: Endpoint,
        sink: Endpoint,
        side: Side,
        buffer: bytearray,
        budget: Budget,
        form: pump.Form,
        on_end: "Callable[[Direction, Ending], None]",
        on_fault: "Callable[[Direction], None]",
        pipes: Pipes | None = None,
    ) -> None:
        """`pipes`: for what may be spliced."""
        self._loop = loop
        self._source = source
        self._sink = sink
        self._view = memoryview(buffer)
        self._read = source.reader(buffer)
        self._send = sink.sender()
        self._budget = budget
        self._taken = 0  # of the budget
        self._pending: memoryview | Pipe | None = None
        self._pipes = pipes
        self._behind: bytes | None = None  # a frame of our own, to follow what is pending
        self._finish: tuple[bytes, bool] | None = None  # a frame of our own, and whether it may part a message
        self._closing = False  # nothing but a frame of our own is still to be sent
        self.side: Final = side  # the source's
        self.tracker: Final = Tracker(masked=side is Side.DOWNSTREAM)
        self._pump: pump.Pump = pump.make(form, source, sink, buffer, self.tracker, self)
        self._on_source: Callable[[], bool] = self._pump.run
        self._paused = True
        self._ended = False  # the source's end of stream was read
        self._shut = False  # nothing more can be sent
        self._on_end = on_end
        self._on_fault = on_fault
        self.done = False  # nothing more of the source is passed on
        self.finished = False  # a frame of our own was the last that the sink's kernel took

    def start(self, early: bytes) -> None:
        """Begins with bytes that were read before the relay took over."""
        if early and not self.done:
            self._arrived(early)
        if self.done:
            return
        if self._source.ended:
            self.end_of_stream()
        elif self._pending is None:
            self._resume()
            if self._source.secure:
                self.again()  # a read that finds nothing has OpenSSL let go of 12 KiB, which an idle stream would keep

    def stop(self) -> None:
        """Leaves nothing in the loop."""
        self._source.call_when_readable(None)
        self._sink.call_when_writable(None)
        self._paused = True
        self._pump.stop()
        self._forget_pending()
        self.done = True
        self._shut = True

    def finish(self, frame: bytes, *, between_messages: bool) -> None:
        """Passes on no more than to the next place for a frame of our own, then that frame.

        One that waits for the end of a message may be overtaken by one that need not.
        `finished` is set, and on_end called, when the sink's kernel has taken it; until then there is no bound.
        """
        if self._shut or self._closing:
            return
        tracker = self.tracker
        if tracker.closed:
            self._close_with(b"")  # nothing may follow the source's own Close
        elif tracker.between_messages or (tracker.between_frames and not between_messages):
            self._close_with(frame)
        elif not self.done:
            self._finish = (frame, between_messages)
            self._listen_with(self._on_readable_to_the_end)

    def expect_bulk(self) -> None:
        """So much has come that large payloads are to be spliced from here on, where both sides are plain.

        Not before: the question costs each event a microsecond, and speech comes in small frames.
        """
        copy, pipes = self._pump, self._pipes
        if pipes is None or isinstance(copy, Splicer) or self._source.secure or self._sink.secure or self.done:
            return
        self._pump = Splicer(copy, self._source, self._sink, self.tracker, self, pipes)
        if self._on_source == copy.run:
            self._listen_with(self._pump.run)

    @property
    def count(self) -> int:
        """Bytes of the source that were passed on."""
        return self._pump.count

    @property
    def over(self) -> bool:
        """Whether nothing more will come of this direction."""
        return self._shut or (self.done and not self._closing)

    @property
    def heard_end(self) -> bool:
        """Whether the source's end of stream was read."""
        return self._ended

    @property
    def held(self) -> int:
        """Bytes that wait for the sink."""
        return self._taken

    @property
    def moved(self) -> int:
        """Bytes that the sink's kernel has taken."""
        return self.count - (0 if self._pending is None else len(self._pending))

    def drain(self) -> None:
        """Reads all that a source which is dead has left (see the rules on resets)."""
        while not self.done and not self._paused and self._on_source():
            pass

    def drain_if_dead(self) -> None:
        """drain(), if the source's connection was reset."""
        if not self._paused and self.dead:
            self.drain()

    @property
    def dead(self) -> bool:
        """Whether the source's connection was reset, with bytes left to read or to be taken by the sink."""
        return not self.done and self._source.reset

    # --- the source -------------------------------------------------------------------------------------------------

    def judge(self, size: int) -> None:
        """Bytes that may not all pass, of which the tracker has not seen any."""
        self._arrived(self.tracker.held + self._view[:size])

    def part(self, size: int) -> None:
        """What may pass before something that is held, or breaks the rules, or comes after a Close."""
        self._pass_part(self._view[:size])

    def keep(self, at: int, size: int) -> None:
        """Bytes that the sink does not take now."""
        self._keep(bytes(self._view[at:size]))

    def keep_pipe(self, pipe: Pipe) -> None:
        """A pipe whose bytes the sink does not take now."""
        self._wait_with(pipe)

    def again(self) -> None:
        """Has the source read from again, of which no poll would tell."""
        self._loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        if not self._paused and not self._shut:
            self._on_source()

    def _on_readable_to_the_end(self) -> bool:
        """Until a frame of our own may go in."""
        if (size := self._receive()) <= 0:
            return False
        assert self._finish is not None  # noqa: S101
        frame, between_messages = self._finish
        tracker = self.tracker
        data = tracker.held + self._view[:size]
        if between_messages:
            passed = tracker.scan(data, len(data), stop=True)
        else:
            passed = min(len(data), tracker.left)
            tracker.left -= passed
        self._pump.count += passed
        self._pass_on(memoryview(data)[:passed])
        if self._shut:
            return True
        if tracker.closed:
            self._close_with(b"")
        elif tracker.between_messages or (tracker.between_frames and not between_messages):
            self._close_with(frame)
        elif tracker.fault:
            self.lost()
        return True

    def _on_readable_after_close(self) -> bool:
        """Nothing counts after a Close but the end of the stream."""
        return self._receive() > 0

    def _receive(self) -> int:
        """Reads once, as `_on_readable` does; what there is to do about an end or a loss is done."""
        try:
            size = self._read()
        except WOULD_BLOCK:
            return _DRY
        except Ended:
            size = 0
        except OSError:
            self.lost()
            return _DRY
        if not size:
            self.end_of_stream()
        elif self._pump.pending():
            self.again()
        return size

    def _arrived(self, data: bytes) -> None:
        """Bytes with the beginning of a head before them, or from before the relay."""
        self._pass_part(memoryview(data)[: self.tracker.scan(data, len(data))])

    def _pass_part(self, view: memoryview) -> None:
        """What may pass before something that is held, or breaks the rules, or comes after a Close."""
        self._pump.count += len(view)
        self._pass_on(view)
        if self._shut:
            return
        if self.tracker.fault:
            self._pause()
            self.done = True
            self._on_fault(self)
        elif self.tracker.closed:
            self._listen_with(self._on_readable_after_close)

    def _listen_with(self, on_source: Callable[[], bool]) -> None:
        self._on_source = on_source
        if not self._paused:
            self._listen()

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            self._listen()

    def _listen(self) -> None:
        self._source.call_when_readable(self._on_source)
        if self._pump.pending():
            self.again()

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            self._source.call_when_readable(None)

    # --- the sink ---------------------------------------------------------------------------------------------------

    def _pass_on(self, rest: memoryview) -> bool:
        """Whether all is gone. What the sink does not take now is kept, and the source not read until it does."""
        while rest:
            try:
                rest = rest[self._send(rest) :]
            except WOULD_BLOCK:
                self._keep(bytes(rest))
                return False
            except OSError:
                self.refused()
                return False
        return True

    def _keep(self, rest: bytes) -> None:
        self._wait_with(memoryview(rest))

    def _wait_with(self, rest: memoryview | Pipe) -> None:
        self._taken = len(rest)
        self._pending = rest
        self._pause()
        self._sink.call_when_writable(self._on_writable)
        self._budget.take(self._taken)

    def _forget_pending(self) -> None:
        self._budget.give_back(self._taken)
        self._taken = 0
        if isinstance(self._pending, Pipe) and self._pipes is not None:
            self._pipes.give_back(self._pending)
        self._pending = None

    def _on_writable(self) -> None:
        rest = self._pending
        while rest:
            try:
                if isinstance(rest, Pipe):
                    assert self._pipes is not None  # noqa: S101 - where it came from
                    self._pending = rest = self._pipes.emptied(rest, self._sink.fd)
                else:
                    rest = rest[self._send(rest) :]
            except WOULD_BLOCK:
                self._pending = rest
                return
            except OSError:
                self.refused()
                return
        self._forget_pending()
        self._sink.call_when_writable(None)
        if self._behind is not None:
            behind, self._behind = self._behind, None
            self._close_with(behind)
        elif self._closing:
            self._finished()
        elif self._ended:
            self._half_close()
        else:
            self._resume()

    # --- ends -------------------------------------------------------------------------------------------------------

    def _close_with(self, frame: bytes) -> None:
        """Nothing more of the source passes; the frame, if any, goes out behind what is pending."""
        self._pause()
        self.done = True
        self._finish = None
        self._closing = True
        if self._pending is not None:
            self._behind = frame
            return
        if self._pass_on(memoryview(frame)):
            self._finished()

    def _finished(self) -> None:
        self.finished = True
        self._shut = True
        self._on_end(self, Ending.FINISHED)

    def end_of_stream(self) -> None:
        """The source has ended: so will the sink be told, after what is pending."""
        self._ended = True
        self._pause()
        if self._finish is not None:
            self.lost()  # the place for our frame will not come
        elif self._pending is None:
            self._half_close()

    def _half_close(self) -> None:
        """Everything has been passed on: so has the end."""
        if self.done:
            return
        try:
            readable = self._sink.half_close()
        except WOULD_BLOCK:  # a full socket takes no close_notify either
            self._sink.call_when_writable(self._on_writable)
            return
        self.done = True
        self._shut = True
        self._on_end(self, Ending.PASSED_ON if readable else Ending.REFUSED)

    def lost(self) -> None:
        """The source broke: nothing of it is left to read."""
        self._pause()
        self._finish = None
        if not self.done:
            self.done = True
            self._on_end(self, Ending.LOST)

    def refused(self) -> None:
        """The sink takes no more; what it has sent may still be on its way, so only this direction ends."""
        self._pause()
        self._forget_pending()
        self._sink.call_when_writable(None)
        self._behind = self._finish = None
        if not self._shut:
            self.done = True
            self._shut = True
            self._on_end(self, Ending.REFUSED)


class Relay:
    """Both directions, until their owner calls `stop`.

    `on_end` is called with the side that broke, or None after both ended in good order; or, once `finish` was called,
    with None when each direction has ended one way or another. `on_fault` is called with the side whose frames break
    the rules; the owner must call `finish` or `stop` before it returns from either with a side.
    """

    __slots__ = ("_asked", "_broken", "_finishing", "_on_end", "_on_fault", "_over", "down", "up")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        downstream: Endpoint,
        upstream: Endpoint,
        buffer: bytearray,
        budget: Budget,
        on_end: Callable[[Side | None], None],
        on_fault: Callable[[Side], None],
        form: pump.Form | None = None,
        pipes: Pipes | None = None,
    ) -> None:
        """`buffer` has CHUNK bytes and may be shared by all relays of a loop, as the budget and the pipes are.

        `form`: of the pumps; None for that of the process. `pipes`: None has all bytes copied.
        """
        form = form or pump.form()
        self._on_end = on_end
        self._on_fault = on_fault
        self._over = False
        self._finishing = False
        self._asked = False  # both directions to finish: only then is neither to be waited for
        self._broken: Side | None = None  # who refused bytes while its own were still awaited
        self.up: Final = Direction(
            loop, downstream, upstream, Side.DOWNSTREAM, buffer, budget, form, self._ended, self._broke_rules, pipes
        )
        # Never spliced: what comes down passes the tap, which reads it.
        self.down: Final = Direction(
            loop, upstream, downstream, Side.UPSTREAM, buffer, budget, form, self._ended, self._broke_rules
        )

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

    def finish(self, downstream: bytes, upstream: bytes, *, between_messages: bool = False) -> None:
        """Ends each direction with a frame of our own to that side, as soon as one may go in."""
        self._finishing = True
        self.down.finish(downstream, between_messages=between_messages)
        self.up.finish(upstream, between_messages=between_messages)
        self._asked = True
        self._end_if_finished()

    def check(self) -> None:
        """Ends what died unnoticed (see the rules on resets); for a stream on which nothing has moved for a while."""
        self.up.drain_if_dead()
        if not self._over:
            self.down.drain_if_dead()
        if not self._over and not self._finishing and (self._broken is Side.DOWNSTREAM or self.up.dead):
            self._on_end(Side.DOWNSTREAM)

    @property
    def held(self) -> int:
        """Bytes that wait for a peer to take them."""
        return self.up.held + self.down.held

    def _ended(self, direction: Direction, ending: Ending) -> None:
        if self._over:
            return
        if self._finishing:
            self._end_if_finished()
            return
        both = self.up.done and self.down.done
        if ending is Ending.REFUSED and not both:
            self._broken = _other(direction.side)
            opposite = self.down if direction is self.up else self.up
            opposite.drain()
        elif both:
            self._on_end(self._broken)  # whoever was told the end and then drops the connection has broken nothing
        elif ending is Ending.LOST:
            self._on_end(direction.side)

    def _end_if_finished(self) -> None:
        if self._asked and not self._over and self.up.over and self.down.over:
            self.stop()
            self._on_end(None)

    def _broke_rules(self, direction: Direction) -> None:
        if not self._over and not self._finishing:
            self._on_fault(direction.side)


def _other(side: Side) -> Side:
    return Side.UPSTREAM if side is Side.DOWNSTREAM else Side.DOWNSTREAM


def make_buffer() -> bytearray:
    """The buffer that the relays of one loop share."""
    return bytearray(CHUNK)
