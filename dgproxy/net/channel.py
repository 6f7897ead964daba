"""Messages and file descriptors over a Unix socketpair, driven by the loop; their meaning is others' business."""

import array
import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from dgproxy import ipc

T = TypeVar("T")

_READ: Final = 256 * 1024
_MAX_FDS: Final = 64
_MAX_QUEUED: Final = 64 * 1024 * 1024  # bytes the peer has not taken: it is not alive any more


class Channel(Generic[T]):
    """One end. `on_message` gets each message with `take_fd` ready for the fds it names; `on_eof` is called once."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        unpacker: ipc.Unpacker[T],
        on_message: Callable[[T], None],
        on_eof: Callable[[], None],
    ) -> None:
        sock.setblocking(False)  # noqa: FBT003
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()
        self._unpacker = unpacker
        self._on_message = on_message
        self._on_eof = on_eof
        self._fds: deque[int] = deque()
        self._queue: deque[tuple[memoryview, tuple[int, ...]]] = deque()
        self._queued = 0
        self._open = True
        loop.add_reader(self._fd, self._on_readable)

    def send(self, message: ipc.Message, fds: tuple[int, ...] = ()) -> None:
        """Sends a message, and with its first byte the fds, which stay ours. Never blocks; a dead peer gets nothing."""
        if not self._open:
            return
        self._queue.append((memoryview(ipc.encode(message)), tuple(os.dup(fd) for fd in fds)))
        self._queued += len(self._queue[-1][0])
        if len(self._queue) == 1:
            self._flush()
        if self._queued > _MAX_QUEUED:
            self._lose()

    def take_fd(self) -> int:
        """The next fd that came, now the caller's.

        Raises:
            ipc.BadMessage: none came.
        """
        if not self._fds:
            raise ipc.BadMessage("a message without its file descriptor")
        return self._fds.popleft()

    def drain(self) -> None:
        """Takes in all that a peer which has died had still sent."""
        while self._open and self._receive():
            pass

    def close(self) -> None:
        """Ends the channel; on_eof is not called any more."""
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._sock.close()
        while self._fds:
            os.close(self._fds.popleft())
        while self._queue:
            _close_all(self._queue.popleft()[1])

    def _lose(self) -> None:
        if self._open:
            self.close()
            self._on_eof()

    def _on_broken(self) -> None:
        """Nothing can be sent any more; what the peer had said before it died still counts."""
        self.drain()
        self._lose()

    def _on_readable(self) -> None:
        self._receive()

    def _receive(self) -> bool:
        """Reads once; whether there may be more."""
        try:
            data, ancillary, _, _ = self._sock.recvmsg(_READ, socket.CMSG_SPACE(_MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return False
        except OSError:
            data, ancillary = b"", []
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
                self._fds.extend(received)
        if not data:
            self._lose()
            return False
        try:
            for message in self._unpacker.feed(data):
                if not self._open:
                    return False
                self._on_message(message)
        except ipc.BadMessage:
            self._lose()
            return False
        return True

    def _flush(self) -> None:
        while self._queue:
            view, fds = self._queue[0]
            try:
                sent = socket.send_fds(self._sock, [view], list(fds)) if fds else self._sock.send(view)
            except BlockingIOError:
                self._loop.add_writer(self._fd, self._flush)
                return
            except OSError:
                self._loop.call_soon(self._on_broken)
                return
            _close_all(fds)
            self._queued -= sent
            if sent < len(view):
                self._queue[0] = (view[sent:], ())
            else:
                self._queue.popleft()
        self._loop.remove_writer(self._fd)


def _close_all(fds: tuple[int, ...]) -> None:
    for fd in fds:
        os.close(fd)
