"""A worker process: sets itself up from the supervisor's messages, accepts, and answers to nobody else.

Rules of this file: the only way in from outside is the supervisor's socket; signals that are meant for the supervisor
are ignored. When that socket ends, the supervisor is dead: accept no more, drain for a short bound, and leave, so
that nothing orphaned holds the port.
"""

import asyncio
import contextlib
import gc
import mmap
import os
import signal
import socket
import sys
import time
from functools import partial
from typing import Any, Final

from dgproxy import events, ids, ipc
from dgproxy.access.cors import Cors
from dgproxy.access.keys import Pepper, Table
from dgproxy.access.limits import Slot
from dgproxy.config import Config, private_key_path
from dgproxy.logs import Log
from dgproxy.net import poll, pump, relay, tls
from dgproxy.net.budget import Budget
from dgproxy.net.channel import Channel
from dgproxy.net.endpoint import Endpoint
from dgproxy.net.listen import Acceptor
from dgproxy.net.pipes import Pipes
from dgproxy.upstream.pool import Pool
from dgproxy.wire.refusals import STOPPING
from dgproxy.worker.connection import Connection
from dgproxy.worker.ledger import Ledger
from dgproxy.worker.live import Live
from dgproxy.worker.meter import End, Meter
from dgproxy.worker.stream import CUT_WITHIN, Stream

ORPHAN_DRAIN: Final = 3.0  # seconds; spec: no process and no bound port left 5 s after the supervisor's death
_SEEN_OFF_WITHIN: Final = 0.5  # seconds for clients to take their last bytes when the worker ends
_TICK: Final = 1.0  # seconds: idle streams, usage reports
# Objects made before a collection of garbage, and collections of one generation before the next. What a request makes
# is freed as it ends, with next to no cycle in it; at Python's 700 a collection comes every few requests, for nothing.
_GC: Final = (50_000, 20, 50)
_IGNORED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE)


