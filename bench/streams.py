"""`python -m bench.streams`: N live WSS streams, echoed through the proxy at a steady pace; every byte is compared.

Rules of this file: the load is open loop, so message m is due at start + m * (interval / streams) whatever the proxy
does, and its latency counts from when it was due, not from when a late generator came to send it (no coordinated
omission). What the generator itself was late is printed beside it. No figure is left out because it looks bad.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import math
import os
import random
import resource
import struct
import sys
import tempfile
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import picows
import uvloop

from bench import machine
from tests.support.processes import children
from tests.support.proxy import Proxy
from tests.support.upstreams import Upstream

HEAD: Final = struct.Struct("!IQ")  # a message begins with its stream and its number there, so that no two are equal
BLOCK: Final = random.Random(3200).randbytes(1 << 20)  # and goes on with a piece of this
TARGET: Final = "/v1/listen?model=nova-3&encoding=linear16&sample_rate=16000&standin_echo=1"
OPEN_AT_ONCE: Final = 32  # handshakes in flight
SETTLE: Final = 2.5  # seconds: workers report each second
LAST_WORDS: Final = 10.0  # seconds for the last echoes
SHARE: Final = (0.4, 0.6)  # of the streams, for each of two workers (performance.md)
POINTS: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
TIMER: Final = 0.002  # seconds; the loop's timers are not finer, so what is due sooner is polled for
BETWEEN: Final = 64  # messages sent before what has come meanwhile is read


# --- processes ------------------------------------------------------------------------------------------------------


def raise_fd_limit(streams: int) -> None:
    """The soft limit up to the hard one, for us and for all that we start.

    Raises:
        SystemExit: it is too low for so many streams.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4 * streams:
        raise SystemExit(f"the hard limit of file descriptors is {hard}; {streams} streams need {4 * streams}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# --- streams --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Tally:
    """What happened on all streams."""

    opened: int = 0
    dropped: int = 0
    sent: int = 0
    echoed: int = 0
    unequal: int = 0
    ending: bool = False  # from here on a stream's end is ours
    all_sent: bool = False
    over: asyncio.Event = field(default_factory=asyncio.Event)  # all that was sent has come back
    latencies: "array[float]" = field(default_factory=lambda: array("d"))  # seconds, from due to echoed
    lateness: "array[float]" = field(default_factory=lambda: array("d"))  # seconds, from due to sent


class Stream(picows.WSListener):
    """One echo stream: what it still waits for, oldest first, and when that was due."""

    def __init__(self, number: int, size: int, tally: Tally) -> None:
        self.number = number
        self._size = size
        self._tally = tally
        self._count = 0
        self._echoed = 0
        self._due: deque[float] = deque()
        self.transport: picows.WSTransport | None = None

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        self.transport = transport
        self._tally.opened += 1

    def on_ws_disconnected(self, transport: picows.WSTransport) -> None:  # noqa: ARG002 - picows' signature
        self.transport = None
        if not self._tally.ending:
            self._tally.dropped += 1

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:  # noqa: ARG002
        if frame.msg_type is not picows.WSMsgType.BINARY:
            return
        tally = self._tally
        if not self._due or not frame.fin or frame.get_payload_as_bytes() != self._message(self._echoed):
            tally.unequal += 1
        if self._due:
            tally.latencies.append(time.monotonic() - self._due.popleft())
        self._echoed += 1
        tally.echoed += 1
        if tally.all_sent and tally.echoed == tally.sent:
            tally.over.set()

    def send(self, due: float) -> None:
        """The next message, which should have left at `due`."""
        if self.transport is None:
            return  # it was dropped, and counts as that
        self._due.append(due)
        self.transport.send(picows.WSMsgType.BINARY, self._message(self._count))
        self._count += 1
        self._tally.sent += 1
        self._tally.lateness.append(time.monotonic() - due)

    def _message(self, number: int) -> bytes:
        at = (self.number * 7919 + number * 104_729) % (len(BLOCK) - self._size)
        return HEAD.pack(self.number, number) + BLOCK[at : at + self._size - HEAD.size]


async def open_all(proxy: Proxy, key: str, args: argparse.Namespace, tally: Tally) -> list[Stream]:
    """Every stream that could be opened."""
    tls = proxy.client_tls()
    gate = asyncio.Semaphore(OPEN_AT_ONCE)

    async def one(number: int) -> Stream | None:
        async with gate:
            try:
                _, stream = await picows.ws_connect(
                    lambda: Stream(number, args.bytes, tally),
                    proxy.wss_url + TARGET,
                    ssl_context=tls,
                    extra_headers={"Authorization": f"Token {key}"},
                    websocket_handshake_timeout=30,
                )
            except (OSError, picows.WSError, TimeoutError) as error:
                print(f"stream {number}: {error!r}", file=sys.stderr)
                return None
        assert isinstance(stream, Stream)
        return stream

    return [stream for stream in await asyncio.gather(*map(one, range(args.streams))) if stream is not None]


async def load(streams: list[Stream], args: argparse.Namespace, tally: Tally) -> None:
    """Sends each message when it is due, or as soon after as we can; then waits for the last echoes."""
    step = args.interval / len(streams)
    total = round(args.seconds / step)
    start = time.monotonic() + 0.1
    sent = 0
    while sent < total:
        now = time.monotonic()
        ripe = min(total, math.floor((now - start) / step) + 1, sent + BETWEEN)
        while sent < ripe:
            streams[sent % len(streams)].send(start + sent * step)
            sent += 1
        wait = start + sent * step - time.monotonic()
        await asyncio.sleep(wait - TIMER if wait > TIMER else 0)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LAST_WORDS):
            tally.all_sent = True
            if tally.echoed < tally.sent:
                await tally.over.wait()


