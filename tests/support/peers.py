"""The other end of a socket under test, in the same loop but on other code, with TLS in memory."""

import asyncio
import contextlib
import datetime as dt
import functools
import socket
import ssl
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from dgproxy import bootstrap
from dgproxy.net import tls
from dgproxy.net.poll import Callback, Loop, Poll

_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends RST


class Certificates:
    """What `dgproxy init` would make, for 127.0.0.1."""

    def __init__(self, directory: Path) -> None:
        for name, pem in bootstrap.certificates("127.0.0.1", dt.datetime.now(dt.UTC)).items():
            (directory / name).write_bytes(pem)
        self.ca = str(directory / "ca.pem")
        self.certificate = str(directory / "server.pem")
        self.private_key = str(directory / "server-key.pem")

    def server(self, minimum: str = "1.2", ticket_keys: bytes | None = None) -> ssl.SSLContext:
        """The proxy's own context of a listener."""
        return tls.server_context(self.certificate, self.private_key, minimum, ticket_keys)

    def client(self) -> ssl.SSLContext:
        """A client that trusts this CA alone."""
        return ssl.create_default_context(cafile=self.ca)


@functools.cache
def certificates() -> Certificates:
    """One set for the whole run; its directory goes with the process."""
    directory = tempfile.TemporaryDirectory(prefix="dgproxy-tests-")
    made = Certificates(Path(directory.name))
    made.__dict__["directory"] = directory  # is removed when the process ends
    return made


def tcp_pair(buffer: int | None = None) -> tuple[socket.socket, socket.socket]:
    """Two ends of a loopback connection, non-blocking; with `buffer` the kernel holds about so many bytes each way."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        if buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        one = socket.socket()
        if buffer is not None:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        one.connect(listener.getsockname())
        other, _ = listener.accept()
    for sock in (one, other):
        if buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)  # noqa: FBT003
    return one, other


class Peer:
    """One end, driven by a test. With a context it speaks TLS."""

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext | None = None, *, server_side: bool = False
    ) -> None:
        self.sock = sock
        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None
        if context is not None:
            name = None if server_side else "127.0.0.1"
            self._tls = context.wrap_bio(self._in, self._out, server_side=server_side, server_hostname=name)

    async def handshake(self) -> None:
        """Until TLS is up, if it is to be."""
        while self._tls is not None:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._more()
            else:
                await self._flush()
                return

    @property
    def has_ticket(self) -> bool:
        """Whether a session ticket of the other end's has come with what was read."""
        assert self._tls is not None
        return self._tls.session is not None and self._tls.session.has_ticket

    async def send(self, data: bytes) -> None:
        """All of it."""
        if self._tls is None:
            await self.send_raw(data)
            return
        if data:
            self._tls.write(data)
            await self._flush()

    async def read(self) -> bytes:
        """What comes next; b"" at an orderly end.

        Raises:
            ConnectionError: the connection was reset.
            ssl.SSLError: TLS broke, or was cut without close_notify.
        """
        if self._tls is None:
            return await self._receive()
        while True:
            try:
                return self._tls.read(65536)
            except ssl.SSLWantReadError:
                await self._more()
            except ssl.SSLZeroReturnError:
                return b""

    async def read_all(self) -> bytes:
        """Until the orderly end."""
        pieces = []
        while piece := await self.read():
            pieces.append(piece)
        return b"".join(pieces)

    async def half_close(self, *, notify: bool = True, fin: bool = True) -> None:
        """Says that nothing more comes; under TLS not so if not `notify`, and without `fin` TCP says nothing of it.

        What the other end sends is still read.
        """
        if self._tls is not None and notify:
            with contextlib.suppress(ssl.SSLWantReadError):  # what OpenSSL still held would come after the end
                assert not self._tls.read(65536), "read first"
            with contextlib.suppress(ssl.SSLWantReadError):
                self._tls.unwrap()
            await self._flush()
        if fin:
            self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Ends it with RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.sock.close()

    def close(self) -> None:
        """Ends it."""
        self.sock.close()

    # Not the loop's own sock_recv and sock_sendall: uvloop's hold on to a socket after they were cancelled.

    async def send_raw(self, data: bytes) -> None:
        """All of it, past TLS."""
        view = memoryview(data)
        while view:
            try:
                view = view[self.sock.send(view) :]
            except BlockingIOError:
                await self._once(asyncio.get_running_loop().add_writer, asyncio.get_running_loop().remove_writer)

    async def _receive(self) -> bytes:
        while True:
            try:
                return self.sock.recv(65536)
            except BlockingIOError:
                await self._once(asyncio.get_running_loop().add_reader, asyncio.get_running_loop().remove_reader)

    async def _once(self, add: Callable[..., Any], remove: Callable[[int], Any]) -> None:
        fd = self.sock.fileno()
        ready = asyncio.get_running_loop().create_future()

        def on_ready() -> None:
            if not ready.done():
                ready.set_result(None)

        add(fd, on_ready)
        try:
            await ready
        finally:
            remove(fd)

    async def _flush(self) -> None:
        if self._out.pending:
            await self.send_raw(self._out.read())

    async def _more(self) -> None:
        data = await self._receive()
        if data:
            self._in.write(data)
        else:
            self._in.write_eof()


class Watched:
    """A loop that knows which file descriptors it was asked to watch, by either form of poll."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.readers: set[int] = set()
        self.writers: set[int] = set()
        if isinstance(loop, Loop):
            self.poll = lambda fd: _WatchedPoll(self, loop.poll(fd), fd)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def add_reader(self, fd: int, callback: Callable[..., Any], *args: Any) -> None:
        self.readers.add(fd)
        self._loop.add_reader(fd, callback, *args)

    def remove_reader(self, fd: int) -> bool:
        self.readers.discard(fd)
        return self._loop.remove_reader(fd)

    def add_writer(self, fd: int, callback: Callable[..., Any], *args: Any) -> None:
        self.writers.add(fd)
        self._loop.add_writer(fd, callback, *args)

    def remove_writer(self, fd: int) -> bool:
        self.writers.discard(fd)
        return self._loop.remove_writer(fd)


class _WatchedPoll:
    """A compiled poll that tells its loop."""

    def __init__(self, loop: Watched, poll: Poll, fd: int) -> None:
        self._loop = loop
        self._poll = poll
        self._fd = fd

    def read(self, callback: Callback | None) -> None:
        self._poll.read(callback)
        self._note(self._loop.readers, callback)

    def write(self, callback: Callback | None) -> None:
        self._poll.write(callback)
        self._note(self._loop.writers, callback)

    def close(self) -> None:
        self._poll.close()
        self._note(self._loop.readers, None)
        self._note(self._loop.writers, None)
        self._fd = -1  # its number may be another's

    def _note(self, fds: set[int], callback: Callback | None) -> None:
        (fds.discard if callback is None else fds.add)(self._fd)
