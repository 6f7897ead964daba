"""An open WebSocket: owner of both ends, from the 101 to the last byte.

Rules of this file: whatever ends a stream calls end(), once or many times, and nothing else closes its fds, gives
back its slot or writes its record. Whoever ends it for a reason of ours calls cut(), which says so in a Close frame
to both sides and then ends it; a side on which that frame can't be put in time is reset, so that it can't take what
it has for the whole.
"""

import asyncio
import math
from collections.abc import Callable
from os import urandom
from typing import Final

from dgproxy.access.limits import Slot
from dgproxy.net import closing
from dgproxy.net.budget import Budget
from dgproxy.net.endpoint import Endpoint
from dgproxy.net.pipes import Pipes
from dgproxy.net.relay import Direction, Relay, Side
from dgproxy.upstream.pool import Lease
from dgproxy.wire import frames
from dgproxy.wire.refusals import STOPPING, Refusal
from dgproxy.worker.meter import End, Meter

CUT_WITHIN: Final = (
    0.4  # seconds for our Close to find its place, and as much for the client to take it: in all under 1
)
_UPSTREAM_LINGERS: Final = 1.0  # seconds for an upstream that we cut off to take our Close
_CLOSED_WITHIN: Final = 5.0  # seconds for the ends to close the connection after both have sent a Close

# RFC 6455 7.4.1, and IANA's registry for 1012 to 1014
_GOING_AWAY, _PROTOCOL_ERROR, _POLICY, _INTERNAL, _RESTART, _TRY_LATER = 1001, 1002, 1008, 1011, 1012, 1013
_NO_CODE: Final = 1005  # RFC 6455 7.1.5: what a Close without a code counts as
_BULK: Final = 1 << 20  # bytes from one tick to the next: no speech
_OURS_TO_REFUSE: Final = 500  # statuses from here on are no fault of the client's


