"""The key commands, each written once.

The supervisor serves them on its control socket, and `dgproxy keys` runs the very same functions on the store itself
while no proxy runs.

Rules of this file: arguments come from outside and are judged here, whichever way they came; an answer never holds a
digest, and a key's text only in the answer to the command that made it; an error never repeats what may be a key.
"""

import datetime as dt
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, TypeVar

import msgspec

from dgproxy import units
from dgproxy.access.keys import ID_LENGTH, PREFIX, Delta, KeyId, Record
from dgproxy.config import Config, Overrides, Quota, parse_overrides
from dgproxy.store.keys import KeyStore, NameTaken, RevokedForEver, Turn, UnknownKey

T = TypeVar("T")

MAX_NAME: Final = 200  # characters
MAX_OVERRIDES: Final = 8192  # bytes as JSON, so that a record stays small in every worker's table
PAGE_KEYS: Final = 1000
PAGE_BYTES: Final = 256 * 1024  # of JSON; well within a line of the control socket

_ID: Final = re.compile(f"(?:{PREFIX})?([0-9A-Za-z]{{{ID_LENGTH}}})")


class Rejected(Exception):  # noqa: N818 - an answer, not a fault
    """A command that was understood and refused: a code for programs and a sentence for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class _Create(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    plan: str = "default"
    expires: str | None = None  # from now; None: never
    overrides: dict[str, str] = {}  # as on the command line


class _List(msgspec.Struct, forbid_unknown_fields=True):
    after: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)] = 0  # as SQLite numbers rows


class _OneKey(msgspec.Struct, forbid_unknown_fields=True):
    id: str


def create_key(
    store: KeyStore,
    config: Config,
    args: Mapping[str, Any],
    *,
    uid: int,
    now: float,
    random_bytes: Callable[[int], bytes],
) -> tuple[dict[str, Any], Delta]:
    """`keys.create` {name, plan?, expires?, overrides?}: the new key, shown this once; and what workers must hear.

    Raises:
        Rejected: bad_request, bad_name, name_taken, unknown_plan, bad_expiry, bad_override.
        StoreError: the store failed.
    """
    wanted = arguments(args, _Create)
    check_name(wanted.name)
    if wanted.plan not in config.plans:
        plans = ", ".join(sorted(config.plans))
        raise Rejected("unknown_plan", f"there is no plan {units.quoted(wanted.plan)}; the plans are: {plans}")
    overrides = _overrides(wanted.overrides)
    try:
        minted, record = store.create(
            name=wanted.name,
            plan=wanted.plan,
            overrides=overrides,
            expires=_expires(wanted.expires, now),
            uid=uid,
            now=int(now),
            random_bytes=random_bytes,
        )
    except NameTaken:
        taken = f"a key named {units.quoted(wanted.name)} exists and is not revoked; choose another name"
        raise Rejected("name_taken", taken) from None
    answer = {
        "id": record.id,
        "key": minted.key,
        "name": record.name,
        "plan": record.plan,
        "expires": moment(record.expires),
        "created": moment(record.created),
        "overrides": shown_overrides(record.overrides),
    }
    return answer, Delta(store.generation(), (record,))


def turn_key(
    store: KeyStore, turn: Turn, args: Mapping[str, Any], *, uid: int, now: float
) -> tuple[dict[str, Any], Delta | None]:
    """`keys.disable`, `keys.enable`, `keys.revoke` {id}: the key as it is now, and what workers must hear.

    The answer is what `shown` gives, and "changed": false (with no delta) if the key was like that already.

    Raises:
        Rejected: bad_request, bad_id, not_found, revoked.
        StoreError: the store failed.
    """
    key_id = _key_id(args)
    try:
        record, changed = store.turn(key_id, turn, uid=uid, now=int(now))
    except UnknownKey:
        raise _not_found(key_id) from None
    except RevokedForEver:
        final = f"the key {key_id} is revoked, and that is for ever; make a new one with `dgproxy keys create`"
        raise Rejected("revoked", final) from None
    answer = {**shown(record, now), "changed": changed}
    return answer, Delta(store.generation(), (record,)) if changed else None


def list_keys(store: KeyStore, args: Mapping[str, Any], *, now: float) -> dict[str, Any]:
    """`keys.list` {after?}: {"keys": [...], "next": N}, a page in the order of making; ask on with after=N until null.

    Raises:
        Rejected: bad_request.
        StoreError: the store failed.
    """
    numbered = store.page(arguments(args, _List).after, PAGE_KEYS)
    page: list[dict[str, Any]] = []
    size = 0
    for number, record in numbered:
        page.append(shown(record, now))
        size += len(msgspec.json.encode(page[-1]))
        if size > PAGE_BYTES or len(page) == PAGE_KEYS:
            return {"keys": page, "next": number}
    return {"keys": page, "next": None}


def show_key(store: KeyStore, args: Mapping[str, Any], *, now: float) -> dict[str, Any]:
    """`keys.show` {id}: one key, by its id or by `dgp_` and its id.

    Raises:
        Rejected: bad_request, bad_id, not_found.
        StoreError: the store failed.
    """
    key_id = _key_id(args)
    record = store.get(key_id)
    if record is None:
        raise _not_found(key_id)
    return shown(record, now)


def shown(record: Record, now: float) -> dict[str, Any]:
    """What people and programs may see of a record. Whether it has expired is apart from its state, as time does it."""
    return {
        "id": record.id,
        "name": record.name,
        "plan": record.plan,
        "state": record.state.value,
        "created": moment(record.created),
        "not_before": moment(record.not_before or None),
        "expires": moment(record.expires),
        "expired": record.expires is not None and now >= record.expires,
        "foreign": record.foreign,
        "overrides": shown_overrides(record.overrides),
    }


def shown_overrides(overrides: Overrides) -> dict[str, Any]:
    """Overrides as they are written in TOML: {"rate": "10/s", "quota": {"audio": "100h/month"}}."""
    return {
        name: _written(name, value) for name, value in msgspec.structs.asdict(overrides).items() if value is not None
    }


def _written(name: str, value: Any) -> Any:
    match name, value:
        case _, units.Rate():
            return units.format_rate(value)
        case _, Quota():
            counted: units.Counted
            allowances = {}
            for counted in ("audio", "requests", "bytes", "characters"):
                allowance = getattr(value, counted)
                if allowance is not None:
                    allowances[counted] = units.format_allowance(allowance, counted)
            return allowances
        case "max_body", _:
            return units.format_size(value)
        case "stream_max_life", _:
            return units.format_duration(value)
        case _, tuple():
            return list(value)
        case _:
            return value


def arguments(args: Mapping[str, Any], kind: type[T]) -> T:
    """A command's arguments as this kind; Rejected says what is wrong with them."""
    try:
        return msgspec.convert(args, kind)
    except msgspec.ValidationError as error:
        raise Rejected("bad_request", f"bad arguments: {error}") from None


