"""What was measured, asked for by scenario, server and figure.

Rules of this file: a ratio is of two runs of one round, and the median of the rounds is taken of ratios, never the
ratio of medians: from round to round the machine changes more than the servers differ.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

BASE: Final = "nginx"
DIRECT: Final = "direct"
OF_THE_PROXY: Final = frozenset({"cpu", "cpu_gib", "core"})  # figures that the way without one has not

Row = dict[str, Any]


@dataclass(frozen=True)
class Spread:
    """A figure over the rounds."""

    median: float
    least: float
    most: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread | None":
        """None of none."""
        if not values:
            return None
        return cls(statistics.median(values), min(values), max(values), len(values))


class Runs:
    """All runs of one invocation of the bench."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = list(rows)

    def of(self, scenario: str, server: str | None = None) -> list[Row]:
        """The runs of a scenario, of one server or all."""
        return [row for row in self.rows if row["scenario"] == scenario and server in (None, row["server"])]

    @property
    def scenarios(self) -> list[str]:
        """As they came."""
        return list(dict.fromkeys(row["scenario"] for row in self.rows))

    def servers(self, scenario: str) -> list[str]:
        """Those that have a run beside nginx's in a round; none else is shown."""
        rounds = {row["round"] for row in self.of(scenario, BASE)}
        return list(dict.fromkeys(row["server"] for row in self.of(scenario) if row["round"] in rounds))

    def spread(self, scenario: str, server: str, figure: str) -> Spread | None:
        """A figure as it was."""
        return Spread.of([row["figures"][figure] for row in self.of(scenario, server) if figure in row["figures"]])

    def ratio(self, scenario: str, server: str, figure: str, base: str = BASE, *, less: str = "") -> Spread | None:
        """A figure over `base`'s of the same round; with `less`, that server's is taken off both first."""
        ratios = []
        for row in self.of(scenario, server):
            others = {other["server"]: other for other in self.of(scenario) if other["round"] == row["round"]}
            if base not in others or (less and less not in others) or figure not in row["figures"]:
                continue
            off = others[less]["figures"][figure] if less else 0.0
            below = others[base]["figures"][figure] - off
            if below > 0:
                ratios.append((row["figures"][figure] - off) / below)
        return Spread.of(ratios)

    def valid(self, scenario: str, *servers: str) -> bool:
        """Whether every run of these was the server's limit, not the generator's, and lost nothing."""
        return all(row["valid"] for server in servers for row in self.of(scenario, server))

    def sound(self, scenario: str, *servers: str) -> bool:
        """Whether none of these lost or mangled anything."""
        return not any(self.faults(scenario, server) for server in servers)

    def faults(self, scenario: str, server: str) -> list[str]:
        """What went wrong in its runs."""
        return sorted({fault for row in self.of(scenario, server) for fault in row["faults"]})
