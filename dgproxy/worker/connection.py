"""The life of a client's connection, top to bottom: accept, handshake, then request after request, phase by phase.

Rules of this file: phases are decided in the order of spec part 5, all on the head alone, before any byte of a body
or a 100 Continue; every 4xx and 5xx of our own is written by `_refuse`; whoever takes a slot or a lease gives it back
in the same function, or hands it to a Stream.
"""

import asyncio
import time
import traceback
from email.utils import formatdate
from typing import TYPE_CHECKING, Final

import msgspec

from dgproxy import events
from dgproxy.access import cors, credentials, policy
from dgproxy.access.credentials import Credential
from dgproxy.access.keys import Record as Key
from dgproxy.access.limits import Slot, source
from dgproxy.config import Plan, effective
from dgproxy.net import closing, tls
from dgproxy.net.endpoint import Cause, Endpoint, Lost
from dgproxy.upstream.pool import Lease, Unreachable
from dgproxy.wire import deepgram, forwarding, refusals
from dgproxy.wire.deepgram import Class
from dgproxy.wire.exchange import Downstream, Upstream
from dgproxy.wire.handshake import DownstreamHandshake, UpstreamHandshake
from dgproxy.wire.head import Head, find_end, judge
from dgproxy.wire.refusals import Refusal
from dgproxy.wire.response import BadAnswer
from dgproxy.worker.exchange import CLIENT_CLOSED, GONE, Exchange, Failed, Outcome, Served, Stale, read_answer
from dgproxy.worker.meter import End, Meter
from dgproxy.worker.stream import Stream

if TYPE_CHECKING:
    from dgproxy.worker.main import Worker

_TLS_EXPECTED: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 24\r\nConnection: close\r\n\r\n"
    b"This port speaks HTTPS.\n"
)
_SWITCHING_PROTOCOLS: Final = 101


