"""`keys import` and `keys export`: many keys at once, in and out.

Rules of this file:

- An import comes in parts, as a line of the control socket is bounded. Each part's keys are digests as soon as it is
  read; what waits for the rest holds no key's text. Nothing is changed before `commit`, which is one transaction.
- All or nothing: one entry that can't be taken leaves everything as it was, unless what is bad is to be skipped.
- The same file again changes nothing. A key is known by its digest; what the file does not say stays; a revoked key
  stays revoked.
- An answer holds names, ids and plans, never a text that may be a key.
- Everything here may take long, so it runs where SQLite does; it holds plain bytes rather than many objects, as every
  full collection of garbage would look at them and hold up the loop.
"""

import enum
import os
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

import msgspec

from dgproxy import units
from dgproxy.access.keyfiles import MAX_ENTRIES, Entry, write_export
from dgproxy.access.keys import (
    MAX_KEY_LENGTH,
    MIN_FOREIGN_LENGTH,
    PREFIX,
    Delta,
    KeyId,
    Pepper,
    Record,
    State,
    checksum_ok,
    is_foreign,
    public_id,
)
from dgproxy.config import Config, Overrides, Quota, parse_overrides
from dgproxy.store.keys import Bulk, KeyStore
from dgproxy.store.service import (
    MAX_NAME,
    PAGE_BYTES,
    PAGE_KEYS,
    Rejected,
    arguments,
    check_name,
    check_overrides,
    moment,
    shown_overrides,
)

MAX_HELD: Final = 256 * 1024 * 1024  # bytes of one import
IDLE: Final = 10.0  # seconds without a part after which an import is taken for abandoned
IN_ONE_DELTA: Final = 500  # changed keys; with more, workers get a new table instead
_MOST_NUMBERED: Final = 100_000  # of one name

Snapshot = Callable[[Iterable[Record], int], int]


class Outcome(enum.StrEnum):
    """What an entry came to."""

    CREATED = "created"
    CHANGED = "changed"
    UNCHANGED = "unchanged"
    REVOKED = "revoked"  # it is here and revoked, and stays so
    BAD = "bad"


class Row(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one entry; those that are unchanged are only counted."""

    place: int
    outcome: Outcome
    id: KeyId | None = None  # of a new key that was not made after all, it means nothing
    name: str | None = None
    note: str = ""  # what is wrong, or to be known
    changes: dict[str, tuple[Any, Any]] = {}  # field -> before, after


class _Held(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """An entry whose key is a digest; `problem`: why it can't be taken."""

    entry: Entry  # without its key
    digest: bytes = b""
    id: KeyId | None = None  # that it must have
    foreign: bool = True
    problem: str = ""

    def __repr__(self) -> str:
        return f"<_Held {self.entry.place}>"


class _Begin(msgspec.Struct, forbid_unknown_fields=True):
    pepper_id: str | None = None  # that an export's digests were made with


class _Part(msgspec.Struct, forbid_unknown_fields=True, rename={"number": "import"}):
    number: str
    entries: str  # a JSON list of Entry: decoded where there is time

    def __repr__(self) -> str:
        return "<_Part>"


class _Commit(msgspec.Struct, forbid_unknown_fields=True, rename={"number": "import"}):
    number: str
    dry_run: bool = False
    skip_bad: bool = False


class _Rows(msgspec.Struct, forbid_unknown_fields=True, rename={"number": "import"}):
    number: str
    page: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)] = 0


class _After(msgspec.Struct, forbid_unknown_fields=True):
    after: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)] = 0


@dataclass(slots=True)
class _Import:
    """One import under way: pages of msgpack, of what came and then of what became of it."""

    number: str
    touched: float
    held: deque[bytes] = field(default_factory=deque)
    entries: int = 0
    size: int = 0
    rows: list[bytes] | None = None  # JSON lists of Row


_encode: Final = msgspec.msgpack.Encoder().encode
_held: Final = msgspec.msgpack.Decoder(list[_Held]).decode
_entries: Final = msgspec.json.Decoder(list[Entry]).decode


