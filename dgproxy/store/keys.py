"""The key store: keys.db, owned by the supervisor (or, while none runs, by one command at a time under `store.lock`).

Rules of this file:

- Every change goes through `_change`: the keys, the generation and the audit entry change in one transaction, so that a
  generation number stands for exactly one content, across restarts too.
- Digests come from one pepper, whose id the file remembers; with another one it is not opened at all, as every key
  would look wrong.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, Self

import msgspec

from dgproxy.access.keys import KeyId, Minted, Pepper, Record, State, mint
from dgproxy.config import Overrides
from dgproxy.store import StoreError
from dgproxy.store.database import connect, problems, schema, told, transaction

FILE_NAME: Final = "keys.db"  # in the state directory

_SCHEMA: Final = schema("keys", application_id=0x6467706B)  # "dgpk"
_COLUMNS: Final = ", ".join(f'"{column}"' for column in Record.__struct_fields__)
_VALUES: Final = ", ".join(f":{column}" for column in Record.__struct_fields__)
_INSERT: Final = f"INSERT INTO keys ({_COLUMNS}) VALUES ({_VALUES})"  # noqa: S608 - constants
_UPDATE: Final = (
    "UPDATE keys SET name = :name, plan = :plan, overrides = :overrides, state = :state, not_before = :not_before, "
    "expires = :expires WHERE id = :id"
)
_TRIES: Final = 8  # to draw an id that is not taken: of 62^10, so a second try means that randomness is broken


Turn = Literal["disable", "enable", "revoke"]

TURNS: Final[Mapping[Turn, State]] = {"disable": State.DISABLED, "enable": State.ACTIVE, "revoke": State.REVOKED}


class NameTaken(Exception):  # noqa: N818 - an answer, not a fault
    """Another key that is not revoked has this name."""


class UnknownKey(Exception):  # noqa: N818 - an answer, not a fault
    """No key has this id."""


class RevokedForEver(Exception):  # noqa: N818 - an answer, not a fault
    """What was asked would bring a revoked key back."""


class KeyStore:
    """All keys on disk. Synchronous, for one thread at a time. Whatever fails raises StoreError and changes nothing."""

    def __init__(self, db: sqlite3.Connection, path: Path, pepper: Pepper) -> None:
        self._db = db
        self._path = path
        self._pepper = pepper

    @classmethod
    def open(cls, path: Path, pepper: Pepper) -> Self:
        """The store in this file, which is made if there is none.

        Raises:
            StoreError: damaged, locked, of a newer schema, of another pepper; or the directory is unusable.
        """

        def initialise(db: sqlite3.Connection) -> None:
            db.execute("INSERT INTO store (one, generation, pepper_id) VALUES (1, 0, ?)", (pepper.id,))

        db = connect(path, _SCHEMA, initialise)
        try:
            with told(path):
                _check_pepper(db, path, pepper)
        except BaseException:
            db.close()
            raise
        return cls(db, path, pepper)

    def close(self) -> None:
        """Folds the -wal file into the store and lets go of it."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def generation(self) -> int:
        """How many changes there ever were."""
        with told(self._path):
            (generation,) = self._db.execute("SELECT generation FROM store").fetchone()
        return int(generation)

    def records(self) -> Iterator[Record]:
        """Every record, in the order of making; what a snapshot is made of."""
        with told(self._path):
            for row in self._db.execute(f"SELECT {_COLUMNS} FROM keys ORDER BY number"):  # noqa: S608 - a constant
                yield _record(self._path, row)

    def page(self, after: int, most: int) -> list[tuple[int, Record]]:
        """Up to `most` records with their numbers, made after that of number `after` (0: from the first)."""
        query = f"SELECT number, {_COLUMNS} FROM keys WHERE number > ? ORDER BY number LIMIT ?"  # noqa: S608
        with told(self._path):
            return [(number, _record(self._path, row)) for number, *row in self._db.execute(query, (after, most))]

    def get(self, key_id: KeyId) -> Record | None:
        """The record of exactly this id."""
        query = f"SELECT {_COLUMNS} FROM keys WHERE id = ?"  # noqa: S608
        with told(self._path):
            row = self._db.execute(query, (key_id,)).fetchone()
        return None if row is None else _record(self._path, row)

    def create(
        self,
        *,
        name: str,
        plan: str,
        overrides: Overrides,
        expires: int | None,
        uid: int,
        now: int,
        random_bytes: Callable[[int], bytes],
    ) -> tuple[Minted, Record]:
        """A new key, and what is kept of it. Its text is in the result and nowhere else.

        Raises:
            NameTaken: names are unique among keys that are not revoked.
        """
        with self._change("create", uid, now) as changed:
            query = "SELECT 1 FROM keys WHERE name = ? AND state <> ?"
            if self._db.execute(query, (name, State.REVOKED)).fetchone() is not None:
                raise NameTaken
            minted = _unused(self._db, self._path, random_bytes)
            record = Record(
                id=minted.id,
                digest=self._pepper.digest(minted.key.encode()),
                name=name,
                pepper_id=self._pepper.id,
                plan=plan,
                overrides=overrides,
                state=State.ACTIVE,
                created=now,
                not_before=0,
                expires=expires,
                foreign=False,
            )
            self._db.execute(_INSERT, _values(record))
            changed.append(minted.id)
        return minted, record

    def turn(self, key_id: KeyId, turn: Turn, *, uid: int, now: int) -> tuple[Record, bool]:
        """Disables, enables or revokes a key; what it is now, and whether that is new.

        Names stay unique: a disabled key keeps its name, and a revoked one, whose name is free, never comes back.

        Raises:
            UnknownKey: no key has this id.
            RevokedForEver: it is revoked, and `turn` is another.
        """
        state = TURNS[turn]
        with self._change(turn, uid, now) as changed:
            record = self.get(key_id)
            if record is None:
                raise UnknownKey
            if record.state is state:
                return record, False
            if record.state is State.REVOKED:
                raise RevokedForEver
            self._db.execute("UPDATE keys SET state = ? WHERE id = ?", (state, key_id))
            changed.append(key_id)
        return msgspec.structs.replace(record, state=state), True

    @contextlib.contextmanager
    def bulk(self, action: str, uid: int, now: int) -> Iterator["Bulk"]:
        """Many changes in one: one transaction, one generation. `Bulk.undo` within makes it none."""
        bulk = Bulk(self._db, self._path, self._pepper.id)
        with contextlib.suppress(_Undone), self._change(action, uid, now) as changed:
            yield bulk
            if bulk.undone:
                raise _Undone
            changed.extend(bulk.changed)

    @contextlib.contextmanager
    def _change(self, action: str, uid: int, now: int) -> Iterator[list[KeyId]]:
        """One change, all or nothing. Within, the ids of the keys that it touches are put on the list.

        With none on it nothing has changed: no generation, no audit entry.
        """
        with told(self._path), transaction(self._db):
            changed: list[KeyId] = []
            yield changed
            if not changed:
                return
            self._db.execute("UPDATE store SET generation = generation + 1")
            self._db.executemany(
                "INSERT INTO audit (at, uid, action, key_id, generation) SELECT ?, ?, ?, ?, generation FROM store",
                ((now, uid, action, key_id) for key_id in changed),
            )


