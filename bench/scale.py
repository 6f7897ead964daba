"""`python -m bench scale`: what a round trip costs with more streams, and with a second worker.

The load of `streams` with 50 to 2,000 of them, on one worker and on two (of HAProxy: threads). A stream sends each 100
ms, or so seldom that all of them together send 5,000 a second: the question is what a stream more costs, not what an
overloaded proxy does.

Rules of this file: one worker has a core of its own, as always in bench/. Two are not kept on one core: they have all
cores but the load's if that leaves two, and otherwise share the load's, so that on two cores the generator and the
upstream take turns with them. Their CPU for a round trip then holds what taking turns costs (a colder cache) and
saves (a wake-up on the same core is cheaper); their latency is the machine's more than theirs.
"""

import dataclasses
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from bench.machine import PROC
from bench.runs import Row
from bench.scenarios import Figure, Run, Scenario, scenarios
from bench.servers import Server, Unstarted
from bench.streams import raise_fd_limit
from bench.studies import Bench, Study, row, starts, unstarted

NAME: Final = "scale"
WORKERS: Final = (1, 2)
MOST: Final = 5000  # messages a second, all streams together
_LEAST: Final = 0.1  # seconds between a stream's messages
_ESTABLISHED: Final = "01"  # include/net/tcp_states.h, as /proc/net/tcp has it


def interval(streams: int) -> float:
    """Seconds between two messages of a stream, of so many."""
    return max(_LEAST, streams / MOST)


def load(streams: int, seconds: float) -> Scenario:
    """That of `streams`, at this scenario's pace."""
    base = scenarios(seconds=seconds, streams=streams)["streams"]
    return dataclasses.replace(base, options={**base.options, "interval": interval(streams)})


# --- who has which connection ---------------------------------------------------------------------------------------


def accepted(table: str, port: int) -> set[int]:
    """Of a /proc/net/tcp: the inodes of established connections to this loopback port, at the server's end."""
    (host,) = struct.unpack("=I", socket.inet_aton("127.0.0.1"))
    local = f"{host:08X}:{port:04X}"
    rows = [line.split() for line in table.splitlines()[1:]]
    return {int(fields[9]) for fields in rows if fields[1] == local and fields[3] == _ESTABLISHED}


def shares(of_process: Mapping[int, set[int]], connections: set[int]) -> list[float]:
    """The part of the connections that each process has, of those that have any; the largest first."""
    counts = [len(sockets & connections) for sockets in of_process.values()]
    return sorted((count / len(connections) for count in counts if count), reverse=True) if connections else []


def _sockets(pid: int) -> set[int]:
    found = set()
    for entry in (PROC / str(pid) / "fd").iterdir():
        try:
            name = str(entry.readlink())
        except OSError:
            continue  # closed meanwhile
        if name.startswith("socket:["):
            found.add(int(name[8:-1]))
    return found


class _Spread:
    """Looks who has which connection when it is entered: while the streams stand. A context manager."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.shares: list[float] = []

    def __enter__(self) -> None:
        connections = accepted((PROC / "net/tcp").read_text(), self._server.port)
        self.shares = shares({pid: _sockets(pid) for pid in self._server.pids}, connections)

    def __exit__(self, *_: object) -> None:
        pass


# --- rows -----------------------------------------------------------------------------------------------------------


def figures(run: Run, one: Mapping[str, float] | None, spread: Sequence[float]) -> dict[str, float]:
    """Of one load; beside the same server's with one worker, if this is with more."""
    found = {"cpu": run.each, "p50": run.latency(0.5), "p99": run.latency(0.99)}
    if one is not None:
        found["cpu_x"] = found["cpu"] / one["cpu"]
    if len(spread) > 1:
        found["least"] = 100 * spread[-1]
    return found


def _rows(bench: Bench) -> Iterator[Row]:
    raise_fd_limit(max(bench.stream_counts))
    for streams in bench.stream_counts:
        alone: dict[str, Mapping[str, float]] = {}  # with one worker, by server
        for workers in WORKERS:
            variant = f"workers={workers} n={streams}"
            for name, start in starts(bench.rig).items():
                bench.say(f"{name}, {variant}")
                try:
                    with start(workers) as server:
                        spread = _Spread(server)
                        run = bench.measure(load(streams, bench.seconds), server, bench.rig.key, spread)
                except Unstarted as why:
                    yield unstarted(bench, NAME, name, variant, why)
                    continue
                taken = figures(run, alone.get(name), spread.shares)
                alone.setdefault(name, taken)
                detail = {"shares": spread.shares, "interval": interval(streams)}
                processes = len(server.pids)
                yield row(bench.round, NAME, name, taken, variant=variant, run=run, processes=processes, detail=detail)


STUDY: Final = Study(
    NAME,
    f"WSS streams, 3,200 bytes each 100 ms or {MOST:,} a second in all, echoed, by number of streams and of workers",
    (
        Figure("cpu", "us CPU each"),
        Figure("cpu_x", "one worker", compared=False, digits=2),
        Figure("p50", "us"),
        Figure("p99", "us"),
        Figure("least", "% of streams", less_is_better=False, compared=False),
    ),
    _rows,
)
