"""Processes as Linux sees them: which carry a mark, which are alive, how one ends. By id only, never by name."""

import contextlib
import os
import random
import signal
import socket
import time
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")


_given: set[int] = set()


def free_port() -> int:
    """A loopback port that was free a moment ago, and that no outgoing connection is given meanwhile."""
    lowest = int((PROC / "sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in random.sample(range(10_000, lowest), 1000):
        if port in _given:  # to somebody who has not bound it yet
            continue
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            _given.add(port)
            return port
    raise AssertionError("no free port below the ephemeral ones")


def marked(mark: str) -> set[int]:
    """Every living process that was started with this mark in its environment, itself or through an ancestor."""
    wanted = mark.encode()
    found = set()
    for entry in PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.add(int(entry.name))
        except OSError:
            continue  # it ended, or is not ours
    return found


def alive(pid: int) -> bool:
    """Whether a process runs. A zombie does not."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] != "Z"


def children(pid: int) -> set[int]:
    """The living children of a process."""
    found = set()
    for entry in PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            text = (entry / "stat").read_text()
        except OSError:
            continue
        state, parent = text.rpartition(")")[2].split()[:2]
        if int(parent) == pid and state != "Z":
            found.add(int(entry.name))
    return found


def wait_gone(pids: set[int], timeout: float) -> set[int]:
    """Wait until none is alive; those that still are when time is up."""
    deadline = time.monotonic() + timeout
    left = {pid for pid in pids if alive(pid)}
    while left and time.monotonic() < deadline:
        time.sleep(0.02)
        left = {pid for pid in left if alive(pid)}
    return left


def kill(pids: set[int]) -> None:
    """End what a failed test left behind."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def wait_accepting(port: int, timeout: float = 15.0) -> None:
    """Wait until something accepts on a loopback port."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
