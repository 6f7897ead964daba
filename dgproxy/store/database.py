"""SQLite files: made whole or not at all, recognised before use, brought up to date by numbered migrations.

Rules of this file:

- A file that is not certainly ours, whole and of a known schema is never written, nor taken for an empty one. A new one
  is made beside its place and linked into it when it is complete; so an empty file there is a damaged one.
- Nothing here opens a database's file but SQLite: to close another descriptor of it would drop SQLite's own locks
  (sqlite.org/howtocorrupt.html 2.2).
- Files have mode 0600 from their first moment, whatever the umask. SQLite gives -wal and -shm the mode and owner of the
  file (sqlite.org/src, os_unix.c: findCreateFileMode).
- Migrations only expand: what an older release reads and writes stays. Each runs in one transaction with its number.
"""

import contextlib
import importlib.resources
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from dgproxy.store import StoreError, check_directory

_BUSY: Final = 5.0  # seconds to wait for another process's transaction
_OTHERS: Final = 0o077
_FROM_BACKUP: Final = "restore it from a backup; it was left as it is"

_REASONS: Final = {  # sqlite.org/rescode.html: primary result codes
    sqlite3.SQLITE_BUSY: ("is locked by another process", "end that one (`fuser` names it)"),
    sqlite3.SQLITE_LOCKED: ("is locked by another process", "end that one (`fuser` names it)"),
    sqlite3.SQLITE_NOTADB: ("is not a SQLite database", _FROM_BACKUP),
    sqlite3.SQLITE_CORRUPT: ("is damaged or cut short", _FROM_BACKUP),
    sqlite3.SQLITE_FULL: ("cannot grow: the disk is full", "make room; nothing was changed"),
    sqlite3.SQLITE_READONLY: ("cannot be written", "check its owner, its mode and its file system"),
    sqlite3.SQLITE_CANTOPEN: ("cannot be opened", "check the directory's owner and mode"),
}


@dataclass(frozen=True, slots=True)
class Schema:
    """A kind of database: the id in its header, and the migrations that make it, the first to the last."""

    application_id: int
    migrations: tuple[str, ...]


