"""What outlives a restart, and the lock of the one process that may write it.

Everything that opens a database is in this package. Whoever writes holds `lock` on the state directory: the supervisor
as long as it runs, a command for a moment while none runs.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

LOCK_NAME: Final = "dgproxy.lock"
_RETRY: Final = 0.05  # seconds
_OTHERS_WRITE: Final = 0o022


class StoreError(Exception):
    """A file of the state cannot be used: which, why, and what to do. Nothing was changed."""

    def __init__(self, path: Path, what: str, remedy: str) -> None:
        super().__init__(f"{path}: {what}; {remedy}")


class StateBusy(Exception):  # noqa: N818 - what is, not whose fault
    """Another process holds the state directory."""

    def __init__(self, directory: Path, holder: str) -> None:
        super().__init__(f"{directory}: in use by another dgproxy{holder}; stop it, or wait until it is done")


def check_directory(directory: Path) -> None:
    """StoreError if this is no directory in which only its owner can put files."""
    try:
        mode = directory.stat().st_mode
    except OSError as error:
        remedy = "`dgproxy init` makes it, mode 0700"
        raise StoreError(directory, f"cannot be used as state directory ({error.strerror})", remedy) from None
    if not directory.is_dir():
        raise StoreError(directory, "is no directory", "name another in [state]")
    if mode & _OTHERS_WRITE:
        raise StoreError(directory, f"has mode {mode & 0o7777:04o}, so others can replace its files", "chmod 700")


@contextlib.contextmanager
def lock(directory: Path, wait: float) -> Iterator[None]:
    """Holds the state directory against every other process that asks for it; waits up to `wait` seconds.

    The kernel gives the lock back when its holder dies, however it dies, so it is never stale.

    Raises:
        StateBusy: it was held all the time.
        StoreError: the directory is unusable.
    """
    check_directory(directory)
    path = directory / LOCK_NAME
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.fchmod(fd, 0o600)  # the umask may have taken some of it
    except OSError as error:
        remedy = "run as the owner of the state directory"
        raise StoreError(path, f"cannot be opened ({error.strerror})", remedy) from None
    try:
        give_up = time.monotonic() + wait
        while not _taken(fd):
            if time.monotonic() >= give_up:
                raise StateBusy(directory, _holder(fd))
            time.sleep(_RETRY)
        with contextlib.suppress(OSError):  # a full disk; it is for the message of whoever comes next, the flock counts
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        yield
    finally:
        os.close(fd)


def _taken(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(fd: int) -> str:
    written = os.pread(fd, 20, 0).strip()
    return f" (process {written.decode()})" if written.isdigit() else ""
