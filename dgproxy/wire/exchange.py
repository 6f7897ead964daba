"""One HTTP exchange, without I/O: `Downstream` faces the client, `Upstream` the container. h11 frames both bodies.

Rules of this file:
- Heads come here only after `wire.head` or `wire.response` judged their bytes; h11 must then read the same, or the
  exchange ends. Two parsers that disagree are how requests are smuggled.
- Bytes after the end of a message are never looked at here: they are handed back by `rest()`.
- A body keeps its framing: a length stays a length, chunked stays chunked (spec part 5).
"""

import enum
from typing import Final, Literal

import h11

from dgproxy.wire.head import Head, find_end
from dgproxy.wire.refusals import BAD_FRAMING, Refusal
from dgproxy.wire.response import MAX_INFORMATIONAL, Answer, BadAnswer, judge

# h11 bounds what it holds of an unfinished event: a chunk header or trailers, here (heads arrive whole).
_MAX_INCOMPLETE: Final = 64 * 1024


class Event(enum.Enum):
    """What a half of an exchange has to say when it has no bytes."""

    NEED_DATA = enum.auto()
    END = enum.auto()


NEED_DATA: Final = Event.NEED_DATA
END: Final = Event.END


class BadBody(Exception):  # noqa: N818
    """The client's body breaks its own framing; nothing after it may be parsed."""


