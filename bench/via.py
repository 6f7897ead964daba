"""`python -m bench [SCENARIO ...] --via URL [--direct URL]`: the same load against any proxy that runs elsewhere.

Rules of this file: nothing of the other machine is known but what it answers, so there is no CPU and no memory here.
What is between is the difference to the same load sent straight to the upstream, in the same run, in turns.
"""

import asyncio
import dataclasses
import os
import socket
import ssl
import statistics
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import uvloop
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from bench import lag
from bench.native import Load, faults as broken
from bench.progress import progress
from bench.runs import DIRECT, Row, Runs

VARIABLE: Final = "DGPROXY_BENCH_KEY"
VIA: Final = "via"
SCENARIOS: Final = {
    "streams": "live streams at the pace of speech: how far transcripts lag behind their audio",
    "requests": "GET /v1/models on 32 kept-alive connections",
    "handshake": "connect, full TLS handshake, GET /v1/models, connection closed; 16 at once",
    "resume": "the same with a resumed TLS session",
    "upload": "a POST of one WAV file to /v1/listen",
    "download": "text to be spoken, POST /v1/speak on 4 kept-alive connections",
}
# These need an upstream that does as it is told, dgproxy's stand-in, or they are hard on one that is used.
ON_REQUEST: Final = {
    "echo": "WebSockets, 3,200 bytes each 100 ms, echoed (by dgproxy's stand-in)",
    "saturate": "4 WebSockets, 16,000-byte messages, 4 on their way each, echoed (by dgproxy's stand-in)",
    "idle": "WebSockets that say nothing: how long it takes until each stands, and whether it stays",
}
_PARTS: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
_UNITS: Final = {"a second": "", "MB/s": "", "transcripts": "", "opened": ""}  # of all else it is ms
_ADDED: Final = frozenset({*_PARTS, "first p50", "first p99"})  # of these a difference says something
_PORTS: Final = {"https": 443, "wss": 443, "http": 80, "ws": 80}
_MODELS: Final = "/v1/models"
_LISTEN: Final = "/v1/listen?model=nova-3"
_SPEAK: Final = "/v1/speak?model=aura-2-thalia-en&encoding=linear16&sample_rate=24000"
_LIVE: Final = "/v1/listen?model=nova-3&encoding=linear16&sample_rate=16000"
_ECHOED: Final = _LIVE + "&standin_echo=1"
_SILENCE: Final = 8.0  # seconds: after 10 without audio a container ends a stream (deepgram.md 5)
_REACH: Final = 5.0  # seconds for a connection to be accepted


class BadUrl(ValueError):  # noqa: N818 - what it is
    """It can't be measured; says why."""


