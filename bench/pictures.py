"""The pictures of the report, as SVG that stands within a page."""

import io
import re
import statistics
from collections.abc import Callable, Sequence
from html import escape
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator

from bench.goals import HAPROXY, NATIVE, PURE
from bench.runs import BASE, DIRECT, OF_THE_PROXY, Runs, Spread

# Okabe and Ito's colours: told apart by those who see red and green alike, and in grey.
COLOURS: Final = {NATIVE: "#0072b2", PURE: "#56b4e9", BASE: "#e69f00", HAPROXY: "#cc79a7", DIRECT: "#777777"}
MARKS: Final = {NATIVE: "o", PURE: "s", BASE: "^", HAPROXY: "D", DIRECT: "x"}
_TAILS: Final = (0, 0.5, 0.9, 0.99, 0.999, 0.9999)
_LAST: Final = 1 / (1 - _TAILS[-1])
_MAX: Final = 4 * _LAST  # where the maximum stands, which no percentile is
_IN_A_ROW: Final = {1: 2, 2: 3}  # of a legend, by the width of a picture
_HASH: Final = "dgproxy"  # so that the same figures make the same file
_INK: Final = "#000000"
_LINES: Final = "#dddddd"
_STYLE: Final[Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": _HASH,
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": _LINES,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
}


def _drawn(width: float, height: float, told: str, draw: Callable[[Figure], None]) -> str:
    """As SVG in the page's own colours; `told` is for who can't see it."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
        draw(figure)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = re.sub(r"^.*?(?=<svg)", "", out.getvalue(), flags=re.DOTALL)
    text = text.replace(_INK, "currentColor").replace(_LINES, "var(--line)")
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(told)}"', 1)


def _plainly(axis: Axis) -> None:
    """Numbers as people write them: 1,000."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def percentiles(runs: Runs, scenario: str) -> str:
    """Latency by percentile, the tail stretched; for each server the median over the rounds, and their spread."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for server in runs.servers(scenario):
            rows = runs.of(scenario, server)
            places = [at for at, _ in rows[0]["load"]["latency_us"] if at <= _TAILS[-1]]
            by_place = [[_at(row, at) for row in rows] for at in (*places, 1)]
            across = [*(1 / (1 - at) for at in places), _MAX]
            colour = COLOURS.get(server, "black")
            middle = [statistics.median(values) for values in by_place]
            label = server if runs.valid(scenario, server) else f"{server} (invalid)"
            axes.plot(across[:-1], middle[:-1], color=colour, label=label, marker=MARKS.get(server), markersize=3)
            axes.plot(across[-2:], middle[-2:], color=colour, linestyle=":", linewidth=1)
            axes.plot(across[-1:], middle[-1:], color=colour, marker=MARKS.get(server), markersize=5)
            low, high = ([bound(values) for values in by_place] for bound in (min, max))
            axes.fill_between(across, low, high, color=colour, alpha=0.12, linewidth=0)
        axes.set_xscale("log")
        axes.set_yscale("log")
        ticks = ["0", *(f"{100 * at:g}" for at in _TAILS[1:]), "max"]
        axes.set_xticks([*(1 / (1 - at) for at in _TAILS), _MAX], ticks)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.minorticks_off()
        _plainly(axes.yaxis)
        axes.set_xlabel("percentile of messages")
        axes.set_ylabel("latency from when it was due, µs")
        axes.legend()

    return _drawn(7.2, 4.2, f"latency of {scenario} by percentile, figures in the table", draw)


def _at(row: dict[str, Any], part: float) -> float:
    return float(next(value for at, value in row["load"]["latency_us"] if at >= part))


def bars(runs: Runs, scenarios: Sequence[str], figure: str, label: str) -> str:
    """One figure of some scenarios, each with an axis of its own: medians, with lines from the least to the most.

    What was the generator's limit, or lost something, is hatched.
    """
    own = (
        figure in OF_THE_PROXY
    )  # and so no figure of the way without one; it holds where the generator is at its limit
    good = runs.sound if own else runs.valid
    servers = [server for server in COLOURS if any(runs.spread(name, server, figure) for name in scenarios)]
    servers = [server for server in servers if server != DIRECT or not own]

    def draw(drawn: Figure) -> None:
        for axes, name in zip(drawn.subplots(1, len(scenarios), squeeze=False)[0], scenarios, strict=True):
            for at, server in enumerate(servers):
                found = runs.spread(name, server, figure)
                if found is not None and server in runs.servers(name):
                    _bar(axes, at, found, COLOURS[server], sound=good(name, server))
            axes.set_xlim(-0.7, len(servers) - 0.3)
            axes.set_xticks([])
            axes.set_xlabel(name)
            axes.grid(visible=False, axis="x")
            axes.margins(y=0.12)
            _plainly(axes.yaxis)
        drawn.supylabel(label, fontsize=9)
        keys = [Patch(color=COLOURS[server], label=server) for server in servers]
        drawn.legend(
            handles=keys, fontsize=8, ncols=_IN_A_ROW.get(len(scenarios), len(keys)), loc="outside upper center"
        )

    told = f"{label}: a bar for each server in {', '.join(scenarios)}, figures in the tables"
    return _drawn(max(3.6, 2.4 * len(scenarios)), 3.0, told, draw)


def _bar(axes: Axes, at: float, found: Spread, colour: str, *, sound: bool) -> None:
    spread = [[found.median - found.least], [found.most - found.median]]
    filled: dict[str, Any] = {"color": colour} if sound else {"facecolor": "none", "edgecolor": colour, "hatch": "////"}
    axes.bar(at, found.median, 0.86, yerr=spread, error_kw={"elinewidth": 0.8, "capsize": 2}, **filled)
    text = f"{found.median:,.3g}" if found.median < 1000 else f"{found.median:,.0f}"
    axes.annotate(
        text, (at, found.most), xytext=(0, 2), textcoords="offset points", ha="center", va="bottom", fontsize=7
    )


def by_count(runs: Runs, scenario: str, figure: str, label: str) -> str:
    """A figure by the number of streams; a line for each server and number of workers ("workers=2 n=500")."""

    def draw(drawn: Figure) -> None:
        axes = drawn.subplots()
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
        axes.set_xticks(counts, [f"{count:,}" for count in counts])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel("streams")
        axes.set_ylabel(label)
        _plainly(axes.yaxis)
        axes.legend(fontsize=8)

    return _drawn(7.2, 3.4, f"{label} by number of streams, figures in the table", draw)
