"""Beginnings of workers that an operator can hardly bring about: no room for a process, changes on their way."""

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import pytest
import uvloop

from dgproxy import ipc
from dgproxy.access.keys import Delta, build
from dgproxy.config import Config, Server
from dgproxy.net.channel import Channel
from dgproxy.supervisor.processes import Life, Workers
from dgproxy.worker.main import Worker

FDS: Final = Path("/proc/self/fd")
PATIENCE: Final = 10.0


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE):
            await work()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bounded())


@pytest.mark.parametrize("refused", ["fork_exec", "pidfd_open"])
def test_a_start_that_fails_is_told_and_tried_again(monkeypatch: pytest.MonkeyPatch, refused: str) -> None:
    failures = 2
    run(lambda: asyncio.sleep(0))  # the first loop of a process opens what it keeps for good
    fds = len(list(FDS.iterdir()))

    def refuse_at_first(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal failures
            if failures:
                failures -= 1
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return real(*args, **options)

        return call

    module, name = ("subprocess", "Popen") if refused == "fork_exec" else ("os", "pidfd_open")
    target = f"dgproxy.supervisor.processes.{module}.{name}"
    monkeypatch.setattr(target, refuse_at_first(getattr(__import__(module), name)))

    async def work() -> None:
        greeted: asyncio.Future[Life] = asyncio.get_running_loop().create_future()
        told: list[int | None] = []
        workers = Workers(
            asyncio.get_running_loop(),
            [[]],
            greeted.set_result,
            lambda _, __: None,
            lambda _, __, ___: None,
            lambda _, error, __: told.append(error.errno),
        )
        workers.start()
        life = await greeted
        assert told == [errno.EMFILE] * 2
        life.process.kill()
        await workers.stop(0)

    run(work)
    assert len(list(FDS.iterdir())) == fds


def test_a_worker_accepts_only_once_its_table_is_where_the_supervisors_was() -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        worker = Worker(loop, theirs)
        said: asyncio.Queue[ipc.Up] = asyncio.Queue()
        channel: Channel[ipc.Up] = Channel(loop, ours, ipc.Unpacker(ipc.UP), said.put_nowait, lambda: None)
        serving = asyncio.ensure_future(worker.run())
        setup = ipc.Setup(
            version=ipc.VERSION,
            index=0,
            workers=1,
            config=Config(server=Server(tls=False)),
            pepper=bytes(32),
            ticket_keys=bytes(80),
            listeners=(),
        )
        table = os.memfd_create("table")
        os.write(table, build([], 7))
        channel.send(setup)
        channel.send(ipc.Snapshot(7, 9), (table,))
        os.close(table)
        channel.send(ipc.Change(Delta(8)))
        assert [await said.get(), await said.get()] == [ipc.Applied(7), ipc.Applied(8)]
        channel.send(ipc.Change(Delta(9)))
        assert await said.get() == ipc.Applied(9)
        assert isinstance(await said.get(), ipc.Ready)
        channel.send(ipc.Stop(0))
        assert await serving == 0
        channel.close()

    run(work)
