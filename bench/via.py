"""`python -m bench [SCENARIO ...] --via URL [--direct URL]`: the same load against any proxy that runs elsewhere.

Rules of this file: nothing of the other machine is known but what it answers, so there is no CPU and no memory here.
What is between is the difference to the same load sent straight to the upstream, in the same run, in turns.
"""

import asyncio
import os
import socket
import ssl
import statistics
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import uvloop
from rich import box
from rich.table import Table

from bench import lag
from bench.native import Load
from bench.runs import DIRECT, Row, Runs

VARIABLE: Final = "DGPROXY_BENCH_KEY"
VIA: Final = "via"
_MODELS: Final = "/v1/models"
_LISTEN: Final = "/v1/listen?model=nova-3"
_PARTS: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
_PORTS: Final = {"https": 443, "wss": 443, "http": 80, "ws": 80}
# What the others need, an upstream that echoes and one that answers as much as it is asked for, is our own alone.
SCENARIOS: Final = {
    "streams": "live streams at the pace of speech: how far transcripts lag behind their audio",
    "requests": "small requests on kept-alive connections, GET /v1/models",
    "handshake": "connect, full TLS handshake, one request, connection closed; 16 at once",
    "resume": "the same with a resumed TLS session",
    "upload": "a POST of one body to /v1/listen",
}


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
        """Takes a URL apart, and resolves its name once, so that a resolver is no part of what is measured.

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

    @property
    def options(self) -> dict[str, Any]:
        """For the load generator."""
        where = {"host": self.address, "port": self.port, "name": self.name, "authority": self.authority}
        return {**where, "tls": self.tls, "verify": self.verify, **({"ca": self.ca} if self.ca else {})}

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
    group.add_argument("--via", metavar="URL", help=f"measure it: {', '.join(SCENARIOS)}")
    group.add_argument("--direct", metavar="URL", help="the upstream behind it, measured in turns: what is added")
    group.add_argument(
        "--key", help=f"an ingress key; better in ${VARIABLE} or a file, since arguments are everybody's"
    )
    group.add_argument("--key-file", type=Path, metavar="FILE")
    group.add_argument("--ca", type=Path, metavar="FILE", help="certificates to trust, instead of the system's")
    group.add_argument("--insecure", action="store_true", help="believe any certificate")
    group.add_argument("--bytes", type=int, default=64 << 20, help="of an upload")


def key_of(args: Namespace) -> str:
    """The key, from wherever it was given."""
    if args.key_file is not None:
        return str(args.key_file.read_text().strip())
    return str(args.key or os.environ.get(VARIABLE, ""))


def rounds(args: Namespace, chosen: list[str]) -> Iterator[Row]:
    """Every run, as it ends.

    Raises:
        BadUrl: for one of the two URLs.
    """
    ends = {VIA: Where.of(args.via, ca=args.ca, insecure=args.insecure)}
    if args.direct:
        ends[DIRECT] = Where.of(args.direct, ca=args.ca, insecure=args.insecure)
    key = key_of(args)
    for number in range(1, args.rounds + 1):
        for scenario in chosen:
            for end, where in ends.items():
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
        url = where.websocket(lag.TARGET)
        heard = runner.run(lag.talk(url, key, where.context(), args.streams, args.seconds))
    faults = sorted(set(heard.refused))[:3]
    if heard.opened < args.streams:
        faults.append(f"{args.streams - heard.opened} of {args.streams} streams were not opened")
    if ended := {code: count for code, count in heard.closed.items() if code != "1000"}:
        faults.append(f"streams that ended otherwise than with 1000: {ended}")
    if heard.opened and not heard.lags:
        faults.append("no transcript came")
    ordered = sorted(1000 * value for value in heard.lags)
    late = sorted(1000 * value for value in heard.late)
    figures = {name: _part(ordered, part) for name, part in _PARTS.items()} if ordered else {}
    return {**figures, "transcripts": float(heard.transcripts), "sent late p99": _part(late, 0.99)}, faults


def _part(ordered: list[float], part: float) -> float:
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * part))], 3) if ordered else 0.0


def _load(scenario: str, where: Where, key: str, args: Namespace) -> tuple[dict[str, float], list[str]]:
    mode = "handshake" if scenario == "resume" else scenario
    load: dict[str, Any] = {"seconds": args.seconds, "target": where.prefix + _MODELS, "n": 32}
    if mode == "handshake":
        load |= {"n": 16, "resume": scenario == "resume"}
    elif mode == "upload":
        load = {"bytes": args.bytes, "seconds": 600, "target": where.prefix + _LISTEN}
    try:
        with Load(mode, None, key=key, **where.options, **load) as running:
            found = running.run(args.seconds + 600)
    except RuntimeError as error:
        return {}, [str(error)]
    faults = [f"{found[fault]} {fault}" for fault in ("unequal", "lost", "refused") if found.get(fault)]
    if not found["done"]:
        return {}, [*faults, "nothing was answered"]
    if mode == "upload":
        return {"MB/s": found["bytes"] / 1e6 / found["seconds"]}, faults
    at = dict(found["latency_us"])
    parts = {name: next(value for place, value in at.items() if place >= part) for name, part in _PARTS.items()}
    return {name: value / 1000 for name, value in parts.items()} | {
        "a second": found["done"] / found["seconds"]
    }, faults


def table(scenario: str, runs: Runs) -> Table:
    """One scenario: both ways, and what is added between."""
    shown = Table(title=f"{scenario}: {SCENARIOS[scenario]}", title_justify="left", box=box.SIMPLE_HEAD)
    names = list(dict.fromkeys(name for row in runs.of(scenario) for name in row["figures"]))
    shown.add_column("ms", no_wrap=True)
    for name in names:
        shown.add_column(name, justify="right", no_wrap=True)
    ends = list(dict.fromkeys(row["server"] for row in runs.of(scenario)))
    for end in ends:
        cells = []
        for name in names:
            found = runs.spread(scenario, end, name)
            spread = f"\n({found.least:,.2f}-{found.most:,.2f})" if found and found.rounds > 1 else ""
            cells.append(f"{found.median:,.2f}{spread}" if found else "")
        shown.add_row(end, *cells)
        for fault in runs.faults(scenario, end):
            shown.add_row(f"  {fault}", style="red")
    if DIRECT in ends:
        shown.add_row("added", *(_added(scenario, name, runs) for name in names), style="bold")
    return shown


def _added(scenario: str, name: str, runs: Runs) -> str:
    if name not in _PARTS:
        return ""
    straight = {row["round"]: row["figures"].get(name) for row in runs.of(scenario, DIRECT)}
    differences = [
        row["figures"][name] - other
        for row in runs.of(scenario, VIA)
        if name in row["figures"] and (other := straight.get(row["round"])) is not None
    ]
    return f"{statistics.median(differences):+,.2f}" if differences else ""