# --- the run --------------------------------------------------------------------------------------------------------


def percentiles(seconds: "array[float]") -> dict[str, float]:
    """In milliseconds."""
    ordered = sorted(seconds)
    if not ordered:
        return {}
    at = {name: ordered[min(len(ordered) - 1, int(len(ordered) * part))] for name, part in POINTS.items()}
    return {name: round(value * 1000, 3) for name, value in at.items()}


async def measure(proxy: Proxy, upstream_pid: int, args: argparse.Namespace) -> dict[str, Any]:
    """The whole run against a proxy that is up."""
    here = machine.facts()
    status = await asyncio.to_thread(proxy.status)
    pids = {
        **{f"worker {worker['index']}": int(worker["pid"]) for worker in status["workers"]},
        "supervisor": proxy.pid,
        "stand-in": upstream_pid,
        "generator": os.getpid(),
    }
    key = (await asyncio.to_thread(proxy.new_key, "bench", streams=str(args.streams))).key
    idle = {name: machine.resident_kib(pid) for name, pid in pids.items()}
    tally = Tally()

    began = time.monotonic()
    cpu_opening = {name: machine.cpu_seconds(pid) for name, pid in pids.items()}
    streams = await open_all(proxy, key, args, tally)
    opening = time.monotonic() - began
    if not streams:
        raise SystemExit("no stream could be opened")
    cpu_opening = {name: machine.cpu_seconds(pid) - cpu_opening[name] for name, pid in pids.items()}

    await asyncio.sleep(SETTLE)
    shares = {f"worker {one['index']}": one["streams"] for one in (await asyncio.to_thread(proxy.status))["workers"]}
    opened_rss = {name: machine.resident_kib(pid) for name, pid in pids.items()}
    gc.collect()
    gc.freeze()  # the generator's own pauses are not the proxy's latency
    gc.disable()
    before, at = {name: machine.cpu_seconds(pid) for name, pid in pids.items()}, time.monotonic()
    await load(streams, args, tally)
    wall = time.monotonic() - at
    used = {name: max(0.0, machine.cpu_seconds(pid) - before[name]) for name, pid in pids.items()}
    gc.enable()
    loaded = {name: machine.resident_kib(pid) for name, pid in pids.items()}

    after = await asyncio.to_thread(proxy.status)
    tally.ending = True
    for stream in streams:
        if stream.transport is not None:
            stream.transport.send_close(picows.WSCloseCode.OK)
            stream.transport.disconnect()
    same = {int(worker["pid"]) for worker in after["workers"]} == {int(worker["pid"]) for worker in status["workers"]}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": here,
        "load": {"streams": args.streams, "seconds": args.seconds, "interval": args.interval, "bytes": args.bytes},
        "opened": tally.opened,
        "open_s": round(opening, 3),
        "open_cpu_s": {name: round(seconds, 2) for name, seconds in cpu_opening.items()},
        "dropped": tally.dropped,
        "workers_unharmed": same,
        "sent": tally.sent,
        "echoed": tally.echoed,
        "unequal": tally.unequal,
        "rtt_ms": percentiles(tally.latencies),
        "sent_late_ms": percentiles(tally.lateness),
        "share": {name: round(count / max(1, tally.opened), 4) for name, count in shares.items()},
        "wall_s": round(wall, 3),
        "cpu_percent": {name: round(100 * seconds / wall, 1) for name, seconds in used.items()},
        "worker_us_per_message": round(
            1e6 * sum(seconds for name, seconds in used.items() if name in shares) / max(1, tally.echoed), 1
        ),
        "rss_kib": {
            name: {"idle": idle[name], "streams": opened_rss[name], "after": loaded[name]}
            for name in pids
            if name != "generator"
        },
        "rss_kib_per_stream": {
            name: round((loaded[name] - idle[name]) / count, 1)
            for name, count in shares.items()
            if count and loaded[name]
        },
    }


