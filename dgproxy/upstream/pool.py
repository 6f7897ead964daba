"""Connections to the containers: fresh ones, and idle ones kept for the next request.

Rules of this file: an idle connection stays in the loop, so that one that the container closed is dropped when it
closes, not when it is needed; bytes that come on an idle connection belong to nobody and end it; a lease is given
back exactly once, by whoever took it.
"""

import asyncio
import socket
from dataclasses import dataclass
from typing import Any, Final

from dgproxy.config import Upstream as Settings
from dgproxy.net import tls
from dgproxy.net.budget import Budget
from dgproxy.net.endpoint import Cause, Endpoint, Lost
from dgproxy.net.listen import tune
from dgproxy.upstream.balance import Target, order

IDLE_MOST: Final = 64  # kept per container and worker
IDLE_SECONDS: Final = 30.0  # less than servers keep an idle connection (nginx and aiohttp: 75 s)


class Unreachable(Exception):  # noqa: N818
    """No container could be connected to; `detail` says why, for the log."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


@dataclass(slots=True, eq=False)
class Lease:
    """A connection for one request."""

    target: Target
    endpoint: Endpoint
    reused: bool


@dataclass(slots=True, eq=False)
class _Idle:
    endpoint: Endpoint
    since: float  # loop time


class Pool:
    """This worker's connections to all containers."""

    def __init__(self, loop: asyncio.AbstractEventLoop, settings: Settings, budget: Budget | None = None) -> None:
        """`budget`: what the bytes that its connections hold count against."""
        self._loop = loop
        self._budget = budget
        self._settings = settings
        self._targets = [Target(url) for url in settings.urls]
        self._idle: dict[Target, list[_Idle]] = {target: [] for target in self._targets}
        self._context: tls.Context | None = None

    async def lease(self, *, fresh: bool = False) -> Lease:
        """A connection to the least loaded container that can be reached; `fresh`: never one that was used before.

        Raises:
            Unreachable: none of them could be connected to in time.
        """
        failure: Unreachable | None = None
        for target in order(self._targets):
            target.in_flight += 1
            try:
                endpoint = None if fresh else self._take(target)
                if endpoint is not None:
                    return Lease(target, endpoint, reused=True)
                return Lease(target, await self._connect(target), reused=False)
            except Unreachable as error:
                target.in_flight -= 1
                failure = error
            except BaseException:
                target.in_flight -= 1
                raise
        assert failure is not None  # noqa: S101 - the config has at least one url
        raise failure

    def give_back(self, lease: Lease, *, reusable: bool) -> None:
        """Ends a lease: the connection is kept for another request, or closed."""
        lease.target.in_flight -= 1
        idle = self._idle[lease.target]
        if not reusable or lease.endpoint.gone or lease.endpoint.torn or len(idle) >= IDLE_MOST:
            lease.endpoint.close()
            return
        entry = _Idle(lease.endpoint, self._loop.time())
        idle.append(entry)
        lease.endpoint.watch(on_gone=lambda: self._drop(lease.target, entry))

    def tick(self) -> None:
        """Closes what was idle too long; called each second or so."""
        oldest = self._loop.time() - IDLE_SECONDS
        for target, idle in self._idle.items():
            for entry in [entry for entry in idle if entry.since < oldest or entry.endpoint.gone]:
                self._drop(target, entry)

    def close(self) -> None:
        """Closes every idle connection."""
        for target, idle in self._idle.items():
            for entry in list(idle):
                self._drop(target, entry)

    def _drop(self, target: Target, entry: _Idle) -> None:
        if entry in self._idle[target]:
            self._idle[target].remove(entry)
            entry.endpoint.close()

    def _take(self, target: Target) -> Endpoint | None:
        idle = self._idle[target]
        while idle:
            endpoint = idle.pop().endpoint
            if not endpoint.unwatch():
                return endpoint
            endpoint.close()
        return None

    async def _connect(self, target: Target) -> Endpoint:
        """Connects to the first of the container's addresses that answers, all within connect_timeout."""
        url = target.url
        deadline = self._loop.time() + self._settings.connect_timeout
        try:
            async with asyncio.timeout_at(deadline):
                addresses = await self._loop.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise Unreachable(f"{target.name}: cannot resolve its name: {error}") from error
        lost: Lost | None = None
        for index, (family, kind, protocol, _, address) in enumerate(addresses):
            left = deadline - self._loop.time()
            if left <= 0:
                break
            share = left / (len(addresses) - index)  # the last address still has its time if the first ones are silent
            try:
                return await self._open(target, socket.socket(family, kind, protocol), address, share)
            except Lost as error:
                lost = error
            except OSError as error:  # no descriptor left, or a family that this machine does not speak
                lost = Lost(Cause.RESET)
                lost.__cause__ = error
        cause = lost.__cause__ if lost is not None and lost.__cause__ is not None else lost
        raise Unreachable(f"{target.name}: {cause or 'timeout'}")

    async def _open(self, target: Target, sock: socket.socket, address: Any, timeout: float) -> Endpoint:
        endpoint = Endpoint(self._loop, sock, target.name, self._budget)
        try:
            tune(sock)
            deadline = self._loop.time() + timeout
            await endpoint.connect(address, timeout)
            if target.url.scheme == "https":
                if self._context is None:
                    self._context = tls.client_context()
                left = deadline - self._loop.time()
                await endpoint.handshake(self._context, left, server_side=False, name=target.url.host)
        except BaseException:
            endpoint.abort()
            raise
        return endpoint
