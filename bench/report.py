"""The report: one HTML file with tables, pictures, and all that is needed to judge or repeat what was measured."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

from bench import pictures, tables
from bench.goals import GOALS, Verdict
from bench.runs import BASE, DIRECT, OF_THE_PROXY, Runs
from bench.scenarios import GENERATOR_LIMIT

_STYLE: Final = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
_CLASSES: Final = {Verdict.AIM: "good", Verdict.MUST: "good", Verdict.MISSED: "bad", Verdict.UNMEASURED: "dim"}
_HOW: Final = (
    "Each server ran alone on a core of its own, one worker; the load generator and the upstream, both C, had the"
    " other. Each round started every server anew, one after the other. Figures are medians over the rounds, with their"
    " spread below; ratios are to nginx in the same round, and medians too: on a shared machine only these mean"
    " anything. Latency counts from the moment at which a message was due, whatever the server did until then, so that"
    " none is omitted for its server's sake. Rows of <em>direct</em> have nothing in between: the floor. Where the"
    " generator took over 80 % of its core, the figure may be its own limit: the row is marked, its bar hatched."
)


def html(document: dict[str, Any]) -> str:
    """The whole page, without any asset outside it."""
    runs = Runs(document["runs"])
    facts, command = document["facts"], escape(document["command"])
    body = "\n".join(
        [
            "<h1>dgproxy beside nginx and HAProxy</h1>",
            f"<p class=dim>{escape(facts['date'])}, {_rounds(runs)}{_whole(document)}. <code>{command}</code></p>",
            f"<p>{_HOW}</p>",
            "<h2>What must be reached, and is aimed at</h2>",
            _goals(runs),
            *_pictures(runs),
            *(_scenario(scenario, runs) for scenario in document["scenarios"] if tables.lines(scenario, runs)),
            "<h2>Machine</h2>",
            "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in facts.items()) + "</dl>",
            "<h2>Configurations</h2>",
            *_configurations(runs),
        ]
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>dgproxy bench</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _rounds(runs: Runs) -> str:
    count = max((row["round"] for row in runs.rows), default=0)
    return f"{count} rounds" if count != 1 else "one round, which shows no spread"


def _whole(document: dict[str, Any]) -> str:
    return ", <span class=bad>interrupted before its end</span>" if document.get("interrupted") else ""


def _table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    first = "".join(f"<th>{cell}</th>" for cell in head)
    return f"<div class=scroll><table><thead><tr>{first}</tr></thead><tbody>{lines}</tbody></table></div>"


def _goals(runs: Runs) -> str:
    def rows() -> Iterator[Sequence[str]]:
        for goal in GOALS:
            verdict, found = goal.verdict(runs)
            figure = "" if found is None else f"{found.median:.2f}<small>{found.least:.2f}-{found.most:.2f}</small>"
            yield escape(goal.name), figure, f"<span class={_CLASSES[verdict]}>{verdict}</span>", escape(goal.bounds)

    return _table(["", "measured", "reached", "must, aim"], rows())


def _pictures(runs: Runs) -> Iterator[str]:
    if runs.servers("streams"):
        yield "<h2>Latency of a WSS message</h2>"
        yield f"<figure>{pictures.percentiles(runs, 'streams')}</figure>"
    for title, wanted, figure, label in (
        ("CPU of a round trip", ("streams", "plain", "saturate"), "cpu", "CPU of the proxy, µs each"),
        ("CPU of a GiB", ("upload", "download"), "cpu_gib", "CPU of the proxy, s a GiB"),
        ("Throughput", ("saturate", "upload", "download"), "speed", "MB/s"),
        ("Rates", ("handshake", "resume", "requests"), "rate", "a second"),
        ("Rates by CPU", ("handshake", "resume", "requests"), "core", "in a second of the proxy's CPU"),
        ("Memory of an idle stream", ("idle",), "memory", "KiB a stream, resident and its own"),
    ):
        there = [name for name in wanted if runs.servers(name)]
        if there:
            yield f"<h2>{title}</h2>"
            yield f"<figure>{pictures.bars(runs, there, figure, label)}</figure>"
    if runs.variants("scale"):
        yield "<h2>By number of streams</h2>"
        of_latency = ((name, f"{name} from when it was due, µs") for name in ("p50", "p99"))
        for figure, label in (("cpu", "CPU of a round trip, µs"), *of_latency):
            yield f"<figure>{pictures.by_count(runs, 'scale', figure, label)}</figure>"


def _scenario(scenario: dict[str, Any], runs: Runs) -> str:
    name = scenario["name"]
    head = [""]
    for figure in scenario["figures"]:
        head.append(f"{escape(figure['name'])}<small>{escape(figure['unit'])}</small>")
        if figure["compared"]:
            head.append(f"/ {BASE}")

    def rows() -> Iterator[Sequence[str]]:
        for variant, server in tables.lines(scenario, runs):
            runs_of = runs.of(name, server, variant=variant)
            cells = [escape(f"{variant} {server}".strip())]
            for figure in scenario["figures"]:
                cells += _cells(runs, name, variant, server, figure)
            generator = max(row["generator"] for row in runs_of)
            mark = " <span class=bad>invalid</span>" if generator > GENERATOR_LIMIT else ""
            faults = runs.faults(name, server, variant=variant)
            told = "".join(f" <span class=bad>{escape(fault)}</span>" for fault in faults)
            yield [*cells, f"{100 * generator:.0f} %{mark}{told}"]

    return f"<h2>{escape(name)}</h2><p>{escape(scenario['title'])}</p>" + _table([*head, "generator"], rows())


def _cells(runs: Runs, scenario: str, variant: str, server: str, figure: dict[str, Any]) -> list[str]:
    found = runs.spread(scenario, server, figure["name"], variant=variant)
    if found is None or (server == DIRECT and figure["name"] in OF_THE_PROXY):
        return ["", ""] if figure["compared"] else [""]
    digits = figure["digits"]
    text = f"{found.median:,.{digits}f}<small>{found.least:,.{digits}f}-{found.most:,.{digits}f}</small>"
    if not figure["compared"]:
        return [text]
    ratio = runs.ratio(scenario, server, figure["name"], variant=variant)
    return [text, f"{ratio.median:.2f}" if ratio and server != BASE else ""]


def _configurations(runs: Runs) -> Iterator[str]:
    seen = set()
    for row in runs.rows:
        text = row.get("configuration")
        if text and (row["server"], text) not in seen:
            seen.add((row["server"], text))
            title = f"{row['server']}, as for {row['scenario']}"
            yield f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def main(arguments: Sequence[str]) -> int:
    """`python -m bench report`: of a stored run."""
    parser = argparse.ArgumentParser(prog="python -m bench report", description="The report of a stored run.")
    parser.add_argument("json", type=Path)
    parser.add_argument("-o", "--output", type=Path, help="HTML; beside the JSON if not given")
    args = parser.parse_args(arguments)
    try:
        page = html(json.loads(args.json.read_text()))
    except OSError as error:
        parser.error(str(error))
    except (ValueError, KeyError, TypeError) as error:
        parser.error(f"{args.json} is no result of the bench beside nginx: {error!r}")
    output = args.output or args.json.with_suffix(".html")
    output.write_text(page, encoding="utf-8")
    print(output, file=sys.stdout)
    return 0
