"""`python -m bench reload`: what live streams notice while keys come and go.

200 paced WSS streams, first at rest, then on the same server while 20 keys a second are made and 20 are taken away:
with dgproxy by `keys.create` and `keys.revoke` on its control socket. Nginx and HAProxy have no such thing; as their
operators must, the list of keys is written anew and the server told to reload, once a second. (Dgproxy's certificates
can't be changed while it runs yet: that is left out.)

Rules of this file: whoever changes keys runs on the load's core, not on the proxy's; changes keep their own pace (open
loop), and that they were made is checked in the end: the last key made is served, the last taken away is refused.
"""

import contextlib
import http.client
import os
import shutil
import signal
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from bench.machine import LOAD_CORE, family_cpu_seconds
from bench.runs import Row
from bench.scenarios import Figure, Run, scenarios
from bench.servers import NAMES, Rig, Server, Unstarted, fastest
from bench.studies import Bench, Study, row, unstarted
from dgproxy.access.keys import mint
from dgproxy.admin import control
from tests.support.processes import alive

NAME: Final = "reload"
STREAMS: Final = 200
A_SECOND: Final = 20  # keys made, and as many taken away
REST, CHANGE = "at rest", "keys change"
_LEAST: Final = 0.9  # of the changes that were due: with fewer it is not the same work
_KNOWN_WITHIN: Final = 3.0  # seconds from the last change to everybody's knowing it
_ASK: Final = 10.0  # seconds for an answer


class Changes:
    """Changes keys in a thread of its own while it is entered. A context manager."""

    def __init__(self, change: Callable[[], None], a_second: float) -> None:
        self.made = 0
        self.seconds = 0.0
        self.error: Exception | None = None
        self._change = change
        self._a_second = a_second
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        os.sched_setaffinity(threading.get_native_id(), {LOAD_CORE})
        began = time.monotonic()
        try:
            while not self._over.wait(max(0.0, began + self.made / self._a_second - time.monotonic())):
                self._change()
                self.made += 1
        except Exception as error:  # noqa: BLE001 - told by `faults`
            self.error = error
        self.seconds = time.monotonic() - began

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def faults(self) -> list[str]:
        """What went wrong; nothing if the changes kept their pace."""
        if self.error is not None:
            return [f"keys could not be changed: {type(self.error).__name__}: {self.error}"]
        due = self.seconds * self._a_second
        return [f"only {self.made} of {due:.0f} changes were made"] if self.made < _LEAST * due - 1 else []


class Ours:
    """Changes dgproxy's keys, one made and one taken away at a time."""

    a_second: Final = A_SECOND

    def __init__(self, rig: Rig) -> None:
        self._socket = rig.state / "admin.sock"
        self._number = 0
        self._last: Mapping[str, Any] | None = None
        self.good = self.gone = ""

    def __call__(self) -> None:
        self._number += 1
        made: Any = control.call(self._socket, "keys.create", {"name": f"reload-{self._number}"}, _ASK)
        if self._last is not None:
            control.call(self._socket, "keys.revoke", {"id": self._last["id"]}, _ASK)
            self.gone = self._last["key"]
        self.good, self._last = made["key"], made


class Theirs:
    """Changes nginx's or HAProxy's: a second's worth at a time, the whole list, and a reload."""

    a_second: Final = 1

    def __init__(self, rig: Rig, name: str, pid: int) -> None:
        self._rig = rig
        self._name = name
        self._pid = pid
        self._signal = {"nginx": signal.SIGHUP, "haproxy": signal.SIGUSR2}[name]
        middle = rig.keys.index(rig.key)  # is what the load has: it stays
        self._keys = deque(rig.keys[middle + 1 :] + rig.keys[:middle])
        self.good = self.gone = ""

    def __call__(self) -> None:
        for _ in range(A_SECOND):
            self.gone = self._keys.popleft()
            self._keys.append(mint(os.urandom).key)
        self.good = self._keys[-1]
        self._rig.list_keys(self._name, [self._rig.key, *self._keys])
        os.kill(self._pid, self._signal)


def status(port: int, key: str, *, tls: bool) -> int:
    """What a request with this key is answered with, on a connection of its own."""
    if tls:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            "127.0.0.1", port, timeout=_ASK, context=context
        )
    else:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ASK)
    with contextlib.closing(connection):
        connection.request("GET", "/v1/models", headers={"Authorization": f"Token {key}"})
        return connection.getresponse().status


