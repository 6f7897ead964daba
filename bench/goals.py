"""What must be reached, and what is aimed at, beside nginx and HAProxy in one run; the figures are the project's own.

Rules of this file: a goal whose runs are missing, or were the generator's limit, is not measured; it is never met. What
a server does with a second of CPU is its own even where the generator was at its limit, so such goals only need runs
without a fault.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bench.runs import BASE, DIRECT, OF_THE_PROXY, Runs, Spread
from bench.servers import NAMES

NATIVE: Final = NAMES["native"]
PURE: Final = NAMES["pure"]
HAPROXY: Final = "haproxy"


class Verdict(enum.StrEnum):
    """How a goal was met."""

    AIM = "aim"
    MUST = "must"
    MISSED = "missed"
    UNMEASURED = "not measured"


@dataclass(frozen=True)
class Goal:
    """One line. `take` gives the figure; `needs` are the runs that must be sound for it."""

    name: str
    scenario: str
    needs: tuple[str, ...]
    take: Callable[[Runs], Spread | None]
    must: float
    aim: float | None
    less_is_better: bool = True
    variant: str = ""
    by_cpu: bool = False  # a figure of the server's own CPU
    figure: str = ""
    beside: str = ""  # a server whose figure the aim asks for as well

    def verdict(self, runs: Runs) -> tuple[Verdict, Spread | None]:
        """The verdict by the median of the rounds, and the figure."""
        found = self.take(runs)
        good = runs.sound if self.by_cpu else runs.valid
        if found is None or not good(self.scenario, *self.needs, variant=self.variant):
            return Verdict.UNMEASURED, found
        sign = 1 if self.less_is_better else -1
        if self.aim is not None and sign * found.median <= sign * self.aim and self._reaches(runs, sign):
            return Verdict.AIM, found
        return (Verdict.MUST if sign * found.median <= sign * self.must else Verdict.MISSED), found

    def _reaches(self, runs: Runs, sign: int) -> bool:
        """Whether it is where `beside` is, in sound runs of that; what was not measured is not reached."""
        if not self.beside:
            return True
        good = runs.sound if self.by_cpu else runs.valid
        ratio = runs.ratio(self.scenario, self.needs[0], self.figure, self.beside, variant=self.variant)
        return ratio is not None and good(self.scenario, self.beside) and sign * ratio.median <= sign

    @property
    def bounds(self) -> str:
        """Must and aim, for people."""
        sign = "<=" if self.less_is_better else ">="
        aim = "" if self.aim is None else f", {sign} {self.aim:g}"
        return f"{sign} {self.must:g}{aim}" + (f" and {self.beside}'s" if self.beside else "")


def _ratio(
    name: str,
    scenario: str,
    figure: str,
    must: float,
    aim: float,
    *,
    server: str = NATIVE,
    base: str = BASE,
    less: str = "",
    less_is_better: bool = True,
    beside: str = "",
) -> Goal:
    needs = (server, base, less) if less else (server, base)
    return Goal(
        name,
        scenario,
        needs,
        lambda runs: runs.ratio(scenario, server, figure, base, less=less),
        must,
        aim,
        less_is_better,
        by_cpu=figure in OF_THE_PROXY,
        figure=figure,
        beside=beside,
    )


def _of(
    name: str, scenario: str, variant: str, figure: str, must: float, aim: float | None, *, less: bool = True
) -> Goal:
    """A figure as it is, of a variant; CPU and memory are the server's own, whatever the generator does."""
    return Goal(
        name,
        scenario,
        (NATIVE,),
        lambda runs: runs.spread(scenario, NATIVE, figure, variant=variant),
        must,
        aim,
        less,
        variant=variant,
        by_cpu=True,
    )


GOALS: Final = (
    _ratio("CPU of a WSS round trip / nginx", "streams", "cpu", 1.0, 0.9),
    _ratio("the same, pure Python", "streams", "cpu", 1.4, 1.2, server=PURE),
    _ratio("CPU of a WSS round trip / HAProxy", "streams", "cpu", 0.95, 0.8, base=HAPROXY),
    _ratio("p99 added to a WSS message / nginx", "streams", "p99", 1.2, 1.0, less=DIRECT),
    _ratio("saturated WSS, MB/s / nginx", "saturate", "speed", 1.5, 2.5, less_is_better=False, beside=HAPROXY),
    _ratio("upload of 1 GiB, MB/s / nginx", "upload", "speed", 1.0, 1.5, less_is_better=False),
    Goal("memory of an idle WSS stream, KiB", "idle", (NATIVE,), lambda r: r.spread("idle", NATIVE, "memory"), 28, 19),
    _ratio("full handshakes with a request, by CPU / nginx", "handshake", "core", 0.6, 0.9, less_is_better=False),
    _ratio("small requests, by CPU / nginx", "requests", "core", 0.15, 0.4, less_is_better=False),
    _ratio("plain WS: CPU of a round trip / nginx", "plain", "cpu", 1.0, 0.8),
    _of("CPU of a WSS round trip, two workers / one", "scale", "workers=2 n=500", "cpu_x", 1.1, 1.0),
    _of("of 1,000 streams, % on the lesser worker", "scale", "workers=2 n=1000", "least", 40, None, less=False),
    _of("key check, of 1,000,000 keys / of the fewest", "keys", "keys=1000000", "check_x", 1.1, None),
    _of("1,000,000 keys in a further worker, MiB", "keys", "keys=1000000", "of_keys", 10, None),
)
