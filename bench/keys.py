"""`python -m bench keys`: what 10 to 1,000,000 keys cost in time and memory, and whether the workers share them.

Rules of this file: the key of every request is one from the middle; memory of each server is taken before any load, and
a further worker's is the difference between two workers and one, each page counted by its fair part (a page that two
processes share is half each); the pure check is timed in this process on tables made of the same records, all of them
in turns, so that whatever the machine does meanwhile it does to all.
"""

import gc
import mmap
import random
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from bench.machine import PROC, Memory, memory
from bench.runs import Row
from bench.scenarios import Figure, scenarios
from bench.servers import Rig, Server, Unstarted
from bench.studies import Bench, Study, row, starts, unstarted
from dgproxy.access.keys import Pepper, Record, Table, write
from dgproxy.store.keys import FILE_NAME, KeyStore

NAME: Final = "keys"
TURNS: Final = 200  # of each table
CHECKS: Final = 500  # in a turn
_SETTLE: Final = 1.0  # seconds between ready and a look at memory
_KIB: Final = 1024
_TABLE: Final = "/memfd:dgproxy-keys"  # the name of a worker's mapping


# --- the check, in this process -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checked:
    """Nanoseconds of a key check, of one key again and again and of keys drawn from all; and over the least table's.

    With very many keys drawn ones are seldom in the processor's cache: that costs time, though no search is longer.
    """

    same: float
    same_ratio: float
    drawn: float
    drawn_ratio: float


@dataclass(frozen=True)
class Subject:
    """A key table as a worker has it, with what it takes to ask it."""

    table: Table
    pepper: Pepper
    keys: Sequence[str]

    def turn(self, chosen: Sequence[str], now: float) -> float:
        """Nanoseconds a check. The texts are fresh ones, as a request's are."""
        fresh = [bytes(bytearray(key, "ascii")) for key in chosen]
        check, pepper = self.table.check, self.pepper
        assert isinstance(check(fresh[0], pepper, now), Record)
        began = time.perf_counter_ns()
        for key in fresh:
            check(key, pepper, now)
        return (time.perf_counter_ns() - began) / len(fresh)


def subject(rig: Rig) -> Subject:
    """The table of a rig's keys, mapped as a worker maps it; written once."""
    pepper = Pepper((rig.state / "pepper").read_bytes())
    path = rig.directory / "table"
    if not path.exists():
        fresh = rig.directory / "table.new"
        with KeyStore.open(rig.state / FILE_NAME, pepper) as store, fresh.open("w+b") as out:
            write(store.records(), store.generation(), out)
        fresh.rename(path)
    with path.open("rb") as file:
        buffer = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    return Subject(Table(buffer), pepper, rig.keys)


def checked(rigs: Mapping[int, Rig]) -> dict[int, Checked]:
    """What a check takes with each number of keys, in turns."""
    subjects = {count: subject(rig) for count, rig in rigs.items()}
    least = min(subjects)
    now = time.time()
    drawn: dict[int, list[float]] = {count: [] for count in subjects}
    same: dict[int, list[float]] = {count: [] for count in subjects}
    order = list(subjects)
    gc.collect()
    gc.disable()
    try:
        for turn in range(TURNS):
            random.shuffle(order)
            for count in order:
                one = subjects[count]
                drawn[count].append(one.turn(random.choices(one.keys, k=CHECKS), now))
                same[count].append(one.turn([one.keys[turn % count]] * CHECKS, now))
    finally:
        gc.enable()
    return {
        count: Checked(
            statistics.median(same[count]),
            beside(same[count], same[least]),
            statistics.median(drawn[count]),
            beside(drawn[count], drawn[least]),
        )
        for count in subjects
    }


def beside(mine: Sequence[float], base: Sequence[float]) -> float:
    """The median of the turns' own ratios."""
    return statistics.median(one / other for one, other in zip(mine, base, strict=True))


# --- servers --------------------------------------------------------------------------------------------------------


