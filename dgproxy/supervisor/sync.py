"""The key table and its generations: the snapshot that workers map, the deltas that follow it.

Rules of this file: generations rise by one and are the store's own; a worker gets the snapshot and then every delta
since (or, for a change of very many keys, a new snapshot), in order, so that all of them hold the same table; a change
is done when every worker has said that it applied it.
"""

import asyncio
import fcntl
import mmap
import os
from collections.abc import Iterable
from typing import Final

from dgproxy.access.keys import Delta, Record, Table, write

COMPACT: Final = 1000  # deltas after which a fresh snapshot replaces snapshot and deltas
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


def make_snapshot(records: Iterable[Record], generation: int) -> int:
    """The key table of these records in a sealed memfd; the fd. Takes a while with many: not for the loop."""
    fd = os.memfd_create("dgproxy-keys", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with os.fdopen(os.dup(fd), "w+b") as out:
            write(records, generation, out)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


class Keys:
    """The table as the supervisor has it, and what a new worker must be sent to have the same."""

    def __init__(self, snapshot: int) -> None:
        """Takes the fd of `make_snapshot` over."""
        self.snapshot: int = snapshot
        self.table = Table(mmap.mmap(snapshot, 0, prot=mmap.PROT_READ))
        self.base: int = self.table.generation
        self.deltas: list[Delta] = []
        self._applied: dict[int, int] = {}  # worker -> its generation
        self._waiting: list[tuple[int, asyncio.Event]] = []

    def change(self, delta: Delta) -> None:
        """The next generation."""
        self.table.apply(delta)
        self.deltas.append(delta)

    def renew(self, snapshot: int) -> None:
        """The next generation as a whole new table, where a delta would be too large for one step of the loop."""
        os.close(self.snapshot)
        self.snapshot = snapshot
        self.table = Table(mmap.mmap(snapshot, 0, prot=mmap.PROT_READ))
        self.base = self.table.generation
        self.deltas = []

    def rebase(self, snapshot: int, generation: int) -> None:
        """A fresh snapshot for workers to come, with all deltas up to its generation in it."""
        os.close(self.snapshot)
        self.snapshot = snapshot
        self.base = generation
        self.deltas = [delta for delta in self.deltas if delta.generation > generation]

    def applied(self, worker: int, generation: int) -> None:
        """A worker's word that it is at this generation."""
        self._applied[worker] = generation
        self._wake()

    def forget(self, worker: int) -> None:
        """A dead worker holds nobody up."""
        self._applied.pop(worker, None)
        self._wake()

    async def everywhere(self, generation: int, within: float) -> bool:
        """Whether every worker that serves is at this generation within so many seconds."""
        reached = asyncio.Event()
        entry = (generation, reached)
        self._waiting.append(entry)
        self._wake()
        try:
            async with asyncio.timeout(within):
                await reached.wait()
        except TimeoutError:
            return False
        finally:
            self._waiting.remove(entry)
        return True

    def _wake(self) -> None:
        least = min(self._applied.values(), default=None)
        for generation, reached in self._waiting:
            if least is None or least >= generation:
                reached.set()

    def close(self) -> None:
        """Lets go of the snapshot."""
        os.close(self.snapshot)