class Imports:
    """The import under way, of which there is one at most. `clock` gives seconds that only rise."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._one: _Import | None = None

    def expire(self) -> None:
        """Forgets an import that nobody goes on with."""
        if self._one is not None and self._clock() - self._one.touched >= IDLE:
            self._one = None

    def begin(self, pepper: Pepper, args: Mapping[str, Any]) -> dict[str, Any]:
        """`keys.import.begin` {pepper_id?}: {"import": N}, by which the other three know it.

        Raises:
            Rejected: bad_request, busy, other_pepper.
        """
        theirs = arguments(args, _Begin).pepper_id
        if theirs not in {None, pepper.id}:
            what = f"the file's digests were made with the pepper {theirs}, and this store's is {pepper.id}"
            raise Rejected("other_pepper", f"{what}; bring keys.pepper_file along, or import the keys themselves")
        self.expire()
        if self._one is not None:
            raise Rejected("busy", "another import is under way; try again when it is done")
        self._one = _Import(secrets.token_hex(8), self._clock())
        return {"import": self._one.number}

    def part(self, pepper: Pepper, args: Mapping[str, Any]) -> dict[str, Any]:
        """`keys.import.part` {import, entries}: {"held": entries so far}.

        Raises:
            Rejected: bad_request, unknown_import, too_many.
        """
        given = arguments(args, _Part)
        one = self._of(given.number)
        try:
            entries = _entries(given.entries)
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):  # whose message may repeat a key
            raise Rejected("bad_request", "bad arguments: entries is no list of entries") from None
        page = _encode([_hold(entry, pepper) for entry in entries])
        if one.rows is not None or one.entries + len(entries) > MAX_ENTRIES or one.size + len(page) > MAX_HELD:
            raise Rejected("too_many", f"an import has at most {MAX_ENTRIES} keys and {units.format_size(MAX_HELD)}")
        one.held.append(page)
        one.entries += len(entries)
        one.size += len(page)
        return {"held": one.entries}

    def commit(
        self,
        store: KeyStore,
        config: Config,
        args: Mapping[str, Any],
        *,
        uid: int,
        now: float,
        random_bytes: Callable[[int], bytes],
        snapshot: Snapshot | None = None,
    ) -> tuple[dict[str, Any], Delta | int | None]:
        """`keys.import.commit` {import, dry_run?, skip_bad?}: {"applied", "counts", "pages", "generation"}.

        And what workers must hear: a delta, or with many changes what `snapshot` made of all records and the coming
        generation; before they are final, so that there are no changes of which workers can't hear.

        Raises:
            Rejected: bad_request, unknown_import, no_snapshot.
            StoreError: the store failed.
        """
        given = arguments(args, _Commit)
        one = self._of(given.number)
        if one.rows is not None:
            raise Rejected("unknown_import", "this import is done")
        job = _Job(config, int(now), random_bytes)
        one.rows = []
        made: int | None = None
        try:
            with store.bulk("import", uid, int(now)) as bulk:
                while one.held:  # let go of piece by piece, for the same reason as they are pieces
                    rows = [job.settle(bulk, held) for held in _held(one.held.popleft())]
                    one.rows += _pages([row for row in rows if row.outcome is not Outcome.UNCHANGED])
                applied = not given.dry_run and (given.skip_bad or not job.counts[Outcome.BAD])
                if not applied:
                    bulk.undo()
                elif len(bulk.changed) > IN_ONE_DELTA and snapshot is not None:
                    made = _made(snapshot, store)
        except BaseException:
            self._one = None
            if made is not None:
                os.close(made)
            raise
        one.touched = self._clock()
        answer = {"applied": applied, "counts": job.counts, "pages": len(one.rows), "generation": store.generation()}
        if not applied or not bulk.changed:
            return answer, None
        return answer, made if made is not None else Delta(store.generation(), tuple(job.records))

    def rows(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """`keys.import.rows` {import, page}: {"rows": a JSON list of Row}; the last page also ends the import.

        Raises:
            Rejected: bad_request, unknown_import.
        """
        given = arguments(args, _Rows)
        one = self._of(given.number)
        if one.rows is None or given.page > len(one.rows):
            raise Rejected("unknown_import", "this import has no such page")
        if given.page == len(one.rows):
            self._one = None
            return {"rows": "[]"}
        return {"rows": one.rows[given.page].decode()}

    def _of(self, number: str) -> _Import:
        if self._one is None or self._one.number != number:
            raise Rejected("unknown_import", "this import is not under way any more; begin anew")
        self._one.touched = self._clock()
        return self._one


def _made(snapshot: Snapshot, store: KeyStore) -> int:
    try:
        return snapshot(store.records(), store.generation() + 1)
    except OSError as error:
        what = f"no new table of the keys could be made ({error.strerror}); nothing was changed"
        raise Rejected("no_snapshot", what) from None


def _pages(rows: list[Row]) -> list[bytes]:
    """Rows as JSON lists that fit a line of the control socket with room to spare."""
    pages: list[list[bytes]] = []
    size = PAGE_BYTES
    for row in rows:
        line = msgspec.json.encode(row)
        if size + len(line) > PAGE_BYTES:
            pages.append([])
            size = 0
        pages[-1].append(line)
        size += len(line)
    return [b"[" + b",".join(page) + b"]" for page in pages]


def _hold(entry: Entry, pepper: Pepper) -> _Held:
    if entry.moved is not None:
        moved = entry.moved
        return _Held(entry=entry, digest=moved.digest, id=moved.id, foreign=moved.foreign)
    key = entry.key or ""
    bare = msgspec.structs.replace(entry, key=None)
    problem = key_problem(key)
    if not problem and key in (entry.name or ""):
        problem = "the key stands in its name too, where everybody would read it"
        bare = msgspec.structs.replace(bare, name=None)
    if problem:
        return _Held(entry=bare, problem=problem)
    public = public_id(key.encode())
    key_id = None if public is None else KeyId(public.decode())
    return _Held(entry=bare, digest=pepper.digest(key.encode()), id=key_id, foreign=key_id is None)


def key_problem(key: str) -> str:
    """Why this text can't be a key here, without a letter of it; "" if it can."""
    if not MIN_FOREIGN_LENGTH <= len(key) <= MAX_KEY_LENGTH:
        return f"its key has {len(key)} characters; {MIN_FOREIGN_LENGTH} to {MAX_KEY_LENGTH} are possible"
    if key.startswith(PREFIX):
        whole = key.isascii() and checksum_ok(key.encode())
        return "" if whole else "its key is one of dgproxy's, but was not copied whole"
    if not key.isascii() or not is_foreign(key.encode()):
        return "its key holds a character that a header's token can't: a space, a comma, a quote, a slash or the like"
    return ""