@dataclass(frozen=True)
class Where:
    """Something that can be measured."""

    name: str  # of the certificate
    authority: str  # as Host says it
    address: str
    port: int
    tls: bool
    prefix: str
    ca: str
    verify: bool

    @classmethod
    def of(cls, url: str, *, ca: Path | None, insecure: bool) -> "Where":
        """Takes a URL apart. Its name is resolved once, so that a resolver is no part of what is measured.

        Raises:
            BadUrl: not http(s)/ws(s), with a query or credentials, or a name that is not known.
        """
        parts = urlsplit(url)
        if parts.scheme not in _PORTS or not parts.hostname:
            raise BadUrl("write it like https://speech.example.com or http://127.0.0.1:8080")
        if parts.username is not None or parts.query or parts.fragment:
            raise BadUrl("neither credentials nor a query belong into it")
        try:
            port = parts.port or _PORTS[parts.scheme]
            found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
        except (OSError, ValueError) as error:
            raise BadUrl(str(error)) from None
        tls = parts.scheme in ("https", "wss")
        shown = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        return cls(
            name=parts.hostname,
            authority=shown if port == _PORTS[parts.scheme] else f"{shown}:{port}",
            address=str(found[0][4][0]),
            port=port,
            tls=tls,
            prefix=parts.path.rstrip("/"),
            ca=str(ca) if ca is not None and tls and not insecure else "",
            verify=tls and not insecure,
        )

    def reached(self) -> "Where":
        """The same at the first of its addresses that accepts a connection.

        Raises:
            BadUrl: none does.
        """
        found = socket.getaddrinfo(self.name, self.port, type=socket.SOCK_STREAM)
        why = "it has no address"
        for address in dict.fromkeys(str(one[4][0]) for one in found):
            try:
                with socket.create_connection((address, self.port), _REACH):
                    return dataclasses.replace(self, address=address)
            except OSError as error:
                why = f"{address}: {error.strerror or error}"
        raise BadUrl(f"nothing to reach at {self.authority}: {why}")

    @property
    def options(self) -> dict[str, Any]:
        """For the load generator."""
        where = {"host": self.address, "port": self.port, "name": self.name, "authority": self.authority}
        tls = {"tls": self.tls, "any_tls": True, "verify": self.verify}
        return {**where, **tls, **({"ca": self.ca} if self.ca else {})}

    def websocket(self, target: str) -> str:
        """A URL for a WebSocket."""
        return f"{'wss' if self.tls else 'ws'}://{self.authority}{self.prefix}{target}"

    def context(self) -> ssl.SSLContext | None:
        """For a client in Python."""
        if not self.tls:
            return None
        context = ssl.create_default_context(cafile=self.ca or None)
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def options(parser: ArgumentParser) -> None:
    """The command line's part that is ours."""
    group = parser.add_argument_group("a proxy that runs elsewhere")
    group.add_argument(
        "--via", metavar="URL", help=f"measure it: {', '.join(SCENARIOS)}; if named, {', '.join(ON_REQUEST)}"
    )
    group.add_argument("--direct", metavar="URL", help="the upstream behind it, measured in turns: what is added")
    group.add_argument(
        "--key", help=f"an ingress key; better in ${VARIABLE} or a file, since arguments are everybody's"
    )
    group.add_argument("--key-file", type=Path, metavar="FILE")
    group.add_argument("--ca", type=Path, metavar="FILE", help="certificates to trust, instead of the system's")
    group.add_argument("--insecure", action="store_true", help="believe any certificate")
    group.add_argument("--bytes", type=int, default=64 << 20, help="of an upload")
    group.add_argument("--text", type=int, default=500, metavar="N", help="characters of a download, up to 16,000")


def key_of(args: Namespace) -> str:
    """The key, from wherever it was given."""
    if args.key_file is not None:
        return str(args.key_file.read_text().strip())
    return str(args.key or os.environ.get(VARIABLE, ""))


def rounds(args: Namespace, chosen: list[str], key: str) -> Iterator[Row]:
    """Every run, as it ends.

    Raises:
        BadUrl: for one of the two URLs.
    """
    ends = {VIA: Where.of(args.via, ca=args.ca, insecure=args.insecure).reached()}
    if args.direct:
        ends[DIRECT] = Where.of(args.direct, ca=args.ca, insecure=args.insecure).reached()
    with progress(args.rounds * len(chosen) * len(ends)) as step:
        for number in range(1, args.rounds + 1):
            for scenario in chosen:
                for end, where in ends.items():
                    step(f"round {number}/{args.rounds}  {scenario:<10} {end}")
                    # The container needs no key, and is not told the proxy's.
                    yield _run(number, scenario, end, where, key if end == VIA else "", args)


def _run(number: int, scenario: str, end: str, where: Where, key: str, args: Namespace) -> Row:
    figures, faults = _talk(where, key, args) if scenario == "streams" else _load(scenario, where, key, args)
    return {
        "round": number,
        "scenario": scenario,
        "server": end,
        "figures": figures,
        "faults": faults,
        "valid": not faults,
    }


def _talk(where: Where, key: str, args: Namespace) -> tuple[dict[str, float], list[str]]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        url, address = where.websocket(lag.TARGET), (where.address, where.port)
        heard = runner.run(lag.talk(url, key, where.context(), args.streams, args.seconds, address))
    faults = sorted(set(heard.refused))[:3]
    if heard.opened < args.streams:
        faults.append(f"{args.streams - heard.opened} of {args.streams} streams were not opened")
    if ended := {code: count for code, count in heard.closed.items() if code != "1000"}:
        faults.append(f"streams that ended otherwise than with 1000: {ended}")
    if heard.opened and not heard.lags:
        faults.append("no transcript came")
    ordered = sorted(1000 * value for value in heard.lags)
    late = sorted(1000 * value for value in heard.late)
    if not ordered:
        return {}, faults
    figures = {name: _part(ordered, part) for name, part in _PARTS.items()}
    return {**figures, "transcripts": float(heard.transcripts), "sent late p99": _part(late, 0.99)}, faults


def _part(ordered: list[float], part: float) -> float:
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * part))], 3)


