"""Files of keys that other systems made, and our own: bytes in, entries and findings out.

Rules of this file: no text of a file raises anything; no finding repeats what may be a key (a key has 20 characters or
more, so nothing longer than 19 is quoted, and never a cell of the key's column); a finding names the place.

Sources: docs.aws.amazon.com/apigateway/latest/developerguide/api-key-file-format.html; RFC 4180; `aws apigateway
get-api-keys help` for the JSON. Whether a key, a name or a plan can be taken is judged where it is stored.
"""

import csv
import datetime as dt
import enum
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec

from dgproxy import units
from dgproxy.access import nginx_map
from dgproxy.access.keys import MIN_FOREIGN_LENGTH, KeyId, Record, State
from dgproxy.config import Overrides, Quota

MAX_FILE: Final = 128 * 1024 * 1024  # bytes
MAX_ENTRIES: Final = 1_000_000
MAX_CELL: Final = 16 * 1024  # characters; far below what csv itself takes
MAX_FINDINGS: Final = 10_000  # of one file; then one more that says so

EXPORT_COLUMNS: Final = (
    "id",
    "name",
    "plan",
    "state",
    "created",
    "not_before",
    "expires",
    "foreign",
    "overrides",
    "digest",
    "pepper_id",
)
OVERRIDE_COLUMNS: Final = frozenset(
    {name for name in Overrides.__struct_fields__ if name != "quota"}
    | {f"quota_{counted}" for counted in Quota.__struct_fields__}
)
_COLUMNS: Final = frozenset({"name", "key", "enabled", "usageplanids", "plan", "expires"}) | OVERRIDE_COLUMNS
_NOT_KEPT: Final = frozenset({"description"})  # AWS's own, for which a record has no place
_MOST_USAGE_PLANS: Final = 100  # of one key, between single quotes
_DELIMITERS: Final = ",;\t"
_YES: Final = frozenset({"true", "yes", "1", "on"})
_NO: Final = frozenset({"false", "no", "0", "off"})
_DIGEST: Final = re.compile("[0-9a-f]{64}")
_PEPPER_ID: Final = re.compile("[0-9a-f]{8}")
_KEY_ID: Final = re.compile("[0-9A-Za-z]{10}")
_MOMENT: Final = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})"
    r"(?:[T ]([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:\.[0-9]+)?)?(Z|[+-][0-9]{2}:?[0-9]{2})?)?"
)


class Format(enum.StrEnum):
    """What a file is."""

    CSV = "csv"  # ours and API Gateway's: the same columns, and some more in ours
    AWS_JSON = "aws-json"  # what `aws apigateway get-api-keys --include-values` prints
    NGINX = "nginx"
    EXPORT = "export"


class Level(enum.StrEnum):
    """What follows from a finding: nothing, one entry less, or no import at all."""

    NOTE = "note"
    BAD = "bad"
    FATAL = "fatal"


@dataclass(frozen=True, slots=True)
class Finding:
    """What is to be said of a place in a file; place 0 is the file itself."""

    place: int
    message: str
    level: Level = Level.BAD


class Moved(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an export knows of a key beyond what other files say."""

    id: KeyId
    digest: bytes
    state: State
    created: int
    not_before: int
    foreign: bool

    def __repr__(self) -> str:
        return f"<Moved {self.id}>"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("id", self.id)]


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One key of a file, with its text or (of an export) its digest. What is None or unset is not said there."""

    place: int
    key: str | None = None
    moved: Moved | None = None
    name: str | None = None
    fallback: str = ""  # the name of a new key for which the file has none
    plan: str | None = None
    usage_plans: tuple[str, ...] = ()  # API Gateway's ids, until `with_plans` has made a plan of them
    enabled: bool | None = None
    expires: int | msgspec.UnsetType | None = msgspec.UNSET  # Unix seconds; None: never
    overrides: dict[str, str] = {}  # as `parse_overrides` takes them

    def __repr__(self) -> str:
        return f"<Entry {self.place}>"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("place", self.place)]


@dataclass(frozen=True, slots=True)
class KeyFile:
    """What a file holds. `unit` is what a place counts: lines, or items of a list."""

    format: Format | None
    unit: str = "line"
    entries: list[Entry] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    pepper_id: str | None = None  # an export's

    def fatal(self) -> bool:
        """Whether nothing of it can be used."""
        return any(finding.level is Level.FATAL for finding in self.findings)


