"""`python -m bench.bulk`: what a worker's memory grows by while 2 GiB go through it and the other end keeps stalling.

One upload whose upstream stops reading, then one download whose client does, several times each. Resident memory of the
one worker is taken each 50 ms; the growth counts from a first, small request on. Bytes are counted at both ends.
"""

import argparse
import json
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

from bench.machine import facts, resident_kib
from tests.support import scripted
from tests.support.proxy import Proxy

SIZE: Final = 2 << 30  # bytes
BLOCK: Final = bytes(256 * 1024)
STALLS: Final = 4  # in a transfer
STALL: Final = 2.0  # seconds
MOST: Final = 16 * 1024  # KiB that a worker may grow by


class Watch:
    """The highest resident memory of a process while it is open."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._over = threading.Event()
        self.before = self.most = resident_kib(pid)
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._over.wait(0.05):
            self.most = max(self.most, resident_kib(self._pid))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def stalls(size: int) -> Callable[[int], None]:
    """Called with the bytes moved so far, it stops at even places of a transfer."""
    at = [size * part // (STALLS + 1) for part in range(1, STALLS + 1)]

    def moved(count: int) -> None:
        if at and count >= at[0]:
            at.pop(0)
            time.sleep(STALL)

    return moved


def receive(sock: socket.socket, already: int, size: int) -> int:
    """Takes so many bytes, with stalls; how many came."""
    stall = stalls(size)
    count = already
    buffer = bytearray(len(BLOCK))
    while count < size and (got := sock.recv_into(buffer)):
        count += got
        stall(count)
    return count


def send(sock: socket.socket, size: int) -> None:
    """So many bytes."""
    left = size
    while left:
        sock.sendall(BLOCK[:left] if left < len(BLOCK) else BLOCK)
        left -= min(left, len(BLOCK))


def run(size: int, directory: Path) -> dict[str, Any]:
    """Both transfers; their figures."""
    arrived = []

    def serve(sock: socket.socket) -> None:
        head, _, body = scripted.read_head(sock).partition(b"\r\n\r\n")
        sock.settimeout(None)
        if head.startswith(b"POST /v1/listen"):
            arrived.append(receive(sock, len(body), size))
            sock.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")
        elif head.startswith(b"POST /v1/speak"):
            while len(body) < 2:  # unread, it would reset what is on its way when this closes
                body += sock.recv(2)
            sock.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % size)
            send(sock, size)
        else:
            sock.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")

    figures: dict[str, Any] = {"machine": facts(), "bytes": size}
    with scripted.upstream(serve) as url, Proxy(directory, url, {"server.workers": "1"}) as proxy:
        (pid,) = proxy.worker_pids()

        def begin(line: str, length: int) -> socket.socket:
            sock = socket.create_connection(("127.0.0.1", proxy.port))
            wrapped = proxy.client_tls().wrap_socket(sock, server_hostname="127.0.0.1")
            head = f"{line}\r\nHost: dg\r\nAuthorization: Token {proxy.key}\r\nContent-Length: {length}\r\n\r\n"
            wrapped.sendall(head.encode())
            return wrapped

        with begin("GET /v1/models HTTP/1.1", 0) as sock:
            scripted.read_head(sock)
        for name, line in (("upload", "POST /v1/listen HTTP/1.1"), ("download", "POST /v1/speak HTTP/1.1")):
            begun = time.monotonic()
            with Watch(pid) as watch, begin(line, size if name == "upload" else 2) as sock:
                if name == "upload":
                    send(sock, size)
                    answer = scripted.read_head(sock)
                    count = arrived[0] if arrived else 0
                else:
                    sock.sendall(b"{}")
                    answer, _, body = scripted.read_head(sock).partition(b"\r\n\r\n")
                    count = receive(sock, len(body), size)
            figures[name] = {
                "answered": answer[9:12].decode(),
                "bytes": count,
                "seconds": round(time.monotonic() - begun, 1),
                "rss_before_kib": watch.before,
                "growth_kib": watch.most - watch.before,
            }
    return figures


def main() -> None:
    """Runs, prints, and says by its exit code whether all bytes came and memory stayed within its bound."""
    parser = argparse.ArgumentParser(prog="python -m bench.bulk", description=__doc__)
    parser.add_argument("--bytes", type=int, default=SIZE, help="of each transfer")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dgproxy-bulk-") as directory:
        figures = run(args.bytes, Path(directory))
    rows = {name: figures[name] for name in ("upload", "download")}
    if args.json:
        print(json.dumps(figures, indent=2))
    else:
        for name, row in rows.items():
            print(
                f"{name:9} {row['bytes'] / 2**20:8.0f} MiB in {row['seconds']} s with {STALLS} stalls of {STALL:g} s:"
                f" the worker grew by {row['growth_kib'] / 1024:.1f} MiB from {row['rss_before_kib'] / 1024:.1f} MiB"
            )
    bad = [name for name, row in rows.items() if row["bytes"] != args.bytes or row["growth_kib"] >= MOST]
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
