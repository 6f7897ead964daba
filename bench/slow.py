"""`python -m bench.slow`: what 600 slow attackers cost an honest client.

A quarter each: connections that say nothing; heads that come byte by byte, one a second; bodies likewise, with a good
key; downloads that are never read. Whoever is cut off comes back. Quiet and attacked phases alternate in one run; the
honest client sends a request each 20 ms, half of them on a connection of their own, and its latency counts from when a
request was due. Resident memory of the workers is taken at the end of each phase.
"""

import argparse
import asyncio
import json
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from bench.machine import facts, resident_kib
from bench.streams import raise_fd_limit
from tests.support.proxy import Proxy
from tests.support.upstreams import Upstream

ATTACKERS: Final = 600
KINDS: Final = ("silent", "head", "body", "download")
EVERY: Final = 0.02  # seconds between two honest requests
DRIP: Final = 1.0  # seconds between two bytes of an attacker
COME_BACK: Final = 90.0  # seconds after which an attacker that does not read begins anew
SPREAD: Final = (
    10.0  # seconds over which attackers begin: 450 handshakes at once are a storm, which is another question
)
SETTLE: Final = 2.0  # seconds for the last of them
WORST: Final = 1.5  # times that an honest p99 may take under attack
SETTLED: Final = 5  # attacks after which the allocator has what it needs and memory must stand still
MORE: Final = 2048  # KiB that it may still move by
READY: Final = "ready"


# --- attackers, in a process of their own ---------------------------------------------------------------------------


async def attack(port: int, ca: str, key: str, count: int) -> None:
    """Keeps `count` attackers at work until the process is ended; says READY when each was connected once."""
    tls = ssl.create_default_context(cafile=ca)
    begun = [asyncio.Event() for _ in range(count)]
    tasks = [
        asyncio.ensure_future(
            attacker(KINDS[number % len(KINDS)], SPREAD * number / count, port, tls, key, begun[number])
        )
        for number in range(count)
    ]
    for event in begun:
        await event.wait()
    print(READY, flush=True)
    await asyncio.wait(tasks)


async def attacker(kind: str, after: float, port: int, tls: ssl.SSLContext, key: str, begun: asyncio.Event) -> None:
    """One of them: begins after so many seconds, and comes back for ever."""
    await asyncio.sleep(after)
    while True:
        try:
            await once(kind, port, tls, key, begun)
        except (OSError, asyncio.IncompleteReadError):
            await asyncio.sleep(0.1)


async def once(kind: str, port: int, tls: ssl.SSLContext, key: str, begun: asyncio.Event) -> None:
    """One connection, until it is cut off."""
    secure = None if kind == "silent" else tls
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=secure, limit=1024)
    try:
        begun.set()
        credential = f"Host: dg\r\nAuthorization: Token {key}\r\n"
        match kind:
            case "head":
                await drip(writer, reader, b"GET /v1/models HTTP/1.1\r\n" + b"X-Slow: yes\r\n" * 100)
            case "body":
                writer.write(f"POST /v1/listen HTTP/1.1\r\n{credential}Content-Length: 1000\r\n\r\n".encode())
                await drip(writer, reader, bytes(1000))
            case "download":
                target = "/v1/speak?standin_bytes=100000000"
                writer.write(f"POST {target} HTTP/1.1\r\n{credential}Content-Length: 2\r\n\r\n{{}}".encode())
                writer.transport.pause_reading()  # type: ignore[attr-defined]
                await asyncio.sleep(COME_BACK)  # its end can't be seen without reading
            case _:
                await reader.read(1)
    finally:
        writer.transport.abort()


async def drip(writer: asyncio.StreamWriter, reader: asyncio.StreamReader, data: bytes) -> None:
    """A byte a second, until the other end has had enough."""
    for byte in data:
        writer.write(bytes([byte]))
        await writer.drain()
        try:
            async with asyncio.timeout(DRIP):
                if not await reader.read(1024):
                    return
        except TimeoutError:
            continue


# --- the honest client ----------------------------------------------------------------------------------------------


class Honest:
    """A client that keeps one connection and also makes fresh ones."""

    def __init__(self, proxy: Proxy, key: str) -> None:
        self._port = proxy.port
        self._tls = proxy.client_tls()
        self._request = f"GET /v1/models HTTP/1.1\r\nHost: dg\r\nAuthorization: Token {key}\r\n\r\n".encode()
        self._kept = self._connect()

    def _connect(self) -> ssl.SSLSocket:
        sock = socket.create_connection(("127.0.0.1", self._port), timeout=30)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._tls.wrap_socket(sock, server_hostname="127.0.0.1")

    def _ask(self, sock: ssl.SSLSocket) -> None:
        sock.sendall(self._request)
        data = b""
        while b"\r\n\r\n" not in data:
            data += sock.recv(65536)
        if not data.startswith(b"HTTP/1.1 200 "):
            raise SystemExit(f"an honest request was answered {data[:60]!r}")
        head, _, body = data.partition(b"\r\n\r\n")
        (length,) = [
            int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")
        ]
        while len(body) < length:
            body += sock.recv(65536)

    def phase(self, seconds: float) -> dict[str, list[float]]:
        """Latencies in seconds, of requests on the kept connection and on fresh ones."""
        found: dict[str, list[float]] = {"kept": [], "fresh": []}
        begun = time.monotonic()
        for number in range(int(seconds / EVERY)):
            due = begun + number * EVERY
            time.sleep(max(0.0, due - time.monotonic()))
            if number % 2:
                with self._connect() as sock:
                    self._ask(sock)
                found["fresh"].append(time.monotonic() - due)
            else:
                self._ask(self._kept)
                found["kept"].append(time.monotonic() - due)
        return found

    def close(self) -> None:
        """Ends its kept connection."""
        self._kept.close()


