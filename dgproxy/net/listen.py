"""Listening sockets, and the loop's side of accepting from them.

The supervisor opens one SO_REUSEPORT socket per worker and address and keeps it open: the queue of a dead worker waits
in it for the replacement. What every accepted connection needs is set on the listener, from which Linux inherits it.
"""

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Any, Final

BACKLOG: Final = 4096
_AT_ONCE: Final = 16  # accepted per event, so that a storm of new connections does not starve open streams
_PAUSE: Final = 0.1  # seconds without accepting when file descriptors or memory run out
_SHED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# Dead peers: the first probe after a minute of silence, gone after 30 s of probes or of data that is not acknowledged.
_KEEPALIVE: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),  # ms
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
)


def tune(sock: socket.socket) -> None:
    """No delay, and dead peers found (see above); for a listener or a connection."""
    for level, option, value in _KEEPALIVE:
        sock.setsockopt(level, option, value)


def open_listeners(host: str, port: int, count: int) -> list[socket.socket]:
    """`count` sockets on one address, among which the kernel spreads connections. Port 0 picks one for all.

    Raises:
        OSError: the address is taken, privileged or not ours.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    opened: list[socket.socket] = []
    try:
        # Without SO_REUSEPORT first: it would let us share a port that another process of the same user serves.
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind(address)
        for _ in range(count):
            sock = socket.socket(family, socket.SOCK_STREAM)
            opened.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # [::] and 0.0.0.0 can both be listed
            tune(sock)
            sock.bind(address)
            if not address[1]:
                address = (address[0], sock.getsockname()[1], *address[2:])
    except OSError:
        for sock in opened:
            sock.close()
        raise
    for sock in opened:
        sock.setblocking(False)  # noqa: FBT003
        sock.listen(BACKLOG)
    return opened


class Acceptor:
    """Accepts on one listener. `pause` and `resume` may be called at any time, `stop` once and for all."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, listener: socket.socket, on_accept: Callable[[socket.socket, Any], None]
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._on_accept = on_accept
        self._accepting = False
        self._stopped = False

    def resume(self) -> None:
        """Accepts from now on."""
        if not self._accepting and not self._stopped:
            self._accepting = True
            self._loop.add_reader(self._listener.fileno(), self._on_readable)

    def pause(self) -> None:
        """Leaves new connections in the listener's queue."""
        if self._accepting:
            self._accepting = False
            self._loop.remove_reader(self._listener.fileno())

    def stop(self) -> None:
        """Accepts no more and closes this process's end of the listener."""
        self.pause()
        self._stopped = True
        self._listener.close()

    def _on_readable(self) -> None:
        for _ in range(_AT_ONCE):
            if not self._accepting:
                return
            try:
                sock, address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _SHED:
                    self.pause()
                    self._loop.call_later(_PAUSE, self.resume)
                    return
                continue  # that one connection was gone before it was accepted
            self._on_accept(sock, address)
