"""Scenarios that are more than one load on one server: each takes its rows in its own way.

Rules of this file: a row has the shape that every scenario's has, and a `variant` that says what was different
("keys=1000000", "workers=2 n=500", "at rest"); a server that doesn't start gives a row with that as its fault, and the
others go on.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final

from bench.runs import Row
from bench.scenarios import GENERATOR_LIMIT, Figure, Run, Scenario, measure
from bench.servers import NAMES, Rig, Server, Unstarted, fastest

Start = Callable[[int], AbstractContextManager[Server]]  # with so many workers
KEY_COUNTS: Final = (10, 1000, 100_000, 1_000_000)
STREAM_COUNTS: Final = (50, 200, 500, 1000, 2000)


@dataclass(frozen=True)
class Bench:
    """What a study needs to take the rows of one round."""

    rig: Rig
    round: int
    seconds: float  # of the steady state of a run
    upstream_pid: int
    key_counts: Sequence[int]
    stream_counts: Sequence[int]
    say: Callable[[str], None]  # what is being done, for whoever waits

    def measure(
        self, scenario: Scenario, server: Server, key: str, during: AbstractContextManager[object] | None = None
    ) -> Run:
        """One load on a server, and what is done meanwhile."""
        return measure(
            scenario,
            server,
            key=key,
            tls=self.rig.tls,
            upstream_pid=self.upstream_pid,
            during=during or contextlib.nullcontext(),
        )


@dataclass(frozen=True)
class Study:
    """A scenario that takes its rows itself."""

    name: str
    title: str
    figures: tuple[Figure, ...]
    rows: Callable[[Bench], Iterator[Row]]


def starts(rig: Rig) -> dict[str, Start]:
    """The servers of a study by name, dgproxy as it runs where nobody forces a form of its pump."""
    form = fastest()
    return {"nginx": rig.nginx, "haproxy": rig.haproxy, NAMES[form]: lambda workers: rig.dgproxy(form, workers)}


def row(
    number: int,
    scenario: str,
    server: str,
    figures: Mapping[str, float],
    *,
    variant: str = "",
    run: Run | None = None,
    processes: int = 0,
    faults: Sequence[str] = (),
    detail: Mapping[str, Any] | None = None,
    configuration: str | None = None,
) -> Row:
    """One run of one server: what table, JSON and report are made of.

    `run` is there where a generator ran; `detail` is for JSON alone.
    """
    found = [*(run.faults if run else ()), *faults]
    generator = run.generator if run else 0.0
    return {
        "round": number,
        "scenario": scenario,
        "variant": variant,
        "server": server,
        "figures": dict(figures),
        "generator": round(generator, 3),
        "valid": generator <= GENERATOR_LIMIT and not found,
        "faults": found,
        "cpu_s": round(run.cpu, 4) if run else 0.0,
        "wall_s": round(run.wall, 3) if run else 0.0,
        "processes": processes,
        "load": run.load if run else {},
        "detail": dict(detail or {}),
        "configuration": configuration,
    }


def unstarted(bench: Bench, scenario: str, server: str, variant: str, why: Unstarted) -> Row:
    """The row of a server that doesn't start."""
    return row(bench.round, scenario, server, {}, variant=variant, faults=[f"does not start: {why}"])