class Downstream:
    """The client's half: its body comes in, our answer goes out."""

    def __init__(self, head: Head) -> None:
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_INCOMPLETE)
        self._method = head.method
        self._ended = False
        self._h11.receive_data(head.raw)

    @classmethod
    def begin(cls, head: Head) -> "Downstream | Refusal":
        """The exchange of a head that was judged, or a refusal where h11 reads those bytes otherwise."""
        exchange = cls(head)
        try:
            event = exchange._h11.next_event()
        except h11.RemoteProtocolError:
            return BAD_FRAMING
        if not (
            isinstance(event, h11.Request)
            and event.method == head.method
            and event.target == head.target
            and len(event.headers) == len(head.headers)
        ):
            return BAD_FRAMING
        return exchange

    def feed(self, data: bytes) -> None:
        """Bytes of the body, and perhaps of what follows it."""
        self._h11.receive_data(data)

    def body(self) -> bytes | Event:
        """The next bytes of the body, NEED_DATA, or END (again and again). Trailers are dropped.

        Raises:
            BadBody: the framing is broken.
        """
        if self._ended:
            return END
        try:
            event = self._h11.next_event()
        except h11.RemoteProtocolError as error:
            raise BadBody("malformed body") from error
        if isinstance(event, h11.Data):
            return bytes(event.data)
        if isinstance(event, h11.EndOfMessage):
            self._ended = True
            return END
        return NEED_DATA

    @property
    def body_ended(self) -> bool:
        """Whether the client's whole request was read."""
        return self._ended

    def rest(self) -> bytes:
        """What was fed after the end of the request."""
        return self._h11.trailing_data[0]

    def proceed(self) -> bytes:
        """A 100 Continue, if the client still waits for one."""
        if not self._h11.they_are_waiting_for_100_continue:
            return b""
        return self._h11.send(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue"))

    def respond(self, status: int, reason: bytes, headers: list[tuple[bytes, bytes]], *, close: bool = False) -> bytes:
        """The head of the answer. With `close`, the client is told that the connection ends with it.

        Raises:
            ValueError: h11 does not write these headers.
        """
        if close:
            headers = [*headers, (b"Connection", b"close")]
        try:
            return self._h11.send(h11.Response(status_code=status, headers=headers, reason=reason))
        except h11.LocalProtocolError as error:
            raise ValueError("headers that can't be passed on") from error

    def data(self, chunk: bytes) -> bytes:
        """Bytes of the answer's body, framed."""
        return self._h11.send(h11.Data(data=chunk))

    def end(self) -> bytes:
        """The end of the answer, framed."""
        return self._h11.send(h11.EndOfMessage())

    @property
    def reusable(self) -> bool:
        """Whether the next request may come on this connection: both sides are done, and neither asked to close."""
        return self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE


class Upstream:
    """The container's half: our request goes out, its answer comes in."""

    def __init__(
        self, method: bytes, target: bytes, headers: list[tuple[bytes, bytes]], *, upgrade: bool = False
    ) -> None:
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_INCOMPLETE)
        self._upgrade = upgrade
        self._buffer = bytearray()
        self._seen = 0
        self._informational = 0
        self._answered = False
        self._ended = False
        self.head: Final = self._h11.send(h11.Request(method=method, target=target, headers=headers))

    @classmethod
    def of_upgrade(cls, target: bytes, host: bytes) -> "Upstream":
        """The reading half for a WebSocket handshake, whose request wsproto writes (`wire.handshake`)."""
        headers = [(b"Host", host), (b"Upgrade", b"websocket"), (b"Connection", b"Upgrade")]
        upstream = cls(b"GET", target, headers, upgrade=True)
        upstream.end()
        return upstream

    def data(self, chunk: bytes) -> bytes:
        """Bytes of the request's body, framed."""
        return self._h11.send(h11.Data(data=chunk))

    def end(self) -> bytes:
        """The end of the request, framed."""
        return self._h11.send(h11.EndOfMessage())

    def feed(self, data: bytes) -> None:
        """Bytes from the container; b"" is its end of stream."""
        if self._answered or not data:
            self._h11.receive_data(data)
        else:
            self._buffer += data

    def answer(self) -> Answer | Literal[Event.NEED_DATA]:
        """The head of the final answer (1xx are dropped), or of a 101 that was asked for.

        Raises:
            BadAnswer: it is malformed, or a 101 that nobody asked for.
        """
        while True:
            end = find_end(self._buffer, self._seen)
            if end is None:
                self._seen = len(self._buffer)
                return NEED_DATA
            if isinstance(end, Refusal):
                raise BadAnswer("malformed or oversized head")
            raw = bytes(self._buffer[:end])
            del self._buffer[:end]
            self._seen = 0
            answer = judge(raw)
            if answer.status == 101:  # noqa: PLR2004 - HTTP's own name for it
                if not self._upgrade:
                    raise BadAnswer("a switch of protocols that was not asked for")
                self._answered = True
                return answer
            self._receive(raw)
            if answer.status >= 200:  # noqa: PLR2004
                self._answered = True
                if self._buffer:  # h11 takes empty bytes for the end of the stream
                    self._h11.receive_data(bytes(self._buffer))
                    self._buffer.clear()
                return answer
            self._informational += 1
            if self._informational > MAX_INFORMATIONAL:
                raise BadAnswer("too many informational answers")

    def _receive(self, raw: bytes) -> None:
        """A judged head goes through h11, which must see one head in it."""
        self._h11.receive_data(raw)
        try:
            event = self._h11.next_event()
        except h11.RemoteProtocolError as error:
            raise BadAnswer("malformed head") from error
        if not isinstance(event, h11.Response | h11.InformationalResponse):
            raise BadAnswer("malformed head")

    def body(self) -> bytes | Event:
        """The next bytes of the answer's body, NEED_DATA, or END (again and again). Trailers are dropped.

        Raises:
            BadAnswer: the framing is broken, or the stream ended before the body did.
        """
        if self._ended:
            return END
        try:
            event = self._h11.next_event()
        except h11.RemoteProtocolError as error:
            raise BadAnswer("malformed or truncated body") from error
        if isinstance(event, h11.Data):
            return bytes(event.data)
        if isinstance(event, h11.EndOfMessage):
            self._ended = True
            return END
        if isinstance(event, h11.ConnectionClosed):
            raise BadAnswer("truncated body")
        return NEED_DATA

    def rest(self) -> bytes:
        """What came after a 101: the first bytes of the tunnel."""
        return bytes(self._buffer)

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent on this connection."""
        return (
            self._ended
            and self._h11.our_state is h11.DONE
            and self._h11.their_state is h11.DONE
            and self._h11.trailing_data == (b"", False)  # no byte, and no end of stream
        )
