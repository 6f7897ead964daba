"""Three WebSocket servers of three authors that echo, each on a loop in a thread of its own.

websockets and aiohttp judge all that RFC 6455 has a server judge; picows judges less and passes frames on one by one.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, Final

import picows
import websockets
from aiohttp import WSMsgType, web
from websockets.asyncio.server import ServerConnection, serve

_START: Final = 10.0  # seconds


@asynccontextmanager
async def _websockets() -> AsyncIterator[int]:
    async def echo(connection: ServerConnection) -> None:
        try:
            async for message in connection:
                await connection.send(message)
        except websockets.ConnectionClosed:
            pass

    async with serve(echo, "127.0.0.1", 0, max_size=None, compression=None, ping_interval=None) as server:
        yield next(iter(server.sockets)).getsockname()[1]


@asynccontextmanager
async def _aiohttp() -> AsyncIterator[int]:
    async def echo(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=0, compress=False)
        await socket.prepare(request)
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                await socket.send_str(message.data)
            elif message.type is WSMsgType.BINARY:
                await socket.send_bytes(message.data)
        return socket

    app = web.Application()
    app.router.add_get("/{path:.*}", echo)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


class _Picows(picows.WSListener):  # type: ignore[misc,unused-ignore]
    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        payload = frame.get_payload_as_bytes()
        if frame.msg_type == picows.WSMsgType.PING:
            transport.send_pong(payload)
        elif frame.msg_type == picows.WSMsgType.CLOSE:
            transport.send(picows.WSMsgType.CLOSE, payload)
            transport.disconnect()
        elif frame.msg_type != picows.WSMsgType.PONG:
            transport.send(frame.msg_type, payload, frame.fin)


@asynccontextmanager
async def _picows() -> AsyncIterator[int]:
    server = await picows.ws_create_server(lambda _: _Picows(), "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


SERVERS: Final[dict[str, Callable[[], AbstractAsyncContextManager[int]]]] = {
    "websockets": _websockets,
    "aiohttp": _aiohttp,
    "picows": _picows,
}


@contextmanager
def running(name: str) -> Iterator[int]:
    """The port of this server, while it serves."""
    ready = threading.Event()
    told: dict[str, Any] = {}

    async def work() -> None:
        told["loop"], told["stop"] = asyncio.get_running_loop(), asyncio.Event()
        wait: Callable[[], Awaitable[bool]] = told["stop"].wait
        async with SERVERS[name]() as port:
            told["port"] = port
            ready.set()
            await wait()

    thread = threading.Thread(target=lambda: asyncio.run(work()), name=f"echo {name}")
    thread.start()
    try:
        assert ready.wait(_START), f"{name} did not start"
        yield told["port"]
    finally:
        told["loop"].call_soon_threadsafe(told["stop"].set)
        thread.join(_START)
