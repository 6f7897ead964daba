"""The life of one connection, top to bottom: HTTP/1.1 by h11, WebSocket by wsproto, on asyncio's streams.

Bodies are read and written piece by piece, whatever their size. In echo mode a WebSocket leaves wsproto and streams for
`_EchoProtocol`, see `frames`.
"""

import asyncio
import contextlib
import email.utils
import fcntl
import socket
import struct
import termios
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Final, NamedTuple, cast

import h11
from wsproto.connection import Connection as WebSocket, ConnectionState, ConnectionType
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Event, Ping, TextMessage
from wsproto.handshake import H11Handshake
from wsproto.utilities import RemoteProtocolError, generate_accept_token

from dgproxy.standin.answers import Answer, Refused, error, filler, job_for, json_answer
from dgproxy.standin.engine import Close, FluxSession, ListenSession, Opening, Outgoing, Session
from dgproxy.standin.frames import Echo
from dgproxy.standin.options import Options
from dgproxy.standin.request import Head, Query
from dgproxy.standin.speech import AgentSession, FluxSpeakSession, SpeakSession

RECORDED: Final = 10_000  # heads that are kept
LIMIT: Final = 1 << 18  # of a StreamReader, which holds twice that at most
_READ: Final = 1 << 20  # more than it holds, so that one read empties it
_MAX_HEAD: Final = 128 * 1024  # a proxy may add to the 32 KiB that it takes
_MAX_TEXT: Final = 1 << 20  # characters of a text message
_CLOSE_WAIT: Final = 5.0  # seconds for the client's side of a closing handshake
_FLUSH_WAIT: Final = 5.0  # seconds for bytes before an RST to reach the peer's kernel

_SESSIONS: Final[dict[str, tuple[str, Callable[[Opening], Session]]]] = {
    # path: (which counter of /v1/status, the conversation)
    "/v1/listen": ("stream", ListenSession),
    "/v1/listen/stream": ("stream", ListenSession),
    "/v2/listen": ("flux", FluxSession),
    "/v1/speak": ("speak", SpeakSession),
    "/v2/speak": ("speak", FluxSpeakSession),
    "/v1/agent/converse": ("agent", AgentSession),
}


class _GoneError(Exception):
    """The client went away, or was reset on request: the connection is at its end."""


class Live(NamedTuple):
    """How much is open now."""

    connections: int
    websockets: int