class _Broken(Exception):  # noqa: N818 - an answer of this file to itself
    """Reading can't go on."""

    def __init__(self, place: int, message: str) -> None:
        super().__init__(message)
        self.place = place


def read(data: bytes, form: Format | None = None) -> KeyFile:
    """The keys of a file, of this format or of the one that it looks like. Never raises."""
    try:
        text = _text(data)
        file = _READERS[form or _looks_like(text)](text)
    except _Broken as broken:
        return KeyFile(form, findings=[Finding(broken.place, str(broken), Level.FATAL)])
    if len(file.entries) > MAX_ENTRIES:
        file.findings.append(Finding(0, f"holds more than {MAX_ENTRIES} keys", Level.FATAL))
    if not file.entries and not file.findings:
        file.findings.append(Finding(0, "holds no keys", Level.NOTE))
    return _bounded(_once(file))


def _bounded(file: KeyFile) -> KeyFile:
    file.findings.sort(key=lambda finding: finding.place)
    more = len(file.findings) - MAX_FINDINGS
    if more <= 0:
        return file
    levels = {finding.level for finding in file.findings[MAX_FINDINGS:]}
    worst = next(level for level in (Level.FATAL, Level.BAD, Level.NOTE) if level in levels)
    return replace(
        file, findings=[*file.findings[:MAX_FINDINGS], Finding(0, f"{more} more findings are not listed", worst)]
    )


def _once(file: KeyFile) -> KeyFile:
    """Each key once. nginx needs a map per header, so there the same key twice with one name is one key."""
    first: dict[str | bytes, Entry] = {}
    for entry in file.entries:
        held = entry.key if entry.moved is None else entry.moved.digest
        if held is None:
            continue
        before = first.setdefault(held, entry)
        if before is entry:
            continue
        if file.format is Format.NGINX:
            if entry.name not in {before.name, None}:
                what = f"the same key as on line {before.place}, under another name; the first is taken"
                file.findings.append(Finding(entry.place, what, Level.NOTE))
            continue
        what = f"the same {'key' if entry.moved is None else 'digest'} as in {file.unit} {before.place}"
        file.findings.append(Finding(entry.place, what))
    entries = []
    for entry in first.values():
        if entry.name is not None and entry.name in first:  # columns are mixed up, or a map's result is a key
            file.findings.append(Finding(entry.place, "its name is a key of this file"))
        else:
            entries.append(entry)
    return replace(file, entries=entries)


def _text(data: bytes) -> str:
    if len(data) > MAX_FILE:
        raise _Broken(0, f"is larger than {units.format_size(MAX_FILE)}")
    encoding = "utf-16" if data[:2] in {b"\xff\xfe", b"\xfe\xff"} else "utf-8-sig"  # Excel's "Unicode text"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _Broken(line, "is not UTF-8; save the file as UTF-8") from None
    if "\0" in text:
        raise _Broken(text.count("\n", 0, text.index("\0")) + 1, "holds a NUL, which no text file does")
    return text


def _looks_like(text: str) -> Format:
    start = text[:4096].lstrip()
    if start.startswith(("{", "[")):
        return Format.AWS_JSON
    with_head = _head(text)
    if with_head is not None:
        columns = with_head[1]
        if {"digest", "pepper_id"} <= set(columns):
            return Format.EXPORT
        if {"name", "key"} <= set(columns):
            return Format.CSV
    if nginx_map.MAP.search(text):
        return Format.NGINX
    known = "CSV with columns name and key, JSON of get-api-keys, an nginx map, or our own export"
    raise _Broken(0, f"is of no known format; known are {known}")


# --- CSV --------------------------------------------------------------------------------------------------------


def _head(text: str) -> tuple[str, list[str], int] | None:
    """The delimiter that makes columns of the first line that is one, these columns, and how many lines that took."""
    lines = 0
    for raw in io.StringIO(text, newline=""):
        lines += 1
        line = raw.strip()
        if not line:
            continue
        if re.fullmatch("sep=[,;\t]", line, re.IGNORECASE):  # Excel's own hint
            continue
        if len(line) > MAX_CELL:
            return None
        best: tuple[str, list[str]] | None = None
        for delimiter in _DELIMITERS:
            try:
                row = next(csv.reader([line], delimiter=delimiter), [])
            except csv.Error:
                continue
            columns = [_column(cell) for cell in row]
            if best is None or len(columns) > len(best[1]):
                best = delimiter, columns
        return None if best is None else (*best, lines)
    return None


