"""The stand-in as a whole: starting, stopping, and the three ways to run it (`serve`, `background`, `run`)."""

import asyncio
import contextlib
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final

from dgproxy.standin.connection import LIMIT, Book, Connection
from dgproxy.standin.options import Options

_BACKLOG: Final = 4096


class Server(Book):
    """A listening stand-in and the owner of its connections."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.url = ""
        self._listener: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> None:
        """Listens. Port 0: any free one; `url` has it."""
        self._listener = await asyncio.start_server(self._accept, host, port, limit=LIMIT, backlog=_BACKLOG)
        name, number = self._listener.sockets[0].getsockname()[:2]
        self.url = f"http://[{name}]:{number}" if ":" in name else f"http://{name}:{number}"

    async def stop(self) -> None:
        """Aborts every connection and waits until nothing is left."""
        if self._listener is None:
            return
        self._listener.close()
        tasks = list(self.connections)
        for task, transport in self.connections.items():
            transport.abort()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._listener.wait_closed()
        self._listener = None

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # a callback, not a coroutine: streams would make a task of their own that nobody awaits
        task = asyncio.get_running_loop().create_task(Connection(self, reader, writer).serve())
        self.connections[task] = writer.transport
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        del self.connections[task]
        if not task.cancelled() and (broken := task.exception()) is not None:
            context = {"message": "the stand-in failed on a connection", "exception": broken}
            task.get_loop().call_exception_handler(context)


# --- starting and stopping ------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def serve(host: str = "127.0.0.1", port: int = 0, options: Options | None = None) -> AsyncIterator[Server]:
    """A stand-in for as long as the context lasts; at its end every connection is aborted."""
    server = Server(options or Options())
    await server.start(host, port)
    try:
        yield server
    finally:
        await server.stop()


def new_loop() -> asyncio.AbstractEventLoop:
    """A uvloop where there is one."""
    try:
        import uvloop  # noqa: PLC0415 - optional here
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


@contextlib.contextmanager
def background(host: str = "127.0.0.1", port: int = 0, options: Options | None = None) -> Iterator[Server]:
    """A stand-in on a thread of its own, for callers that block."""
    ready: list[Server] = []
    failed: list[BaseException] = []
    started = threading.Event()
    ended: list[Callable[[], object]] = []

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        async with serve(host, port, options) as server:
            ready.append(server)
            ended.append(lambda: loop.call_soon_threadsafe(stop.set))
            started.set()
            await stop.wait()

    def body() -> None:
        try:
            with asyncio.Runner(loop_factory=new_loop) as runner:
                runner.run(main())
        except BaseException as broken:  # noqa: BLE001 - raised again in the caller's thread
            failed.append(broken)
            started.set()

    thread = threading.Thread(target=body, name="standin")
    thread.start()
    started.wait()
    try:
        if failed:
            raise failed[0]
        yield ready[0]
    finally:
        for end in ended:
            end()
        thread.join()


def run(host: str, port: int, options: Options | None = None) -> None:
    """Serves until SIGINT or SIGTERM; says where in one line. Raises OSError where it cannot listen."""

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        async with serve(host, port, options) as server:
            with contextlib.suppress(OSError):  # whoever closed or filled stdout knows where it listens
                sys.stdout.write(f"stand-in Deepgram on {server.url}\n")
                sys.stdout.flush()
            await stop.wait()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
