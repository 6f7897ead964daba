"""A relay between two real sockets, each with a peer that a test drives."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final, cast

import pytest

from dgproxy.net.budget import Budget, unbounded
from dgproxy.net.endpoint import Endpoint
from dgproxy.net.pipes import Pipes
from dgproxy.net.relay import Direction, Relay, Side, make_buffer
from dgproxy.net.tls import WOULD_BLOCK
from dgproxy.wire import frames
from tests.support import pumps
from tests.support.peers import Peer, Watched, certificates, tcp_pair

PATIENCE: Final = 3.0
VIOLATION: Final = frames.close(1002, "no")
VIOLATION_MASKED: Final = frames.close(1002, "no", b"mask")
ENDLESS: Final = 1 << 62
SMALL: Final = 8 * 1024  # asked of the kernel, which doubles it

KINDS: Final = {
    "plain to plain": (False, False),
    "TLS to plain": (True, False),
    "plain to TLS": (False, True),
    "TLS to TLS": (True, True),
}
kinds = pytest.mark.parametrize(("secure_client", "secure_server"), KINDS.values(), ids=KINDS)


@dataclass
class Rig:
    """client <-> downstream = relay = upstream <-> server"""

    loop: Watched
    client: Peer
    server: Peer
    downstream: Endpoint
    upstream: Endpoint
    relay: Relay
    budget: Budget
    pipes: Pipes | None
    ends: list[Side | None] = field(default_factory=list)
    lost: list[Side | None] = field(default_factory=list)  # where `close_when_lost` put a Close in place of the end
    close_when_lost: bool = False
    faults: list[Side] = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def peer(self, side: Side) -> tuple[Peer, Peer]:
        """The peer on a side, and the other one."""
        return (self.client, self.server) if side is Side.DOWNSTREAM else (self.server, self.client)

    def start(self, *, frames: bool = False) -> None:
        if not frames:  # then all that is sent belongs to one endless frame
            self.relay.up.tracker.left = self.relay.down.tracker.left = ENDLESS
        self.relay.start(self.downstream.release(), self.upstream.release())

    def finish(self, *, between_messages: bool = False) -> None:
        self.relay.finish(VIOLATION, VIOLATION_MASKED, between_messages=between_messages)

    def watched(self) -> set[int]:
        """Which of the relay's fds are in the loop."""
        return (self.loop.readers | self.loop.writers) & {self.downstream.fd, self.upstream.fd}

    def held_pipes(self) -> int:
        """Pipes that were not given back; those that were are closed."""
        if self.pipes is None:
            return 0
        self.pipes.close()
        return self.pipes.open

    async def end(self) -> Side | None:
        """How it ended: once, and nothing of it is left in the loop."""
        await self.over.wait()
        await ticks(3)
        (end,) = self.ends
        assert not self.watched()
        return end


async def ticks(count: int) -> None:
    """Turns of the loop."""
    for _ in range(count):
        await asyncio.sleep(0)


async def build(*, secure_client: bool, secure_server: bool, buffer: int | None) -> Rig:
    loop = Watched(asyncio.get_running_loop())
    typed = cast("asyncio.AbstractEventLoop", loop)
    far, near = tcp_pair(buffer)
    client = Peer(far, certificates().client() if secure_client else None)
    downstream = Endpoint(typed, near, "client")
    near, far = tcp_pair(buffer)
    server = Peer(far, certificates().server() if secure_server else None, server_side=True)
    upstream = Endpoint(typed, near, "server")
    if secure_client:
        await asyncio.gather(
            downstream.handshake(certificates().server(), PATIENCE, server_side=True), client.handshake()
        )
    if secure_server:
        await asyncio.gather(
            upstream.handshake(certificates().client(), PATIENCE, server_side=False, name="127.0.0.1"),
            server.handshake(),
        )

    def on_end(side: Side | None) -> None:  # as their owner does, a Stream
        if side is not None and rig.close_when_lost:
            rig.lost.append(side)
            rig.finish()
            return
        rig.ends.append(side)
        rig.over.set()
        rig.relay.stop()
        for endpoint, direction in ((downstream, relay.down), (upstream, relay.up)):
            if side is not None:
                endpoint.abort()
            elif direction.finished:  # what the peer still sends must not reset our last words
                see_off(endpoint)
            else:
                endpoint.close()

    def see_off(endpoint: Endpoint) -> None:
        try:
            endpoint.half_close()
        except WOULD_BLOCK:  # close_notify needs room in the kernel too
            typed.call_later(0.001, see_off, endpoint)

    def on_fault(side: Side) -> None:
        rig.faults.append(side)
        rig.finish()

    budget = unbounded()
    pipes = pumps.pipes()
    relay = Relay(typed, downstream, upstream, make_buffer(), budget, on_end, on_fault, pumps.form, pipes)
    if pipes is not None:
        relay.up.expect_bulk()
    rig = Rig(loop, client, server, downstream, upstream, relay, budget, pipes)
    return rig


def run(
    work: Callable[[Rig], Coroutine[Any, Any, None]],
    *,
    secure_client: bool,
    secure_server: bool,
    buffer: int | None = None,
) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE):
            rig = await build(secure_client=secure_client, secure_server=secure_server, buffer=buffer)
            try:
                await work(rig)
            finally:
                rig.relay.stop()
                watched = rig.watched()
                rig.downstream.abort()
                rig.upstream.abort()
                rig.client.close()
                rig.server.close()
                held = rig.held_pipes()
            assert not rig.budget.used
            assert not held
            assert not watched

    with asyncio.Runner(loop_factory=pumps.new_event_loop) as runner:
        runner.run(bounded())


def blocked(direction: Direction) -> bool:
    """Whether bytes wait that the sink does not take."""
    return direction._pending is not None


async def settled(rig: Rig) -> int:
    """Bytes taken so far, once a hundred turns of the loop take no more."""
    seen = -1
    while seen != rig.relay.up.count + rig.relay.down.count:
        seen = rig.relay.up.count + rig.relay.down.count
        await ticks(100)
    return seen