class Bulk:
    """What is done to many keys within one change. Its caller judges; here is only what is there and what is put."""

    def __init__(self, db: sqlite3.Connection, path: Path, pepper_id: str) -> None:
        self._db = db
        self._path = path
        self.pepper_id: Final = pepper_id
        self.changed: list[KeyId] = []
        self.undone = False

    def by_digest(self, digest: bytes) -> Record | None:
        """The record of this key, whatever its state."""
        return self._one("digest = ?", digest)

    def by_id(self, key_id: KeyId) -> Record | None:
        """The record of this id, whatever its state."""
        return self._one("id = ?", key_id)

    def _one(self, where: str, value: object) -> Record | None:
        row = self._db.execute(f"SELECT {_COLUMNS} FROM keys WHERE {where}", (value,)).fetchone()  # noqa: S608
        return None if row is None else _record(self._path, row)

    def named(self, name: str) -> KeyId | None:
        """The key that has this name and is not revoked."""
        query = "SELECT id FROM keys WHERE name = ? AND state <> ?"
        row = self._db.execute(query, (name, State.REVOKED)).fetchone()
        return None if row is None else KeyId(row[0])

    def unused_id(self, random_bytes: Callable[[int], bytes]) -> KeyId:
        """An id that no key has."""
        return _unused(self._db, self._path, random_bytes).id

    def insert(self, record: Record) -> None:
        """A new key."""
        self._db.execute(_INSERT, _values(record))
        self.changed.append(record.id)

    def update(self, record: Record) -> None:
        """A key as it is from now on; its id, digest and making stay."""
        self._db.execute(_UPDATE, _values(record))
        self.changed.append(record.id)

    def undo(self) -> None:
        """Nothing of it is to have happened."""
        self.undone = True


class _Undone(Exception):  # noqa: N818 - what is wanted
    """Ends a transaction that is to leave nothing."""


def _unused(db: sqlite3.Connection, path: Path, random_bytes: Callable[[int], bytes]) -> Minted:
    for _ in range(_TRIES):
        minted = mint(random_bytes)
        if db.execute("SELECT 1 FROM keys WHERE id = ?", (minted.id,)).fetchone() is None:
            return minted
    raise StoreError(path, f"{_TRIES} random ids in a row were taken", "the system's randomness is broken")


def _values(record: Record) -> dict[str, Any]:
    return msgspec.structs.asdict(record) | {"overrides": msgspec.json.encode(record.overrides).decode()}


def inspect(path: Path, pepper: Pepper) -> list[str]:
    """What is wrong with the store in this file, a line each. Nothing is written, and none that is missing is made."""

    def check(db: sqlite3.Connection) -> None:
        _check_pepper(db, path, pepper)
        for row in db.execute(f"SELECT {_COLUMNS} FROM keys"):  # noqa: S608 - a constant
            _record(path, row)

    return problems(path, _SCHEMA, check)


def _check_pepper(db: sqlite3.Connection, path: Path, pepper: Pepper) -> None:
    row = db.execute("SELECT pepper_id FROM store").fetchone()
    if row is None or row[0] != pepper.id:
        what = f"this pepper ({pepper.id}) is not the one that the store was made with ({row[0] if row else 'unknown'})"
        raise StoreError(path, what, "restore keys.pepper_file from a backup: without it every key is lost")


def _record(path: Path, row: Any) -> Record:
    values = dict(zip(Record.__struct_fields__, row, strict=True))
    try:
        values["overrides"] = msgspec.json.decode(values["overrides"])
        values["foreign"] = bool(values["foreign"])  # SQLite has no type for it
        return msgspec.convert(list(values.values()), Record)
    except (msgspec.MsgspecError, TypeError) as error:
        what = f"the row of key {values['id']} is damaged ({error})"
        raise StoreError(path, what, "restore it from a backup") from None
