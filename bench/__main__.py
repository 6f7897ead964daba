"""`python -m bench [SCENARIO ...]`: dgproxy beside nginx and HAProxy, the same work in the same run.

Each round starts every server anew, one at a time, on a core of its own; the generator and the upstream have another.
Only ratios within a run mean anything: what is printed is the median of the rounds, their spread, and the median of the
rounds' own ratios to nginx.

`python -m bench report FILE.json`: the report of a stored run. `python -m bench compare OLD.json NEW.json`: what became
worse between two.
"""

import argparse
import contextlib
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from bench import compare, keys, machine, native, reload, report, scale, servers, studies, tables, timing, via
from bench.machine import LOAD_CORE, PROXY_CORE
from bench.progress import progress
from bench.runs import DIRECT, Row, Runs
from bench.scenarios import Scenario, measure, scenarios
from bench.servers import NAMES, Rig
from bench.studies import KEY_COUNTS, STREAM_COUNTS, Bench, Study
from dgproxy.net import pump

INTERRUPTED: Final = 130  # exit status, as shells have it for SIGINT
STUDIES: Final = {study.name: study for study in (keys.STUDY, reload.STUDY, scale.STUDY, timing.STUDY)}


def _servers(rig: Rig) -> dict[str, Any]:
    native_form = {} if pump.why_not_native() else {NAMES["native"]: lambda: rig.dgproxy("native")}
    pure = {NAMES["pure"]: lambda: rig.dgproxy("pure")}
    return {"nginx": rig.nginx, "haproxy": rig.haproxy, **native_form, **pure, DIRECT: rig.direct}


def _rounds(
    directory: Path, chosen: list[Scenario | Study], upstream: tuple[int, int], args: argparse.Namespace
) -> Iterator[Row]:
    """Every run, as it ends."""
    port, pid = upstream
    secure = {scenario.name: not args.plain and (isinstance(scenario, Study) or scenario.tls) for scenario in chosen}
    rigs = {
        tls: Rig(directory / ("tls" if tls else "plain"), port, PROXY_CORE, tls=tls) for tls in set(secure.values())
    }
    plan = [
        (number, scenario, name)
        for number in range(1, args.rounds + 1)
        for scenario in chosen
        for name in ([""] if isinstance(scenario, Study) else _servers(rigs[secure[scenario.name]]))
        if isinstance(scenario, Study) or name != DIRECT or scenario.direct
    ]
    with progress(len(plan)) as step:
        for number, scenario, name in plan:
            rig = rigs[secure[scenario.name]]
            said = f"round {number}/{args.rounds}  {scenario.name:<10} "
            step(said + name)
            if isinstance(scenario, Study):
                counts = args.key_counts, args.stream_counts
                yield from scenario.rows(Bench(rig, number, args.seconds, pid, *counts, partial(_say, said)))
                continue
            with _servers(rig)[name]() as server:
                run = measure(scenario, server, key=rig.key, tls=rig.tls and name != DIRECT, upstream_pid=pid)
            shown = server.configuration if number == 1 else None
            figures = scenario.take(run)
            processes = len(server.pids)
            yield studies.row(number, scenario.name, name, figures, run=run, processes=processes, configuration=shown)