class Stream:
    """A live relay. `on_end` is told when it is over."""

    __slots__ = (
        "_cut",
        "_down_moved",
        "_down_since",
        "_ended",
        "_loop",
        "_on_end",
        "_relay",
        "_slot",
        "_timer",
        "_up_moved",
        "_up_since",
        "downstream",
        "lease",
        "lingers",
        "meter",
        "seat",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        downstream: Endpoint,
        lease: Lease,
        slot: Slot,
        meter: Meter,
        buffer: bytearray,
        budget: Budget,
        pipes: Pipes,
        on_end: "Callable[[Stream, Slot, Meter, End], None]",
    ) -> None:
        self._loop = loop
        self.downstream: Final = downstream
        self.lease: Final = lease
        self._slot: Final = slot
        self.meter: Final = meter
        self._on_end = on_end
        self._cut: End | None = None
        self._ended: End | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._relay = Relay(
            loop, downstream, lease.endpoint, buffer, budget, self._on_relay_end, self._on_fault, pipes=pipes
        )
        self._up_moved = self._down_moved = 0
        self._up_since = self._down_since = loop.time()  # when either last moved
        self.seat: Slot | None = None  # of the connection's source, where that is limited
        self.lingers = False  # after its end somebody must await linger()

    def start(self, from_downstream: bytes, from_upstream: bytes) -> None:
        """Begins to relay, with what either side had sent before."""
        self._relay.start(from_downstream, from_upstream)

    def tick(self, now: float, idle: float) -> None:
        """Ends the stream if for `idle` seconds no byte moved, or none of those that wait for one of the two.

        Called each second or so; costs nothing per message.
        """
        up, down = self._relay.up, self._relay.down
        self.meter.bytes_in, self.meter.bytes_out = up.count, down.count
        if up.moved != self._up_moved:
            if up.moved - self._up_moved >= _BULK:
                up.expect_bulk()
            self._up_moved = up.moved
            self._up_since = now
        if down.moved != self._down_moved:
            self._down_moved = down.moved
            self._down_since = now
        quiet = now - max(self._up_since, self._down_since)
        if quiet:
            self._relay.check()
        if quiet >= _CLOSED_WITHIN and up.tracker.closed and down.tracker.closed:
            self.end(End.COMPLETE)
        elif quiet >= idle:
            self._close(End.IDLE, _GOING_AWAY, f"Nothing was sent for {idle:g} seconds.")
        elif now - self.held_since >= idle:
            self._close(End.IDLE, _GOING_AWAY, f"Nothing was taken for {idle:g} seconds.")

    @property
    def held(self) -> int:
        """Bytes that wait for one of the two to take them."""
        return self._relay.held

    @property
    def held_since(self) -> float:
        """Since when (the loop's time, to a tick) no byte of them has moved; infinity if there is none."""
        up = self._up_since if self._relay.up.held else math.inf
        return min(up, self._down_since) if self._relay.down.held else up

    # --- ends -------------------------------------------------------------------------------------------------------

    def cut(self, refusal: Refusal, end: End = End.CUT) -> None:
        """Ends the stream for a reason of ours: within CUT_WITHIN, whatever the two ends do."""
        code = _RESTART if refusal is STOPPING else _POLICY if refusal.status < _OURS_TO_REFUSE else _TRY_LATER
        self._close(end, code, refusal.message)

    def _close(self, end: End, code: int, reason: str, upstream: int = _GOING_AWAY) -> None:
        """A Close frame to both sides, each as soon as there is a place for it; then the end."""
        if self._cut is not None or self._ended is not None:
            return
        self._cut = end
        self.meter.code_sent = code
        self._timer = self._loop.call_later(CUT_WITHIN, self.end, end)
        self._relay.finish(frames.close(code, reason), frames.close(upstream, reason, urandom(4)))

    def end(self, reason: End) -> None:
        """Ends both sides and tells what was used."""
        if self._ended is not None:
            return
        self._ended = reason
        if self._timer is not None:
            self._timer.cancel()
        up, down = self._relay.up, self._relay.down
        self._relay.stop()  # no reader or writer is left in the loop
        meter = self.meter
        meter.bytes_in, meter.bytes_out = up.count, down.count
        meter.code_from_client, meter.code_from_upstream = _code(up), _code(down)
        if not down.finished or down.tracker.closed:
            meter.code_sent = None  # the client did not get ours
        if down.finished or (reason in (End.COMPLETE, End.UPSTREAM_GONE) and not up.heard_end):
            self.lingers = True  # what the client still sends would reset what is on its way to it
        elif reason is End.COMPLETE:
            self.downstream.close()
        elif self._cut in (None, End.UPSTREAM_GONE):
            self.downstream.truncate()
        else:
            self.downstream.abort()
        if self._cut is not None and not up.finished:
            self.lease.endpoint.abort()
        self._on_end(self, self._slot, meter, reason)

    async def linger(self) -> None:
        """Sees both sides off, after end(), if it `lingers`."""
        if self._cut is None:
            await closing.linger(self.downstream, orderly=self._ended is End.COMPLETE)
            return
        orderly = self._relay.down.finished
        timer = self._loop.call_later(CUT_WITHIN, self._abort_if_not_taken)
        try:
            lingering = [closing.linger(self.downstream, orderly=orderly, seconds=_CLOSED_WITHIN)]
            if self._relay.up.finished:  # else its owner, the pool, closes it
                lingering.append(closing.linger(self.lease.endpoint, seconds=_UPSTREAM_LINGERS))
            await asyncio.gather(*lingering)
        finally:
            timer.cancel()

    def _abort_if_not_taken(self) -> None:
        """A client that does not read has our Close in its kernel at best; what it did not take is not kept for it."""
        if self.downstream.untaken:
            self.downstream.abort()

    def abort(self) -> None:
        """Ends the lingering."""
        self.downstream.abort()
        self.lease.endpoint.abort()

    def _on_fault(self, side: Side) -> None:
        """A frame that breaks RFC 6455: both sides are told so."""
        direction, end = (
            (self._relay.up, End.CLIENT_FAULT) if side is Side.DOWNSTREAM else (self._relay.down, End.UPSTREAM_FAULT)
        )
        self.meter.fault = f"{side}: {direction.tracker.fault}"
        self._close(end, _PROTOCOL_ERROR, f"The {side} broke the WebSocket protocol.", upstream=_PROTOCOL_ERROR)

    def _on_relay_end(self, broken: Side | None) -> None:
        both_closed = self._relay.up.tracker.closed and self._relay.down.tracker.closed
        if self._cut is not None:
            self.end(self._cut)
        elif broken is None or both_closed:  # who drops the connection then has broken nothing
            self.end(End.COMPLETE)
        elif broken is Side.DOWNSTREAM:
            self.end(End.CLIENT_GONE)
        else:
            self._close(End.UPSTREAM_GONE, _INTERNAL, "The speech service's connection was lost.")


def _code(direction: Direction) -> int | None:
    """The code of the Close that a side sent."""
    if not direction.tracker.closed:
        return None
    return direction.tracker.close_code or _NO_CODE
