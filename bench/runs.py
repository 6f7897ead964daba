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
    """All runs of one invocation of the bench. A `variant` differs within a scenario ("keys=10"); most have none."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = list(rows)

    def of(self, scenario: str, server: str | None = None, *, variant: str = "") -> list[Row]:
        """The runs of a scenario, of one server or all."""
        return [
            row
            for row in self.rows
            if row["scenario"] == scenario and row.get("variant", "") == variant and server in (None, row["server"])
        ]

    @property
    def scenarios(self) -> list[str]:
        """As they came."""
        return list(dict.fromkeys(row["scenario"] for row in self.rows))

    def variants(self, scenario: str) -> list[str]:
        """As they came."""
        return list(dict.fromkeys(row.get("variant", "") for row in self.rows if row["scenario"] == scenario))

    def servers(self, scenario: str, *, variant: str = "", alone: bool = False) -> list[str]:
        """Those that have a run beside nginx's in a round; none else is shown, unless it may stand `alone`."""
        rounds = {row["round"] for row in self.of(scenario, BASE, variant=variant)}
        runs = self.of(scenario, variant=variant)
        return list(dict.fromkeys(row["server"] for row in runs if alone or row["round"] in rounds))

    def spread(self, scenario: str, server: str, figure: str, *, variant: str = "") -> Spread | None:
        """A figure as it was."""
        runs = self.of(scenario, server, variant=variant)
        return Spread.of([row["figures"][figure] for row in runs if figure in row["figures"]])

    def ratio(
        self, scenario: str, server: str, figure: str, base: str = BASE, *, less: str = "", variant: str = ""
    ) -> Spread | None:
        """A figure over `base`'s of the same round; with `less`, that server's is taken off both first."""
        ratios = []
        for row in self.of(scenario, server, variant=variant):
            beside = [other for other in self.of(scenario, variant=variant) if other["round"] == row["round"]]
            others = {other["server"]: other["figures"] for other in beside if figure in other["figures"]}
            if base not in others or (less and less not in others) or figure not in row["figures"]:
                continue
            off = others[less][figure] if less else 0.0
            below = others[base][figure] - off
            if below > 0:
                ratios.append((row["figures"][figure] - off) / below)
        return Spread.of(ratios)

    def valid(self, scenario: str, *servers: str, variant: str = "") -> bool:
        """Whether every run of these was the server's limit, not the generator's, and lost nothing."""
        return all(row["valid"] for server in servers for row in self.of(scenario, server, variant=variant))

    def sound(self, scenario: str, *servers: str, variant: str = "") -> bool:
        """Whether none of these lost or mangled anything."""
        return not any(self.faults(scenario, server, variant=variant) for server in servers)

    def faults(self, scenario: str, server: str, *, variant: str = "") -> list[str]:
        """What went wrong in its runs."""
        return sorted({fault for row in self.of(scenario, server, variant=variant) for fault in row["faults"]})
