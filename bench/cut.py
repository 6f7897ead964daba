"""`python -m bench.cut`: how soon the streams of a key end after `dgproxy keys revoke`, whatever they are doing.

Streams of one key over two workers: most send a message each 250 ms and read its echo; a tenth each is silent, stops in
the middle of a frame (and the upstream, which echoes as it reads, in the middle of its own), stops between two
fragments, or sends without ever reading. Streams of another key run beside them and must not notice. Times count from
the moment at which the command returned; the time that it took is printed beside.
"""

import argparse
import json
import select
import ssl
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.machine import facts
from bench.streams import POINTS, raise_fd_limit
from dgproxy.wire.frames import BINARY, CLOSE, TEXT
from tests.support.frames import frame
from tests.support.proxy import DGPROXY, Proxy
from tests.support.raw_ws import RawStream
from tests.support.upstreams import Upstream

TARGET: Final = "/v1/listen?model=nova-3&encoding=linear16&sample_rate=16000&standin_echo=1"
INTERVAL: Final = 0.25  # seconds between two messages of a stream
WARM_UP: Final = 2.0
GIVE_UP: Final = 10.0  # seconds after which a stream that goes on is counted as not ended
MESSAGE: Final = frame(BINARY, bytes(3200))
KINDS: Final = ("streaming", "silent", "mid-frame", "mid-fragment", "not reading")


@dataclass(eq=False)
class Live:
    """One stream of the run."""

    stream: RawStream
    kind: str
    due: float = 0.0
    closed: int | None = None  # the code of the Close that came
    ended: float | None = None  # monotonic seconds
    data: bytearray = field(default_factory=bytearray)


def open_streams(proxy: Proxy, key: str, count: int) -> list[Live]:
    """`count` streams, a tenth of each of the quiet kinds."""
    found = []
    for number in range(count):
        kind = KINDS[number % 10 + 1] if number % 10 < len(KINDS) - 1 else KINDS[0]
        stream = RawStream(proxy, key, TARGET, buffer=4096 if kind == "not reading" else None)
        match kind:
            case "mid-frame":
                stream.send(MESSAGE[:1000])
            case "mid-fragment":
                stream.send(frame(TEXT, b"{", fin=False))
            case "not reading":
                stream.sock.settimeout(0.05)
                try:
                    while True:
                        stream.send(frame(BINARY, bytes(16_000)))
                except (TimeoutError, ssl.SSLError):
                    pass
        stream.sock.setblocking(False)  # noqa: FBT003
        found.append(Live(stream, kind, time.monotonic() + INTERVAL * number / count))
    return found


class Pump:
    """Sends and reads for all streams, and notes when each ends."""

    def __init__(self, lives: list[Live]) -> None:
        self._poll = select.epoll()
        self._by_fd = {live.stream.sock.fileno(): live for live in lives}
        for fd, live in self._by_fd.items():
            self._poll.register(fd, 0 if live.kind == "not reading" else select.EPOLLIN)

    def turn(self) -> None:
        """What is due, and what has come."""
        now = time.monotonic()
        for live in self._by_fd.values():
            if live.kind == "streaming" and live.ended is None and live.due <= now:
                live.due += INTERVAL
                try:
                    live.stream.send(MESSAGE)
                except OSError:
                    self._end(live)
        for fd, events in self._poll.poll(0.005):
            live = self._by_fd[fd]
            if live.kind == "not reading":
                if events & (select.EPOLLERR | select.EPOLLHUP):
                    self._end(live)
                continue
            self._read(live)

    def _read(self, live: Live) -> None:
        try:
            while data := live.stream.sock.recv(65536):
                live.data += data
        except (BlockingIOError, ssl.SSLWantReadError):
            self._look_for_a_close(live)
        except OSError:
            self._end(live)
        else:
            self._look_for_a_close(live)
            self._end(live)

    def _look_for_a_close(self, live: Live) -> None:
        data = live.data
        while len(data) >= 4:
            head = 2 if data[1] < 126 else 4
            size = head + (data[1] if head == 2 else int.from_bytes(data[2:4], "big"))
            if len(data) < size:
                return
            if data[0] & 0x0F == CLOSE:
                live.closed = int.from_bytes(data[2:4], "big")
                self._end(live)
            del data[:size]

    def _end(self, live: Live) -> None:
        if live.ended is None:
            live.ended = time.monotonic()
            self._poll.unregister(live.stream.sock.fileno())


