"""Two results side by side: what became worse.

Rules of this file: only ratios to nginx of the same run are compared, since the machine may be another one today; a
figure is worse where its ratio moved the wrong way by more than both runs' spreads together and a twentieth. Ranges
that merely lie apart are not enough: of three rounds each, one pair in twenty does by chance, and a run has 200
figures. Of fewer rounds than three nothing is judged. Where a run was the generator's limit only what the CPU did is
compared. Where the old one lost something nothing is; where the new one did, that alone is a step back. Other
servers' ratios are shown: they tell how much such ratios move by themselves.
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table

from bench import tables
from bench.runs import BASE, OF_THE_PROXY, Runs, Spread
from bench.servers import NAMES

OURS: Final = (NAMES["native"], NAMES["pure"])
ROUNDS: Final = 3  # of each run, or there is no spread to speak of
NOISE: Final = 0.05  # of a ratio, whatever the spread


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[dict[str, Any]]:
    """A line for each figure that both have, with `verdict`.

    That is better, worse or same; broken, if the new run lost something; moved, if it is another server's; unclear,
    if it moved and there were too few rounds.
    """
    before, after = Runs(old["runs"]), Runs(new["runs"])
    lines = []
    for scenario in new["scenarios"]:
        name = scenario["name"]
        for variant, server in tables.lines(scenario, after):
            if server == BASE:
                continue
            broken = bool(after.faults(name, server, variant=variant))
            for figure in scenario["figures"]:
                was = before.ratio(name, server, figure["name"], variant=variant)
                now = after.ratio(name, server, figure["name"], variant=variant)
                if was is None or was.least <= 0 or not _sound(before, name, variant, server, figure):
                    continue
                if not broken and (now is None or now.least <= 0 or not _sound(after, name, variant, server, figure)):
                    continue
                moved = verdict(was, now, less_is_better=figure["less_is_better"]) if now and not broken else "broken"
                lines.append(
                    {
                        "scenario": f"{name} {variant}".strip(),
                        "server": server,
                        "figure": figure["name"],
                        "was": was.median,
                        "now": now.median if now else None,
                        "verdict": "moved" if moved != "same" and server not in OURS else moved,
                    }
                )
    return lines


def _sound(runs: Runs, scenario: str, variant: str, server: str, figure: dict[str, Any]) -> bool:
    good = runs.sound if figure["name"] in OF_THE_PROXY else runs.valid
    return good(scenario, server, BASE, variant=variant)


def verdict(was: Spread, now: Spread, *, less_is_better: bool) -> str:
    """Whether a ratio became better or worse by more than noise."""
    moved = math.log(now.median) - math.log(was.median)  # to the bit the same from either end
    if abs(moved) <= max(math.log1p(NOISE), _width(was) + _width(now)):
        return "same"
    if min(was.rounds, now.rounds) < ROUNDS:
        return "unclear"
    return "worse" if (moved > 0) is less_is_better else "better"


def _width(spread: Spread) -> float:
    return math.log(spread.most / spread.least)


def main(arguments: Sequence[str]) -> int:
    """Prints the lines that changed; 1 if anything became worse, 2 if nothing could be compared."""
    parser = argparse.ArgumentParser(prog="python -m bench compare", description="What became worse between two runs.")
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--all", action="store_true", help="also what stayed the same")
    args = parser.parse_args(arguments)
    try:
        old, new = (json.loads(path.read_text()) for path in (args.old, args.new))
        lines = changes(old, new)
    except OSError as error:
        parser.error(str(error))
    except (ValueError, KeyError, TypeError) as error:
        parser.error(f"that is no result of the bench: {error!r}")
    shown = Table(box=box.SIMPLE_HEAD)
    for column in ("scenario", "server", "figure", f"was / {BASE}", f"now / {BASE}", ""):
        shown.add_column(column)
    for line in lines:
        if args.all or line["verdict"] != "same":
            style = {"worse": "bold red", "broken": "bold red", "better": "green"}.get(line["verdict"])
            figures = (f"{line['was']:.2f}", "" if line["now"] is None else f"{line['now']:.2f}")
            shown.add_row(line["scenario"], line["server"], line["figure"], *figures, line["verdict"], style=style)
    console = Console()
    if shown.row_count:
        console.print(shown)
    worse = sum(line["verdict"] in ("worse", "broken") for line in lines)
    few = sum(line["verdict"] == "unclear" for line in lines)
    told = f", {few} moved, but fewer than {ROUNDS} rounds tell nothing" if few else ""
    console.print(f"{len(lines)} figures compared, {worse} worse{told}")
    return 2 if not lines else 1 if worse else 0
