"""Runs the comparison: `python -m tests.differential [--json FILE] [--write-docs] [--only ID]`.

Exit status: 0; 1 if dgproxy is laxer in a row that explained.toml does not explain; 2 if a server is missing.
"""

import argparse
import contextlib
import json
import re
import socket
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import dgproxy
from tests.differential import servers
from tests.differential.compare import Explained, Result, Verdict
from tests.differential.corpus import RULES, Row, rows
from tests.differential.report import put_into, table, totals, verdicts
from tests.differential.upstream import Upstream

HERE: Final = Path(__file__).parent
DOCS: Final = HERE.parents[1] / "docs" / "security.md"
JSON: Final = HERE.parents[1] / "build" / "differential.json"
PATIENCE: Final = 4.0  # seconds for a row; every server's own waits are one or two
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[ \r]")


def _send(port: int, upstream: Upstream, sent: bytes) -> Result:
    """One row on a connection of its own."""
    deadline = time.monotonic() + PATIENCE
    told, ended = b"", True
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):  # refused while we were sending; what it said may still be read
            sock.sendall(sent)
        try:
            while True:
                sock.settimeout(max(deadline - time.monotonic(), 0.001))
                piece = sock.recv(65536)
                if not piece:
                    break
                told += piece
        except TimeoutError:
            ended = False
        except OSError:
            pass
    statuses = [int(status) for status in _STATUS.findall(told)]
    return Result.of([status for status in statuses if status != 100], upstream.take(), ended=ended)


def _run(port: int, upstream: Upstream, corpus: Sequence[Row], key: str) -> dict[str, Result]:
    """Every row, one after the other."""
    return {row.id: _send(port, upstream, row.sent.replace(b"KEY", key.encode())) for row in corpus}


def measure(corpus: Sequence[Row]) -> dict[str, dict[str, Result]]:
    """Every row at every server: `results["nginx"]["F1 ..."]`. All at once, each with an upstream of its own."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="differential-")))
        upstreams = {name: stack.enter_context(Upstream()) for name in ("dgproxy", *servers.NAMES)}
        proxy = stack.enter_context(servers.ours(directory / "dgproxy", upstreams["dgproxy"].port))
        ports = {"dgproxy": proxy.port}
        for name in servers.NAMES:
            ports[name] = stack.enter_context(servers.other(name, directory / name, upstreams[name].port))
        for upstream in upstreams.values():
            upstream.secret = proxy.key
        pool = stack.enter_context(ThreadPoolExecutor(len(ports)))
        runs = {name: pool.submit(_run, ports[name], upstreams[name], corpus, proxy.key) for name in ports}
        return {name: run.result() for name, run in runs.items()}


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.differential", description=__doc__)
    parser.add_argument("--json", type=Path, default=JSON, metavar="FILE", help=f"default: {JSON.name} under build/")
    parser.add_argument("--write-docs", action="store_true", help="refresh the tables of docs/security.md")
    parser.add_argument("--only", default="", metavar="ID", help="rows whose id begins so")
    options = parser.parse_args()
    if missing := servers.missing():
        sys.stderr.write(f"Not installed: {', '.join(missing)}. On Debian: {servers.NEEDED}\n")
        return 2
    if options.write_docs and options.only:
        parser.error("--write-docs needs every row")
    corpus = [row for row in rows() if row.id.startswith(options.only)]
    versions = {"dgproxy": dgproxy.__version__, **{name: servers.version(name) for name in servers.NAMES}}
    explained = Explained.read(tomllib.loads((HERE / "explained.toml").read_text())["rows"])

    results = measure(corpus)

    judged = verdicts(corpus, results)
    laxer = [row for row, by in judged.items() if {Verdict.LAXER, Verdict.OTHER} & set(by.values())]
    unexplained = [row for row in laxer if row not in explained.rows]
    leaks = [row for row, result in results["dgproxy"].items() if result.leaked]
    broken = _not_passed(results)
    sys.stdout.write(table(corpus, results, judged, explained, versions))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(
        json.dumps(
            {
                "versions": versions,
                "rows": [
                    {
                        "id": row.id,
                        "rule": RULES[row.rule].text,
                        "dgproxy": results["dgproxy"][row.id].as_json(),
                        **{
                            name: {**results[name][row.id].as_json(), "verdict": judged[row.id][name]}
                            for name in servers.NAMES
                        },
                        "explained": explained.rows.get(row.id),
                    }
                    for row in corpus
                ],
            },
            indent=1,
        )
        + "\n"
    )
    sys.stdout.write(totals(judged))
    for row in sorted(set(explained.rows) - set(laxer)) if not options.only else ():
        sys.stdout.write(f"explained, but not laxer here (other versions?): {row}\n")
    for row in unexplained:
        sys.stdout.write(f"NOT EXPLAINED: {row}\n")
    for row in leaks:
        sys.stdout.write(f"THE KEY REACHED THE UPSTREAM: {row}\n")
    for row in broken:
        sys.stdout.write(f"A GOOD REQUEST DID NOT PASS: {row}\n")
    if options.write_docs:
        DOCS.write_text(put_into(DOCS.read_text(), corpus, results, judged, explained, versions))
    return 1 if unexplained or leaks or broken else 0


def _not_passed(results: dict[str, dict[str, Result]]) -> list[str]:
    """Good requests that a server refused: then the comparison is void, and every server would look strict."""
    return [
        f"{row} at {name}"
        for name, by in results.items()
        for row, result in by.items()
        if row.startswith("S15 ") and not result.first
    ]


sys.exit(main())
