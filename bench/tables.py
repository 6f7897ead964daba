"""What was measured, as tables on a terminal."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from bench.goals import GOALS, Verdict
from bench.runs import BASE, DIRECT, OF_THE_PROXY, Runs
from bench.scenarios import GENERATOR_LIMIT, Scenario
from bench.studies import Study

_STYLES = {Verdict.AIM: "green", Verdict.MUST: "green", Verdict.MISSED: "bold red", Verdict.UNMEASURED: "dim"}


def described(scenario: Scenario | Study) -> dict[str, Any]:
    """A scenario as it stands in a result's JSON."""
    return {
        "name": scenario.name,
        "title": scenario.title,
        "study": isinstance(scenario, Study),
        "figures": [
            {
                "name": figure.name,
                "unit": figure.unit,
                "less_is_better": figure.less_is_better,
                "digits": figure.digits,
                "compared": figure.compared,
            }
            for figure in scenario.figures
        ],
    }


def show(console: Console, document: dict[str, Any]) -> None:
    """Everything."""
    runs = Runs(document["runs"])
    console.print(", ".join(f"{name} {value}" for name, value in document["facts"].items()), soft_wrap=True)
    for scenario in document["scenarios"]:
        if lines(scenario, runs):
            console.print(table(scenario, runs))
    console.print(goals(runs))


def lines(scenario: dict[str, Any], runs: Runs) -> list[tuple[str, str]]:
    """What has a line in a scenario's table: variant and server."""
    return [
        (variant, server)
        for variant in runs.variants(scenario["name"])
        for server in runs.servers(scenario["name"], variant=variant, alone=scenario["study"])
    ]


def table(scenario: dict[str, Any], runs: Runs) -> Table:
    """One scenario: a line for each variant and server."""
    name = scenario["name"]
    shown = Table(title=f"{name}: {scenario['title']}", title_justify="left", box=box.SIMPLE_HEAD)
    shown.add_column("", no_wrap=True)
    for figure in scenario["figures"]:
        shown.add_column(f"{figure['name']}\n{figure['unit']}", justify="right", no_wrap=True)
        if figure["compared"]:
            shown.add_column(f"/ {BASE}", justify="right", style="bold", no_wrap=True)
    shown.add_column("generator", justify="right", style="dim", no_wrap=True)
    last = ""
    for variant, server in lines(scenario, runs):
        if variant != last:
            shown.add_row(variant, style="italic")
            last = variant
        generator = max(row["generator"] for row in runs.of(name, server, variant=variant))
        good = runs.valid(name, server, variant=variant)
        mark = "" if good else " INVALID" if generator > GENERATOR_LIMIT else " FAULTY"
        cells = [cell for figure in scenario["figures"] for cell in _cells(runs, name, variant, server, figure)]
        shown.add_row(server, *cells, f"{100 * generator:.0f} %{mark}")
        for fault in runs.faults(name, server, variant=variant):
            shown.add_row(f"  {fault}", style="red")
    return shown


def _cells(runs: Runs, scenario: str, variant: str, server: str, figure: dict[str, Any]) -> list[str]:
    found = runs.spread(scenario, server, figure["name"], variant=variant)
    if found is None or (server == DIRECT and figure["name"] in OF_THE_PROXY):
        return ["", ""] if figure["compared"] else [""]  # no proxy, no CPU of one
    digits = figure["digits"]
    text = f"{found.median:,.{digits}f}"
    if found.rounds > 1:
        text += f"\n({found.least:,.{digits}f}-{found.most:,.{digits}f})"
    if not figure["compared"]:
        return [text]
    ratio = runs.ratio(scenario, server, figure["name"], variant=variant)
    return [text, "" if ratio is None or server == BASE else f"{ratio.median:.2f}"]


def goals(runs: Runs) -> Table:
    """What must be reached, and whether it was."""
    shown = Table(title="What must be reached, and is aimed at", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("", "must, aim", "measured", "spread", ""):
        shown.add_column(column, no_wrap=True)
    for goal in GOALS:
        verdict, found = goal.verdict(runs)
        figure = "" if found is None else f"{found.median:.2f}"
        spread = "" if found is None else f"{found.least:.2f}-{found.most:.2f}"
        shown.add_row(goal.name, goal.bounds, figure, spread, f"[{_STYLES[verdict]}]{verdict}[/]")
    return shown