def faults(result: dict[str, Any]) -> list[str]:
    """What must not be; empty if all is well."""
    found = []
    wanted = result["load"]["streams"]
    if result["opened"] != wanted:
        found.append(f"only {result['opened']} of {wanted} streams were opened")
    if result["dropped"]:
        found.append(f"{result['dropped']} streams were dropped")
    if not result["workers_unharmed"]:
        found.append("a worker died")
    if result["unequal"]:
        found.append(f"{result['unequal']} messages came back unequal")
    if result["echoed"] != result["sent"]:
        found.append(f"{result['sent'] - result['echoed']} messages never came back")
    low, high = SHARE
    if wanted >= 1000 and not all(low <= share <= high for share in result["share"].values()):
        found.append(f"streams are not spread evenly: {result['share']}")
    return found


def table(result: dict[str, Any]) -> Iterator[str]:
    """The result for people."""
    here, given = result["machine"], result["load"]
    pace = f"{given['bytes']} bytes each {given['interval'] * 1000:g} ms, for {given['seconds']:g} s"
    yield f"{here['cpu']}, {here['cores']} cores; Linux {here['kernel']}, Python {here['python']}, {here['openssl']}"
    yield f"{given['streams']} WSS streams, {pace}"
    yield f"opened      {result['opened']} in {result['open_s']} s"
    yield f"dropped     {result['dropped']}"
    yield f"messages    {result['sent']} sent, {result['echoed']} echoed, {result['unequal']} unequal"
    yield "RTT         " + ", ".join(f"{name} {value:.2f} ms" for name, value in result["rtt_ms"].items())
    yield "sent late   " + ", ".join(f"{name} {value:.2f} ms" for name, value in result["sent_late_ms"].items())
    yield "share       " + ", ".join(f"{name} {100 * share:.1f} %" for name, share in result["share"].items())
    yield "CPU         " + ", ".join(f"{name} {percent:.1f} %" for name, percent in result["cpu_percent"].items())
    yield f"            {result['worker_us_per_message']:.1f} us of the workers' CPU per message there and back"
    yield "RSS in KiB  without streams, with them open, after the load"
    for name, rss in result["rss_kib"].items():
        per = result["rss_kib_per_stream"].get(name)
        more = "" if per is None else f"  ({per:.1f} per stream)"
        yield f"            {name}: {rss['idle']}, {rss['streams']}, {rss['after']}{more}"


@contextlib.contextmanager
def running(directory: Path) -> Iterator[tuple[Proxy, int]]:
    """A stand-in and a proxy with two workers before it; the proxy, and the stand-in's process id."""
    upstream = Upstream("standin", directory)
    try:
        (upstream_pid,) = children(os.getpid())
        with Proxy(directory, upstream.url) as proxy:
            yield proxy, upstream_pid
    finally:
        upstream.stop()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.streams", description=__doc__.partition("\n")[0])
    add: Callable[..., Any] = parser.add_argument
    add("--streams", type=int, default=1000)
    add("--seconds", type=float, default=60.0)
    add("--interval", type=float, default=0.25, help="seconds between two messages of a stream")
    add("--bytes", type=int, default=3200, help="of a message; 3200 is 100 ms of 16 kHz linear16")
    add("--json", type=Path, metavar="FILE", help="write every figure there")
    found = parser.parse_args()
    if (
        found.streams < 1
        or found.seconds <= 0
        or found.interval <= 0
        or not HEAD.size <= found.bytes <= len(BLOCK) // 2
    ):
        parser.error("out of range")
    return found


def main() -> None:
    args = arguments()
    raise_fd_limit(args.streams)
    with (
        tempfile.TemporaryDirectory(prefix="dgproxy-bench-") as directory,
        running(Path(directory)) as (proxy, upstream_pid),
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        result = runner.run(measure(proxy, upstream_pid, args))
    result["faults"] = faults(result)
    print("\n".join(table(result)))
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    if result["faults"]:
        raise SystemExit("; ".join(result["faults"]))


if __name__ == "__main__":
    main()
