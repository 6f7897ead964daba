"""One HTTP exchange, without I/O: `Downstream` faces the client, `Upstream` the container. h11 keeps their states.

Rules of this file:
- Heads come here only after `wire.head` or `wire.response` judged their bytes; h11 must then read the same, or the
  exchange ends. Two parsers that disagree are how requests are smuggled.
- A chunked body is read by `wire.chunked` alone; h11 is told of its last chunk, and must take it for the end.
- Bytes after the end of a message are never looked at here: they are handed back by `rest()`.
- A body keeps its framing: a length stays a length, chunked stays chunked (spec part 5).
"""

import enum
from typing import Final, Literal

import h11

from dgproxy.wire.chunked import BadChunks, Chunked
from dgproxy.wire.head import Head, find_end
from dgproxy.wire.refusals import BAD_FRAMING, Refusal
from dgproxy.wire.response import MAX_INFORMATIONAL, Answer, BadAnswer, judge

_LAST_CHUNK: Final = b"0\r\n\r\n"
_FRAMING: Final = (b"content-length", b"transfer-encoding")
_NO_CONTENT: Final = (204, 304)  # RFC 9112 6.3: these answers end with their heads, whatever the heads say


class Event(enum.Enum):
    """What a half of an exchange has to say when it has no bytes."""

    NEED_DATA = enum.auto()
    END = enum.auto()


NEED_DATA: Final = Event.NEED_DATA
END: Final = Event.END


class BadBody(Exception):  # noqa: N818
    """The client's body breaks its own framing; nothing after it may be parsed."""


class _Body:
    """The body that a half reads: a chunked one by our own reader, any other by h11."""

    def __init__(self, connection: h11.Connection, *, chunked: bool) -> None:
        self._h11 = connection
        self._chunks = Chunked() if chunked else None
        self._closed = False
        self.begun = False
        self.ended = False

    def feed(self, data: bytes) -> None:
        """Bytes of the body, and perhaps of what follows it; b"" is the end of the stream."""
        self._closed |= not data
        if self._chunks is None:
            self._h11.receive_data(data)
        else:
            self._chunks.feed(data)

    def read(self) -> bytes | Event:
        """The next bytes, NEED_DATA, or END (again and again).

        Raises:
            BadChunks, h11.RemoteProtocolError: the framing is broken, or the stream ended before the body did.
        """
        if self.ended:
            return END
        piece = self._of_h11() if self._chunks is None else self._of_chunks(self._chunks)
        self.begun = self.begun or isinstance(piece, bytes)
        self.ended = piece is END
        return piece

    def _of_h11(self) -> bytes | Event:
        event = self._h11.next_event()
        if isinstance(event, h11.Data):
            return bytes(event.data)
        return END if isinstance(event, h11.EndOfMessage) else NEED_DATA

    def _of_chunks(self, chunks: Chunked) -> bytes | Event:
        piece = chunks.read()
        if piece is not None:
            return piece
        if not chunks.ended:
            if self._closed:
                raise BadChunks("truncated body")
            return NEED_DATA
        self._h11.receive_data(_LAST_CHUNK)
        if not isinstance(self._h11.next_event(), h11.EndOfMessage) or self._h11.trailing_data[0]:
            raise BadChunks("framing that h11 reads otherwise")
        return END

    def rest(self) -> bytes:
        """What was fed after the end."""
        return self._h11.trailing_data[0] if self._chunks is None else self._chunks.rest()

    @property
    def last(self) -> bool:
        """Whether nothing came after the end, not even the end of the stream."""
        return self.ended and not self._closed and not self.rest()


class Downstream:
    """The client's half: its body comes in, our answer goes out."""

    def __init__(self, head: Head) -> None:
        self._h11 = h11.Connection(h11.SERVER)
        self._body = _Body(self._h11, chunked=head.chunked)
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
        self._body.feed(data)

    def body(self) -> bytes | Event:
        """The next bytes of the body, NEED_DATA, or END (again and again). Trailers are dropped.

        Raises:
            BadBody: the framing is broken.
        """
        try:
            return self._body.read()
        except BadChunks as error:
            raise BadBody(str(error)) from error
        except h11.RemoteProtocolError as error:
            raise BadBody("malformed body") from error

    @property
    def body_ended(self) -> bool:
        """Whether the client's whole request was read."""
        return self._body.ended

    def rest(self) -> bytes:
        """What was fed after the end of the request."""
        return self._body.rest()

    def proceed(self) -> bytes:
        """A 100 Continue, if the client still waits for one."""
        if self._body.begun or not self._h11.they_are_waiting_for_100_continue:
            return b""
        return self._h11.send(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue"))

    def respond(self, status: int, reason: bytes, headers: list[tuple[bytes, bytes]], *, close: bool = False) -> bytes:
        """The head of the answer. With `close`, the client is told that the connection ends with it.

        Raises:
            ValueError: h11 does not write these headers.
        """
        if status == 204:  # noqa: PLR2004 - HTTP's own name for it
            # RFC 9110 8.6, RFC 9112 6.1: it has neither, and a client that believed them would wait for a body.
            headers = [(name, value) for name, value in headers if name.lower() not in _FRAMING]
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
        self._h11 = h11.Connection(h11.CLIENT)
        self._method = method
        self._upgrade = upgrade
        self._buffer = bytearray()
        self._seen = 0
        self._informational = 0
        self._closed = False  # before the answer was read
        self._body: _Body | None = None  # the answer's, once its head was read
        self._announced = False
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
        if self._body is not None:
            self._body.feed(data)
        else:
            self._buffer += data
            self._closed |= not data

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
                return answer
            self._receive(raw)
            if answer.status >= 200:  # noqa: PLR2004
                self._begin(answer)
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

    def _begin(self, answer: Answer) -> None:
        """The head of the final answer was read: what comes now is its body."""
        none = self._method == b"HEAD" or answer.status in _NO_CONTENT
        # A body that may not be there but is announced may come yet, and would be read as the next answer (F30).
        self._announced = none and (answer.chunked or bool(answer.content_length))
        self._body = _Body(self._h11, chunked=answer.chunked and not none)
        if self._buffer:
            self._body.feed(bytes(self._buffer))
            self._buffer.clear()
        if self._closed:
            self._body.feed(b"")

    def body(self) -> bytes | Event:
        """The next bytes of the answer's body, NEED_DATA, or END (again and again). Trailers are dropped.

        Raises:
            BadAnswer: the framing is broken, or the stream ended before the body did.
        """
        if self._body is None:
            return NEED_DATA
        try:
            return self._body.read()
        except BadChunks as error:
            raise BadAnswer(str(error)) from error
        except h11.RemoteProtocolError as error:
            raise BadAnswer("malformed or truncated body") from error

    def rest(self) -> bytes:
        """What came after a 101: the first bytes of the tunnel."""
        return bytes(self._buffer)

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent on this connection."""
        return (
            self._body is not None
            and self._body.last
            and not self._announced
            and self._h11.our_state is h11.DONE
            and self._h11.their_state is h11.DONE
        )