def _key_id(args: Mapping[str, Any]) -> KeyId:
    match = _ID.fullmatch(arguments(args, _OneKey).id)
    if match is None:  # not repeated: it may be a whole key
        what = f"a key's id is {ID_LENGTH} letters and digits, as `keys list` shows it"
        raise Rejected("bad_id", f"{what}; in a whole key it stands between the two underscores")
    return KeyId(match[1])


def _not_found(key_id: KeyId) -> Rejected:
    return Rejected("not_found", f"there is no key with the id {key_id}")


def check_name(name: str) -> None:
    """Rejected if it is no name of a key."""
    if not name.strip():
        raise Rejected("bad_name", "a name must not be empty")
    if len(name) > MAX_NAME:
        raise Rejected("bad_name", f"a name has at most {MAX_NAME} characters, this one has {len(name)}")
    if not name.isprintable():  # control, format (bidi marks among them) and separator characters, surrogates
        raise Rejected("bad_name", "a name holds printable characters only: no line ends, control or direction marks")


def _overrides(options: Mapping[str, str]) -> Overrides:
    try:
        return check_overrides(parse_overrides(options))
    except ValueError as error:
        raise Rejected("bad_override", str(error)) from None


def check_overrides(overrides: Overrides) -> Overrides:
    """The same, or Rejected if they take too much room in every worker."""
    size = len(msgspec.json.encode(overrides))
    if size > MAX_OVERRIDES:
        limit = f"a key's own settings may take {MAX_OVERRIDES} bytes, these take {size}; make a plan of them"
        raise Rejected("bad_override", limit)
    return overrides


def _expires(text: str | None, now: float) -> int | None:
    try:
        after = units.parse_duration_or_never(text or "never")
    except ValueError as error:
        raise Rejected("bad_expiry", f"expires: {error}") from None
    if after is None:
        return None
    if after < 1:
        raise Rejected("bad_expiry", "expires: a key must live for a second at least")
    return int(now + after)


def moment(seconds: int | None) -> str | None:
    """Seconds since 1970 as RFC 3339 has them."""
    if seconds is None:
        return None
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")  # RFC 3339