def _say(where: str, what: str) -> None:
    print(where, what, file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    """The command line."""
    known = [*scenarios(seconds=1, streams=1), *STUDIES]
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.partition("\n")[0])
    parser.add_argument("scenario", nargs="*", help=f"of {', '.join(known)}; all if none is named")
    parser.add_argument("--rounds", type=_positive(int), default=3)
    parser.add_argument("--seconds", type=_positive(float), default=10.0, help="of the steady state of a run")
    parser.add_argument("--streams", type=_positive(int), help="500; with --via 10")
    parser.add_argument("--key-counts", type=_counts, default=KEY_COUNTS, metavar="N,N", help="of `keys`")
    parser.add_argument("--stream-counts", type=_counts, default=STREAM_COUNTS, metavar="N,N", help="of `scale`")
    parser.add_argument("--plain", action="store_true", help="without TLS, all of them")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run there")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the report there, one HTML file")
    via.options(parser)
    found = parser.parse_args()
    if found.streams is None:
        found.streams = 500 if found.via is None else 10
    if found.via is not None:
        known = [*via.SCENARIOS, *via.ON_REQUEST]
        if found.report is not None:
            parser.error("the report compares servers that run here; --via writes --json")
    if unknown := set(found.scenario).difference(known):
        parser.error(f"no scenario {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return found


def _positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def number(text: str) -> float:
        found = kind(text)
        if not 0 < found < 1e6:
            raise ValueError(text)
        return found

    return number


def _counts(text: str) -> tuple[int, ...]:
    count = _positive(int)
    return tuple(sorted(int(count(part)) for part in text.split(",")))


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    """Every run that was made until the end, or until Ctrl-C."""
    if len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("the bench needs two cores: one for the proxy, one for the load")
    every: dict[str, Scenario | Study] = {**scenarios(seconds=args.seconds, streams=args.streams), **STUDIES}
    chosen = [every[name] for name in args.scenario or every]
    try:
        versions = {name: servers.version(name) for name in ("nginx", "haproxy")}
        for program in native.NEEDED:
            native.compiled(program)
    except native.Missing as missing:
        raise SystemExit(f"bench: {missing}") from None
    document: dict[str, Any] = {
        "facts": {"date": _now(), **machine.facts(), **versions},
        "command": _command(),
        "scenarios": [tables.described(scenario) for scenario in chosen],
        "runs": [],
    }
    with (
        tempfile.TemporaryDirectory(prefix="dgproxy-bench-") as directory,
        native.upstream(LOAD_CORE) as upstream,
        _until_interrupted(document),
    ):
        for row in _rounds(Path(directory), chosen, upstream, args):
            document["runs"].append(row)
            _store(args, document)
    _store(args, document)
    return document


def _store(args: argparse.Namespace, document: dict[str, Any]) -> None:
    if args.json is not None:
        args.json.write_text(json.dumps(document, indent=1) + "\n")


@contextlib.contextmanager
def _until_interrupted(document: dict[str, Any]) -> Iterator[None]:
    """Ctrl-C ends what is in it, and no more: what was measured until then is told, and that it is not all."""
    try:
        yield
    except KeyboardInterrupt:
        document["interrupted"] = True
        print("interrupted: what follows is not all that was asked for", file=sys.stderr)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _command(secret: str = "") -> str:
    """What was typed, without the key."""
    command = shlex.join(["python", "-m", "bench", *sys.argv[1:]])
    return command.replace(secret, "...") if secret else command


def _measure_via(args: argparse.Namespace, console: Console) -> None:
    chosen = args.scenario or list(via.SCENARIOS)
    rows: list[Row] = []
    try:
        if chosen != ["streams"]:
            native.compiled("load")
        key = via.key_of(args)
        facts = {"date": _now(), **machine.facts()}
        document: dict[str, Any] = {"facts": facts, "command": _command(key), "runs": rows}
        with _until_interrupted(document):
            for row in via.rounds(args, chosen, key):
                rows.append(row)
                _store(args, document)
        _store(args, document)
    except (native.Missing, via.BadUrl, OSError) as error:
        raise SystemExit(f"bench: {error}") from None
    runs = Runs(rows)
    for scenario in runs.scenarios:
        console.print(via.table(scenario, runs))
    if not all(row["valid"] for row in rows):
        raise SystemExit("something was lost or refused: see above")
    if document.get("interrupted"):
        sys.exit(INTERRUPTED)


def main() -> None:
    """Measures, and prints a table for each scenario and how each goal was met."""
    commands: Final = {"report": report.main, "compare": compare.main}
    if len(sys.argv) > 1 and sys.argv[1] in commands:
        sys.exit(commands[sys.argv[1]](sys.argv[2:]))
    args = arguments()
    console = Console(width=None if sys.stdout.isatty() else 240, highlight=False)
    if args.via is not None:
        _measure_via(args, console)
        return
    document = _measure(args)
    tables.show(console, document)
    if args.report is not None:
        args.report.write_text(report.html(document), encoding="utf-8")
        print(f"report: {args.report}", file=sys.stderr)
    if any(row["faults"] for row in document["runs"]):
        raise SystemExit("something was lost, unequal or refused: see above")
    if document.get("interrupted"):
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