def _column(cell: str) -> str:
    return cell.strip().casefold().replace("-", "_").replace(" ", "_")


def _rows(text: str, head: tuple[str, list[str], int]) -> Iterator[tuple[int, list[str]]]:
    """Rows below the head, each with the number of its first line."""
    delimiter, _, skip = head
    lines = io.StringIO(text, newline="")
    for _ in range(skip):
        next(lines)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        line = skip + reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error:
            raise _Broken(line, "breaks the rules of CSV here (a quote that is not closed?)") from None
        if any(cell.strip() for cell in row):
            yield line, row


def _table(text: str, needed: Sequence[str]) -> tuple[tuple[str, list[str], int], dict[str, int]]:
    head = _head(text)
    columns = [] if head is None else head[1]
    missing = [name for name in needed if name not in columns]
    if head is None or missing:
        raise _Broken(1, f"has no column {' and no column '.join(missing)} in its first line")
    if len({name for name in columns if name}) < sum(bool(name) for name in columns):
        raise _Broken(1, "names a column twice")
    return head, {name: index for index, name in enumerate(columns)}


def _read_csv(text: str) -> KeyFile:
    head, at = _table(text, ("name", "key"))
    file = KeyFile(Format.CSV)
    unknown = [index + 1 for name, index in at.items() if name and name not in _COLUMNS | _NOT_KEPT]
    if unknown:
        numbers = ", ".join(str(number) for number in sorted(unknown))
        file.findings.append(Finding(1, f"columns that are not known are ignored: number {numbers}", Level.NOTE))
    if "description" in at:
        file.findings.append(Finding(1, "descriptions are not kept", Level.NOTE))
    for line, row in _rows(text, head):
        try:
            file.entries.append(_csv_entry(line, _aligned(line, row, len(head[1])), at))
        except _Broken as broken:
            file.findings.append(Finding(line, str(broken)))
    return file


def _aligned(line: int, row: list[str], width: int) -> list[str]:
    """A row as wide as the head. API Gateway lets a list of usage plans stand between single quotes."""
    if width < len(row) <= width + _MOST_USAGE_PLANS:
        joined: list[str] = []
        open_ = False
        for cell in row:
            if open_:
                joined[-1] += f",{cell}"
                open_ = not cell.rstrip().endswith("'")
            else:
                joined.append(cell)
                open_ = cell.lstrip().startswith("'") and not cell.rstrip().endswith("'")
        row = joined
    if any(cell.strip() for cell in row[width:]):
        raise _Broken(line, f"has {len(row)} fields, the first line {width}")
    if any(len(cell) > MAX_CELL for cell in row):
        raise _Broken(line, f"has a field of more than {MAX_CELL} characters")
    return [cell.strip() for cell in row[:width]] + [""] * (width - len(row))


def _csv_entry(line: int, row: list[str], at: Mapping[str, int]) -> Entry:
    def cell(name: str) -> str:
        return row[at[name]] if name in at else ""

    if not cell("key"):
        raise _Broken(line, "has no key")
    ids = cell("usageplanids").strip("'\"").split(",")
    return Entry(
        place=line,
        key=cell("key"),
        name=cell("name") or None,
        fallback=f"imported-{line}",
        plan=cell("plan") or None,
        usage_plans=tuple(plan.strip() for plan in ids if plan.strip()),
        enabled=_switch(line, cell("enabled")),
        expires=_expiry(line, cell("expires")) if "expires" in at and cell("expires") else msgspec.UNSET,
        overrides={name.replace("_", "-"): cell(name) for name in sorted(OVERRIDE_COLUMNS) if cell(name)},
    )


def _switch(line: int, text: str) -> bool | None:
    word = text.casefold()
    if word in _YES or word in _NO:
        return word in _YES
    if word:
        raise _Broken(line, "enabled is neither true nor false")
    return None


def _expiry(line: int, text: str) -> int | None:
    return None if text.casefold() == "never" else _moment(line, text, "expires")


