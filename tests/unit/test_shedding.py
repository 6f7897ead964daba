"""Who is ended when a worker holds too many bytes: those whose bytes stand still, the largest first, and no more."""

import asyncio
import math
import socket
from collections.abc import Callable, Coroutine
from typing import Any, cast

from dgproxy import events
from dgproxy.logs import Log
from dgproxy.net.budget import Budget
from dgproxy.worker.connection import Connection
from dgproxy.worker.main import Worker
from dgproxy.worker.meter import End
from dgproxy.worker.stream import Stream

LIMIT = 1000


class Request(Connection):
    """A connection that holds so many bytes, which have not moved for so long."""

    def __init__(self, budget: Budget, size: int, stalled: float) -> None:
        self._size = size
        self._since = asyncio.get_running_loop().time() - stalled
        self._held_by = budget
        budget.take(size)

    @property
    def held(self) -> int:
        return self._size

    @property
    def held_since(self) -> float:
        return self._since if self._size else math.inf

    def shed(self) -> None:
        self._held_by.give_back(self._size)
        self._size = 0


class WebSocket(Stream):
    """A stream that holds so many bytes."""

    __slots__ = ("_held_by", "_since", "_size")

    def __init__(self, budget: Budget, size: int) -> None:
        self._size = size
        self._since = asyncio.get_running_loop().time() - 1.0
        self._held_by = budget
        budget.take(size)

    @property
    def held(self) -> int:
        return self._size

    @property
    def held_since(self) -> float:
        return self._since if self._size else math.inf

    def end(self, reason: End) -> None:
        assert reason is End.SHED
        self._held_by.give_back(self._size)
        self._size = 0


class Bench:
    """A worker with nothing but holders and a budget."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._ours, theirs = socket.socketpair()
        self.worker = Worker(loop, theirs)
        self.worker.budget = Budget(LIMIT, self.worker._on_over_budget)
        self.said: list[dict[str, Any]] = []
        self.worker.log = cast("Log", self._log)

    def _log(self, event: events.Event, **fields: Any) -> None:
        assert event is events.WORKER_SHED
        self.said.append(fields)

    def request(self, size: int, stalled: float) -> Request:
        request = Request(self.worker.budget, size, stalled)
        task = asyncio.get_running_loop().create_task(asyncio.sleep(0))
        self.worker._connections[task] = request
        return request

    def stream(self, size: int) -> WebSocket:
        stream = WebSocket(self.worker.budget, size)
        self.worker.streams.add(stream)
        return stream

    def close(self) -> None:
        self.worker._channel.close()
        self._ours.close()


def run(work: Callable[[Bench], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        bench = Bench()
        try:
            await work(bench)
        finally:
            bench.close()

    asyncio.run(whole())


def test_those_whose_bytes_stand_still_are_ended_before_any_whose_bytes_move() -> None:
    async def work(bench: Bench) -> None:
        busy = [bench.request(300, 0.01) for _ in range(2)]
        stalled = [bench.request(150, 5.0) for _ in range(3)]
        await asyncio.sleep(0)
        assert [one.held for one in busy] == [300, 300]
        assert sorted(one.held for one in stalled) == [0, 150, 150]
        assert bench.said == [{"excess": 50, "ended": 1}]

    run(work)


def test_among_those_that_stand_still_the_largest_go_first_and_no_more_than_it_takes() -> None:
    async def work(bench: Bench) -> None:
        sizes = [100, 400, 200, 350]
        stalled = [bench.request(size, 2.0) for size in sizes]
        stream = bench.stream(50)
        await asyncio.sleep(0)
        assert [one.held for one in stalled] == [100, 0, 200, 350]
        assert stream.held == 50
        assert bench.said == [{"excess": 50 + 50, "ended": 1}]

    run(work)


def test_one_that_keeps_a_drip_going_is_no_better_off_than_it_should_be() -> None:
    async def work(bench: Bench) -> None:
        busy = [bench.request(300, 0.002) for _ in range(2)]
        dripping = bench.request(450, 0.2)
        await asyncio.sleep(0)
        assert [one.held for one in busy] == [300, 300]
        assert dripping.held == 0

    run(work)


def test_where_all_are_busy_the_largest_go_all_the_same() -> None:
    async def work(bench: Bench) -> None:
        busy = [bench.request(size, 0.0) for size in (600, 500)]
        await asyncio.sleep(0)
        assert [one.held for one in busy] == [0, 500]

    run(work)


def test_a_stream_that_holds_bytes_goes_like_a_request_that_stands_still() -> None:
    async def work(bench: Bench) -> None:
        busy = bench.request(900, 0.0)
        stream = bench.stream(150)
        await asyncio.sleep(0)
        assert (busy.held, stream.held) == (900, 0)

    run(work)


def test_what_is_mended_before_anything_is_done_ends_nobody_and_is_not_told() -> None:
    async def work(bench: Bench) -> None:
        stalled = bench.request(900, 5.0)
        bench.worker.budget.take(200)
        bench.worker.budget.give_back(200)
        await asyncio.sleep(0)
        assert stalled.held == 900
        assert bench.said == []

    run(work)
