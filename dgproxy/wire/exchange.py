"""One HTTP exchange, without I/O: `Downstream` faces the client, `Upstream` the container.

Rules of this file:
- Heads come here only after `wire.head` or `wire.response` judged their bytes. Of a client's, h11 must then read the
  same, or the exchange ends: two parsers that disagree are how requests are smuggled. Of an answer's that is shown by
  fuzzing (tests/fuzz/response.py), not anew for each: a container is not an attacker, and h11 is half a request's cost.
- Bytes after the end of a message are never looked at here: they are handed back by `rest()`.
- A body keeps its framing: a length stays a length, chunked stays chunked (spec part 5).
"""

from typing import Final, Literal

import h11

from dgproxy.wire import fields
from dgproxy.wire.bodies import END, NEED_DATA, BadBody, Body, Event
from dgproxy.wire.fields import Headers
from dgproxy.wire.head import Head, find_end
from dgproxy.wire.refusals import BAD_FRAMING, Refusal
from dgproxy.wire.response import MAX_INFORMATIONAL, Answer, BadAnswer, judge

__all__ = ["END", "NEED_DATA", "BadBody", "Downstream", "Event", "Upstream"]

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_LAST_CHUNK: Final = b"0\r\n\r\n"
_FRAMING: Final = (b"content-length", b"transfer-encoding")
_NO_CONTENT: Final = (204, 304)  # RFC 9112 6.3: these answers end with their heads, whatever the heads say


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


class Downstream:
    """The client's half: its body comes in, our answer goes out."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._body = Body(chunked=head.chunked, length=head.content_length or 0)
        self._waits = head.expects_continue
        self._chunked = False  # our answer
        self._keeps = head.minor == 1 and b"close" not in head.connection
        self._answered = False

    @classmethod
    def begin(cls, head: Head, agreed: Head | None = None) -> "Downstream | Refusal":
        """The exchange of a head that was judged, or a refusal where h11 reads those bytes otherwise.

        `agreed` is one that had an exchange: of the same bytes h11 would say the same.
        """
        if head is agreed:
            return cls(head)
        parser = h11.Connection(h11.SERVER)
        parser.receive_data(head.raw)
        try:
            event = parser.next_event()
        except h11.RemoteProtocolError:
            return BAD_FRAMING
        headers = head.headers
        if head.chunked:  # whose name h11 writes in lower case
            headers = [(name, value.lower() if name == b"transfer-encoding" else value) for name, value in headers]
        if (
            isinstance(event, h11.Request)
            and event.method == head.method
            and event.target == head.target
            and list(event.headers) == headers
        ):
            return cls(head)
        return BAD_FRAMING

    def feed(self, data: bytes) -> None:
        """Bytes of the body, and perhaps of what follows it."""
        self._body.feed(data)

    def body(self) -> bytes | Event:
        """The next bytes of the body, NEED_DATA, or END (again and again). Trailers are dropped.

        Raises:
            BadBody: the framing is broken.
        """
        return self._body.read()

    @property
    def to_come(self) -> int:
        """Bytes that a body of known length still has, of which none was fed; 0 if some were, or it has none."""
        return self._body.to_come

    def skip(self, size: int) -> None:
        """So many bytes of those were passed on without being read here; at most `to_come`."""
        self._body.skip(size)

    @property
    def body_ended(self) -> bool:
        """Whether the client's whole request was read."""
        return self._body.ended

    def rest(self) -> bytes:
        """What was fed after the end of the request."""
        return self._body.rest()

    def proceed(self) -> bytes:
        """A 100 Continue, if the client still waits for one."""
        if not self._waits or self._body.begun:
            return b""
        self._waits = False
        return _CONTINUE

    def respond(self, status: int, reason: bytes, headers: Headers, *, close: bool = False) -> bytes:
        """The head of the answer; a body of unknown length goes out in chunks, or to the connection's end.

        With `close`, the client is told that the connection ends with it.

        Raises:
            ValueError: these are no header fields.
        """
        none = status in _NO_CONTENT
        length = False
        lines: Headers = []
        for line in headers:
            name = line[0].lower()
            if name not in _FRAMING:
                lines.append(line)
            elif status == 204:  # noqa: PLR2004 - HTTP's own name for it
                continue  # RFC 9110 8.6, RFC 9112 6.1: it has neither; a client that believed them would wait
            elif name == b"content-length":
                length = True
                lines.append(line)
            elif none:
                lines.append(line)
        self._waits = False
        self._keeps = self._keeps and not close
        if not (none or length):
            if self._head.minor == 1:
                lines.append((b"Transfer-Encoding", b"chunked"))
                self._chunked = self._head.method != b"HEAD"
            else:
                self._keeps = False
        if not self._keeps:
            lines.append((b"Connection", b"close"))
        return fields.write(b"HTTP/1.1 %d %b" % (status, reason), lines)

    def data(self, chunk: bytes) -> bytes:
        """Bytes of the answer's body, framed."""
        return _chunk(chunk) if self._chunked else chunk

    def end(self) -> bytes:
        """The end of the answer, framed."""
        self._answered = True
        return _LAST_CHUNK if self._chunked else b""

    @property
    def last(self) -> bool:
        """Whether the client has said that it sends no more than this request, and has sent all of it."""
        head = self._head
        return self._body.last and (head.minor == 0 or b"close" in head.connection)

    @property
    def reusable(self) -> bool:
        """Whether the next request may come on this connection: both sides are done, and neither asked to close."""
        return self._answered and self._body.ended and self._keeps


