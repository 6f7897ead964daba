"""What the figures were measured on, and what a process used of it."""

import os
import platform
import ssl
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

PROC: Final = Path("/proc")


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


def own_kib(pid: int) -> int:
    """Resident memory of a process that is its own, shared pages left out; 0 if it is gone."""
    return _status(pid, "RssAnon:")


def resident_kib(pid: int) -> int:
    """All of its resident memory; 0 if it is gone."""
    return _status(pid, "VmRSS:")


def _status(pid: int, name: str) -> int:
    try:
        text = (PROC / str(pid) / "status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith(name)), 0)


def pin(pid: int, core: int) -> None:
    """Keeps a process, with all its threads, on one core."""
    for task in (PROC / str(pid) / "task").iterdir():
        os.sched_setaffinity(int(task.name), {core})
