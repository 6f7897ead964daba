"""The supervisor: puts listeners, store, ledger, workers and control socket together, and takes the signals.

Rules of this file: nothing slow runs on the loop that answers the workers (SQLite and snapshots have a thread of their
own); what can fail at start fails before the first worker is up, with one line that says what to do.
"""

import asyncio
import gc
import os
import resource
import signal
import socket
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import uvloop

import dgproxy
from dgproxy import events, ipc
from dgproxy.access.keys import KeyId, Pepper, standing
from dgproxy.access.limits import Ledger, Owner
from dgproxy.admin.control import Call, ControlError, ControlServer, Handler
from dgproxy.config import Config, effective, private_key_path, read_pepper
from dgproxy.logs import Log
from dgproxy.net import libssl, pipes, pump, tls
from dgproxy.net.listen import open_listeners
from dgproxy.store import StoreError, lock, service
from dgproxy.store.imports import IDLE, Imports, Outcome, export_keys
from dgproxy.store.keys import FILE_NAME, TURNS, KeyStore, Turn
from dgproxy.supervisor.processes import Life, Workers
from dgproxy.supervisor.surveys import Surveys
from dgproxy.supervisor.sync import COMPACT, Keys, make_snapshot
from dgproxy.wire import refusals

T = TypeVar("T")

READY_WITHIN: Final = 60.0  # seconds for the first workers
MOST_ROWS: Final = 2000  # of streams.list, so that they fit a line of the control socket
SPREAD_WITHIN: Final = 1.0  # seconds for a change to be everywhere (spec part 3)
_LOCK_WITHIN: Final = 3.0  # seconds: a `keys` command that works on the store itself is over in less
_OPEN_FILES: Final = 64  # the supervisor's own, or a worker's before its first connection, with some to spare
_OPEN_FILES_OF_WORKER: Final = 4  # which the supervisor holds for each: its channel, its pidfd, its snapshot
_SWITCH: Final = 0.0005  # seconds that the store's thread keeps the interpreter when the loop wants it; 5 ms by default


class CannotStart(Exception):  # noqa: N818
    """What stands in the way, in a line."""


class Used:
    """What a key used since the start. Kept in memory until usage has a store."""

    __slots__ = ("bytes_in", "bytes_out", "requests", "streams")

    def __init__(self) -> None:
        self.requests = 0
        self.streams = 0
        self.bytes_in = 0
        self.bytes_out = 0

    def add(self, record: ipc.Record) -> None:
        """Counts one request or stream that has ended."""
        if record.websocket:
            self.streams += 1
        else:
            self.requests += 1
        self.bytes_in += record.bytes_in
        self.bytes_out += record.bytes_out