class _Job:
    """The judgement of one import's entries, and what it came to."""

    def __init__(self, config: Config, wall: int, random_bytes: Callable[[int], bytes]) -> None:
        self._config = config
        self._wall = wall
        self._random_bytes = random_bytes
        self._next: dict[str, int] = {}  # name -> number for the next key that would have it too
        self.counts = dict.fromkeys(Outcome, 0)
        self.records: list[Record] = []  # that a delta has

    def settle(self, bulk: Bulk, held: _Held) -> Row:
        """Puts one entry into the store, or says why not."""
        try:
            row = self._settle(bulk, held)
        except Rejected as rejected:
            row = Row(place=held.entry.place, outcome=Outcome.BAD, note=str(rejected))
        self.counts[row.outcome] += 1
        return row

    def _settle(self, bulk: Bulk, held: _Held) -> Row:
        entry = held.entry
        if held.problem:
            raise Rejected("bad_key", held.problem)
        if entry.name is not None:
            check_name(entry.name)
        if entry.plan is not None and entry.plan not in self._config.plans:
            plans = ", ".join(sorted(self._config.plans))
            shown = f" {units.quoted(entry.plan)}" if len(entry.plan) < MIN_FOREIGN_LENGTH else " of this name"
            raise Rejected("unknown_plan", f"there is no plan{shown}; the plans are: {plans}")
        own = _overrides(entry.overrides)
        known = bulk.by_digest(held.digest)
        if known is None:
            return self._create(bulk, held, own)
        if known.state is State.REVOKED and (entry.moved is None or entry.moved.state is not State.REVOKED):
            note = "is revoked, and stays so"
            return Row(place=entry.place, outcome=Outcome.REVOKED, id=known.id, name=known.name, note=note)
        return self._update(bulk, held, own, known)

    def _create(self, bulk: Bulk, held: _Held, own: Overrides) -> Row:
        entry, moved = held.entry, held.entry.moved
        if held.id is not None and bulk.by_id(held.id) is not None:
            raise Rejected("id_taken", f"another key has its id {held.id}")
        state = State.DISABLED if entry.enabled is False else State.ACTIVE
        state = state if moved is None else moved.state
        wanted = entry.name or entry.fallback or f"imported-{entry.place}"
        name = wanted if state is State.REVOKED else self._free(bulk, wanted, None)
        record = Record(
            id=held.id or bulk.unused_id(self._random_bytes),
            digest=held.digest,
            name=name,
            pepper_id=bulk.pepper_id,
            plan=entry.plan or "default",
            overrides=own,
            state=state,
            created=self._wall if moved is None else moved.created,
            not_before=0 if moved is None else moved.not_before,
            expires=None if isinstance(entry.expires, msgspec.UnsetType) else entry.expires,
            foreign=held.foreign,
        )
        bulk.insert(record)
        self._put(record)
        notes = [f"the name {units.quoted(wanted)} is taken"] if name != wanted else []
        if record.state is not State.ACTIVE:
            notes.append(record.state.value)
        elif record.expires is not None and record.expires <= self._wall:
            notes.append("has expired already")
        return Row(
            place=entry.place,
            outcome=Outcome.CREATED,
            id=record.id,
            name=name,
            note="; ".join(notes),
        )

    def _update(self, bulk: Bulk, held: _Held, own: Overrides, known: Record) -> Row:
        entry, moved = held.entry, held.entry.moved
        state = known.state
        if moved is not None:
            state = moved.state
        elif entry.enabled is not None:
            state = State.ACTIVE if entry.enabled else State.DISABLED
        name = entry.name or known.name
        if state is not State.REVOKED:
            name = self._free(bulk, name, known)
        record = msgspec.structs.replace(
            known,
            name=name,
            plan=entry.plan or known.plan,
            overrides=merged(known.overrides, own) if moved is None else own,
            state=state,
            not_before=known.not_before if moved is None else moved.not_before,
            expires=known.expires if isinstance(entry.expires, msgspec.UnsetType) else entry.expires,
        )
        changes = _differences(known, record)
        if not changes:
            return Row(place=entry.place, outcome=Outcome.UNCHANGED)
        bulk.update(record)
        self._put(record)
        note = f"the name {units.quoted(entry.name)} is taken" if entry.name and name != entry.name else ""
        return Row(
            place=entry.place, outcome=Outcome.CHANGED, id=record.id, name=record.name, note=note, changes=changes
        )

    def _put(self, record: Record) -> None:
        if len(self.records) <= IN_ONE_DELTA:  # with more there is no delta
            self.records.append(record)

    def _free(self, bulk: Bulk, wanted: str, known: Record | None) -> str:
        """The name, or with a number behind it if another key has it: API Gateway and maps have names twice."""
        own_id = None if known is None else known.id
        if bulk.named(wanted) in {None, own_id}:
            return wanted
        if known is not None and _is_numbered(known.name, wanted):
            return known.name
        number = self._next.get(wanted, 2)
        while number < _MOST_NUMBERED:
            name = _numbered(wanted, number)
            number += 1
            if bulk.named(name) in {None, own_id}:
                self._next[wanted] = number
                return name
        raise Rejected("name_taken", "too many keys have its name")