def _moment(line: int, text: str, what: str) -> int:
    """Unix seconds of a date (its beginning) or a time, in UTC unless it says otherwise."""
    how = "a moment is written as 2027-01-31 or 2027-01-31T12:00:00Z"
    match = _MOMENT.fullmatch(text)
    if match is None:
        raise _Broken(line, f"{what}: {how}; a duration would begin anew with each import")
    try:
        year, month, day, hour, minute, second = (int(part or 0) for part in match.groups()[:6])
        zone = (match[7] or "Z").replace("Z", "+00:00")
        offset = dt.datetime.strptime(zone.replace(":", ""), "%z").tzinfo
        seconds = dt.datetime(year, month, day, hour, minute, second, tzinfo=offset).timestamp()
    except (ValueError, OverflowError):
        raise _Broken(line, f"{what}: there is no such moment; {how}") from None
    if seconds < 0:
        raise _Broken(line, f"{what}: lies before 1970")
    return int(seconds)


# --- JSON of `aws apigateway get-api-keys` ----------------------------------------------------------------------


class _AwsKey(msgspec.Struct):
    id: str = ""
    value: str | None = None
    name: str | None = None
    enabled: bool | None = None
    description: str | None = None


class _AwsKeys(msgspec.Struct):
    items: list[msgspec.Raw]


def _read_aws_json(text: str) -> KeyFile:
    file = KeyFile(Format.AWS_JSON, unit="item")
    try:
        items = msgspec.json.decode(text.encode(), type=_AwsKeys | list[msgspec.Raw])
    except (msgspec.DecodeError, RecursionError):
        raise _Broken(0, 'is not what `aws apigateway get-api-keys` prints: {"items": [...]}') from None
    described = False
    for place, raw in enumerate(items.items if isinstance(items, _AwsKeys) else items, 1):
        try:
            item = msgspec.json.decode(raw, type=_AwsKey)
        except (msgspec.DecodeError, RecursionError):
            file.findings.append(Finding(place, "is no API key as get-api-keys prints one"))
            continue
        described = described or bool(item.description)
        if not item.value:
            file.findings.append(Finding(place, "holds no value: get-api-keys gives it with --include-values"))
            continue
        name, fallback = (item.name or "").strip() or None, item.id or f"imported-{place}"
        file.entries.append(Entry(place=place, key=item.value, name=name, fallback=fallback, enabled=item.enabled))
    if described:
        file.findings.append(Finding(0, "descriptions are not kept", Level.NOTE))
    return file


# --- nginx ------------------------------------------------------------------------------------------------------


def _read_nginx(text: str) -> KeyFile:
    file = KeyFile(Format.NGINX)
    try:
        found = nginx_map.read(text)
    except nginx_map.Broken as broken:
        raise _Broken(broken.line, str(broken)) from None
    for line, message, bad in found.findings:
        file.findings.append(Finding(line, message, Level.BAD if bad else Level.NOTE))
    for line, key, name in found.keys:
        file.entries.append(Entry(place=line, key=key, name=name, fallback=f"nginx-{line}"))
    if not found.maps:
        file.findings.append(Finding(0, "holds no map of a header that carries keys", Level.NOTE))
    elif found.keys:
        case = "nginx compared these keys without regard to case; here a key must be sent as it is written"
        file.findings.append(Finding(0, case, Level.NOTE))
    return file


# --- our own export ---------------------------------------------------------------------------------------------
#
# A cell that a spreadsheet would take for a formula begins with an apostrophe (OWASP, CSV injection); so does one that
# began with an apostrophe, so that what is read back is what was written.

_FORMULA: Final = tuple("=+-@'")


def write_export(records: Sequence[Record]) -> str:
    """Lines of CSV of these records, without `export_head`."""
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\r\n")
    for record in records:
        lines.writerow(
            (
                record.id,
                _safe(record.name),
                _safe(record.plan),
                record.state.value,
                _written(record.created),
                _written(record.not_before) if record.not_before else "",
                "never" if record.expires is None else _written(record.expires),
                "yes" if record.foreign else "no",
                msgspec.json.encode(override_options(record.overrides)).decode() if _own(record) else "",
                record.digest.hex(),
                record.pepper_id,
            )
        )
    return out.getvalue()


def export_head() -> str:
    """The first line of an export."""
    return ",".join(EXPORT_COLUMNS) + "\r\n"


def override_options(overrides: Overrides) -> dict[str, str]:
    """Overrides as `parse_overrides` takes them."""
    options: dict[str, str] = {}
    for name, value in msgspec.structs.asdict(overrides).items():
        option = name.replace("_", "-")
        match name, value:
            case _, None:
                pass
            case _, Quota():
                counted: units.Counted
                for counted in ("audio", "requests", "bytes", "characters"):
                    allowance = getattr(value, counted)
                    if allowance is not None:
                        options[f"quota-{counted}"] = units.format_allowance(allowance, counted)
            case _, units.Rate():
                options[option] = units.format_rate(value)
            case "max_body", _:
                options[option] = units.format_size(value)
            case "stream_max_life", _:
                options[option] = units.format_duration(value)
            case _, tuple():
                options[option] = ",".join(value)
            case _, dict():
                options[option] = ",".join(f"{part}={most}" for part, most in value.items())
            case _:
                options[option] = str(value)
    return options