class Book:
    """What all connections share: the options, the heads that were seen, what is under way.

    `options` may be replaced while the stand-in runs; each request takes what it finds.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.active: Counter[str] = Counter()
        self.connections: dict[asyncio.Task[None], asyncio.WriteTransport] = {}
        self._heads: deque[Head] = deque(maxlen=RECORDED)

    @property
    def heads(self) -> list[Head]:
        """The heads of requests so far, oldest first; those for /standin/ are not among them."""
        return list(self._heads)

    def record(self, head: Head) -> None:
        """Keeps a head; the oldest goes where there are too many."""
        self._heads.append(head)

    def clear(self) -> None:
        """Forgets the heads."""
        self._heads.clear()

    @property
    def live(self) -> Live:
        """Open connections and, among them, WebSockets."""
        return Live(len(self.connections), self.active["websocket"])

    @contextlib.contextmanager
    def counted(self, *kinds: str) -> Iterator[None]:
        """Counts what is under way, under each of these names."""
        self.active.update(kinds)
        try:
            yield
        finally:
            self.active.subtract(kinds)


class Connection:
    """The life of one connection."""

    def __init__(self, book: Book, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._book = book
        self._reader = reader
        self._writer = writer
        self._buffer = b""  # came, and was given to no parser yet
        self._http = _new_http()
        self._reset_in: int | None = None  # bytes behind the answer's head until the RST

    async def serve(self) -> None:
        """Exchange after exchange, until one is the last."""
        try:
            while await self._exchange():
                pass
        except (_GoneError, OSError):
            pass
        finally:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()

    # --- one exchange ---------------------------------------------------------------------------------------------

    async def _exchange(self) -> bool:
        """One request and its answer; whether another may follow."""
        self._reset_in = None
        raw = await self._head()
        if raw is None:
            return False
        head = Head.parse(raw)
        own = head.path.startswith("/standin/")
        if not own:
            self._book.record(head)
        request_id = str(uuid.uuid4())
        try:
            self._http.receive_data(raw)
            request = self._http.next_event()
            if not isinstance(request, h11.Request):
                raise h11.RemoteProtocolError("no request")  # noqa: TRY301 - the same answer as to h11's own
            more = await (self._own(head) if own else self._served(head, request_id))
        except h11.RemoteProtocolError as broken:
            head.ended = "cut"
            if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                await self._send(error(400, request_id, f"Bad Request: {broken}"), request_id, head, chunked=False)
            return False
        except BaseException:
            head.ended = "cut"
            raise
        head.ended = head.ended or "complete"
        return more and self._next_cycle()

    async def _served(self, head: Head, request_id: str) -> bool:
        query = Query(head.target)
        created = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        try:
            options = self._book.options.overridden(head.headers, query.pairs)
        except ValueError as wrong:
            await self._body(head.take)
            await self._send(_bad_parameter(wrong, request_id), request_id, head, chunked=False)
            return True
        opening = Opening(request_id, query, options, created)
        if (head.header("upgrade") or "").lower() == "websocket":
            return await self._upgrade(head, opening)
        self._reset_in = options.reset_after
        try:
            job = job_for(opening, head, self._book.active)
        except ValueError as wrong:
            job = Refused(opening, head, _bad_parameter(wrong, request_id))
        with self._book.counted(*job.kinds):
            if not options.early:
                await self._body(head.take, job.take)
            await self._pause(options.delay)
            if options.hangup:
                head.ended = "cut"
                return False
            try:
                answer = _asked(options, request_id) or job.answer()
            except ValueError as wrong:
                answer = _bad_parameter(wrong, request_id)
            await self._send(answer, request_id, head, chunked=options.chunked)
            if options.early:
                await self._body(head.take)
        return True

    async def _own(self, head: Head) -> bool:
        """What tests ask the stand-in itself; a proxy lets nobody come here."""
        await self._body(head.take)
        request_id = str(uuid.uuid4())
        match head.method, head.path:
            case "GET", "/standin/heads":
                answer = json_answer([each.as_json() for each in self._book.heads])
            case "DELETE", "/standin/heads":
                self._book.clear()
                answer = json_answer({})
            case "GET", "/standin/live":
                live = self._book.live
                answer = json_answer({"connections": live.connections - 1, "websockets": live.websockets})
            case _:
                answer = error(404, request_id)
        await self._send(answer, request_id, head, chunked=False)
        return True

    def _next_cycle(self) -> bool:
        http = self._http
        if http.our_state is not h11.DONE or http.their_state is not h11.DONE:
            return False
        surplus, _ = http.trailing_data
        if surplus:  # the next request came with this one's body: it must pass through _head as well
            self._buffer = surplus + self._buffer
            self._http = _new_http()
        else:
            http.start_next_cycle()
        return True

    # --- reading --------------------------------------------------------------------------------------------------

    async def _fill(self) -> None:
        data = await self._reader.read(_READ)
        if not data:
            raise _GoneError
        self._buffer += data

    async def _head(self) -> bytes | None:
        """The next raw head, with its empty line; None where the client has no further request."""
        searched = 0
        while True:
            # h11's leniency: lines may end in a bare LF
            ends = [
                at + len(mark)
                for mark in (b"\r\n\r\n", b"\n\n", b"\n\r\n")
                if (at := self._buffer.find(mark, max(0, searched - 3))) >= 0
            ]
            if ends:
                end = min(ends)
                raw, self._buffer = self._buffer[:end], self._buffer[end:]
                return raw
            if len(self._buffer) > _MAX_HEAD:
                raw, self._buffer = self._buffer, b""
                return raw
            searched = len(self._buffer)
            try:
                await self._fill()
            except _GoneError:
                return None

    async def _body(self, *takers: Callable[[bytes], None]) -> None:
        """Reads the request's body to its end; each piece goes to all takers."""
        http = self._http
        while True:
            if http.they_are_waiting_for_100_continue and not self._buffer:
                self._writer.write(http.send(h11.InformationalResponse(status_code=100, headers=[])))
            event = http.next_event()
            if isinstance(event, h11.Data):
                piece = bytes(event.data)
                for take in takers:
                    take(piece)
            elif event is h11.NEED_DATA:
                if not self._buffer:
                    await self._fill()
                http.receive_data(self._buffer)
                self._buffer = b""
            else:
                return  # EndOfMessage, or PAUSED where an upgrade was offered and will be refused

    async def _pause(self, seconds: float) -> None:
        """Waits; a client that goes away meanwhile ends the exchange, as a real engine's work would be cancelled."""
        if not seconds:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while len(self._buffer) < _READ:
                    await self._fill()
                await asyncio.Event().wait()  # enough is held; the rest stays with the kernel

    # --- writing --------------------------------------------------------------------------------------------------

    async def _send(self, answer: Answer, request_id: str, head: Head, *, chunked: bool) -> None:
        http, length = self._http, answer.length
        headers = [
            ("Date", email.utils.formatdate(usegmt=True)),
            ("content-type", answer.content_type),
            ("dg-request-id", request_id),
            *answer.headers,
        ]
        if length is None or chunked:
            headers.append(("transfer-encoding", "chunked"))
        elif answer.status != 204:  # noqa: PLR2004 - no length there, RFC 9110 8.6
            headers.append(("content-length", str(length)))
        first = http.send(h11.Response(status_code=answer.status, headers=headers))
        bodiless = head.method == "HEAD" or answer.status in (204, 304)
        body: Iterable[bytes] = () if bodiless else [answer.body] if isinstance(answer.body, bytes) else answer.body
        if self._reset_in is None and isinstance(body, (list, tuple)):  # one write for a small answer
            data = b"".join(http.send(h11.Data(data=piece)) for piece in body)
            self._writer.write(first + data + http.send(h11.EndOfMessage()))
            await self._writer.drain()
            return
        self._writer.write(first)
        if self._reset_in == 0:
            await self._reset()
        for piece in body:
            await self._write(http.send(h11.Data(data=piece)))
        await self._write(http.send(h11.EndOfMessage()))

    async def _write(self, data: bytes) -> None:
        """Writes what follows a head; where a reset was asked for, up to it."""
        if self._reset_in is not None:
            data = data[: self._reset_in]
            self._reset_in -= len(data)
        self._writer.write(data)
        await self._writer.drain()
        if self._reset_in == 0:
            await self._reset()

    async def _reset(self) -> None:
        """Ends the connection by RST, once all that was written has reached the peer."""
        transport = self._writer.transport
        transport.set_write_buffer_limits(0)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH_WAIT):
                await self._writer.drain()
                raw = self._writer.get_extra_info("socket")
                # an RST throws away what the kernel still holds: wait until it holds nothing
                while struct.unpack("i", fcntl.ioctl(raw.fileno(), termios.TIOCOUTQ, bytes(4)))[0]:  # noqa: ASYNC110 - the kernel has no event for it
                    await asyncio.sleep(0.001)
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
        raise _GoneError

    # --- WebSocket ------------------------------------------------------------------------------------------------

    async def _upgrade(self, head: Head, opening: Opening) -> bool:
        """A WebSocket from its handshake to its end; True where it was refused, and HTTP goes on."""
        options, request_id = opening.options, opening.request_id
        handshake = H11Handshake(ConnectionType.SERVER)
        refusal: Answer | None = None
        session: Session | None = None
        kind = ""
        try:
            handshake.receive_data(head.raw)
            list(handshake.events())
            if head.path in _SESSIONS:
                kind, make = _SESSIONS[head.path]
                session = make(opening)
            else:
                refusal = error(404, request_id)
        except RemoteProtocolError as wrong:
            status = getattr(wrong.event_hint, "status_code", 400)
            refusal = error(status, request_id, str(wrong), "BAD_HANDSHAKE")
        except ValueError as wrong:
            refusal = _bad_parameter(wrong, request_id)
        refusal = _asked(options, request_id) or refusal
        await self._body(head.take)
        await self._pause(options.delay)
        if options.hangup:
            head.ended = "cut"
            return False
        self._reset_in = options.reset_after
        if refusal is not None or session is None:
            await self._send(refusal or error(404, request_id), request_id, head, chunked=options.chunked)
            return True
        reply = handshake.send(AcceptConnection(extra_headers=[(b"dg-request-id", request_id.encode())]))
        if options.wrong_accept:
            right = generate_accept_token((head.header("sec-websocket-key") or "").encode("latin-1"))
            reply = reply.replace(right, generate_accept_token(b"the key of somebody else"))
        with self._book.counted(kind, "websocket"):
            if options.echo:
                await self._echo(head, reply)
            else:
                self._writer.write(reply)
                if self._reset_in == 0:
                    await self._reset()
                await self._converse(head, session)
        return False

    async def _echo(self, head: Head, reply: bytes) -> None:
        """Echoes until the end, without streams."""
        head.digest = None
        transport = cast("asyncio.Transport", self._writer.transport)
        protocol = _EchoProtocol(transport, head)
        early, self._buffer = self._buffer, b""
        # the reader is empty: one read takes all that it holds, and nothing was awaited since the last
        transport.set_protocol(protocol)
        transport.write(reply)
        if not transport.is_reading():  # the reader may have paused it
            transport.resume_reading()
        if early:
            protocol.data_received(early)
        await protocol.lost
        head.ended = "complete" if protocol.clean else "cut"

    async def _converse(self, head: Head, session: Session) -> None:
        """One conversation of the engine's, until either side closes."""
        ws = WebSocket(ConnectionType.SERVER, trailing_data=self._buffer)
        self._buffer = b""
        inbox = _Inbox(session, head)
        now = time.monotonic
        closed = await self._say(ws, session.open(now()))
        while not closed:
            for event in ws.events():
                if closed := await self._hear(ws, inbox, event):
                    break
            else:
                try:
                    async with asyncio.timeout(None if session.deadline is None else max(0, session.deadline - now())):
                        data = await self._reader.read(_READ)
                except TimeoutError:
                    closed = await self._say(ws, session.expire())
                else:
                    if not data:
                        raise _GoneError
                    ws.receive_data(data)
        head.ended = "complete" if ws.state is ConnectionState.CLOSED else "cut"

    async def _hear(self, ws: WebSocket, inbox: "_Inbox", event: Event) -> bool:
        """Answers one event; True where it was the last."""
        match event:
            case TextMessage() | BytesMessage():
                return await self._say(ws, inbox.take(event, time.monotonic()))
            case Ping():
                await self._write(ws.send(event.response()))
            case CloseConnection() if ws.state is ConnectionState.REMOTE_CLOSING:
                await self._write(ws.send(event.response()))
                return True
            case CloseConnection(code=code, reason=reason):  # the client broke the protocol; wsproto says how
                return await self._say(ws, [Close(code, reason or "")])
            case _:
                pass
        return False

    async def _say(self, ws: WebSocket, outgoing: Iterable[Outgoing]) -> bool:
        """Sends what the session says; True where it ended with a close, whose answer is waited for."""
        for each in outgoing:
            match each:
                case Close(code, reason):
                    await self._write(ws.send(CloseConnection(code=code, reason=reason)))
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_CLOSE_WAIT):
                            await self._closed(ws)
                    return True
                case str():
                    await self._write(ws.send(TextMessage(data=each)))
                case _:
                    await self._write(ws.send(BytesMessage(data=each)))
        return False

    async def _closed(self, ws: WebSocket) -> None:
        """Throws away what comes, up to the client's close."""
        while not any(isinstance(event, CloseConnection) for event in ws.events()):
            data = await self._reader.read(_READ)
            if not data:
                raise _GoneError
            ws.receive_data(data)


