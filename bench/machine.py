"""What the figures were measured on, and what a process used of it."""

import os
import platform
import ssl
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from tests.support.processes import children

PROC: Final = Path("/proc")
PROXY_CORE, LOAD_CORE = 0, 1


def facts() -> dict[str, Any]:
    """The machine, and the versions of what runs on it."""
    models = [
        line.partition(":")[2].strip() for line in (PROC / "cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        # Distributions build theirs with a profile, which is worth a tenth of a small request; others often do not.
        "python": f"{platform.python_version()}, {'the system' if sys.base_prefix == '/usr' else 'not the system'}'s",
        "openssl": ssl.OPENSSL_VERSION,
        "uvloop": version("uvloop"),
        "picows": version("picows"),
        "load_before": os.getloadavg()[0],
    }


def cpu_seconds(pid: int) -> float:
    """What a process has run so far, all its threads; 0 if it is gone, which is a fault of its own."""
    total = 0
    try:
        for task in (PROC / str(pid) / "task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
    except OSError:
        return 0.0
    return total / 1e9


def family_cpu_seconds(pid: int) -> float:
    """What a process and all that come of it have run so far, those that have ended (and were waited for) included."""
    try:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    ended = (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")  # cutime, cstime; proc(5)
    return cpu_seconds(pid) + ended + sum(family_cpu_seconds(child) for child in children(pid))


def own_kib(pid: int) -> int:
    """Resident memory of a process that is its own, shared pages left out; 0 if it is gone."""
    return _status(pid, "RssAnon:")


def resident_kib(pid: int) -> int:
    """All of its resident memory; 0 if it is gone."""
    return _status(pid, "VmRSS:")


@dataclass(frozen=True)
class Memory:
    """A process's resident memory in KiB: its own pages, those shared with others, and its fair part of both."""

    own: int = 0
    shared: int = 0
    fair: int = 0


def memory(pid: int) -> Memory:
    """Nothing if it is gone."""
    found: dict[str, int] = {}
    try:
        for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines()[1:]:
            name, size, *_ = line.split()
            found[name] = int(size)
    except OSError:
        return Memory()
    own = found["Private_Clean:"] + found["Private_Dirty:"]
    return Memory(own, found["Rss:"] - own, found["Pss:"])


def _status(pid: int, name: str) -> int:
    try:
        text = (PROC / str(pid) / "status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith(name)), 0)


def pin(pid: int, *allowed: int) -> None:
    """Keeps a process, with all its threads, on these cores."""
    for task in (PROC / str(pid) / "task").iterdir():
        os.sched_setaffinity(int(task.name), allowed)


def cores(workers: int) -> set[int]:
    """Where a proxy with so many workers runs: one has a core of its own.

    More have all cores but the load's, if that leaves two; else they share the load's.
    """
    if workers == 1:
        return {PROXY_CORE}
    every = os.sched_getaffinity(0)
    return every - {LOAD_CORE} if len(every) > 2 else every