class Worker:
    """What a worker holds; its connections reach it all from here."""

    config: Config
    log: Log
    table: Table
    pepper: Pepper
    budget: Budget
    cors: Cors
    pool: Pool
    context: tls.Context | None

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        self.loop = loop
        self.started = loop.time()
        self.stopping = False
        self.buffer = relay.make_buffer()
        self.random = ids.Random()
        self.pipes = Pipes()
        self.streams: set[Stream] = set()
        self._connections: dict[asyncio.Task[None], Connection] = {}
        self._lingering: dict[asyncio.Task[None], Stream] = {}
        self._acceptors: list[Acceptor] = []
        self._most = 0
        self._served = 0
        self._records: list[ipc.Record] = []
        self._told = (-1, -1, -1)
        self._ready = False
        self._target = 0
        self._exit_code = 0
        self._over: asyncio.Event = asyncio.Event()
        self._streams_over: asyncio.Event = asyncio.Event()
        self._channel: Channel[ipc.Down] = Channel(
            loop, sock, ipc.Unpacker(ipc.DOWN), self._on_message, self._on_orphaned
        )
        self.ledger = Ledger(loop, self._channel.send)
        self.live = Live(loop, time.time)

    async def run(self) -> int:
        """Serves until it is told to stop and has nothing left to do; the exit code."""
        self.loop.call_later(_TICK, self._tick)
        await self._over.wait()
        for connection in list(self._connections.values()):
            connection.abort()
        for stream in list(self.streams):
            stream.cut(STOPPING, End.STOPPED)
        if self.streams:
            self._streams_over.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._streams_over.wait(), CUT_WITHIN * 2)
        if self._connections or self._lingering:
            await asyncio.wait([*self._connections, *self._lingering], timeout=_SEEN_OFF_WITHIN)
        for stream in self._lingering.values():
            stream.abort()
        if self._lingering:
            await asyncio.wait(self._lingering, timeout=1.0)
        if self._ready:
            self.pool.close()
            self._report()
            self.log.close()
        self._channel.close()
        return self._exit_code

    # --- the supervisor's messages --------------------------------------------------------------------------------

    def _on_message(self, message: ipc.Down) -> None:
        try:
            self._obey(message)
        except Exception as fault:  # noqa: BLE001 - no worker is better than one that does not know what it should
            print(f"dgproxy worker: {fault!r}", file=sys.stderr, flush=True)  # noqa: T201 - the log may not be up
            self._exit_code = 1
            self._over.set()

    def _obey(self, message: ipc.Down) -> None:
        match message:
            case ipc.Setup():
                self._set_up(message)
            case ipc.Snapshot():
                self._load(message)
            case ipc.Change():
                self.table.apply(message.delta)
                if self._ready:
                    self.live.apply(message.delta)
                self._applied()
            case ipc.Verdicts():
                self.ledger.settle(message)
            case ipc.Ask():
                self._channel.send(ipc.Rows(message.number, self.live.rows(message.key_id)))
            case ipc.Kill():
                self._channel.send(ipc.Killed(message.number, self.live.kill(message.request_id)))
            case ipc.Stop():
                self._stop(message.within)

    def _set_up(self, setup: ipc.Setup) -> None:
        if setup.version != ipc.VERSION:
            raise ipc.BadMessage(f"the supervisor speaks version {setup.version}, this is {ipc.VERSION}")
        self.config = config = setup.config
        self.log = Log(config.log.level, config.log.format, process=f"worker {setup.index}")
        self.pepper = Pepper(setup.pepper)
        self.budget = Budget(max(1, config.limits.buffered // setup.workers), self._on_over_budget)
        self.cors = Cors(config.cors.origins)
        self.pool = Pool(self.loop, config.upstream, self.budget)
        self.context = None
        if config.server.tls:
            self.context = tls.server_context(
                config.tls.certificate, private_key_path(config), config.tls.min_version, setup.ticket_keys
            )
        self._most = max(1, -(-config.limits.connections // setup.workers))
        for _ in setup.listeners:
            listener = socket.socket(fileno=self._channel.take_fd())
            listener.setblocking(False)  # noqa: FBT003
            self._acceptors.append(Acceptor(self.loop, listener, self._on_accept))

    def _load(self, snapshot: ipc.Snapshot) -> None:
        fd = self._channel.take_fd()
        try:
            self.table = Table(mmap.mmap(fd, 0, prot=mmap.PROT_READ))
        finally:
            os.close(fd)
        if self.table.generation != snapshot.generation:
            raise ipc.BadMessage("a snapshot of another generation than announced")
        self._target = snapshot.target
        if self._ready:
            self.live.renew(self.table.get)
        self._applied()

    def _applied(self) -> None:
        """Says how far the table is; the first time that it is where it should be, begins to accept."""
        self._channel.send(ipc.Applied(self.table.generation))
        if not self._ready and self.table.generation >= self._target:
            self._ready = True
            gc.collect()
            gc.set_threshold(*_GC)
            gc.freeze()  # what start-up made lives as long as the process: not worth looking at again
            for acceptor in self._acceptors:
                acceptor.resume()
            self.log(events.WORKER_READY, pid=os.getpid(), start_s=round(self.loop.time() - self.started, 3))
            self._channel.send(ipc.Ready(ipc.VERSION, os.getpid()))

    def _stop(self, within: float) -> None:
        """Accepts no more, lets what runs go on for so many seconds; a shorter bound than before counts."""
        if not self.stopping:
            self.stopping = True
            for acceptor in self._acceptors:
                acceptor.stop()
            for connection in self._connections.values():
                connection.close_if_idle()
        if within <= 0:
            self._over.set()
        else:
            self.loop.call_later(within, self._over.set)
            self._end_if_done()

    def _on_orphaned(self) -> None:
        if self._ready:
            self.log(events.WORKER_ORPHANED, within_s=ORPHAN_DRAIN, streams=len(self.streams))
            self._stop(ORPHAN_DRAIN)
        else:
            self._over.set()

    # --- connections ----------------------------------------------------------------------------------------------

    def _on_accept(self, sock: socket.socket, address: Any) -> None:
        host, port = address[:2]
        peer = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        connection = Connection(self, Endpoint(self.loop, sock, peer, self.budget))
        task = self.loop.create_task(connection.serve())
        self._connections[task] = connection
        task.add_done_callback(self._on_connection_end)
        self._throttle()

    def _on_connection_end(self, task: "asyncio.Task[None]") -> None:
        del self._connections[task]
        if not task.cancelled():
            task.exception()
        self._on_one_less()

    def on_stream_end(self, stream: Stream, slot: Slot, meter: Meter, end: End) -> None:
        """What a Stream's end leaves to be done."""
        self.streams.discard(stream)
        if not self.streams:
            self._streams_over.set()
        if meter.key is not None:
            self.live.remove(meter.key, stream)
        self.ledger.give_back(slot)
        self.finished(meter, end)
        if stream.lingers:
            seeing_off = self.loop.create_task(stream.linger())
            self._lingering[seeing_off] = stream
            seeing_off.add_done_callback(self._on_seen_off)
        else:
            self._let_go(stream)

    def _on_seen_off(self, task: "asyncio.Task[None]") -> None:
        self._let_go(self._lingering.pop(task))

    def _let_go(self, stream: Stream) -> None:
        self.pool.give_back(stream.lease, reusable=False)
        if stream.seat is not None:
            self.ledger.give_back(stream.seat)
        self._on_one_less()

    def _on_over_budget(self) -> None:
        """Too many bytes wait for peers that do not take them."""
        self.loop.call_soon(self._shed)

    def _shed(self) -> None:
        """Ends those whose bytes have taken the most room for the longest time, until it is bearable."""
        excess = self.budget.excess
        if not excess:  # the peers took it meanwhile
            return
        now = self.loop.time()

        def burden(holder: Stream | Connection) -> float:
            return holder.held * (now - holder.held_since) if holder.held else 0.0

        holders: list[Stream | Connection] = [*self.streams, *self._connections.values()]
        shed = 0
        for holder in sorted(holders, key=burden, reverse=True):
            if self.budget.used <= self.budget.bearable:
                break
            if not holder.held:
                continue
            shed += 1
            if isinstance(holder, Stream):
                holder.end(End.SHED)
            else:
                holder.shed()
        self.log(events.WORKER_SHED, excess=excess, ended=shed)

    def finished(self, meter: Meter, end: End) -> None:
        """The one line and the one record of an admitted request that has ended."""
        websocket = meter.head.websocket
        if websocket:
            self.log(events.STREAM_CLOSE, **meter.fields(), **meter.spent(end), **meter.closing())
        else:
            self.log(events.REQUEST_CLOSE, **meter.fields(), **meter.spent(end))
        self._records.append(meter.record(end, websocket=websocket))
        self._served += 1

    @property
    def connections(self) -> int:
        """Open client connections, streams and those that are being seen off among them."""
        return len(self._connections) + len(self.streams) + len(self._lingering)

    def _on_one_less(self) -> None:
        self._throttle()
        self._end_if_done()

    def _throttle(self) -> None:
        """At the limit new connections wait in the listener's queue."""
        full = self.connections >= self._most
        for acceptor in self._acceptors:
            if full:
                acceptor.pause()
            else:
                acceptor.resume()

    def _end_if_done(self) -> None:
        if self.stopping and not self.connections:
            self._over.set()

    # --- each second ----------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self.loop.call_later(_TICK, self._tick)
        if not self._ready:
            return
        now = self.loop.time()
        idle = self.config.timeouts.stream_idle
        for stream in list(self.streams):
            stream.tick(now, idle)
        for connection in list(self._connections.values()):
            connection.tick()
        self.live.tick()
        self._shed()
        self.pool.tick()
        self._report()

    def _report(self) -> None:
        state = (self.connections, len(self.streams), self._served)
        if self._records or state != self._told:
            self._told = state
            self._channel.send(ipc.Usage(tuple(self._records), *state))
            self._records.clear()


def main() -> None:
    """`python -m dgproxy.worker.main FD`: FD is this worker's end of the socketpair."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the supervisor blocked them until they are ignored
    sock = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(sock.fileno(), False)  # noqa: FBT003
    with asyncio.Runner(loop_factory=partial(poll.new_event_loop, native=pump.form() == "native")) as runner:
        code = runner.run(_serve(sock))
    sys.exit(code)


async def _serve(sock: socket.socket) -> int:
    return await Worker(asyncio.get_running_loop(), sock).run()


if __name__ == "__main__":
    main()
