"""The relay's inner loop: read, look at the frames, count, send. In Python here, and in C (_pump.c), which is as good.

Rules of this file:
- A pump does what is usual in an open stream. Whatever is not (an end, an error, a sink that is full, bytes of which
  only a part may pass) is a call of its handler's, after which it does no more in this event.
- Between plain sockets either may get a Splicer before it (splice.py), which takes the large payloads.
- Both forms must be equal: the same tests run on both, and before the compiled one is used a process has it relay a
  real TLS connection. Where it is not built, or does not fit this Python, the pure form does the same work.
"""

import contextlib
import errno
import functools
import os
import struct
from typing import Any, Final, Literal, Protocol

from dgproxy.net import libssl, tls
from dgproxy.net.endpoint import Endpoint
from dgproxy.net.pipes import Pipe
from dgproxy.net.tls import WOULD_BLOCK, Ended
from dgproxy.wire.frames import Tracker

_pump: Any = None
with contextlib.suppress(ImportError):  # it is built where there is a C compiler
    from dgproxy.net import _pump

Form = Literal["pure", "native"]

VARIABLE: Final = "DGPROXY_PUMP"  # forces a form


class Handler(Protocol):
    """What a pump tells of. Bytes are in the buffer, from its beginning."""

    def end_of_stream(self) -> None:
        """The source has ended."""

    def lost(self) -> None:
        """The source broke."""

    def refused(self) -> None:
        """The sink takes no more."""

    def judge(self, size: int) -> None:
        """So many bytes came, which the tracker has not seen and which may not all pass."""

    def part(self, size: int) -> None:
        """Of what came only so many bytes may pass; the tracker says why."""

    def keep(self, at: int, size: int) -> None:
        """Bytes from `at` to `size` may pass, and are counted, but the sink takes none now."""

    def keep_pipe(self, pipe: Pipe) -> None:
        """Bytes in this pipe may pass, and are counted, but the sink takes none now; the pipe is yours."""

    def again(self) -> None:
        """There is more to read, of which no poll of the source will tell."""


class Pump(Protocol):
    """One direction's inner loop, whichever form it has."""

    count: int  # bytes of the source that were passed on

    def run(self) -> bool:
        """Pumps what is there. Whether there may be more to read at once."""

    def pending(self) -> bool:
        """Whether the source has bytes, or an end, of which no poll of its fd will tell."""

    def stop(self) -> None:
        """Uses neither peer any more; may be called twice."""


class PurePump:
    """In Python: one read an event."""

    __slots__ = ("_buffer", "_handler", "_read", "_send", "_tracker", "_view", "count")

    def __init__(self, source: Endpoint, sink: Endpoint, buffer: bytearray, tracker: Tracker, handler: Handler) -> None:
        self._buffer = buffer
        self._view = memoryview(buffer)
        self._read = source.reader(buffer)
        self._send = sink.sender()
        self._tracker = tracker
        self._handler = handler
        self.count = 0

    def run(self) -> bool:  # hot: see bench/streams
        """Pumps what is there. Whether there may be more to read at once."""
        try:
            size = self._read()
        except WOULD_BLOCK:
            return False
        except Ended:
            size = 0
        except OSError:
            self._handler.lost()
            return False
        if not size:
            self._handler.end_of_stream()
            return False
        tracker = self._tracker
        if size <= tracker.left:
            tracker.left -= size
        elif tracker.held:
            self._handler.judge(size)
            return True
        elif (passed := tracker.scan(self._buffer, size)) != size:
            self._handler.part(passed)
            return True
        self.count += size
        view = self._view[:size]
        try:
            sent = self._send(view)
        except WOULD_BLOCK:
            self._handler.keep(0, size)
            return True
        except OSError:
            self._handler.refused()
            return True
        while sent != size:  # TLS takes a record's worth at a time
            try:
                sent += self._send(view[sent:])
            except WOULD_BLOCK:
                self._handler.keep(sent, size)
                break
            except OSError:
                self._handler.refused()
                break
        return True

    def pending(self) -> bool:
        """Never: without read-ahead, OpenSSL reads no more than the record that it gives."""
        return False

    def stop(self) -> None:
        """Uses neither peer any more; may be called twice."""
        self._read, self._send = _nothing_more, _takes_nothing


def _nothing_more() -> int:
    raise OSError(errno.EBADF, os.strerror(errno.EBADF))


def _takes_nothing(_: Any) -> int:
    raise OSError(errno.EBADF, os.strerror(errno.EBADF))


# --- which form ---------------------------------------------------------------------------------------------------


class Unavailable(Exception):  # noqa: N818 - what is
    """The form that was asked for can't be had here; says why."""


def _native_pump(source: Endpoint, sink: Endpoint, buffer: bytearray, tracker: Tracker, handler: Handler) -> Pump:
    native: Pump = _pump.Pump(source.raw(), sink.raw(), buffer, tracker, tracker.masked, handler)
    return native


def make(form: Form, source: Endpoint, sink: Endpoint, buffer: bytearray, tracker: Tracker, handler: Handler) -> Pump:
    """A pump of that form, for what `source` sends to `sink`; `buffer` may be shared by all pumps of a loop."""
    if form == "native":
        return _native_pump(source, sink, buffer, tracker, handler)
    return PurePump(source, sink, buffer, tracker, handler)


@functools.cache
def form() -> Form:
    """The form that this process uses: the native one where it is built and proven, unless $DGPROXY_PUMP says which.

    Raises:
        Unavailable: $DGPROXY_PUMP names the native form, which can't be had here, or no form at all.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in {"", "pure", "native"}:
        raise Unavailable(f'${VARIABLE} is {wanted!r}; write "pure" or "native", or leave it unset')
    if wanted == "pure":
        return "pure"
    reason = why_not_native()
    if not reason:
        return "native"
    if wanted == "native":
        raise Unavailable(f"${VARIABLE} asks for the native pump, but {reason}")
    return "pure"


@functools.cache
def why_not_native() -> str:
    """Why the native form can't be used in this process; "" if it can. Proven by having it relay, once."""
    if _pump is None:
        return "it was not built, for want of a C compiler and Python's headers"
    extra = libssl.probe()
    if extra is None:
        return "the layout of this Python's ssl is not known"
    _pump.bind(*extra.addresses())
    try:
        return "" if _relays() else "it failed its self-test"
    except OSError as error:
        return f"its self-test could not be run: {error}"


# Heads of masked binary frames, RFC 6455 5.2: some speech, and more than the records that OpenSSL holds
_PROBES: Final = {3200: b"\x82\xfe" + struct.pack("!H", 3200), 70_000: b"\x82\xff" + struct.pack("!Q", 70_000)}


class _Nothing:
    """A handler of what must not happen in the self-test."""

    def __getattr__(self, name: str) -> Any:
        if name == "again":
            return lambda: None
        raise OSError(f"the pump called {name}")


def _relays() -> bool:
    """Whether frames that a TLS client sends come back to it unchanged through a pump."""
    with tls.loopback() as (server, client):
        connection = tls.connection(server)
        ours = (server.fileno(), libssl.pointer(connection), connection)
        tracker = Tracker(masked=True)
        pump = _pump.Pump(ours, ours, bytearray(1 << 15), tracker, True, _Nothing())  # noqa: FBT003
        said = b"".join(head + b"mask" + bytes(size) for size, head in _PROBES.items())
        heard = bytearray()
        client.sendall(said)
        while pump.run() and pump.count < len(said):
            pass
        while len(heard) < pump.count and (data := client.recv(len(said))):
            heard += data
        pump.stop()
        return heard == said and not tracker.left