def schema(name: str, application_id: int) -> Schema:
    """The schema whose migrations are the files NAME-0001.sql and so on."""
    files = importlib.resources.files("dgproxy.store.migrations").iterdir()
    ours = sorted((file for file in files if file.name.startswith(f"{name}-")), key=lambda file: file.name)
    return Schema(application_id, tuple(file.read_text("utf-8") for file in ours))


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """Whatever SQLite or the file system has against this file, as a StoreError."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        what, remedy = _REASONS.get(code, (f"failed ({error})", "nothing was changed"))
        raise StoreError(path, what, remedy) from error
    except OSError as error:
        raise StoreError(path, f"cannot be used ({error.strerror})", "check its owner and mode") from error


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All that happens within, or nothing of it."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # some failures have rolled back by themselves
            db.execute("ROLLBACK")
        raise


def connect(path: Path, kind: Schema, initialise: Callable[[sqlite3.Connection], None]) -> sqlite3.Connection:
    """A connection to the database at this path, made with `initialise` if there is none, and of the newest schema.

    It may be used from any thread, but by one at a time. StoreError if the file is unusable.
    """
    check_directory(path.parent)
    with told(path):
        if not path.exists():
            _make(path, kind, initialise)
        _check_file(path)
        db = _connection(path, "mode=rw")
        try:
            version = _version(db, path, kind)
            _write_ahead(db, path)
            _check_whole(db, path)
            _migrate(db, kind, version)
        except BaseException:
            db.close()
            raise
    return db


def problems(path: Path, kind: Schema, check: Callable[[sqlite3.Connection], None]) -> list[str]:
    """What is wrong with this file, or what `check` raises as StoreError. A file that is not there has no problems.

    Nothing is written; and where nobody has the database open, no file is made beside it either.
    """
    try:
        check_directory(path.parent)
        with told(path):
            if not path.exists():
                _check_alone(path)
                return []
            _check_file(path)
            how = "mode=ro" if _beside(path, "-wal").exists() else "mode=ro&immutable=1"
            with contextlib.closing(_connection(path, how)) as db:
                _version(db, path, kind)
                _check_whole(db, path)
                found = [line for (line,) in db.execute("PRAGMA quick_check(5)")]
                check(db)
    except StoreError as error:
        return [str(error)]
    return [] if found == ["ok"] else [f"{path}: {line}" for line in found]


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _connection(path: Path, how: str) -> sqlite3.Connection:
    uri = f"file:{quote(os.fsencode(path.absolute()))}?{how}"
    db = sqlite3.connect(uri, uri=True, timeout=_BUSY, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA trusted_schema = OFF")
    return db


def _check_alone(path: Path) -> None:
    """StoreError if the file that is not there left something behind."""
    if _beside(path, "-wal").exists():
        raise StoreError(path, "is missing, but its -wal file is there", "restore both from a backup")


def _make(path: Path, kind: Schema, initialise: Callable[[sqlite3.Connection], None]) -> None:
    _check_alone(path)
    new = _beside(path, ".new")
    for suffix in ("", "-journal", "-wal", "-shm"):  # of a maker that died
        _beside(new, suffix).unlink(missing_ok=True)
    fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.fchmod(fd, 0o600)  # the umask may have taken some of it
    os.close(fd)
    with contextlib.closing(_connection(new, "mode=rw")) as db:
        db.execute(f"PRAGMA application_id = {kind.application_id}")
        _migrate(db, kind, 0)
        with transaction(db):
            initialise(db)
    os.link(new, path)  # fails rather than replaces
    new.unlink()
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    os.fsync(directory)
    os.close(directory)


def _check_file(path: Path) -> None:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise StoreError(path, "is no regular file", "name another directory in [state]")
    if status.st_mode & _OTHERS:
        mode = stat.S_IMODE(status.st_mode)
        raise StoreError(path, f"has mode {mode:04o}, so others than its owner can use it", "chmod 600")
    if not status.st_size:
        raise StoreError(path, "is empty, though it was made complete", _FROM_BACKUP)
    if not os.access(path, os.R_OK | os.W_OK, effective_ids=True):  # SQLite would open it for reading, and say nothing
        raise StoreError(path, *_REASONS[sqlite3.SQLITE_READONLY])


def _version(db: sqlite3.Connection, path: Path, kind: Schema) -> int:
    (application_id,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if application_id != kind.application_id or version < 1:
        raise StoreError(path, "is a database of something else", "move it away, or name another directory in [state]")
    if version > len(kind.migrations):
        what = f"has schema {version}, and this release knows up to {len(kind.migrations)}"
        raise StoreError(path, what, "run the release that wrote it, or a newer one")
    return int(version)


def _check_whole(db: sqlite3.Connection, path: Path) -> None:
    """SQLite sees by itself that whole pages are missing, but fills up the last one with zeros."""
    wal = _beside(path, "-wal")
    if wal.exists() and wal.stat().st_size:
        return  # in which the missing pages may be
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    (size,) = db.execute("PRAGMA page_size").fetchone()
    if path.stat().st_size < pages * size:
        raise StoreError(path, *_REASONS[sqlite3.SQLITE_CORRUPT])


def _write_ahead(db: sqlite3.Connection, path: Path) -> None:
    (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise StoreError(path, "lies on a file system without shared memory", "put the state on a local disk")
    db.execute("PRAGMA synchronous = FULL")  # in WAL mode NORMAL would lose the last changes with the power
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _migrate(db: sqlite3.Connection, kind: Schema, version: int) -> None:
    for number, script in enumerate(kind.migrations[version:], version + 1):
        try:
            db.executescript(f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version = {number};\nCOMMIT;")
        except sqlite3.Error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
