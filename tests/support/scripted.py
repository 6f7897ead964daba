"""An upstream that misbehaves as it is told: one thread, one function for each connection, plain sockets."""

import base64
import contextlib
import hashlib
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

PATIENCE: Final = 20.0  # seconds for whatever must happen
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 1.3


def read_head(sock: socket.socket) -> bytes:
    """A request's head, and whatever came with it."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(65536)
        assert piece, "ended within its head"
        data += piece
    return data


def switching_protocols(head: bytes) -> bytes:
    """The 101 that answers a WebSocket handshake."""
    (key,) = [
        line.split(b":", 1)[1].strip() for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key:")
    ]
    accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())  # noqa: S324 - RFC 6455 asks for it
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )


@contextmanager
def upstream(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """Its URL, while it serves: each connection by `serve` on a thread of its own, then closed."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def one(sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            sock.settimeout(PATIENCE)
            serve(sock)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                threads.append(threading.Thread(target=one, args=(sock,)))
                threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)  # wakes accept(), which close() would not
        listener.close()
        accepting.join(PATIENCE)
        for thread in threads:
            thread.join(PATIENCE)


class Actor:
    """An upstream that answers requests for `?cue` with the bytes of its line, and all others as they deserve."""

    OK: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"

    def __init__(self) -> None:
        self._line = self._rest = b""
        self._cued = threading.Event()
        self._ended: queue.Queue[int] = queue.Queue()

    def learn(self, line: bytes, rest: bytes = b"") -> None:
        """What is said to `?cue` from now on; the rest of it after `go_on`."""
        self._line, self._rest = line, rest
        self._cued = threading.Event()
        self._ended = queue.Queue()

    def go_on(self) -> None:
        """Has the rest said."""
        self._cued.set()

    def hung_up(self) -> int:
        """Waits until the proxy ended the connection on which the line was said: how many requests came after it."""
        return self._ended.get(timeout=PATIENCE)

    def serve(self, sock: socket.socket) -> None:
        """One connection."""
        sock.settimeout(60.0)  # the proxy keeps an idle one for 30 s
        ended, after = self._ended, -1
        try:
            data = b""
            while piece := sock.recv(65536):
                data += piece
                while b"\r\n\r\n" in data:
                    head, _, data = data.partition(b"\r\n\r\n")
                    if after >= 0:
                        after += 1
                    if b"?cue" in head.split(b"\r\n")[0]:
                        ended, after = self._ended, 0
                        sock.sendall(self._line)
                        if self._rest:
                            self._cued.wait(PATIENCE)
                            sock.sendall(self._rest)
                    else:
                        sock.sendall(self.OK)
        finally:
            if after >= 0:
                ended.put(after)
