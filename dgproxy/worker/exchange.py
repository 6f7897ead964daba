"""One HTTP request over one upstream connection: the body up, the answer down, both at once.

Rules of this file: it writes no refusal, it says how the exchange ended (`Outcome`) and the connection does the rest;
the upload runs beside the answer and is always awaited; whichever side goes away ends the other within the same tick.
"""

import asyncio
from dataclasses import dataclass
from typing import Final

from dgproxy.access.limits import Pace
from dgproxy.config import Timeouts
from dgproxy.net.endpoint import Cause, Endpoint, Lost
from dgproxy.net.pipes import Pipes
from dgproxy.net.pour import AN_EVENT, Pour, Poured
from dgproxy.wire import forwarding, refusals
from dgproxy.wire.exchange import END, BadBody, Downstream, Upstream
from dgproxy.wire.head import Head
from dgproxy.wire.refusals import Refusal
from dgproxy.wire.response import Answer, BadAnswer
from dgproxy.worker.meter import End, Meter

_WORTH_POURING: Final = 2 * AN_EVENT  # bytes of a body that are still to come; more than is ever read ahead
_LOOK: Final = 1.0  # seconds between two looks at a body that pours
_SAFE: Final = frozenset({b"GET", b"HEAD"})  # RFC 9110 9.2.1; no other is served without a body
_TURN: Final = 64  # pieces of a body after which others have their turn: a chunk may hold a single byte
CLIENT_CLOSED: Final = 499  # nginx's number for a client that went away before it was answered


@dataclass(frozen=True, slots=True)
class Served:
    """The client has its answer, as far as it goes."""

    end: End
    keep: bool  # another request may follow on the client's connection


@dataclass(frozen=True, slots=True)
class Failed:
    """The client has no answer yet and is owed this one."""

    refusal: Refusal
    end: End
    detail: str
    body_read: bool = False


@dataclass(frozen=True, slots=True)
class Stale:
    """A kept upstream connection was closed under our hands; nothing of a body was sent, so another may be tried."""


Outcome = Served | Failed | Stale
GONE: Final = Served(End.CLIENT_GONE, keep=False)


async def read_answer(conversation: Upstream, upstream: Endpoint, timeout: float) -> Answer:
    """The head of the upstream's final answer, all of which must come within `timeout` seconds.

    Raises:
        BadAnswer: it is malformed, or the upstream ended without one.
        Lost: the connection broke, or nothing came in time.
    """
    clock = asyncio.get_running_loop().time
    deadline = clock() + timeout
    while True:
        answer = conversation.answer()
        if isinstance(answer, Answer):
            return answer
        data = await upstream.read(max(deadline - clock(), 0.0))
        if not data:
            raise BadAnswer("ended without an answer")
        conversation.feed(data)