def mappings(maps: str) -> dict[int, int]:
    """Of a process's /proc/PID/maps: the key tables it has mapped, by inode, with their size in bytes."""
    found = {}
    for line in maps.splitlines():
        where, _, _, _, inode, *path = line.split(maxsplit=5)
        if path and path[0].startswith(_TABLE):
            begin, end = where.split("-")
            found[int(inode)] = int(end, 16) - int(begin, 16)
    return found


def table_faults(tables: Sequence[Mapping[int, int]]) -> list[str]:
    """What is wrong with the tables of several workers: they are to have one, and the same."""
    if all(len(table) == 1 and table == tables[0] for table in tables):
        return []
    return [f"workers don't share one key table: {[dict(table) for table in tables]}"]


def _tables(server: Server) -> list[dict[int, int]]:
    return [mappings((PROC / str(pid) / "maps").read_text()) for pid in server.pids[1:]]


def _fair_mib(server: Server) -> float:
    time.sleep(_SETTLE)
    return sum(memory(pid).fair for pid in server.pids) / _KIB


def sizes(parts: Sequence[Memory]) -> dict[str, float]:
    """MiB of the first worker (of the only process where there is no other), and of its parent."""
    worker = parts[-1] if len(parts) < 2 else parts[1]
    found = {"own": worker.own / _KIB, "shared": worker.shared / _KIB}
    return found if len(parts) < 2 else {**found, "parent": parts[0].own / _KIB}


def _rows(bench: Bench) -> Iterator[Row]:
    load = scenarios(seconds=bench.seconds, streams=1)["requests"]
    bench.say("making keys")
    rigs = {count: bench.rig.holding(count) for count in bench.key_counts}
    bench.say("the check alone")
    checks = checked(rigs)
    least: dict[str, float] = {}  # what a further worker takes with the fewest keys, by server
    for count, rig in rigs.items():
        variant = f"keys={count}"
        for name, start in starts(rig).items():
            bench.say(f"{name}, {variant}")
            ours = name not in ("nginx", "haproxy")
            try:
                with start(1) as server:
                    one = _fair_mib(server)
                    figures = {"start": server.started, **sizes([memory(pid) for pid in server.pids])}
                    run = bench.measure(load, server, rig.key)
                with start(2) as two:
                    further = _fair_mib(two) - one
                    tables = _tables(two) if ours else []
            except Unstarted as why:
                yield unstarted(bench, NAME, name, variant, why)
                continue
            figures |= load.take(run)
            figures |= {"further": further, "of_keys": further - least.setdefault(name, further)}
            if ours:
                check = checks[count]
                figures |= {"table": max(size for table in tables for size in table.values()) / _KIB**2}
                figures |= {"check": check.same, "check_x": check.same_ratio}
                figures |= {"drawn": check.drawn, "drawn_x": check.drawn_ratio}
            yield row(
                bench.round,
                NAME,
                name,
                figures,
                variant=variant,
                run=run,
                processes=len(server.pids),
                faults=table_faults(tables) if ours else [],
                detail={"tables": tables},
            )


STUDY: Final = Study(
    NAME,
    "small requests on 32 kept-alive connections, and memory, by number of keys",
    (
        Figure("rate", "a second", less_is_better=False, digits=0),
        Figure("cpu", "us CPU each"),
        Figure("p99", "us", compared=False),
        Figure("start", "s", compared=False, digits=2),
        Figure("own", "MiB", compared=False),
        Figure("shared", "MiB", compared=False),
        Figure("parent", "MiB", compared=False),
        Figure("table", "MiB", compared=False),  # which the workers share; seen in nobody's memory before it is used
        Figure("further", "MiB", compared=False),  # what one more worker takes, and
        Figure("of_keys", "MiB", compared=False),  # what of it is not there with the fewest keys
        Figure("check", "ns", compared=False, digits=0),  # of one key again and again, and
        Figure("check_x", "fewest", compared=False, digits=2),  # over that with the fewest
        Figure("drawn", "ns", compared=False, digits=0),  # of keys drawn from all
        Figure("drawn_x", "fewest", compared=False, digits=2),
    ),
    _rows,
)
