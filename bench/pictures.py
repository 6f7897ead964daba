"""The pictures of the report, as SVG that stands within a page."""

import io
import re
import statistics
from collections.abc import Callable, Sequence
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.goals import HAPROXY, NATIVE, PURE
from bench.runs import BASE, DIRECT, OF_THE_PROXY, Runs

# Okabe and Ito's colours: told apart by those who see red and green alike, and in grey.
COLOURS: Final = {NATIVE: "#0072b2", PURE: "#56b4e9", BASE: "#e69f00", HAPROXY: "#cc79a7", DIRECT: "#777777"}
MARKS: Final = {NATIVE: "o", PURE: "s", BASE: "^", HAPROXY: "D", DIRECT: "x"}
_TAILS: Final = (0, 0.5, 0.9, 0.99, 0.999, 0.9999)
_HASH: Final = "dgproxy"  # so that the same figures make the same file


def _drawn(width: float, height: float, draw: Callable[[Axes], None]) -> str:
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": _HASH, "font.family": "sans-serif", "font.size": 9}):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(visible=True, color="#dddddd", linewidth=0.5)
        axes.set_axisbelow(True)
        draw(axes)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return re.sub(r"^.*?(?=<svg)", "", out.getvalue(), flags=re.DOTALL)


def percentiles(runs: Runs, scenario: str) -> str:
    """Latency by percentile, the tail stretched; for each server the median over the rounds, and their spread."""

    def draw(axes: Axes) -> None:
        for server in runs.servers(scenario):
            rows = runs.of(scenario, server)
            places = [at for at, _ in rows[0]["load"]["latency_us"] if at <= _TAILS[-1]]
            by_place = [[_at(row, at) for row in rows] for at in places]
            across = [1 / (1 - at) for at in places]
            colour = COLOURS.get(server, "black")
            middle = [statistics.median(values) for values in by_place]
            axes.plot(across, middle, color=colour, label=server, marker=MARKS.get(server), markersize=3)
            low, high = ([bound(values) for values in by_place] for bound in (min, max))
            axes.fill_between(across, low, high, color=colour, alpha=0.12, linewidth=0)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks([1 / (1 - at) for at in _TAILS], ["0", *(f"{100 * at:g}" for at in _TAILS[1:])])
        axes.minorticks_off()
        axes.set_xlabel("percentile of messages")
        axes.set_ylabel("latency from when it was due, µs")
        axes.legend(frameon=False)

    return _drawn(7.2, 3.8, draw)


def _at(row: dict[str, Any], part: float) -> float:
    return float(next(value for at, value in row["load"]["latency_us"] if at >= part))


def bars(runs: Runs, scenarios: Sequence[str], figure: str, label: str) -> str:
    """One figure of some scenarios, a group of bars each: medians, with lines from the least to the most."""

    def draw(axes: Axes) -> None:
        servers = [server for server in COLOURS if any(runs.spread(name, server, figure) for name in scenarios)]
        if figure in OF_THE_PROXY:
            servers = [server for server in servers if server != DIRECT]
        wide = 0.8 / max(1, len(servers))
        for index, server in enumerate(servers):
            for group, name in enumerate(scenarios):
                found = runs.spread(name, server, figure)
                if found is None:
                    continue
                at = group + (index - (len(servers) - 1) / 2) * wide
                spread = [[found.median - found.least], [found.most - found.median]]
                axes.bar(
                    at,
                    found.median,
                    wide * 0.92,
                    color=COLOURS[server],
                    label=server if group == 0 else None,
                    yerr=spread,
                    error_kw={"elinewidth": 0.8, "capsize": 2},
                )
                axes.annotate(
                    f"{found.median:,.3g}" if found.median < 1000 else f"{found.median:,.0f}",
                    (at, found.most),
                    ha="center",
                    va="bottom",
                    fontsize=7,
                    xytext=(0, 2),
                    textcoords="offset points",
                )
        axes.set_xticks(range(len(scenarios)), scenarios)
        axes.set_ylabel(label)
        axes.grid(visible=False, axis="x")
        axes.legend(frameon=False, fontsize=8, ncols=len(servers), loc="lower center", bbox_to_anchor=(0.5, 1.0))
        axes.margins(y=0.12)

    return _drawn(7.2, 3.2, draw)


def by_count(runs: Runs, scenario: str, figure: str, label: str) -> str:
    """A figure by the number of streams; a line for each server and number of workers ("workers=2 n=500")."""

    def draw(axes: Axes) -> None:
        found: dict[tuple[str, str], list[tuple[int, float]]] = {}
        for variant in runs.variants(scenario):
            workers, _, count = variant.partition(" n=")
            for server in runs.servers(scenario, variant=variant, alone=True):
                spread = runs.spread(scenario, server, figure, variant=variant)
                if count and spread is not None:
                    found.setdefault((server, workers), []).append((int(count), spread.median))
        for (server, workers), points in found.items():
            at, values = zip(*sorted(points), strict=True)
            style = "-" if workers == "workers=1" else "--"
            colour, mark = COLOURS.get(server, "black"), MARKS.get(server)
            axes.plot(at, values, style, color=colour, marker=mark, markersize=3, label=f"{server}, {workers}")
        axes.set_xscale("log")
        counts = sorted({count for points in found.values() for count, _ in points})
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel("streams")
        axes.set_ylabel(label)
        axes.legend(frameon=False, fontsize=8)

    return _drawn(7.2, 3.4, draw)