class Exchange:
    """One attempt at one request."""

    def __init__(
        self,
        client: Endpoint,
        downstream: Downstream,
        upstream: Endpoint,
        meter: Meter,
        timeouts: Timeouts,
        response_timeout: float,
        buffer: bytearray,
        pipes: Pipes,
    ) -> None:
        """`buffer` and `pipes`: those of the worker's relays."""
        self._buffer = buffer
        self._pipes = pipes
        self._client = client
        self._downstream = downstream
        self._upstream = upstream
        self._meter = meter
        self._timeouts = timeouts
        self._response_timeout = response_timeout
        self._conversation: Upstream | None = None
        self._sent_body = False
        self._pace = Pace(timeouts.minimum_upload_rate)
        # Set when the client has its 100 Continue, or needs none; without a body nobody waits for that.
        self._told = asyncio.Event() if meter.head.has_body else None

    @property
    def reusable(self) -> bool:
        """Whether the upstream connection may serve another request."""
        return self._conversation is not None and self._conversation.reusable

    async def run(self, headers: list[tuple[bytes, bytes]], max_body: int, *, reused: bool) -> Outcome:
        """Sends the request with these headers, relays the answer; `max_body` in bytes, `reused`: may be stale."""
        head = self._meter.head
        self._client.watch(on_gone=self._upstream.abort)
        self._conversation = conversation = Upstream(head.method, head.target, headers + _framing(head))
        upload: _Upload
        if head.has_body:
            upload = asyncio.ensure_future(self._upload(conversation, max_body))
        else:
            upload = asyncio.get_running_loop().create_future()
        try:
            if not head.has_body:  # it is sent when its head is written: no task of its own
                upload.set_result(await self._upload(conversation, max_body))
            answer = await self._answer(conversation, upload)
            if isinstance(answer, Answer):
                return await self.relay(conversation, answer, upload)
            if isinstance(answer, Failed) and answer.end is End.UPSTREAM_GONE and reused and self._may_go_again:
                return Stale()
            return answer
        finally:
            self._client.watch()
            if not upload.done():
                upload.cancel()
                await asyncio.wait((upload,))

    @property
    def _may_go_again(self) -> bool:
        """Whether the upstream can't have acted on what it got: nothing of a body that it needs, or a safe method."""
        head = self._meter.head
        return not self._sent_body and (head.has_body or head.method in _SAFE)

    # --- up -------------------------------------------------------------------------------------------------------

    async def _upload(self, conversation: Upstream, max_body: int) -> Failed | Served | None:
        """The request, head and body; None when all is sent or the upstream takes no more."""
        try:
            return await self._send(conversation, max_body)
        except BadBody as error:
            return self._give_up(Failed(refusals.BAD_FRAMING, End.CLIENT_FAULT, str(error)))
        except _TooSlow:
            return self._give_up(Failed(refusals.BODY_TOO_SLOW, End.CLIENT_FAULT, "body slower than the minimum rate"))
        except _Stuck:
            return self._give_up(Failed(refusals.UPSTREAM_TIMEOUT, End.UPSTREAM_FAULT, "takes no more of the body"))
        except _ClientLost as lost:
            if lost.cause is Cause.TIMEOUT:
                return self._give_up(Failed(refusals.BODY_TIMEOUT, End.CLIENT_FAULT, "body stopped"))
            return self._give_up(GONE)
        except Lost:
            return None

    async def _send(self, conversation: Upstream, max_body: int) -> Failed | Served | None:
        upstream = self._upstream
        patience = self._timeouts.stream_idle
        try:
            await upstream.write(conversation.head, patience)
            await self._proceed()
        finally:
            if self._told is not None:
                self._told.set()
        while True:
            if self._downstream.to_come >= _WORTH_POURING and await self._pour() is not Poured.ENOUGH:
                return None
            if (piece := await self._piece()) is None:
                break
            self._meter.bytes_in += len(piece)
            if self._meter.bytes_in > max_body:
                return self._give_up(Failed(refusals.BODY_TOO_LARGE, End.REFUSED, "body larger than announced"))
            if not await self._pass_on(conversation.data(piece)):
                return None
            await asyncio.sleep(0)  # others have their turn
        if self._meter.head.has_body:
            await upstream.write(conversation.end(), patience)
        else:
            conversation.end()
        return None

    async def _pass_on(self, data: bytes) -> bool:
        """Whether the upstream took it; else it may have answered already, or whoever waits for that finds out."""
        self._sent_body = True
        try:
            await self._upstream.write(data, self._timeouts.stream_idle)
        except Lost as lost:
            if lost.cause is Cause.TIMEOUT:
                raise _Stuck from None
            return False
        return True

    async def _pour(self) -> Poured:
        """Most of a long body, from one fd to the other without coming by here.

        Raises:
            _ClientLost, _TooSlow, _Stuck: as `_from_client` and `_upload` would have it.
        """
        clock = asyncio.get_running_loop().time
        patience = self._timeouts.stream_idle
        client, upstream = self._client, self._upstream
        if client.gone:
            raise _ClientLost(Cause.RESET)
        if early := client.release():
            self._meter.bytes_in += len(early)
            self._downstream.skip(len(early))
            if not await self._pass_on(early):
                client.watch(on_gone=upstream.abort)
                return Poured.REFUSED
        least = self._downstream.to_come - AN_EVENT
        pour = Pour(asyncio.get_running_loop(), client, upstream, self._buffer, least, self._pipes)
        self._sent_body = True
        idle = 0.0
        try:
            while True:
                before, count, blocked = clock(), pour.count, pour.blocked
                outcome = await pour.wait(min(_LOOK, patience - idle, self._pace.left))
                waited, moved = clock() - before, pour.count - count
                self._meter.bytes_in += moved
                if outcome is Poured.LOST and not upstream.closed:
                    raise _ClientLost(Cause.RESET)
                if outcome is not None:
                    return outcome
                blocked = blocked or pour.blocked
                if not self._pace.note(0.0 if blocked else waited, moved):
                    raise _TooSlow
                idle = 0.0 if moved else idle + waited
                if idle >= patience:
                    raise _Stuck if blocked else _ClientLost(Cause.TIMEOUT)
        finally:
            pour.close()
            self._downstream.skip(pour.count)
            client.watch(on_gone=upstream.abort)

    async def _proceed(self) -> None:
        """A client that waits to be told so may send its body. One that can't be told is gone, and not the upstream."""
        proceed = self._downstream.proceed()
        if proceed:
            try:
                await self._client.write(proceed, self._timeouts.stream_idle)
            except Lost as lost:
                raise _ClientLost(Cause.RESET) from lost

    async def _piece(self) -> bytes | None:
        """The next bytes of the client's body, None at its end.

        Small chunks go on as one: each of its own would cost the proxy, and the engine, a thousand times its bytes.
        """
        pieces: list[bytes] = []
        while len(pieces) < _TURN:
            try:
                event = self._downstream.body()
            except BadBody:
                if pieces:
                    break  # what came before it is judged and passed on before it; it is raised again
                raise
            if isinstance(event, bytes):
                pieces.append(event)
            elif pieces:
                break
            elif event is END:
                return None
            else:
                data = await self._from_client()
                if not data:
                    raise _ClientLost(Cause.RESET)
                self._downstream.feed(data)
        return b"".join(pieces)

    async def _from_client(self) -> bytes:
        """The client's next bytes, which must come at the pace that is asked for."""
        clock = asyncio.get_running_loop().time
        idle = 0.0
        while True:
            patience = self._timeouts.stream_idle - idle
            before = clock()
            data: bytes | None = None
            try:
                data = await self._client.read(min(patience, self._pace.left))
            except Lost as lost:
                if lost.cause is not Cause.TIMEOUT or self._pace.left >= patience:
                    raise _ClientLost(lost.cause) from lost
            waited = clock() - before
            if not self._pace.note(waited, len(data or b"")):
                raise _TooSlow
            if data is not None:
                return data
            idle += waited

    def _give_up(self, outcome: "Failed | Served") -> "Failed | Served":
        """Ends the upstream's half, so that whoever waits for its answer wakes; a cut request is never completed."""
        self._upstream.abort()
        return outcome

    # --- down -----------------------------------------------------------------------------------------------------

    async def _answer(self, conversation: Upstream, upload: "_Upload") -> Answer | Outcome:
        while True:
            try:
                return await read_answer(conversation, self._upstream, self._response_timeout)
            except BadAnswer as error:
                fault: Exception = error
            except Lost as lost:
                if lost.cause is Cause.TIMEOUT and not upload.done():
                    continue  # it need not answer before it has the whole request
                fault = lost
            break
        if upload.done() and (outcome := upload.result()) is not None:
            return outcome
        if self._client.gone:
            return GONE
        if isinstance(fault, Lost) and fault.cause is Cause.TIMEOUT:
            self._upstream.abort()
            return self._failed(refusals.UPSTREAM_TIMEOUT, End.UPSTREAM_FAULT, "no answer in time")
        ended = isinstance(fault, Lost) or self._upstream.ended
        end = End.UPSTREAM_GONE if ended else End.UPSTREAM_FAULT
        return self._failed(refusals.UPSTREAM_BROKE, end, str(fault))

    def _failed(self, refusal: Refusal, end: End, detail: str) -> Failed:
        return Failed(refusal, end, detail, body_read=self._downstream.body_ended)

    async def relay(self, conversation: Upstream, answer: Answer, upload: "_Upload | None" = None) -> Outcome:
        """Passes the answer on. Without an `upload` (a refused handshake) the connection ends with it."""
        meter, downstream, client = self._meter, self._downstream, self._client
        patience = self._timeouts.stream_idle
        meter.status = answer.status
        meter.dg_request_id = answer.one(b"dg-request-id") or answer.one(b"x-dg-request-id")
        close = upload is None or not upload.done()
        try:
            headers = forwarding.downstream_headers(answer.headers)
            headers += [(name.encode(), value.encode()) for name, value in meter.owed]
            out = downstream.respond(answer.status, answer.reason, headers, close=close)
        except ValueError as error:
            return self._failed(refusals.UPSTREAM_BROKE, End.UPSTREAM_FAULT, str(error))
        if upload is not None and self._told is not None:
            await self._told.wait()  # one writes to the client at a time
        pieces = 0
        try:
            while True:
                pieces += 1
                if not pieces % _TURN:
                    await asyncio.sleep(0)
                event = conversation.body()
                if isinstance(event, bytes):
                    meter.bytes_out += len(event)
                    out += downstream.data(event)
                elif event is END:
                    meter.begun = True
                    await client.write(out + downstream.end(), patience)
                    return Served(End.COMPLETE, keep=not close and downstream.reusable)
                elif out:
                    meter.begun = True
                    await client.write(out, patience)
                    out = b""
                else:
                    conversation.feed(await self._more())
        except (BadAnswer, _UpstreamLost) as error:
            if upload is not None and upload.done() and (given_up := upload.result()) is not None:
                if meter.begun:
                    client.abort()
                    return Served(given_up.end, keep=False)
                return given_up  # it was the upload that ended the upstream's half
            gone = client.gone
            if not (meter.begun or gone):
                return self._failed(refusals.UPSTREAM_BROKE, End.UPSTREAM_FAULT, str(error))
            client.abort()  # the client must see that this is not the whole
            if gone:
                return GONE
            return Served(End.UPSTREAM_GONE if isinstance(error, _UpstreamLost) else End.UPSTREAM_FAULT, keep=False)
        except Lost:
            client.abort()
            return GONE

    async def _more(self) -> bytes:
        begun = self._meter.bytes_out > 0  # an answer that has begun may pause, but not process
        try:
            return await self._upstream.read(self._timeouts.stream_idle if begun else self._response_timeout)
        except Lost as lost:
            raise _UpstreamLost(lost.cause) from lost


_Upload = asyncio.Future[Failed | Served | None]


class _TooSlow(Exception):  # noqa: N818
    """The client's body comes slower than it must."""


class _Stuck(Exception):  # noqa: N818
    """The upstream takes no more of a body that comes."""


class _ClientLost(Exception):  # noqa: N818
    def __init__(self, cause: Cause) -> None:
        super().__init__(cause.value)
        self.cause = cause


class _UpstreamLost(Exception):  # noqa: N818
    def __init__(self, cause: Cause) -> None:
        super().__init__(cause.value)


def _framing(head: Head) -> list[tuple[bytes, bytes]]:
    """The body's framing as the client sent it."""
    if head.chunked:
        return [(b"Transfer-Encoding", b"chunked")]
    if head.content_length is not None:
        return [(b"Content-Length", b"%d" % head.content_length)]
    return []