class Connection:
    """One client connection, until it ends or becomes a Stream."""

    meter: Meter  # of the request that is in flight

    def __init__(self, worker: "Worker", endpoint: Endpoint) -> None:
        self._worker = worker
        self._endpoint = endpoint
        self._handed_over = False
        self._slot: Slot | None = None
        self._seat: Slot | None = None  # of this connection's source, where that is limited
        self._lease: Lease | None = None
        self._task: asyncio.Task[object] | None = None
        self._cut: Refusal | None = None
        self._cut_end = End.CUT
        self._first = True
        self._agreed: Head | None = None  # the last head that two parsers read alike: clients repeat themselves
        self._bodiless = False  # the request that is being read begins as HEAD does
        self.idle = False  # between two requests: may be closed at any time

    async def serve(self) -> None:
        """Everything that happens on this connection."""
        phase = "accept"
        self._task = asyncio.current_task()
        try:
            if not await self._seated():
                self._endpoint.abort()
                return
            phase = "handshake"
            if self._worker.context is not None:
                await self._handshake(self._worker.context)
            phase = "request"
            while await self._request():
                if self._worker.stopping:
                    break
        except Lost as lost:
            if self._worker.log.wants(events.CONNECTION_FAILED):
                self._worker.log(
                    events.CONNECTION_FAILED,
                    peer=self._endpoint.peer,
                    phase=phase,
                    cause=lost.cause,
                    detail=str(lost.__cause__ or ""),
                )
        except Exception as fault:  # noqa: BLE001 - a fault of ours ends one connection, not the worker
            self._worker.log(events.WORKER_FAULT, phase=phase, error=repr(fault), trace=traceback.format_exc(limit=-6))
        finally:
            if not self._handed_over:
                self._endpoint.close()
                if self._seat is not None:
                    self._worker.ledger.give_back(self._seat)

    def tick(self) -> None:
        """Sees a client that went while much of what it had sent was not read yet."""
        if not self._handed_over:
            self._endpoint.look_after()

    def close_if_idle(self) -> None:
        """Ends the connection if no request is in progress on it."""
        if self.idle:
            self._endpoint.close()

    def abort(self) -> None:
        """Ends it now, whatever it does."""
        if not self._handed_over:
            self._endpoint.abort()
            if self._lease is not None:  # whoever waits for the upstream, for what it says or what it takes, wakes
                self._lease.endpoint.abort()

    def cut(self, refusal: Refusal, end: End = End.CUT) -> None:
        """Ends an admitted request: with this refusal if no answer has begun, else with a reset."""
        if self._cut is None and self._task is not None:
            self._cut = refusal
            self._cut_end = end
            self._task.cancel()

    def shed(self) -> None:
        """Ends it for the bytes that it holds, all of which are free when this returns."""
        if self._slot is None or self._cut is not None:
            self.abort()
            return
        self._endpoint.release()
        if self._lease is not None:
            self._lease.endpoint.abort()
        if self.meter.begun:
            self._endpoint.abort()
        self.cut(refusals.OVERLOADED, End.SHED)

    @property
    def held(self) -> int:
        """Bytes that wait here for one of the two sides."""
        return self._endpoint.held + (0 if self._lease is None else self._lease.endpoint.held)

    @property
    def held_since(self) -> float:
        """Since when (the loop's time) no byte of them has moved; infinity if there is none."""
        ours = self._endpoint.held_since
        return ours if self._lease is None else min(ours, self._lease.endpoint.held_since)

    # --- phases ---------------------------------------------------------------------------------------------------

    async def _seated(self) -> bool:
        """Whether this client's address may have one more connection."""
        worker = self._worker
        if not worker.config.limits.connections_per_address:
            return True
        seat = await worker.ledger.admit_connection(source(_address(self._endpoint.peer).decode()))
        if isinstance(seat, Refusal):
            worker.log(events.CONNECTION_REFUSED, peer=self._endpoint.peer, reason=seat.message)
            return False
        self._seat = seat
        return True

    async def _handshake(self, context: tls.Context) -> None:
        try:
            await self._endpoint.handshake(context, self._worker.config.timeouts.tls_handshake, server_side=True)
        except Lost as lost:
            if lost.__cause__ is not None and tls.spoke_plain_http(lost.__cause__):
                self._endpoint.write_plain(_TLS_EXPECTED)
                await closing.linger(self._endpoint)
            raise

    async def _request(self) -> bool:
        """One request, phase by phase; whether another may follow on this connection."""
        worker = self._worker

        head = await self._head()  # phase: head
        if head is None:
            return False
        request_id = worker.random.uuid()
        if isinstance(head, Refusal):
            return await self._refuse(head, request_id, "head")
        meter = Meter(request_id, self._endpoint.peer, head)
        exchange = Downstream.begin(head, self._agreed)
        if isinstance(exchange, Refusal):
            return await self._refuse(exchange, request_id, "head", meter)
        self._agreed = head
        handshake = DownstreamHandshake.begin(head) if head.websocket else None
        if isinstance(handshake, Refusal):
            return await self._refuse(handshake, request_id, "head", meter)

        meter.owed = worker.cors.owed(head)
        if worker.cors.is_preflight(head):
            return await self._preflight(meter)

        cls = deepgram.route(head.method, head.path, websocket=head.websocket)  # phase: route
        if isinstance(cls, Refusal):
            return await self._refuse(cls, request_id, "route", meter)
        meter.cls = cls
        refusal = worker.cors.judge(head)  # phase: cors
        if refusal is not None:
            return await self._refuse(refusal, request_id, "cors", meter, detail=cors.named(head))

        credential = credentials.find(head.headers, websocket=head.websocket)  # phase: credential
        if isinstance(credential, Refusal):
            return await self._refuse(credential, request_id, "credential", meter)

        meter.secret = credential.value
        key = worker.table.check(credential.value, worker.pepper, time.time())  # phase: key
        if isinstance(key, Refusal):
            return await self._refuse(key, request_id, "key", meter, credential=credential)
        if credentials.elsewhere(head, credential):
            return await self._refuse(refusals.REPEATED_CREDENTIAL, request_id, "key", meter)
        meter.key = key
        self.meter = meter
        worker.live.add(key, self)
        try:
            return await self._serve_key(meter, key, cls, credential, exchange, handshake)
        except asyncio.CancelledError:
            if self._cut is None or self._task is None:
                raise
            self._task.uncancel()
        finally:
            worker.live.remove(key, self)
        # Not above: the exception would hold all that was on its way, for as long as the client is seen off.
        return await self._end_cut(meter, self._cut)

    async def _preflight(self, meter: Meter) -> bool:
        """Tells a browser, which has no key yet, what a page may send; whether another request may follow."""
        head = meter.head
        methods = deepgram.methods(head.path)
        if isinstance(methods, Refusal):
            return await self._refuse(methods, meter.request_id, "route", meter)
        refusal = self._worker.cors.judge(head)
        if refusal is not None:
            return await self._refuse(refusal, meter.request_id, "cors", meter, detail=cors.named(head))
        if self._worker.log.wants(events.REQUEST_PREFLIGHT):
            self._worker.log(events.REQUEST_PREFLIGHT, **meter.fields())
        close = self._closes(head, body_read=False)
        answer = cors.permission(head, methods, meter.owed, formatdate(usegmt=True), close=close)
        return await self._answer(answer, close=close)

    async def _serve_key(
        self,
        meter: Meter,
        key: Key,
        cls: Class,
        credential: Credential,
        exchange: Downstream,
        handshake: DownstreamHandshake | None,
    ) -> bool:
        """The phases after the key's, in which a change of the key may cut the request at any await."""
        worker = self._worker
        plan = worker.config.plans.get(key.plan)  # phase: policy
        if plan is None:
            return await self._refuse(refusals.PLAN_UNKNOWN, meter.request_id, "policy", meter)
        plan = effective(plan, key.overrides)
        refusal = policy.judge(plan, cls, meter.head)
        if refusal is not None:
            return await self._refuse(refusal, meter.request_id, "policy", meter)
        if worker.stopping:
            return await self._refuse(refusals.STOPPING, meter.request_id, "limits", meter)

        slot = await worker.ledger.admit(key.id, cls)  # phase: limits
        if isinstance(slot, Refusal):
            return await self._refuse(slot, meter.request_id, "limits", meter)
        self._slot = slot
        try:
            if handshake is None:
                return await self._exchange(meter, exchange, plan)
            return await self._upgrade(meter, exchange, handshake, credential, slot)
        finally:
            if self._cut is None:
                self._close_the_books(meter)

    async def _end_cut(self, meter: Meter, refusal: Refusal) -> bool:
        """A request whose key, or an operator, wants it ended."""
        if meter.begun:
            self._endpoint.abort()  # the client must see that this is not the whole
        else:
            meter.status = refusal.status
        self._finish(meter, self._cut_end)
        if meter.begun:
            return False
        return await self._refuse(msgspec.structs.replace(refusal, close=True), meter.request_id, "live", meter)

    async def _head(self) -> Head | Refusal | None:
        """The next request's head; None if the client is done."""
        timeouts = self._worker.config.timeouts
        endpoint = self._endpoint
        buffer = bytearray()
        seen = 0
        skipped = False
        # Between requests a client may be silent for long; one that has just come has something to say.
        deadline = self._worker.loop.time() + timeouts.request_head if self._first else 0.0
        self._first = False
        while True:
            if buffer[:2] == b"\r\n" and not skipped:  # RFC 9112 2.2: one empty line before a request is forgiven
                del buffer[:2]
                skipped = True
            self._bodiless = buffer.startswith(b"HEAD ")
            if buffer and buffer[:1] != b"\r":
                end = find_end(buffer, seen)
                seen = len(buffer)
                if isinstance(end, Refusal):
                    return end
                if end is not None:
                    endpoint.unread(bytes(buffer[end:]))
                    if self._agreed is not None and buffer[:end] == self._agreed.raw:
                        return self._agreed
                    return judge(bytes(buffer[:end]))
            elif len(buffer) > 1:
                return refusals.BAD_FRAMING
            if self._worker.stopping and not buffer:
                return None
            if buffer and not deadline:
                deadline = self._worker.loop.time() + timeouts.request_head
            try:
                self.idle = not buffer
                left = deadline - self._worker.loop.time() if deadline else timeouts.idle_keepalive
                data = await endpoint.read(max(left, 0.0))
            except Lost as lost:
                if lost.cause is Cause.TIMEOUT and buffer:
                    return refusals.HEAD_TIMEOUT
                if lost.cause in (Cause.TIMEOUT, Cause.CLOSED):
                    return None
                raise
            finally:
                self.idle = False
            if not data:
                return None
            buffer += data

    # --- refusals -------------------------------------------------------------------------------------------------

    async def _refuse(
        self,
        refusal: Refusal,
        request_id: str,
        phase: str,
        meter: Meter | None = None,
        *,
        credential: Credential | None = None,
        body_read: bool = False,
        detail: str | None = None,
    ) -> bool:
        """Writes the table's answer and logs it; whether the connection may go on.

        It may not after a refusal of the framing, nor with a body (or a tunnel's first frames) still to come: then it
        is half-closed and what comes is discarded, so that the answer arrives.
        """
        self._out_of_reach(meter)
        close = refusal.close or meter is None or self._closes(meter.head, body_read=body_read)
        date = formatdate(usegmt=True)
        owed = () if meter is None else meter.owed
        answer = refusal.answer(request_id, date, close=close, bodiless=self._bodiless, extra=owed)
        self._log_refusal(refusal, request_id, phase, meter, credential, detail)
        return await self._answer(answer, close=close)

    def _closes(self, head: Head, *, body_read: bool) -> bool:
        """Whether the connection ends with an answer of our own to this head."""
        return (
            (head.has_body and not body_read)
            or head.websocket
            or head.minor == 0
            or b"close" in head.connection
            or self._worker.stopping
        )

    async def _answer(self, answer: bytes, *, close: bool) -> bool:
        """Writes an answer of our own; whether another request may follow."""
        await self._endpoint.write(answer, self._worker.config.timeouts.stream_idle)
        if close:
            await closing.linger(self._endpoint)
        return not close

    def _log_refusal(
        self,
        refusal: Refusal,
        request_id: str,
        phase: str,
        meter: Meter | None,
        credential: Credential | None,
        detail: str | None,
    ) -> None:
        about = {"request_id": request_id, "peer": self._endpoint.peer} if meter is None else meter.fields()
        self._worker.log(
            events.REQUEST_REFUSED,
            **about,
            status=refusal.status,
            code=refusal.code,
            reason=refusal.message,
            phase=phase,
            form=None if credential is None else credential.form,
            hint=None if credential is None else credentials.hint(credential.value),
            upstream=None if meter is None else meter.upstream,
            detail=detail,
        )

    # --- HTTP -----------------------------------------------------------------------------------------------------

    async def _exchange(self, meter: Meter, downstream: Downstream, plan: Plan) -> bool:
        """Relays one request and its answer; whether another request may follow."""
        worker = self._worker
        if worker.log.wants(events.REQUEST_OPEN):
            worker.log(events.REQUEST_OPEN, **meter.fields())
        outcome: Outcome = Stale()
        fresh = False
        while isinstance(outcome, Stale):
            try:
                lease = await worker.pool.lease(fresh=fresh)
            except Unreachable as error:
                outcome = Failed(refusals.UPSTREAM_UNREACHABLE, End.UPSTREAM_FAULT, error.detail)
                break
            self._lease = lease
            meter.upstream = lease.target.name
            exchange = self._over(lease, downstream, meter)
            try:
                outcome = await exchange.run(self._upstream_headers(meter, lease), plan.max_body, reused=lease.reused)
            finally:
                self._lease = None
                worker.pool.give_back(lease, reusable=exchange.reusable)
            fresh = True
        if isinstance(outcome, Failed):
            keep = await self._fail(meter, outcome)
            if keep:
                self._endpoint.unread(downstream.rest())
            return keep
        meter.status = meter.status or CLIENT_CLOSED
        self._finish(meter, outcome.end)
        if outcome.keep and not worker.stopping:
            self._endpoint.unread(downstream.rest())
            return True
        if not (outcome.end is End.COMPLETE and downstream.last):  # else nothing can come that a close would reset
            await closing.linger(self._endpoint)
        return False

    def _over(self, lease: Lease, downstream: Downstream, meter: Meter) -> Exchange:
        worker = self._worker
        timeouts, response = worker.config.timeouts, worker.config.upstream.response_timeout
        ends = (self._endpoint, downstream, lease.endpoint)
        return Exchange(*ends, meter, timeouts, response, worker.buffer, worker.pipes)

    def _finish(self, meter: Meter, end: End) -> None:
        """A request is over: told if it was admitted, and its slot free, before anybody lingers for its client."""
        self._out_of_reach(meter)
        if self._slot is not None:
            self._worker.finished(meter, end)
            self._worker.ledger.give_back(self._slot)
            self._slot = None

    def _out_of_reach(self, meter: Meter | None) -> None:
        """From here on nothing is left to cut."""
        if meter is not None and meter.key is not None:
            self._worker.live.remove(meter.key, self)

    def _close_the_books(self, meter: Meter) -> None:
        """Whatever way an admitted request ended that nobody foresaw, its slot is free and it is told of."""
        if self._slot is not None and not self._handed_over:
            self._finish(meter, End.FAULT)

    async def _fail(self, meter: Meter, failed: Failed) -> bool:
        """An admitted request that gets no answer from the upstream but a refusal from us."""
        meter.status = failed.refusal.status
        self._finish(meter, failed.end)
        return await self._refuse(
            failed.refusal, meter.request_id, "upstream", meter, detail=failed.detail, body_read=failed.body_read
        )

    # --- WebSocket ------------------------------------------------------------------------------------------------

    async def _upgrade(
        self, meter: Meter, downstream: Downstream, handshake: DownstreamHandshake, credential: Credential, slot: Slot
    ) -> bool:
        """Asks the upstream for a WebSocket; only its verified 101 makes ours, and the connection a Stream."""
        worker = self._worker
        patience = worker.config.timeouts.upgrade
        lease: Lease | None = None
        try:
            async with asyncio.timeout(patience):
                self._lease = lease = await worker.pool.lease(fresh=True)
                meter.upstream = lease.target.name
                self._endpoint.watch(on_gone=lease.endpoint.abort)
                ours = UpstreamHandshake(meter.head.target, self._upstream_headers(meter, lease))
                conversation = Upstream.of_upgrade()
                await lease.endpoint.write(ours.head, patience)
                answer = await read_answer(conversation, lease.endpoint, patience)
                if answer.status == _SWITCHING_PROTOCOLS:
                    ours.verify(answer)
                    self._endpoint.watch()  # from here on the Stream watches
                    accepted = handshake.accept(credential.subprotocol, forwarding.upgrade_headers(answer.headers))
                    meter.status = answer.status
                    meter.begun = True
                    meter.dg_request_id = answer.one(b"dg-request-id")
                    await self._endpoint.write(accepted, patience)
                    self._become_stream(meter, lease, slot, credential, conversation.rest())
                    return False
            outcome: Outcome = await self._over(lease, downstream, meter).relay(conversation, answer)
        except (Unreachable, TimeoutError, BadAnswer, Lost) as error:
            outcome = GONE if self._endpoint.gone or meter.status else _upgrade_failed(error)
        finally:
            self._lease = None
            if lease is not None and not self._handed_over:
                lease.endpoint.abort()
                worker.pool.give_back(lease, reusable=False)
        if isinstance(outcome, Failed):
            return await self._fail(meter, outcome)
        assert isinstance(outcome, Served)  # noqa: S101 - a fresh connection is never stale
        meter.status = meter.status or CLIENT_CLOSED
        self._finish(meter, outcome.end)
        await closing.linger(self._endpoint)
        return False

    def _become_stream(
        self, meter: Meter, lease: Lease, slot: Slot, credential: Credential, from_upstream: bytes
    ) -> None:
        """Hands both sockets, the slot and the meter over; this connection owns nothing any more."""
        worker = self._worker
        self._handed_over = True
        stream = Stream(
            worker.loop,
            self._endpoint,
            lease,
            slot,
            meter,
            worker.buffer,
            worker.budget,
            worker.pipes,
            worker.on_stream_end,
        )
        stream.seat = self._seat
        assert meter.key is not None  # noqa: S101 - nobody else gets here
        worker.live.add(meter.key, stream)  # before the other is off, so that what is known of the key stays known
        worker.live.remove(meter.key, self)
        worker.streams.add(stream)
        worker.log(
            events.STREAM_OPEN,
            **meter.fields(),
            upstream=meter.upstream,
            dg_request_id=meter.dg_request_id,
            subprotocol=credential.subprotocol,
        )
        stream.start(self._endpoint.release(), from_upstream + lease.endpoint.release())

    def _upstream_headers(self, meter: Meter, lease: Lease) -> list[tuple[bytes, bytes]]:
        """The request's headers for this upstream, framing excepted."""
        return forwarding.upstream_headers(
            meter.head,
            host=lease.target.host,
            peer=_address(self._endpoint.peer),
            scheme=b"https" if self._endpoint.secure else b"http",
            request_id=meter.request_id.encode(),
            trace_id=self._worker.random.digits(32).encode(),
            span_id=self._worker.random.digits(16).encode(),
        )


def _upgrade_failed(error: Exception) -> Failed:
    """What a client is owed whose handshake the upstream did not answer as it should."""
    match error:
        case Unreachable():
            return Failed(refusals.UPSTREAM_UNREACHABLE, End.UPSTREAM_FAULT, error.detail)
        case TimeoutError():
            return Failed(refusals.UPSTREAM_TIMEOUT, End.UPSTREAM_FAULT, "no answer to the handshake in time")
        case Lost(cause=Cause.TIMEOUT):
            return Failed(refusals.UPSTREAM_TIMEOUT, End.UPSTREAM_FAULT, "no answer to the handshake in time")
        case _:
            return Failed(refusals.UPSTREAM_BROKE, End.UPSTREAM_FAULT, str(error))


def _address(peer: str) -> bytes:
    """The address of `address:port`, without the brackets of an IPv6 one."""
    return peer.rpartition(":")[0].strip("[]").encode()
