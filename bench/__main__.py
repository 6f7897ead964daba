"""`python -m bench [SCENARIO ...]`: dgproxy beside nginx and HAProxy, the same work in the same run.

Each round starts every server anew, one at a time, on a core of its own; the generator and the upstream have another.
Only ratios within a run mean anything: what is printed is the median of the rounds, their spread, and the median of the
rounds' own ratios to nginx.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table

from bench import machine, native, servers
from bench.scenarios import GENERATOR_LIMIT, Run, Scenario, measure, scenarios
from bench.servers import Rig, Server
from dgproxy.net import pump

PROXY_CORE, LOAD_CORE = 0, 1
BASE: Final = "nginx"


def _servers(rig: Rig) -> dict[str, Any]:
    native_form = {} if pump.why_not_native() else {"dgproxy, native pump": lambda: rig.dgproxy("native")}
    pure = {"dgproxy, pure Python": lambda: rig.dgproxy("pure")}
    return {"nginx": rig.nginx, "haproxy": rig.haproxy, **native_form, **pure, "direct": rig.direct}


def _rounds(rig: Rig, chosen: list[Scenario], upstream_pid: int, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every run, as it ends."""
    for number in range(1, args.rounds + 1):
        for scenario in chosen:
            for name, start in _servers(rig).items():
                if name == "direct" and not scenario.direct:
                    continue
                tls = rig.tls and name != "direct"
                print(f"round {number}/{args.rounds}  {scenario.name:<10} {name}", file=sys.stderr, flush=True)
                with start() as server:
                    run = measure(scenario, server, key=rig.key, tls=tls, core=LOAD_CORE, upstream_pid=upstream_pid)
                yield _row(number, scenario, name, server, run)


def _row(number: int, scenario: Scenario, name: str, server: Server, run: Run) -> dict[str, Any]:
    return {
        "round": number,
        "scenario": scenario.name,
        "server": name,
        "figures": scenario.take(run),
        "generator": round(run.generator, 3),
        "valid": run.generator <= GENERATOR_LIMIT and not run.faults,
        "faults": run.faults,
        "cpu_s": round(run.cpu, 4),
        "wall_s": round(run.wall, 3),
        "processes": len(server.pids),
        "load": run.load,
    }


def summary(rows: list[dict[str, Any]], scenario: Scenario) -> list[dict[str, Any]]:
    """A line for each server: each figure's median, spread, and ratio to nginx of the same round."""
    mine = [row for row in rows if row["scenario"] == scenario.name]
    base = {row["round"]: row for row in mine if row["server"] == BASE}
    lines = []
    for name in dict.fromkeys(row["server"] for row in mine):
        of_server = [row for row in mine if row["server"] == name and row["round"] in base]
        if not of_server:
            continue
        line: dict[str, Any] = {
            "server": name,
            "rounds": len(of_server),
            "generator": statistics.median(row["generator"] for row in of_server),
            "valid": all(row["valid"] for row in of_server),
            "faults": sorted({fault for row in of_server for fault in row["faults"]}),
            "figures": {},
        }
        for figure in scenario.figures:
            values = [row["figures"][figure.name] for row in of_server]
            ratios = [
                row["figures"][figure.name] / base[row["round"]]["figures"][figure.name]
                for row in of_server
                if base[row["round"]]["figures"][figure.name]
            ]
            line["figures"][figure.name] = {
                "median": statistics.median(values),
                "least": min(values),
                "most": max(values),
                "ratio": statistics.median(ratios) if ratios else None,
            }
        lines.append(line)
    return lines


def table(scenario: Scenario, lines: list[dict[str, Any]]) -> Table:
    """The same for people."""
    shown = Table(title=f"{scenario.name}: {scenario.title}", title_justify="left", box=box.SIMPLE_HEAD)
    shown.add_column("", no_wrap=True)
    for figure in scenario.figures:
        shown.add_column(f"{figure.name}\n{figure.unit}", justify="right", no_wrap=True)
        shown.add_column(f"/ {BASE}", justify="right", style="bold", no_wrap=True)
    shown.add_column("generator", justify="right", style="dim", no_wrap=True)
    for line in lines:
        cells = []
        for figure in scenario.figures:
            found = line["figures"][figure.name]
            if line["server"] == "direct" and figure.name.startswith("cpu"):
                cells += ["", ""]  # no proxy, no CPU of one
                continue
            ratio = found["ratio"]
            spread = f"{found['least']:,.{figure.digits}f}-{found['most']:,.{figure.digits}f}"
            cells += [
                f"{found['median']:,.{figure.digits}f}" + (f"\n({spread})" if line["rounds"] > 1 else ""),
                "" if ratio is None or line["server"] == BASE else f"{ratio:.2f}",
            ]
        mark = "" if line["valid"] else " INVALID" if line["generator"] > GENERATOR_LIMIT else " FAULTY"
        shown.add_row(line["server"], *cells, f"{100 * line['generator']:.0f} %{mark}")
        for fault in line["faults"]:
            shown.add_row(f"  {fault}", style="red")
    return shown


def arguments() -> argparse.Namespace:
    """The command line."""
    known = scenarios(seconds=1, streams=1)
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.partition("\n")[0])
    parser.add_argument("scenario", nargs="*", help=f"of {', '.join(known)}; all if none is named")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of the steady state of a run")
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--plain", action="store_true", help="without TLS, all of them")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run there")
    found = parser.parse_args()
    if unknown := set(found.scenario) - known.keys():
        parser.error(f"no scenario {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return found


def main() -> None:
    """Measures, and prints a table for each scenario."""
    args = arguments()
    if len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("the bench needs two cores: one for the proxy, one for the load")
    every = scenarios(seconds=args.seconds, streams=args.streams)
    chosen = [every[name] for name in args.scenario or every]
    try:
        versions = {name: servers.version(name) for name in ("nginx", "haproxy")}
        for program in native.NEEDED:
            native.compiled(program)
    except native.Missing as missing:
        raise SystemExit(f"bench: {missing}") from None
    facts = {"date": datetime.now(UTC).isoformat(timespec="seconds"), **machine.facts(), **versions}
    rows: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory(prefix="dgproxy-bench-") as directory,
        native.upstream(LOAD_CORE) as (port, pid),
        contextlib.suppress(KeyboardInterrupt),
    ):
        rig = Rig(Path(directory), port, PROXY_CORE, tls=not args.plain)
        for row in _rounds(rig, chosen, pid, args):
            rows.append(row)
            if args.json is not None:
                document = {"facts": facts, "arguments": vars(args) | {"json": str(args.json)}, "runs": rows}
                args.json.write_text(json.dumps(document, indent=1) + "\n")
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    console.print(", ".join(f"{name} {value}" for name, value in facts.items()), soft_wrap=True)
    for scenario in chosen:
        if lines := summary(rows, scenario):
            console.print(table(scenario, lines))
    if any(row["faults"] for row in rows):
        raise SystemExit("something was lost, unequal or refused: see above")


if __name__ == "__main__":
    main()