def _numbered(name: str, number: int) -> str:
    behind = f" ({number})"
    return name[: MAX_NAME - len(behind)] + behind


def _is_numbered(name: str, wanted: str) -> bool:
    _, bracket, number = name.rpartition(" (")
    digits = number.removesuffix(")")
    return bool(bracket) and digits.isascii() and digits.isdigit() and _numbered(wanted, int(digits[:9])) == name


def _overrides(options: Mapping[str, str]) -> Overrides:
    if not options:
        return Overrides()
    for option, value in options.items():
        try:
            parse_overrides({option: value})
        except ValueError:  # its message repeats the value
            raise Rejected("bad_override", f"{units.quoted(option)} is not as `keys create` takes it") from None
    return check_overrides(parse_overrides(options))


def merged(old: Overrides, own: Overrides) -> Overrides:
    """What a key has of its own when a file says some of it: entry by entry, in the quota too."""
    changes = {name: value for name, value in msgspec.structs.asdict(own).items() if value is not None}
    if own.quota is not None:
        quotas = {name: value for name, value in msgspec.structs.asdict(own.quota).items() if value is not None}
        changes["quota"] = msgspec.structs.replace(old.quota or Quota(), **quotas)
    return check_overrides(msgspec.structs.replace(old, **changes))


def _differences(before: Record, after: Record) -> dict[str, tuple[Any, Any]]:
    found: dict[str, tuple[Any, Any]] = {}
    for name in ("name", "plan", "state"):
        if getattr(before, name) != getattr(after, name):
            found[name] = str(getattr(before, name)), str(getattr(after, name))
    for name in ("not_before", "expires"):
        if getattr(before, name) != getattr(after, name):
            found[name] = moment(getattr(before, name) or None), moment(getattr(after, name) or None)
    if before.overrides != after.overrides:
        found["overrides"] = shown_overrides(before.overrides), shown_overrides(after.overrides)
    return found


def export_keys(store: KeyStore, args: Mapping[str, Any]) -> dict[str, Any]:
    """`keys.export` {after?}: {"lines": CSV, "keys": how many, "next": N, "generation": G}, as `keys.list` pages.

    The only answer with digests in it. Pages of one export have one generation, else it is no picture of any moment.

    Raises:
        Rejected: bad_request.
        StoreError: the store failed.
    """
    numbered = store.page(arguments(args, _After).after, PAGE_KEYS)
    lines: list[str] = []
    size, upto = 0, None
    for number, record in numbered:
        lines.append(write_export([record]))
        size += len(lines[-1].encode())
        if size > PAGE_BYTES or len(lines) == PAGE_KEYS:
            upto = number
            break
    return {"lines": "".join(lines), "keys": len(lines), "next": upto, "generation": store.generation()}