def seconds_at(times: list[float]) -> dict[str, float]:
    """The usual points of a distribution, in seconds."""
    ordered = sorted(times)
    if not ordered:
        return dict.fromkeys(POINTS, float("nan"))
    return {name: ordered[min(len(ordered) - 1, int(len(ordered) * part))] for name, part in POINTS.items()}


def run(count: int, others: int, directory: Path) -> dict[str, Any]:
    """One run; its figures."""
    raise_fd_limit(count + others)
    upstream = Upstream("standin", directory)
    try:
        with Proxy(directory, upstream.url, {"plans.default.streams": "100000"}) as proxy:
            victim, other = proxy.new_key(name="victim"), proxy.new_key(name="other")
            lives = open_streams(proxy, victim.key, count)
            bystanders = open_streams(proxy, other.key, others)
            pump = Pump(lives + bystanders)
            until = time.monotonic() + WARM_UP
            while time.monotonic() < until:
                pump.turn()
            assert all(live.ended is None for live in lives + bystanders), "a stream ended before anybody was revoked"
            spread = [worker["streams"] for worker in proxy.status()["workers"]]
            begun = time.monotonic()
            command = subprocess.Popen(
                [*DGPROXY, "keys", "revoke", victim.id, "--json", "-c", str(proxy.config)], stdout=subprocess.PIPE
            )
            returned = None
            while time.monotonic() - begun < GIVE_UP and (returned is None or any(x.ended is None for x in lives)):
                pump.turn()
                if returned is None and command.poll() is not None:
                    returned = time.monotonic()
            assert command.wait(5) == 0
            if command.stdout is not None:
                command.stdout.close()
            until = time.monotonic() + 1.0
            while time.monotonic() < until:
                pump.turn()
            for live in lives + bystanders:
                live.stream.sock.close()
            assert returned is not None, "the command hangs"
            kinds: dict[str, Any] = {}
            for kind in KINDS:
                mine = [live for live in lives if live.kind == kind]
                times = [live.ended - returned for live in mine if live.ended is not None]
                kinds[kind] = {
                    "streams": len(mine),
                    "not_ended": sum(live.ended is None for live in mine),
                    "closed_with_1008": sum(live.closed == 1008 for live in mine),
                    "seconds": seconds_at(times),
                }
            return {
                "machine": facts(),
                "streams": count,
                "per_worker": spread,
                "command_s": round(returned - begun, 3),
                "kinds": kinds,
                "others": {"streams": others, "ended": sum(live.ended is not None for live in bystanders)},
            }
    finally:
        upstream.stop()


def main() -> None:
    """Runs, prints, and says by its exit code whether all ended within a second and nobody else did."""
    parser = argparse.ArgumentParser(prog="python -m bench.cut", description=__doc__)
    parser.add_argument("--streams", type=int, default=200, help="of the key that is revoked")
    parser.add_argument("--others", type=int, default=50, help="of another key")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dgproxy-cut-") as directory:
        figures = run(args.streams, args.others, Path(directory))
    if args.json:
        print(json.dumps(figures, indent=2))
    else:
        show(figures)
    late = [kind for kind, row in figures["kinds"].items() if row["not_ended"] or row["seconds"]["max"] > 1.0]
    sys.exit(1 if late or figures["others"]["ended"] else 0)


def show(figures: dict[str, Any]) -> None:
    """The table."""
    print(f"{figures['streams']} streams of one key over workers {figures['per_worker']}, revoked")
    print(
        f"`dgproxy keys revoke` took {figures['command_s']:.3f} s, start of Python included; seconds after it returned:"
    )
    print(f"{'stream is':14} {'streams':>7} {'not ended':>9} {'Close 1008':>10} {'p50':>8} {'p99':>8} {'max':>8}")
    for kind, row in figures["kinds"].items():
        points = row["seconds"]
        print(
            f"{kind:14} {row['streams']:7} {row['not_ended']:9} {row['closed_with_1008']:10}"
            f" {points['p50']:8.3f} {points['p99']:8.3f} {points['max']:8.3f}"
        )
    print(f"another key's streams: {figures['others']['streams']}, ended: {figures['others']['ended']}")


if __name__ == "__main__":
    main()