def load_of(scenario: str, args: Namespace) -> tuple[str, dict[str, Any]]:
    """Mode and options of the load generator."""
    seconds = {"seconds": args.seconds}
    match scenario:
        case "handshake" | "resume":
            return "handshake", {**seconds, "target": _MODELS, "n": 16, "resume": scenario == "resume"}
        case "upload":
            return "upload", {"seconds": 600, "target": _LISTEN, "bytes": args.bytes, "wav": True}
        case "download":
            return "requests", {**seconds, "target": _SPEAK, "n": 4, "text": args.text}
        case "echo":
            return "streams", {**seconds, "target": _ECHOED, "n": args.streams, "bytes": 3200, "interval": 0.1}
        case "saturate":
            return "saturate", {**seconds, "target": _ECHOED, "n": 4, "bytes": 16_000, "inflight": 4}
        case "idle":
            return "idle", {"seconds": min(args.seconds, _SILENCE), "target": _LIVE, "n": args.streams}
        case _:
            return "requests", {**seconds, "target": _MODELS, "n": 32}


def _load(scenario: str, where: Where, key: str, args: Namespace) -> tuple[dict[str, float], list[str]]:
    mode, load = load_of(scenario, args)
    load["target"] = where.prefix + load["target"]
    wanted = load.get("n", 0) if mode != "upload" else 0
    try:
        with Load(mode, None, key=key, **where.options, **load) as running:
            missing = [f"{wanted - running.opened} of {wanted} were not opened: {running.why}"]
            if wanted and not running.opened:
                return {}, missing  # whoever refuses all is not pressed further
            found = running.run(load["seconds"] + 60)
    except RuntimeError as error:
        return {}, [str(error)]
    faults = [*(missing if running.opened < wanted else []), *broken(found)]
    return figures_of(scenario, found), faults


def figures_of(scenario: str, found: Mapping[str, Any]) -> dict[str, float]:
    """What is told of what the generator says; latencies in ms."""
    told = _parts(found["opening_us" if scenario == "idle" else "latency_us"], _PARTS)
    speed = {"MB/s": found["bytes"] / 1e6 / found["seconds"]}
    each = {"a second": found["done"] / found["seconds"]}
    match scenario:
        case "idle":
            return {**told, "opened": float(found["opened"])}
        case "upload":
            return {"max": told["max"], **speed} if told else {}  # one request: there are no percentiles
        case "download":
            first = _parts(found["first_us"], {"p50": 0.5, "p99": 0.99})
            return {**{f"first {name}": value for name, value in first.items()}, **told, **speed, **each}
        case "saturate":
            return {**told, **speed, **each}
        case _:
            return {**told, **each}


def _parts(measured: Sequence[Sequence[float]], wanted: Mapping[str, float]) -> dict[str, float]:
    if not measured:
        return {}
    return {name: next(value for at, value in measured if at >= part) / 1000 for name, part in wanted.items()}


def table(scenario: str, runs: Runs) -> Group:
    """One scenario: both ways, and what is added between."""
    shown = Table(box=box.SIMPLE_HEAD)
    names = list(dict.fromkeys(name for row in runs.of(scenario) for name in row["figures"]))
    shown.add_column("", no_wrap=True)
    for name in names:
        shown.add_column(f"{name}\n{_UNITS.get(name, 'ms')}", justify="right", no_wrap=True)
    ends = list(dict.fromkeys(row["server"] for row in runs.of(scenario)))
    faults = []
    for end in ends:
        cells = []
        for name in names:
            found = runs.spread(scenario, end, name)
            spread = f"\n({found.least:,.2f}-{found.most:,.2f})" if found and found.rounds > 1 else ""
            cells.append(f"{found.median:,.2f}{spread}" if found else "")
        shown.add_row(end, *cells)
        faults += [Text(f"  {end}: {fault}", style="red") for fault in runs.faults(scenario, end)]
    if DIRECT in ends:
        shown.add_row("added", *(_added(scenario, name, runs) for name in names), style="bold")
    title = {**SCENARIOS, **ON_REQUEST}[scenario]
    return Group(Text(f"{scenario}: {title}", style="italic"), *([shown] if names else []), *faults)


def _added(scenario: str, name: str, runs: Runs) -> str:
    if name not in _ADDED:
        return ""
    straight = {row["round"]: row["figures"].get(name) for row in runs.of(scenario, DIRECT)}
    differences = [
        row["figures"][name] - other
        for row in runs.of(scenario, VIA)
        if name in row["figures"] and (other := straight.get(row["round"])) is not None
    ]
    return f"{statistics.median(differences):+,.2f}" if differences else ""