def _own(record: Record) -> bool:
    return record.overrides != Overrides()


def _safe(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


def _written(seconds: int) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _read_export(text: str) -> KeyFile:
    head, at = _table(text, EXPORT_COLUMNS)
    file = KeyFile(Format.EXPORT)
    peppers: set[str] = set()
    for line, row in _rows(text, head):
        try:
            entry, pepper_id = _export_entry(line, _aligned(line, row, len(head[1])), at)
        except _Broken as broken:
            file.findings.append(Finding(line, str(broken)))
        else:
            file.entries.append(entry)
            peppers.add(pepper_id)
    if len(peppers) > 1:
        raise _Broken(0, "holds digests of more than one pepper")
    return replace(file, pepper_id=next(iter(peppers), None))


def _export_entry(line: int, row: list[str], at: Mapping[str, int]) -> tuple[Entry, str]:
    def cell(name: str, pattern: re.Pattern[str] | None = None) -> str:
        text = row[at[name]]
        if pattern is not None and pattern.fullmatch(text) is None:
            raise _Broken(line, f"{name} is not as an export has it; did a spreadsheet change it?")
        return text.removeprefix("'")

    try:
        state = State(cell("state"))
        overrides = msgspec.json.decode(cell("overrides") or "{}", type=dict[str, str])
    except ValueError:
        raise _Broken(line, "state or overrides is not as an export has it") from None
    entry = Entry(
        place=line,
        name=cell("name"),
        plan=cell("plan"),
        expires=_expiry(line, cell("expires")),
        overrides=overrides,
        moved=Moved(
            id=KeyId(cell("id", _KEY_ID)),
            digest=bytes.fromhex(cell("digest", _DIGEST)),
            state=state,
            created=_moment(line, cell("created"), "created"),
            not_before=_moment(line, cell("not_before"), "not_before") if cell("not_before") else 0,
            foreign=bool(_switch(line, cell("foreign"))),
        ),
    )
    return entry, cell("pepper_id", _PEPPER_ID)


# --- plans ------------------------------------------------------------------------------------------------------


def with_plans(file: KeyFile, plan_map: Mapping[str, str], default: str | None, plans: Sequence[str]) -> KeyFile:
    """The file with a plan for each key that names one, be it by API Gateway's ids; `default` for all others.

    An id is mapped by `plan_map`, or is a plan's own name. One that is neither is bad, unless there is a default: a key
    must not get other limits than it had because nobody looked.
    """
    made = replace(file, entries=[], findings=list(file.findings))
    for entry in file.entries:
        named = {entry.plan} if entry.plan else set()
        unmapped = []
        for usage_plan in entry.usage_plans if not entry.plan else ():
            if usage_plan in plan_map or usage_plan in plans:
                named.add(plan_map.get(usage_plan, usage_plan))
            else:
                unmapped.append(usage_plan)
        if len(named) > 1:
            many = f"its usage plans come to more than one plan: {_list(named)}; add a column plan that says which"
            made.findings.append(Finding(entry.place, many))
        elif unmapped and not named and default is None:
            no_plan = f"no plan is named like its usage plan {_list(unmapped)}; say which is meant with --plan-map"
            made.findings.append(Finding(entry.place, f"{no_plan} ID=PLAN, or give --plan for all such keys"))
        else:
            plan = next(iter(named), default)
            made.entries.append(msgspec.structs.replace(entry, plan=plan, usage_plans=()))
    return _bounded(made)


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(_shown(name) for name in names))


def _shown(text: str) -> str:
    """Text of a file, quoted unless it is long enough to be a key."""
    return units.quoted(text) if len(text) < MIN_FOREIGN_LENGTH else f"(a word of {len(text)} characters)"


_READERS: Final[Mapping[Format, Callable[[str], KeyFile]]] = {
    Format.CSV: _read_csv,
    Format.AWS_JSON: _read_aws_json,
    Format.NGINX: _read_nginx,
    Format.EXPORT: _read_export,
}
