"""The workers' life: start, messages, death, replacement, end.

Rules of this file: a worker is started by fork and exec in one step, never by fork alone, since this process has a loop
and threads; it inherits its end of one socketpair and nothing else, its listeners come over that; signals are blocked
until it ignores them, so that a Ctrl-C can't hit it on its way up. A worker that dies is known by its pidfd, what it
held is given back before its replacement starts, and one that keeps dying is started ever more slowly.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from dgproxy import ipc
from dgproxy.access.limits import Owner
from dgproxy.net.channel import Channel

BACK_OFF: Final = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0)  # seconds before the n-th restart in a row
STEADY: Final = 30.0  # seconds of life after which the next death counts as the first
_BLOCKED: Final = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}


@dataclass(slots=True, eq=False)
class Life:
    """One worker process, from its start to its end."""

    owner: Owner
    index: int
    process: "subprocess.Popen[bytes]"
    channel: Channel[ipc.Up]
    pidfd: int
    started: float
    ready: bool = False
    connections: int = 0
    streams: int = 0
    requests: int = 0


@dataclass(slots=True)
class Slot:
    """The place of a worker: its listeners, and how often in a row what stood there has died."""

    index: int
    listeners: list[socket.socket] = field(default_factory=list)
    life: Life | None = None
    deaths: int = 0
    restart: asyncio.TimerHandle | None = None
    requests_before: int = 0  # served by those that stood here before


class Workers:
    """All workers. The callbacks are told what they say and when they die."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listeners: list[list[socket.socket]],
        greet: Callable[[Life], None],
        on_message: Callable[[Life, ipc.Up], None],
        on_death: Callable[[Life, int, float | None], None],
        on_failed_start: Callable[[int, OSError, float], None],
    ) -> None:
        """`listeners`: for each worker its own.

        `on_death(life, exit code, seconds until its replacement or None)`; `on_failed_start(index, error, seconds until
        the next try)`.
        """
        self._loop = loop
        self._greet = greet
        self._on_message = on_message
        self._on_death = on_death
        self._on_failed_start = on_failed_start
        self._last_owner = 0
        self.slots: Final = [Slot(index, own) for index, own in enumerate(listeners)]
        self._stopping = False
        self._gone: Final = asyncio.Event()

    def start(self) -> None:
        """Starts one process for each place."""
        for slot in self.slots:
            self._spawn(slot)

    @property
    def lives(self) -> list[Life]:
        """The workers that live now."""
        return [slot.life for slot in self.slots if slot.life is not None]

    @property
    def ready(self) -> bool:
        """Whether a worker accepts at every place."""
        return all(slot.life is not None and slot.life.ready for slot in self.slots)

    def tell(self, message: ipc.Message, fds: tuple[int, ...] = ()) -> None:
        """Says something to all, with these fds, which stay ours."""
        for life in self.lives:
            life.channel.send(message, fds)

    async def stop(self, within: float) -> None:
        """Tells all to stop within so many seconds, replaces none any more, and waits until the last is gone.

        May be called again with a shorter bound. A worker that does not go in time is killed.
        """
        self._stopping = True
        for slot in self.slots:
            if slot.restart is not None:
                slot.restart.cancel()
                slot.restart = None
            for listener in slot.listeners:
                listener.close()
            slot.listeners.clear()
        self.tell(ipc.Stop(within))
        self._check_gone()
        try:
            async with asyncio.timeout(within + 5.0):
                await self._gone.wait()
        except TimeoutError:
            for life in self.lives:
                life.process.kill()
            await self._gone.wait()

    def _spawn(self, slot: Slot) -> None:
        """Starts a worker; where the machine has no room for one (EMFILE, ENOMEM, EAGAIN), tries again later."""
        slot.restart = None
        try:
            process, pidfd, ours = self._fork_exec()
        except OSError as error:
            self._on_failed_start(slot.index, error, self._restart_later(slot))
            return
        self._last_owner += 1
        life = Life(
            owner=Owner(self._last_owner),
            index=slot.index,
            process=process,
            channel=Channel(
                self._loop,
                ours,
                ipc.Unpacker(ipc.UP),
                lambda message: self._on_message(life, message),
                lambda: None,  # its end shows on the pidfd, with its exit code
            ),
            pidfd=pidfd,
            started=time.monotonic(),
        )
        slot.life = life
        self._loop.add_reader(life.pidfd, self._on_exit, slot, life)
        try:
            self._greet(life)
        except OSError:  # it lacks what it needs, and its death is seen to like any other
            process.kill()

    def _fork_exec(self) -> "tuple[subprocess.Popen[bytes], int, socket.socket]":
        """A worker process, its pidfd and our end of its socketpair; OSError, and nothing of it is left."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with contextlib.ExitStack() as undo, theirs:
            undo.callback(ours.close)
            previous = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
            try:
                process = subprocess.Popen(  # noqa: S603 - our own program
                    [sys.executable, "-m", "dgproxy.worker.main", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    close_fds=True,
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, previous)
            try:
                pidfd = os.pidfd_open(process.pid)
            except OSError:
                process.kill()
                process.wait()
                raise
            undo.pop_all()
        return process, pidfd, ours

    def _restart_later(self, slot: Slot) -> float:
        """Has the place filled again after its back-off; how many seconds that is."""
        delay = BACK_OFF[min(slot.deaths, len(BACK_OFF) - 1)]
        slot.deaths += 1
        slot.restart = self._loop.call_later(delay, self._spawn, slot)
        return delay

    def _on_exit(self, slot: Slot, life: Life) -> None:
        self._loop.remove_reader(life.pidfd)
        os.close(life.pidfd)
        code = life.process.wait()
        life.channel.drain()
        life.channel.close()
        slot.life = None
        slot.requests_before += life.requests
        delay: float | None = None
        if not self._stopping:
            if time.monotonic() - life.started >= STEADY:
                slot.deaths = 0
            delay = self._restart_later(slot)
        self._on_death(life, code, delay)
        self._check_gone()

    def _check_gone(self) -> None:
        if self._stopping and not self.lives:
            self._gone.set()