# --- the run --------------------------------------------------------------------------------------------------------


def p(part: float, values: list[float]) -> float:
    """A quantile, in milliseconds."""
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * part))] * 1000, 3)


def run(rounds: int, seconds: float, attackers: int, directory: Path) -> dict[str, Any]:
    """All phases; their figures."""
    raise_fd_limit(attackers)
    upstream = Upstream("standin", directory)
    try:
        with Proxy(directory, upstream.url, {"plans.default.streams": "100000"}) as proxy:
            key, bad = proxy.new_key(name="honest"), proxy.new_key(name="attacker")
            pids = proxy.worker_pids()
            honest = Honest(proxy, key.key)
            honest.phase(2.0)
            phases: list[dict[str, Any]] = []
            for number in range(2 * rounds):
                attacked = bool(number % 2)
                process = None
                if attacked:
                    process = subprocess.Popen(
                        [
                            sys.executable,
                            "-m",
                            "bench.slow",
                            "--attack",
                            str(proxy.port),
                            str(proxy.ca),
                            str(attackers),
                        ],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        text=True,
                    )
                    assert process.stdin is not None
                    assert process.stdout is not None
                    process.stdin.write(bad.key + "\n")
                    process.stdin.close()
                    assert process.stdout.readline().strip() == READY
                    time.sleep(SETTLE)
                try:
                    latencies = honest.phase(seconds)
                    open_now = sum(worker["connections"] for worker in proxy.status()["workers"])
                finally:
                    if process is not None:
                        process.kill()
                        process.wait(10)
                        assert process.stdout is not None
                        process.stdout.close()
                phases.append(
                    {
                        "attacked": attacked,
                        "connections": open_now,
                        "rss_kib": [resident_kib(pid) for pid in pids],
                        **{
                            f"{kind}_{name}_ms": p(part, values)
                            for kind, values in latencies.items()
                            for name, part in (("p50", 0.5), ("p99", 0.99))
                        },
                    }
                )
                time.sleep(1.0)
            honest.close()
            return {"machine": facts(), "attackers": attackers, "phases": phases, "ratios": ratios(phases)}
    finally:
        upstream.stop()


def ratios(phases: list[dict[str, Any]]) -> dict[str, float]:
    """Attacked over quiet, of the medians of the phases."""
    names = [name for name in phases[0] if name.endswith("_ms")]
    middle = {
        attacked: {name: statistics.median(x[name] for x in phases if x["attacked"] is attacked) for name in names}
        for attacked in (False, True)
    }
    return {name.removesuffix("_ms"): round(middle[True][name] / middle[False][name], 2) for name in names}


def show(figures: dict[str, Any]) -> None:
    """The table."""
    print(f"{figures['attackers']} slow attackers: silent, head, body, download; a quarter each")
    print(f"{'':9}{'connections':>12}{'kept p50':>10}{'p99':>8}{'fresh p50':>11}{'p99':>8}   RSS of workers, MiB")
    for phase in figures["phases"]:
        rss = " + ".join(f"{kib / 1024:.1f}" for kib in phase["rss_kib"])
        print(
            f"{'attacked' if phase['attacked'] else 'quiet':9}{phase['connections']:12}"
            f"{phase['kept_p50_ms']:10.2f}{phase['kept_p99_ms']:8.2f}"
            f"{phase['fresh_p50_ms']:11.2f}{phase['fresh_p99_ms']:8.2f}   {rss}"
        )
    print("attacked / quiet: " + ", ".join(f"{name} {value}" for name, value in figures["ratios"].items()))


def main() -> None:
    """Runs and prints; as `--attack` it is the attackers' process, which gets its key on stdin."""
    parser = argparse.ArgumentParser(prog="python -m bench.slow", description=__doc__)
    parser.add_argument("--attack", nargs=3, metavar=("PORT", "CA", "COUNT"), help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=6, help="quiet and attacked phases, each")
    parser.add_argument("--seconds", type=float, default=5.0, help="a phase")
    parser.add_argument("--attackers", type=int, default=ATTACKERS)
    parser.add_argument("--json", action="store_true", help="one JSON document")
    args = parser.parse_args()
    if args.attack:
        port, ca, count = args.attack
        raise_fd_limit(int(count))
        asyncio.run(attack(int(port), ca, sys.stdin.readline().strip(), int(count)))
        return
    with tempfile.TemporaryDirectory(prefix="dgproxy-slow-") as directory:
        figures = run(args.rounds, args.seconds, args.attackers, Path(directory))
    if args.json:
        print(json.dumps(figures, indent=2))
    else:
        show(figures)
    slower = [name for name, ratio in figures["ratios"].items() if name.endswith("p99") and ratio > WORST]
    sys.exit(1 if slower or not flat(figures["phases"]) else 0)


def flat(phases: list[dict[str, Any]]) -> bool:
    """Whether the last attack left the workers no larger than the one before it, give or take a little."""
    after = [sum(phase["rss_kib"]) for phase in phases if phase["attacked"]]
    return len(after) < SETTLED or after[-1] - after[-2] < MORE


if __name__ == "__main__":
    main()