class Supervisor:
    """One running proxy."""

    def __init__(self, config: Config, loop: asyncio.AbstractEventLoop) -> None:
        self._config = config
        self._loop = loop
        self._log = Log(config.log.level, config.log.format, process="supervisor")
        self._started = time.monotonic()
        self._ledger = Ledger(loop)
        self._surveys = Surveys()
        self._imports = Imports(time.monotonic)
        self._used: defaultdict[KeyId, Used] = defaultdict(Used)
        self._store_thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._ticket_keys = os.urandom(libssl.TICKET_KEYS_LENGTH)
        self._stop_asked: asyncio.Event = asyncio.Event()
        self._stop_now: asyncio.Event = asyncio.Event()
        self._all_ready: asyncio.Event = asyncio.Event()
        self._compacting = False
        self._stop_signal = ""
        self._store: KeyStore
        self._keys: Keys
        self._workers: Workers
        self._pepper: Pepper

    async def run(self) -> None:
        """Serves until it is told to stop.

        Raises:
            CannotStart, StoreError, ConfigError: before anything was served.
        """
        config = self._config
        try:
            self._pump = pump.form()  # the workers', which are the same program with the same environment
        except pump.Unavailable as error:
            raise CannotStart(str(error)) from None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            self._loop.add_signal_handler(number, self._on_signal, number)
        self._log(
            events.PROXY_START,
            version=dgproxy.__version__,
            config=config.path,
            workers=_worker_count(config),
            openssl=tls.OPENSSL,
            pump=self._pump,
        )
        listeners: list[list[socket.socket]] = []
        control: ControlServer | None = None
        try:
            self._pepper = Pepper(read_pepper(config))
            self._try_certificate()
            listeners = self._listen()
            self._store = await self._in_store(
                lambda: KeyStore.open(Path(config.state.directory) / FILE_NAME, self._pepper)
            )
            try:
                self._keys = Keys(await self._in_store(self._snapshot))
                control = ControlServer(self._handlers(), self._on_control_fault)
                try:
                    await control.start(Path(config.admin.socket))
                except OSError as error:
                    raise CannotStart(f"{config.admin.socket}: {error.strerror or error}") from None
                self._workers = Workers(
                    self._loop, listeners, self._greet, self._on_message, self._on_death, self._on_failed_start
                )
                self._workers.start()
                gc.collect()
                gc.freeze()  # as in the workers: else each collection looks at all that start-up made, for 15 ms
                await self._serve()
            finally:
                if control is not None:
                    await control.close()
                await self._in_store(self._store.close)
        finally:
            for own in listeners:
                for listener in own:
                    listener.close()
            self._store_thread.shutdown()
            self._log(events.PROXY_STOPPED, up_s=round(time.monotonic() - self._started, 3))
            self._log.close()

    async def _serve(self) -> None:
        config = self._config
        ready = asyncio.ensure_future(self._all_ready.wait())
        asked = asyncio.ensure_future(self._stop_asked.wait())
        await asyncio.wait((ready, asked), timeout=READY_WITHIN, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if not self._all_ready.is_set() and not self._stop_asked.is_set():
            asked.cancel()
            await self._workers.stop(0)
            raise CannotStart(f"no worker was ready within {READY_WITHIN:.0f} s; the log says why")
        if self._all_ready.is_set():
            self._log(
                events.PROXY_READY,
                listen=[str(listen) for listen in config.server.listen],
                tls=config.server.tls,
                workers=len(self._workers.slots),
                keys=len(self._keys.table),
                upstreams=[str(url) for url in config.upstream.urls],
                start_s=round(time.monotonic() - self._started, 3),
            )
        await asked
        lives = self._workers.lives
        within = 0.0 if self._stop_now.is_set() else config.drain.stop
        self._log(
            events.PROXY_STOPPING,
            signal=self._stop_signal,
            within_s=within,
            streams=sum(life.streams for life in lives),
            requests=sum(life.connections - life.streams for life in lives),
        )
        drain = asyncio.ensure_future(self._workers.stop(within))
        now = asyncio.ensure_future(self._stop_now.wait())
        await asyncio.wait((drain, now), return_when=asyncio.FIRST_COMPLETED)
        if not drain.done():
            drain.cancel()
            await self._workers.stop(0)
        now.cancel()

    # --- start ----------------------------------------------------------------------------------------------------

    def _try_certificate(self) -> None:
        config = self._config
        if config.server.tls:
            try:
                tls.server_context(config.tls.certificate, private_key_path(config), config.tls.min_version)
            except OSError as error:
                what = error.strerror or getattr(error, "reason", None) or error
                pair = config.tls.certificate, private_key_path(config)
                hidden = [path for path in pair if not os.access(path, os.R_OK, effective_ids=True)]
                told = (
                    f"{hidden[0]}: cannot be read ({what})"
                    if hidden
                    else f"{pair[0]}: cannot be used with its private key ({what})"
                )
                raise CannotStart(f"{told}; `dgproxy check` says more") from None

    def _listen(self) -> list[list[socket.socket]]:
        """For each worker its own sockets, one per address."""
        count = _worker_count(self._config)
        opened: list[list[socket.socket]] = []
        try:
            for listen in self._config.server.listen:
                try:
                    opened.append(open_listeners(listen.host, listen.port, count))
                except OSError as error:
                    raise CannotStart(f"cannot listen on {listen}: {error.strerror or error}") from None
        except CannotStart:
            for group in opened:
                for listener in group:
                    listener.close()
            raise
        return [list(own) for own in zip(*opened, strict=True)]

    # --- store ----------------------------------------------------------------------------------------------------

    async def _in_store(self, work: Callable[[], T]) -> T:
        """Does something slow in the store's own thread."""
        return await self._loop.run_in_executor(self._store_thread, work)

    def _snapshot(self) -> int:
        return make_snapshot(self._store.records(), self._store.generation())

    async def _change_keys(self, change: str, call: Call, work: Callable[[], tuple[Any, Any]]) -> Any:
        """One change of the keys: written, told to every worker, and answered when every worker has it.

        `work` gives its answer, and a delta, a new snapshot's fd, or None for no change.
        The answer's `everywhere` is false if one did not say so in time: then that worker hangs, and serves as before.
        """
        try:
            answer, delta = await self._in_store(work)
        except service.Rejected as rejected:
            raise ControlError(rejected.code, str(rejected)) from None
        except StoreError as error:
            raise ControlError("store", str(error)) from None
        if delta is None:  # it was so already; but what made it so may still be on its way to a worker
            return answer | {"everywhere": await self._keys.everywhere(self._keys.table.generation, SPREAD_WITHIN)}
        if isinstance(delta, int):
            self._keys.renew(delta)
            self._workers.tell(ipc.Snapshot(self._keys.base, self._keys.base), (self._keys.snapshot,))
        else:
            self._keys.change(delta)
            self._workers.tell(ipc.Change(delta))
            for record in delta.records:
                self._log(
                    events.KEYS_CHANGED, generation=delta.generation, key_id=record.id, change=change, by_uid=call.uid
                )
        generation = self._keys.table.generation
        everywhere = await self._keys.everywhere(generation, SPREAD_WITHIN)
        if not everywhere:
            notice = f"key generation {generation} is not at every worker after {SPREAD_WITHIN:g} s; one hangs"
            self._log(events.PROXY_NOTICE, notice=notice)
        if len(self._keys.deltas) >= COMPACT and not self._compacting:
            await self._compact()
        return answer | {"everywhere": everywhere}

    async def _compact(self) -> None:
        """A fresh snapshot for workers to come. If there is none, the old one and its deltas still serve."""
        self._compacting = True
        try:
            generation, fd = await self._in_store(lambda: (self._store.generation(), self._snapshot()))
            self._keys.rebase(fd, generation)
        except (OSError, StoreError) as error:
            self._log(events.PROXY_NOTICE, notice=f"no fresh snapshot of the keys could be made: {error}")
        finally:
            self._compacting = False

    # --- workers --------------------------------------------------------------------------------------------------

    def _greet(self, life: Life) -> None:
        """All that a new worker needs, in the order in which it needs it."""
        own = self._workers.slots[life.index].listeners
        life.channel.send(
            ipc.Setup(
                version=ipc.VERSION,
                index=life.index,
                workers=len(self._workers.slots),
                config=self._config,
                pepper=self._pepper.expose(),
                ticket_keys=self._ticket_keys,
                listeners=tuple(str(listen) for listen in self._config.server.listen),
            ),
            tuple(listener.fileno() for listener in own),
        )
        target = self._keys.table.generation
        life.channel.send(ipc.Snapshot(self._keys.base, target), (self._keys.snapshot,))
        for delta in self._keys.deltas:
            life.channel.send(ipc.Change(delta))

    def _on_message(self, life: Life, message: ipc.Up) -> None:
        match message:
            case ipc.Questions():
                life.channel.send(ipc.Verdicts(tuple(self._judge(life.owner, asked) for asked in message.questions)))
            case ipc.GiveBack():
                for slot in message.slots:
                    self._ledger.give_back(life.owner, slot)
            case ipc.Applied():
                self._keys.applied(life.owner, message.generation)
            case ipc.Rows():
                rows = [{**row, "worker": life.index} for row in message.rows]
                self._surveys.answered(life.owner, message.number, rows)
            case ipc.Killed():
                self._surveys.answered(life.owner, message.number, message.count)
            case ipc.Usage():
                life.connections, life.streams, life.requests = message.connections, message.streams, message.requests
                for record in message.records:
                    self._used[record.key_id].add(record)
            case ipc.Ready():
                life.ready = True
                if self._workers.ready:
                    self._all_ready.set()

    def _judge(self, owner: Owner, asked: ipc.Question | ipc.Arrival) -> tuple[Any, Any]:
        if isinstance(asked, ipc.Arrival):
            most = self._config.limits.connections_per_address
            return (asked.slot, self._ledger.admit_connection(owner, asked.slot, asked.source, most))
        key = self._keys.table.get(asked.key_id)
        plan = None if key is None else self._config.plans.get(key.plan)
        if key is None or plan is None:
            return (asked.slot, refusals.PLAN_UNKNOWN)
        refusal = standing(key, time.time())  # a worker that was stopped for a while may not know it yet
        if refusal is not None:
            return (asked.slot, refusal)
        plan = effective(plan, key.overrides)
        return (asked.slot, self._ledger.admit(owner, asked.slot, asked.key_id, asked.cls, plan))

    def _on_death(self, life: Life, code: int, restart_in: float | None) -> None:
        freed = self._ledger.forget(life.owner)
        self._keys.forget(life.owner)
        self._surveys.forget(life.owner)
        if restart_in is not None:
            exit_ = signal.Signals(-code).name if code < 0 else str(code)
            self._log(events.WORKER_DIED, pid=life.process.pid, exit=exit_, slots_freed=freed, restart_in_s=restart_in)

    def _on_failed_start(self, index: int, error: OSError, retry_in: float) -> None:
        self._log(events.WORKER_NOT_STARTED, index=index, error=str(error), restart_in_s=retry_in)

    # --- signals and control --------------------------------------------------------------------------------------

    def _on_signal(self, number: int) -> None:
        """SIGTERM drains, a second one or SIGINT stops at once."""
        if number == signal.SIGHUP:
            self._log(events.PROXY_NOTICE, notice="SIGHUP: this release reloads nothing; restart to apply changes")
            return
        if number == signal.SIGINT or self._stop_asked.is_set():
            self._stop_now.set()
        self._stop_signal = self._stop_signal or signal.Signals(number).name
        self._stop_asked.set()

    def _handlers(self) -> Mapping[str, Handler]:
        return {
            "keys.create": self._create_key,
            "keys.list": self._list_keys,
            "keys.show": self._show_key,
            **{f"keys.{turn}": partial(self._turn_key, turn) for turn in TURNS},
            "keys.import.begin": self._begin_import,
            "keys.import.part": self._part_of_import,
            "keys.import.commit": self._commit_import,
            "keys.import.rows": self._rows_of_import,
            "keys.export": self._export_keys,
            "status": self._status,
            "streams.list": self._list_streams,
            "streams.kill": self._kill_stream,
        }

    async def _create_key(self, call: Call) -> object:
        def work() -> tuple[Any, Any]:
            return service.create_key(
                self._store, self._config, call.args, uid=call.uid, now=time.time(), random_bytes=os.urandom
            )

        return await self._change_keys("create", call, work)

    async def _turn_key(self, turn: Turn, call: Call) -> object:
        def work() -> tuple[Any, Any]:
            return service.turn_key(self._store, turn, call.args, uid=call.uid, now=time.time())

        return await self._change_keys(turn, call, work)

    async def _begin_import(self, call: Call) -> object:
        return await self._ask(lambda: self._imports.begin(self._pepper, call.args))

    async def _part_of_import(self, call: Call) -> object:
        self._loop.call_later(IDLE, self._forget_import)
        return await self._ask(lambda: self._imports.part(self._pepper, call.args))

    async def _commit_import(self, call: Call) -> object:
        self._loop.call_later(IDLE, self._forget_import)

        def work() -> tuple[Any, Any]:
            return self._imports.commit(
                self._store,
                self._config,
                call.args,
                uid=call.uid,
                now=time.time(),
                random_bytes=os.urandom,
                snapshot=make_snapshot,
            )

        answer = await self._change_keys("import", call, work)
        if answer["applied"]:
            counts = answer["counts"]
            self._log(
                events.KEYS_IMPORTED,
                generation=answer["generation"],
                created=counts[Outcome.CREATED],
                changed=counts[Outcome.CHANGED],
                unchanged=counts[Outcome.UNCHANGED],
                left_out=counts[Outcome.REVOKED] + counts[Outcome.BAD],
                by_uid=call.uid,
            )
        return answer

    async def _rows_of_import(self, call: Call) -> object:
        return await self._ask(lambda: self._imports.rows(call.args))

    def _forget_import(self) -> None:
        """In the thread that has to do with it, if nobody goes on with it."""
        if not self._stop_asked.is_set():  # the thread may be gone already
            self._store_thread.submit(self._imports.expire)

    async def _export_keys(self, call: Call) -> object:
        page = await self._ask(lambda: export_keys(self._store, call.args))
        if not call.args.get("after"):
            self._log(events.KEYS_EXPORTED, generation=page["generation"], by_uid=call.uid)
        return page

    async def _list_keys(self, call: Call) -> object:
        return await self._ask(lambda: service.list_keys(self._store, call.args, now=time.time()))

    async def _show_key(self, call: Call) -> object:
        return await self._ask(lambda: service.show_key(self._store, call.args, now=time.time()))

    async def _ask(self, work: Callable[[], T]) -> T:
        try:
            return await self._in_store(work)
        except service.Rejected as rejected:
            raise ControlError(rejected.code, str(rejected)) from None
        except StoreError as error:
            raise ControlError("store", str(error)) from None

    async def _list_streams(self, call: Call) -> object:
        """`streams.list` {key?}: what is in flight, the oldest first, as {"streams", "total", "complete"}.

        Which key is meant is judged as `keys.show` does, so that a typo is not taken for a key without streams.
        """
        key_id = named = self._argument(call, "key", required=False)
        if named is not None:
            key = await self._ask(lambda: service.show_key(self._store, {"id": named}, now=time.time()))
            key_id = key["id"]
        answers, complete = await self._surveys.ask(self._workers.lives, lambda number: ipc.Ask(number, key_id))
        rows = sorted((row for rows in answers for row in rows), key=lambda row: row["began"])
        now = time.monotonic()  # here, since workers answer at moments of their own
        for row in rows:
            row["age_s"] = round(now - row.pop("began"), 3)
        return {"streams": rows[:MOST_ROWS], "total": len(rows), "complete": complete}

    async def _kill_stream(self, call: Call) -> object:
        """`streams.kill` {stream}: ends the request or stream of this id."""
        request_id = self._argument(call, "stream", required=True)
        answers, complete = await self._surveys.ask(self._workers.lives, lambda number: ipc.Kill(number, request_id))
        if not sum(answers):
            found = "no stream or request of this id is in flight"
            raise ControlError("not_found", found if complete else f"{found}, as far as every worker answered")
        self._log(events.STREAM_KILLED, request_id=request_id, by_uid=call.uid)
        return {"id": request_id, "ended": sum(answers)}

    def _argument(self, call: Call, name: str, *, required: bool) -> Any:
        value = call.args.get(name)
        if set(call.args) - {name} or not isinstance(value, str | (str if required else None)):
            raise ControlError("bad_request", f"bad arguments: {name} must be a string, and nothing else is known")
        return value

    async def _status(self, _: Call) -> object:
        return {
            "version": dgproxy.__version__,
            "pid": os.getpid(),
            "up_s": round(time.monotonic() - self._started, 3),
            "ready": self._workers.ready,
            "stopping": self._stop_asked.is_set(),
            "generation": self._keys.table.generation,
            "keys": len(self._keys.table),
            "listen": [str(listen) for listen in self._config.server.listen],
            "upstreams": [str(url) for url in self._config.upstream.urls],
            "relay": f"{self._pump}, splice" if _splices(self._config) else self._pump,
            "workers": [
                {
                    "index": slot.index,
                    "pid": slot.life.process.pid,
                    "ready": slot.life.ready,
                    "connections": slot.life.connections,
                    "streams": slot.life.streams,
                    "requests": slot.life.requests,
                }
                for slot in self._workers.slots
                if slot.life is not None
            ],
            "usage": {
                key_id: {
                    "requests": used.requests,
                    "streams": used.streams,
                    "bytes_in": used.bytes_in,
                    "bytes_out": used.bytes_out,
                    "in_flight": self._ledger.in_use(key_id),
                }
                for key_id, used in sorted(self._used_or_in_use().items())
            },
        }

    def _used_or_in_use(self) -> dict[KeyId, Used]:
        """What each key used that has used anything, or holds a slot now."""
        return {key_id: Used() for key_id in self._ledger.holders()} | dict(self._used)

    def _on_control_fault(self, command: str, fault: Exception) -> None:
        self._log(events.PROXY_FAILED, error=f"control command {command}: {fault!r}")


def _splices(config: Config) -> bool:
    """Whether large bodies and payloads go to some upstream without being copied."""
    return pipes.ABLE and not config.server.tls and any(url.scheme == "http" for url in config.upstream.urls)


def _worker_count(config: Config) -> int:
    return config.server.workers or len(os.sched_getaffinity(0))


def run(config: Config) -> None:
    """Runs the proxy in the foreground until a signal ends it.

    Raises:
        CannotStart, StoreError, StateBusy, ConfigError: it could not start; nothing of it is left.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    needed = _OPEN_FILES + _worker_count(config) * (_OPEN_FILES_OF_WORKER + len(config.server.listen))
    if hard != resource.RLIM_INFINITY and hard < needed:  # libuv would abort, and workers would die without a word
        raise CannotStart(
            f"the limit of open files is {hard}, and {needed} is the least; raise LimitNOFILE= or ulimit -n"
        )
    sys.setswitchinterval(_SWITCH)
    with (
        lock(Path(config.state.directory), _LOCK_WITHIN),
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(_run(config))


async def _run(config: Config) -> None:
    await Supervisor(config, asyncio.get_running_loop()).run()
