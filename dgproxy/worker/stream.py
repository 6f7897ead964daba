"""An open WebSocket: owner of both ends, from the 101 to the last byte.

Rules of this file: whatever ends a stream calls end(), once or many times, and nothing else closes its fds, gives
back its slot or writes its record.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from dgproxy.access.limits import Slot
from dgproxy.net.endpoint import Endpoint
from dgproxy.net.relay import Relay, Side
from dgproxy.upstream.pool import Lease
from dgproxy.worker.meter import End, Meter


class Stream:
    """A live relay. `worker` is told when it is over."""

    __slots__ = ("_ended", "_idle_since", "_lease", "_meter", "_on_end", "_progress", "_relay", "_slot", "downstream")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        downstream: Endpoint,
        lease: Lease,
        slot: Slot,
        meter: Meter,
        buffer: bytearray,
        on_end: "Callable[[Stream, Slot, Meter, End], None]",
    ) -> None:
        self.downstream: Final = downstream
        self._lease = lease
        self._slot: Final = slot
        self._meter: Final = meter
        self._on_end = on_end
        self._ended: End | None = None
        self._relay = Relay(loop, downstream, lease.endpoint, buffer, self._on_relay_end)
        self._progress = 0
        self._idle_since = loop.time()

    def start(self, from_downstream: bytes, from_upstream: bytes) -> None:
        """Begins to relay, with what either side had sent before."""
        self._relay.start(from_downstream, from_upstream)

    def tick(self, now: float, idle: float) -> None:
        """Ends the stream if no byte moved for `idle` seconds. Called each second or so; costs nothing per message."""
        progress = self._relay.progress
        if progress != self._progress:
            self._progress = progress
            self._idle_since = now
            return
        self._relay.check()
        if now - self._idle_since >= idle:
            self.end(End.IDLE)

    def end(self, reason: End) -> None:
        """Ends both sides and tells what was used."""
        if self._ended is not None:
            return
        self._ended = reason
        self._relay.stop()  # no reader or writer is left in the loop
        self._meter.bytes_in = self._relay.up.count
        self._meter.bytes_out = self._relay.down.count
        last_words = reason in (End.COMPLETE, End.UPSTREAM_GONE) and not self._relay.up.heard_end
        if reason is End.COMPLETE and not last_words:
            self.downstream.close()
        elif not last_words:
            self.downstream.truncate()
        # Else the client still sends: a close would reset it before it has read what is on its way. The worker lingers.
        self._on_end(self, self._slot, self._meter, reason)

    @property
    def lease(self) -> Lease:
        """The upstream connection, for whoever gives it back."""
        return self._lease

    def _on_relay_end(self, broken: Side | None) -> None:
        match broken:
            case None:
                self.end(End.COMPLETE)
            case Side.DOWNSTREAM:
                self.end(End.CLIENT_GONE)
            case Side.UPSTREAM:
                self.end(End.UPSTREAM_GONE)