class Upstream:
    """The container's half: our request goes out, its answer comes in."""

    def __init__(
        self, method: bytes, target: bytes, headers: list[tuple[bytes, bytes]], *, upgrade: bool = False
    ) -> None:
        self._method = method
        self._upgrade = upgrade
        self._buffer = bytearray()
        self._seen = 0
        self._informational = 0
        self._closed = False  # before the answer was read
        self._body: Body | None = None  # the answer's, once its head was read
        self._announced = False
        self._asked = upgrade  # our request has gone out whole
        self._keeps = False
        self._chunked = any(name.lower() == b"transfer-encoding" for name, _ in headers)
        self.head: Final = b"" if upgrade else fields.write(b"%b %b HTTP/1.1" % (method, target), headers)

    @classmethod
    def of_upgrade(cls) -> "Upstream":
        """The reading half for a WebSocket handshake, whose request wsproto writes (`wire.handshake`)."""
        return cls(b"GET", b"/", [], upgrade=True)

    def data(self, chunk: bytes) -> bytes:
        """Bytes of the request's body, framed."""
        return _chunk(chunk) if self._chunked else chunk

    def end(self) -> bytes:
        """The end of the request, framed."""
        self._asked = True
        return _LAST_CHUNK if self._chunked else b""

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
            if answer.status >= 200:  # noqa: PLR2004
                self._begin(answer)
                return answer
            self._informational += 1
            if self._informational > MAX_INFORMATIONAL:
                raise BadAnswer("too many informational answers")

    def _begin(self, answer: Answer) -> None:
        """The head of the final answer was read: what comes now is its body."""
        none = self._method == b"HEAD" or answer.status in _NO_CONTENT
        # A body that may not be there but is announced may come yet, and would be read as the next answer (F30).
        self._announced = none and (answer.chunked or bool(answer.content_length))
        self._body = Body(chunked=answer.chunked and not none, length=0 if none else answer.content_length)
        self._keeps = answer.keeps
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
        except BadBody as error:
            raise BadAnswer(str(error)) from error

    def rest(self) -> bytes:
        """What came after a 101: the first bytes of the tunnel."""
        return bytes(self._buffer)

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent on this connection."""
        return self._body is not None and self._body.last and not self._announced and self._asked and self._keeps