def unknown(ask: Callable[[str], int], good: str, gone: str, within: float = _KNOWN_WITHIN) -> list[str]:
    """What the server doesn't know of the last changes by then."""
    deadline = time.monotonic() + within
    while (found := (ask(good), ask(gone))) != (200, 401):
        if time.monotonic() > deadline:
            return [f"{within:g} s after the last change its new key got {found[0]}, the one taken away {found[1]}"]
        time.sleep(0.05)
    return []


@contextlib.contextmanager
def restored(directory: Path) -> Iterator[None]:
    """Leaves a directory as it was found."""
    kept = directory.with_name(f"{directory.name}.kept")
    shutil.copytree(directory, kept)
    try:
        yield
    finally:
        shutil.rmtree(directory)
        kept.rename(directory)


class _Cpu:
    """What a server's processes use while it is entered, whoever of them comes or goes."""

    def __init__(self, pid: int, during: contextlib.AbstractContextManager[object]) -> None:
        self._pid = pid
        self._during = during
        self.share = 0.0  # of a core

    def __enter__(self) -> None:
        self._began, self._before = time.monotonic(), family_cpu_seconds(self._pid)
        self._during.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._during.__exit__(kind, error, at)
        self.share = (family_cpu_seconds(self._pid) - self._before) / (time.monotonic() - self._began)


def figures(run: Run, share: float, rest: Mapping[str, float] | None) -> dict[str, float]:
    """Of one load; beside the same server's at rest, if this is not that."""
    found = {name: run.latency(part) for name, part in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("max", 1))}
    if rest is not None:
        found["p99_x"] = found["p99"] / rest["p99"]
    return {**found, "dropped": run.load["dropped"], "cpu": 100 * share}


def _row(bench: Bench, server: Server, name: str, rest: Mapping[str, float] | None, churn: Ours | Theirs | None) -> Row:
    load = scenarios(seconds=bench.seconds, streams=STREAMS)["streams"]
    changes = Changes(churn, churn.a_second) if churn is not None else None
    cpu = _Cpu(server.pids[0], changes or contextlib.nullcontext())
    run = bench.measure(load, server, bench.rig.key, cpu)
    faults = changes.faults() if changes is not None else []
    if not alive(server.pids[0]):
        faults.append("its first process has ended")
    if churn is not None and not faults:
        port = server.port
        faults = unknown(lambda key: status(port, key, tls=bench.rig.tls), churn.good, churn.gone)
    return row(
        bench.round,
        NAME,
        name,
        figures(run, cpu.share, rest),
        variant=REST if churn is None else CHANGE,
        run=run,
        processes=len(server.pids),
        faults=faults,
        detail={"changes": changes.made, "a_second": churn.a_second} if changes and churn else {},
    )


def _rows(bench: Bench) -> Iterator[Row]:
    rig, form = bench.rig, fastest()
    starts: dict[str, Callable[[], contextlib.AbstractContextManager[Server]]] = {
        "nginx": rig.nginx,
        "haproxy": lambda: rig.haproxy(reloads=True),
        NAMES[form]: lambda: rig.dgproxy(form),
    }
    for name, start in starts.items():
        try:
            with restored(rig.state), start() as server:
                bench.say(f"{name}, {REST}")
                rest = _row(bench, server, name, None, None)
                yield rest
                bench.say(f"{name}, {CHANGE}")
                churn = Theirs(rig, name, server.pids[0]) if name in ("nginx", "haproxy") else Ours(rig)
                yield _row(bench, server, name, rest["figures"], churn)
        except Unstarted as why:
            yield unstarted(bench, NAME, name, REST, why)


STUDY: Final = Study(
    NAME,
    f"{STREAMS} WSS streams, 3,200 bytes each 100 ms, echoed, while {A_SECOND} keys a second are made and taken away",
    (
        Figure("p50", "us"),
        Figure("p99", "us"),
        Figure("p99.9", "us"),
        Figure("max", "us"),
        Figure("p99_x", "at rest", compared=False, digits=2),
        Figure("dropped", "streams", compared=False, digits=0),
        Figure("cpu", "% of a core"),
    ),
    _rows,
)