class _Inbox:
    """Gives a session messages as it wants them: text whole, audio as it comes, an empty message apart."""

    def __init__(self, session: Session, head: Head) -> None:
        self._session = session
        self._head = head
        self._text: list[str] = []
        self._size = 0  # of the present message

    def take(self, event: TextMessage | BytesMessage, now: float) -> Iterator[Outgoing]:
        """A piece of a message; what the session says to it."""
        data = event.data
        self._size += len(data)
        if isinstance(event, TextMessage):
            self._head.take(event.data.encode())
            self._text.append(event.data)
            if self._size > _MAX_TEXT:
                yield Close(1009, "BIG-0000: the message is too big.")
                return
            if event.message_finished:
                text, self._text = "".join(self._text), []
                yield from self._session.text(text, now)
        else:
            piece = bytes(event.data)
            self._head.take(piece)
            if piece:
                yield from self._session.audio(piece, now)
            elif event.message_finished and not self._size:
                yield from self._session.end_of_audio(now)
        if event.message_finished:
            self._size = 0


class _EchoProtocol(asyncio.Protocol):
    """Takes a connection over from its streams, and gives them back its end."""

    def __init__(self, transport: asyncio.Transport, head: Head) -> None:
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport = transport
        self._streams = transport.get_protocol()
        self._head = head
        self._echo = Echo()

    @property
    def clean(self) -> bool:
        """Whether the client closed by a closing handshake."""
        return self._echo.clean

    def data_received(self, data: bytes) -> None:
        """Bytes of frames."""
        echo = self._echo
        out = echo.receive(data)
        self._head.body_bytes = echo.payload_bytes
        if out:
            self._transport.write(out)
        if echo.closed:
            self._transport.close()

    def pause_writing(self) -> None:
        """The client does not read: neither do we."""
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """It reads again."""
        self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end; whoever waits for the writer to be closed learns it from the streams."""
        self._streams.connection_lost(exc)
        if not self.lost.done():
            self.lost.set_result(None)


def _new_http() -> h11.Connection:
    return h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD)


def _bad_parameter(wrong: ValueError, request_id: str) -> Answer:
    return error(400, request_id, str(wrong), "INVALID_QUERY_PARAMETER")


def _asked(options: Options, request_id: str) -> Answer | None:
    """The answer that a test asked for instead of the true one."""
    if options.status is not None:
        return error(options.status, request_id)
    if options.size is not None:
        return Answer(200, "application/octet-stream", filler(options.size), options.size)
    return None
