"""What is measured: each scenario is one load, and the figures that are taken of it.

Rules of this file: a figure of a proxy stands beside nginx's of the same round, or it is not shown; CPU is the proxy's
own, all its processes, over the steady state alone; where the generator took over 80 % of its core, what it saw is its
own limit and the run is marked.
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from bench.machine import LOAD_CORE, cpu_seconds, own_kib
from bench.native import Load, faults
from bench.servers import Server

GENERATOR_LIMIT: Final = 0.8  # of its core
_RESUMED: Final = 0.9  # of the handshakes that should be: the first ones have nothing to resume
_SETTLE: Final = 1.0  # seconds between opening and load: what opening left to do is not the load's
_LISTEN: Final = "/v1/listen?model=nova-3&encoding=linear16&sample_rate=16000"
GIB: Final = 1 << 30
MB: Final = 1e6


@dataclass(frozen=True)
class Figure:
    """One number of a scenario: how it is called, and which way is better."""

    name: str
    unit: str
    less_is_better: bool = True
    digits: int = 1
    compared: bool = True  # with nginx's of the same round


@dataclass(frozen=True)
class Scenario:
    """A load, and how its figures follow from what it and the proxy used."""

    name: str
    title: str
    mode: str
    options: Mapping[str, Any]
    figures: tuple[Figure, ...]
    take: "Callable[[Run], dict[str, float]]"
    within: float = 120.0  # seconds for the load to end
    direct: bool = True  # whether the way without a proxy is shown beside
    tls: bool = True


@dataclass
class Run:
    """What one server did under one load."""

    load: dict[str, Any]
    cpu: float  # seconds of the proxy's
    wall: float
    generator: float  # share of its core
    opened: int
    idle_kib: int = 0  # resident, before and after the connections stood
    open_kib: int = 0
    faults: list[str] = field(default_factory=list)

    def latency(self, part: float) -> float:
        """In microseconds, at a share of all messages."""
        return float(next(value for at, value in self.load["latency_us"] if at >= part))

    @property
    def each(self) -> float:
        """CPU microseconds for each thing done."""
        return 1e6 * self.cpu / max(1, int(self.load["done"]))


_CPU: Final = Figure("cpu", "us CPU each")
_P50, _P90, _P99 = (Figure(name, "us") for name in ("p50", "p90", "p99"))
_P999, _MAX = Figure("p99.9", "us"), Figure("max", "us")


def _streams(run: Run) -> dict[str, float]:
    tail = {"p99.9": run.latency(0.999), "max": run.latency(1)}
    return {"cpu": run.each, "p50": run.latency(0.5), "p90": run.latency(0.9), "p99": run.latency(0.99), **tail}


def _rate(run: Run) -> dict[str, float]:
    core = run.load["done"] / max(run.cpu, 1e-9)
    return {"rate": run.load["done"] / run.load["seconds"], "core": core, "cpu": run.each, "p99": run.latency(0.99)}


def _bytes(run: Run) -> dict[str, float]:
    moved = run.load["bytes"]
    return {"speed": moved / MB / run.load["seconds"], "cpu_gib": run.cpu * GIB / max(1, moved)}


def _idle(run: Run) -> dict[str, float]:
    return {"memory": (run.open_kib - run.idle_kib) / max(1, run.opened)}


def scenarios(*, seconds: float, streams: int) -> dict[str, Scenario]:
    """All of them, by name."""
    rate = Figure("rate", "a second", less_is_better=False, digits=0)
    core = Figure("core", "a second of its CPU", less_is_better=False, digits=0)
    speed = Figure("speed", "MB/s", less_is_better=False, digits=0)
    cpu_gib = Figure("cpu_gib", "s CPU a GiB", digits=2)
    paced = (_CPU, _P50, _P90, _P99, _P999, _MAX)
    echoed = {"n": streams, "bytes": 3200, "interval": 0.1, "seconds": seconds, "target": _LISTEN}
    every = [
        Scenario(
            "streams",
            f"{streams} WSS streams, 3,200 bytes each 100 ms, echoed",
            "streams",
            echoed,
            paced,
            _streams,
            within=seconds + 30,
        ),
        Scenario(
            "plain",
            f"the same without TLS: {streams} WS streams",
            "streams",
            echoed,
            paced,
            _streams,
            within=seconds + 30,
            tls=False,
        ),
        Scenario(
            "saturate",
            "4 WSS streams, 16,000 bytes, 4 in flight each, echoed",
            "saturate",
            {"n": 4, "bytes": 16_000, "inflight": 4, "seconds": seconds / 2, "target": _LISTEN},
            (speed, _CPU, _P99),
            lambda run: {**_bytes(run), "cpu": run.each, "p99": run.latency(0.99)},
        ),
        Scenario(
            "upload",
            "POST of 1 GiB over HTTPS",
            "upload",
            {"bytes": GIB, "seconds": 60, "target": "/v1/listen?model=nova-3"},
            (speed, cpu_gib),
            _bytes,
        ),
        Scenario(
            "download",
            "an answer of 1 GiB over HTTPS",
            "download",
            {"bytes": GIB, "seconds": 60, "target": "/v1/speak?model=aura-2"},
            (speed, cpu_gib),
            _bytes,
        ),
        Scenario(
            "handshake",
            "full TLS handshake, one request, connection closed; 16 at once",
            "handshake",
            {"n": 16, "seconds": seconds / 2, "target": "/v1/models"},
            (rate, core, _CPU, _P99),
            _rate,
        ),
        Scenario(
            "resume",
            "resumed TLS handshake, one request, connection closed; 16 at once",
            "handshake",
            {"n": 16, "seconds": seconds / 2, "target": "/v1/models", "resume": True},
            (rate, core, _CPU, _P99),
            _rate,
        ),
        Scenario(
            "requests",
            "small requests on 32 kept-alive connections",
            "requests",
            {"n": 32, "seconds": seconds / 2, "target": "/v1/models"},
            (rate, core, _CPU, _P99),
            _rate,
        ),
        Scenario(
            "idle",
            "memory of an idle WSS stream, of 1,500",
            "idle",
            {"n": 1500, "target": _LISTEN},
            (Figure("memory", "KiB a stream"),),
            _idle,
            direct=False,
        ),
    ]
    return {scenario.name: scenario for scenario in every}


def measure(
    scenario: Scenario,
    server: Server,
    *,
    key: str,
    tls: bool,
    upstream_pid: int,
    during: contextlib.AbstractContextManager[object] = contextlib.nullcontext(),  # noqa: B008 - holds nothing
) -> Run:
    """Puts the load on a server that is up; `during` is entered while it runs."""
    idle = sum(own_kib(pid) for pid in server.pids)
    options = {"port": server.port, "tls": tls, "key": key, **scenario.options}
    with Load(scenario.mode, LOAD_CORE, **options) as load:
        time.sleep(_SETTLE)
        opened = sum(own_kib(pid) for pid in server.pids)
        before = {pid: cpu_seconds(pid) for pid in (*server.pids, load.pid, upstream_pid)}
        began = time.monotonic()
        with during:
            figures: dict[str, Any] = {"done": load.opened} if scenario.mode == "idle" else load.run(scenario.within)
        wall = time.monotonic() - began
        used = {pid: cpu_seconds(pid) - before[pid] for pid in before}
        run = Run(
            figures,
            cpu=sum(used[pid] for pid in server.pids),
            wall=wall,
            generator=used[load.pid] / max(wall, 1e-9),
            opened=load.opened,
            idle_kib=idle,
            open_kib=opened,
        )
    run.faults += faults(figures)
    if tls and scenario.options.get("resume") and figures["resumed"] < _RESUMED * figures["done"]:
        run.faults.append(f"only {figures['resumed']} of {figures['done']} resumed")
    if scenario.mode == "idle" and load.opened != scenario.options["n"]:
        run.faults.append(f"only {load.opened} opened")
    return run
