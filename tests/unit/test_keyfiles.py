"""What is read of files of keys, and that no file raises anything or is repeated in what is said of it."""

import re
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, strategies as st

from dgproxy.access import keyfiles
from dgproxy.access.keyfiles import EXPORT_COLUMNS, Entry, Finding, Format, KeyFile, Level, Moved, read, with_plans
from dgproxy.access.keys import ID_LENGTH, KeyId, Record, State
from dgproxy.config import Overrides, parse_overrides

KEY = "apikey1234abcdefghij0123456789"
OTHER = "bpikey1234abcdefghij0123456789"


def said(file: KeyFile, level: Level | None = None) -> list[tuple[int, str]]:
    return [(finding.place, finding.message) for finding in file.findings if level in {None, finding.level}]


def only(text: str | bytes, form: Format | None = None) -> Entry:
    """The one entry of a file of which nothing bad is to be said."""
    file = read(text.encode() if isinstance(text, str) else text, form)
    assert not said(file, Level.BAD), said(file)
    assert not file.fatal(), said(file)
    (entry,) = file.entries
    return entry


def fatal(text: str | bytes, form: Format | None = None) -> tuple[int, str]:
    file = read(text.encode() if isinstance(text, str) else text, form)
    ((place, message),) = said(file, Level.FATAL)
    assert not file.entries
    return place, message


# --- CSV --------------------------------------------------------------------------------------------------------


def test_api_gateways_own_examples() -> None:
    """docs.aws.amazon.com/apigateway/latest/developerguide/api-key-file-format.html."""
    entry = only(f"Key,name\n{KEY},MyFirstApiKey\n")
    assert (entry.key, entry.name, entry.enabled, entry.usage_plans) == (KEY, "MyFirstApiKey", None, ())
    entry = only(f"Name,key,description,Enabled,usageplanIds\nMyFirstApiKey,{KEY},An imported key,TRUE,c7y23b\n")
    assert (entry.key, entry.enabled, entry.usage_plans) == (KEY, True, ("c7y23b",))
    for quote in "\"'":
        entry = only(f"Enabled,Name,key,UsageplanIds\ntrue,MyFirstApiKey,{KEY},{quote}c7y23b,glvrsr{quote}\n")
        assert (entry.name, entry.key, entry.usage_plans) == ("MyFirstApiKey", KEY, ("c7y23b", "glvrsr"))


CSV = {
    "plain": f"name,key\nn,{KEY}\n",
    "CRLF": f"name,key\r\nn,{KEY}\r\n",
    "CR": f"name,key\rn,{KEY}\r",
    "no line end": f"name,key\nn,{KEY}",
    "BOM": f"\ufeffname,key\nn,{KEY}\n",
    "UTF-16": f"name,key\nn,{KEY}\n".encode("utf-16"),
    "quoted": f'"name","key"\n"n","{KEY}"\n',
    "spaces": f" Name , KEY \n n , {KEY} \n",
    "semicolons": f"name;key\nn;{KEY}\n",
    "tabs": f"name\tkey\nn\t{KEY}\n",
    "Excel's hint": f"sep=;\r\nname;key\r\nn;{KEY}\r\n",
    "empty lines": f"\n\nname,key\n\n,\nn,{KEY}\n\n",
    "empty fields behind": f"name,key\nn,{KEY},,\n",
    "fields missing": f"name,key,enabled,plan\nn,{KEY}\n",
    "a column without name": f"name,key,\nn,{KEY},x\n",
}


@pytest.mark.parametrize("text", CSV.values(), ids=CSV)
def test_a_table_is_read_however_it_was_saved(text: str | bytes) -> None:
    entry = only(text)
    assert (entry.name, entry.key) == ("n", KEY)


def test_lines_are_counted_as_an_editor_counts_them() -> None:
    file = read(f'sep=,\nname,key\n"a\nb",{KEY}\n\nshort,\nlast,{OTHER}\n'.encode())
    assert [(entry.place, entry.name) for entry in file.entries] == [(3, "a\nb"), (7, "last")]
    assert said(file) == [(6, "has no key")]


def test_our_own_columns() -> None:
    entry = only(
        "name,key,plan,expires,streams,quota-audio,Quota Requests,models\n"
        f'n,{KEY},gold,2027-01-31T12:00:00+02:00,5,100h/month,9/day,"a,b"\n'
    )
    assert (entry.plan, entry.expires) == ("gold", 1801389600)
    assert entry.overrides == {"streams": "5", "quota-audio": "100h/month", "quota-requests": "9/day", "models": "a,b"}
    assert parse_overrides(entry.overrides).models == ("a", "b")


@pytest.mark.parametrize(
    ("text", "expires"),
    [
        ("never", None),
        ("Never", None),
        ("", msgspec.UNSET),
        ("2027-01-31", 1801353600),
        ("2027-01-31 00:00", 1801353600),
        ("2027-01-31T00:00:00.5Z", 1801353600),
        ("1970-01-01", 0),
    ],
)
def test_an_expiry_is_a_moment(text: str, expires: Any) -> None:
    assert only(f"name,key,expires\nn,{KEY},{text}\n").expires == expires


@pytest.mark.parametrize(
    "text", ["90d", "1801353600", "31.01.2027", "2027-02-30", "1969-12-31", "2027-01-31T25:00", "x"]
)
def test_a_duration_or_no_moment_is_no_expiry(text: str) -> None:
    file = read(f"name,key,expires\nn,{KEY},{text}\n".encode())
    ((place, message),) = said(file, Level.BAD)
    assert (place, message.startswith("expires: "), file.entries) == (2, True, [])


@pytest.mark.parametrize(
    ("word", "enabled"),
    [("TRUE", True), ("yes", True), ("1", True), ("False", False), ("no", False), ("0", False), ("", None)],
)
def test_enabled(word: str, enabled: bool | None) -> None:  # noqa: FBT001
    assert only(f"name,key,enabled\nn,{KEY},{word}\n").enabled is enabled


def test_what_is_not_kept_is_said_once_and_by_number() -> None:
    file = read(f"name,key,description,{OTHER},owner\nn,{KEY},d,x,y\n".encode())
    assert said(file) == [(1, "columns that are not known are ignored: number 4, 5"), (1, "descriptions are not kept")]


BAD_ROWS = {
    "no key": (f"name,key\nn,\nm,{KEY}\n", "has no key"),
    "too many fields": (f"name,key\nn,{OTHER},more\nm,{KEY}\n", "has 3 fields, the first line 2"),
    "an endless list": (f"name,key\n{'x,' * 1_000_000}x\nm,{KEY}\n", "has 1000001 fields, the first line 2"),
    "an endless list in single quotes": (
        "name,key\n" + "'x," * 300_000 + f"x\nm,{KEY}\n",  # of which no text was made longer field by field
        "has 300001 fields, the first line 2",
    ),
    "enabled": (f"name,key,enabled\nn,{OTHER},{OTHER}\nm,{KEY},\n", "enabled is neither true nor false"),
    "huge field": (f"name,key\n{'x' * 20_000},{OTHER}\nm,{KEY}\n", "has a field of more than 16384 characters"),
}


@pytest.mark.parametrize(("text", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_named_and_the_others_are_read(text: str, message: str) -> None:
    file = read(text.encode())
    assert said(file, Level.BAD) == [(2, message)]
    assert [entry.name for entry in file.entries] == ["m"]


BROKEN = {
    "nothing": ("", (0, "is of no known format")),
    "text": ("hello\nworld\n", (0, "is of no known format")),
    "no head": (f"n,{KEY}\n", (0, "is of no known format")),
    "no key": ("name,secret\n", (0, "is of no known format")),
    "a column twice": (f"name,key,Key\nn,{KEY},{KEY}\n", (1, "names a column twice")),
    "an open quote": (f'name,key\nn,{KEY}\n"m,{OTHER}\n', (3, "breaks the rules of CSV")),
    "text behind a quote": (f'name,key\n"n"x,{KEY}\n', (2, "breaks the rules of CSV")),
    "NUL": (f"name,key\nn,{KEY}\0\n", (2, "holds a NUL")),
    "Latin-1": (f"name,key\nn,{KEY}\nMüller,{OTHER}\n".encode("latin-1"), (3, "is not UTF-8")),
    "half UTF-16": (b"\xff\xfen", (1, "is not UTF-8")),
    "a field beyond csv's own limit": (f"name,key\n{'x' * 200_000},{KEY}\n", (2, "breaks the rules of CSV")),
    "JSON of something else": ('{"keys": []}', (0, "is not what")),
    "JSON cut short": ('{"items": [', (0, "is not what")),
    "deep JSON": ("[" * 200_000, (0, "is not what")),
    "a map that does not end": ("map $http_x_api_key $x {\n a b;\n", (3, "ends within a block")),
}


@pytest.mark.parametrize(("text", "wanted"), BROKEN.values(), ids=BROKEN)
def test_of_a_broken_file_nothing_is_taken(text: str | bytes, wanted: tuple[int, str]) -> None:
    place, message = fatal(text)
    assert (place, message[: len(wanted[1])]) == wanted


def test_a_forced_format_is_not_another() -> None:
    assert fatal(f"name,key\nn,{KEY}\n", Format.EXPORT)[1].startswith("has no column id and no column plan")
    assert fatal("x y\n", Format.CSV) == (1, "has no column name and no column key in its first line")
    assert said(read(b"# nothing\n", Format.NGINX)) == [(0, "holds no map of a header that carries keys")]


def test_sizes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyfiles, "MAX_FILE", 100)
    monkeypatch.setattr(keyfiles, "MAX_ENTRIES", 1)
    monkeypatch.setattr(keyfiles, "MAX_FINDINGS", 2)
    assert fatal("x" * 101) == (0, "is larger than 100B")
    assert read(f"name,key\nn,{KEY}\nm,{OTHER}\n".encode()).fatal()
    file = read(b"name,key\na,\nb,\nc,\nd,\n")
    assert said(file) == [(2, "has no key"), (3, "has no key"), (0, "2 more findings are not listed")]
    assert all(finding.level is Level.BAD for finding in file.findings)


def test_a_key_twice_in_a_table_is_bad_and_the_first_stays() -> None:
    file = read(f"name,key\na,{KEY}\nb,{OTHER}\nc,{KEY}\n".encode())
    assert [entry.name for entry in file.entries] == ["a", "b"]
    assert said(file) == [(4, "the same key as in line 2")]


def test_a_name_that_is_a_key_of_the_file_is_never_taken_for_a_name() -> None:
    file = read(f"name,key\n{KEY},{OTHER}\nb,{KEY}\n".encode())
    assert [entry.name for entry in file.entries] == ["b"]
    assert said(file) == [(2, "its name is a key of this file")]


# --- JSON of get-api-keys ---------------------------------------------------------------------------------------


def test_what_get_api_keys_prints() -> None:
    """docs.aws.amazon.com/cli/latest/reference/apigateway/get-api-keys.html, with --include-values."""
    items = [
        {
            "id": "q5ugs7qjjh",
            "value": KEY,
            "name": "App",
            "description": "d",
            "enabled": True,
            "createdDate": "2023-05-01T10:00:00+02:00",
            "lastUpdatedDate": 1_682_928_000,
            "stageKeys": [],
        },
        {"id": "r6vht8rkki", "value": OTHER, "enabled": False},
        {"id": "s7wiu9sllj", "name": "without value"},
        {"id": 7},
        "no",
    ]
    for document in ({"items": items}, items):
        file = read(msgspec.json.encode(document))
        assert (file.format, file.unit) == (Format.AWS_JSON, "item")
        assert [(e.place, e.key, e.name, e.fallback, e.enabled) for e in file.entries] == [
            (1, KEY, "App", "q5ugs7qjjh", True),
            (2, OTHER, None, "r6vht8rkki", False),
        ]
        assert said(file) == [
            (0, "descriptions are not kept"),
            (3, "holds no value: get-api-keys gives it with --include-values"),
            (4, "is no API key as get-api-keys prints one"),
            (5, "is no API key as get-api-keys prints one"),
        ]


# --- plans ------------------------------------------------------------------------------------------------------


def planned(rows: str, plan_map: dict[str, str], default: str | None) -> tuple[list[str | None], list[str]]:
    file = with_plans(read(f"name,key,plan,usageplanids\n{rows}".encode()), plan_map, default, ("default", "gold"))
    return [entry.plan for entry in file.entries], [finding.message for finding in file.findings]


def test_a_usage_plan_is_what_the_operator_says_or_a_plan_of_its_name() -> None:
    assert planned(f"n,{KEY},,a1\n", {"a1": "gold"}, None) == (["gold"], [])
    assert planned(f"n,{KEY},,gold\n", {}, None) == (["gold"], [])
    assert planned(f"n,{KEY},,gold\n", {"gold": "default"}, None) == (["default"], [])
    assert planned(f'n,{KEY},,"a1,b2"\n', {"a1": "gold", "b2": "gold"}, None) == (["gold"], [])
    assert planned(f"n,{KEY},default,a1\n", {"a1": "gold"}, None) == (["default"], [])
    assert planned(f"n,{KEY},,\n", {}, None) == ([None], [])
    assert planned(f"n,{KEY},,\n", {}, "gold") == (["gold"], [])
    assert planned(f"n,{KEY},,a1\n", {}, "gold") == (["gold"], [])


def test_a_usage_plan_that_is_none_here_is_never_guessed() -> None:
    plans, (message,) = planned(f"n,{KEY},,a1\n", {}, None)
    assert (plans, '"a1"' in message, "--plan-map" in message) == ([], True, True)
    plans, (message,) = planned(f'n,{KEY},,"a1,gold"\n', {"a1": "default"}, None)
    assert (plans, '"default", "gold"' in message) == ([], True)
    plans, (message,) = planned(f"n,{KEY},,{OTHER}\n", {}, None)
    assert (plans, OTHER in message, "30 characters" in message) == ([], False, True)


# --- our own export ---------------------------------------------------------------------------------------------

OPTIONS = {
    "rate": "10/s",
    "burst": "20",
    "streams": "50",
    "streams-by-class": "flux=10,stream=40",
    "quota-audio": "100h/month",
    "quota-requests": "1000/day",
    "quota-bytes": "1GiB/day",
    "quota-characters": "5/month",
    "classes": "batch,stream",
    "models": "nova-3,*",
    "allow-callback": "a.example,b.example",
    "allow-url": "a.example",
    "max-body": "2GiB",
    "stream-max-life": "2h",
}
base62 = st.text(
    "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", min_size=ID_LENGTH, max_size=ID_LENGTH
)
names = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=200) | st.sampled_from(
    ["=1+1", "'", "'=x", "a,b", 'a"b', "-", "@x", "a b", "''"]
)
moments = st.integers(0, 4_000_000_000)
owns = st.dictionaries(st.sampled_from(list(OPTIONS)), st.none()).map(
    lambda chosen: parse_overrides({name: OPTIONS[name] for name in chosen})
)
records = st.builds(
    Record,
    id=base62.map(KeyId),
    digest=st.binary(min_size=32, max_size=32),
    name=names,
    pepper_id=st.just("00c0ffee"),
    plan=names,
    overrides=owns,
    state=st.sampled_from(State),
    created=moments,
    not_before=moments,
    expires=st.none() | moments,
    foreign=st.booleans(),
)


@given(st.lists(records, max_size=4, unique_by=lambda record: record.digest))
def test_an_export_is_read_as_it_was_written(kept: list[Record]) -> None:
    text = keyfiles.export_head() + keyfiles.write_export(kept)
    file = read(text.encode())
    assert (file.format, file.pepper_id) == (Format.EXPORT, "00c0ffee" if kept else None)
    assert not [finding for finding in file.findings if finding.level is not Level.NOTE]
    got = [
        Record(
            id=entry.moved.id,
            digest=entry.moved.digest,
            name=entry.name or "",
            pepper_id="00c0ffee",
            plan=entry.plan or "",
            overrides=parse_overrides(entry.overrides),
            state=entry.moved.state,
            created=entry.moved.created,
            not_before=entry.moved.not_before,
            expires=None if isinstance(entry.expires, msgspec.UnsetType) else entry.expires,
            foreign=entry.moved.foreign,
        )
        for entry in file.entries
        if entry.moved is not None
    ]
    assert got == kept


@given(st.lists(records, min_size=1, max_size=3, unique_by=lambda record: record.digest))
def test_no_cell_of_an_export_is_a_formula(kept: list[Record]) -> None:
    text = keyfiles.export_head() + keyfiles.write_export(kept)
    assert not re.search(r'(?:^|,)"?[=+@-]', text, re.MULTILINE)


def test_every_field_of_an_override_has_its_option() -> None:
    own = parse_overrides(OPTIONS)
    assert all(value is not None for value in msgspec.structs.asdict(own).values())
    assert parse_overrides(keyfiles.override_options(own)) == own
    assert {name.replace("-", "_") for name in OPTIONS} == keyfiles.OVERRIDE_COLUMNS
    assert keyfiles.override_options(Overrides()) == {}


@pytest.mark.parametrize(
    "column", ["id", "state", "created", "not_before", "expires", "foreign", "overrides", "digest", "pepper_id"]
)
def test_a_cell_that_a_spreadsheet_changed_is_told(column: str) -> None:
    row = dict(
        zip(
            EXPORT_COLUMNS,
            ("0123456789", "n", "default", "active", "2026-01-01", "", "never", "yes", "", "ab" * 32, "00c0ffee"),
            strict=True,
        )
    )
    head = ",".join(EXPORT_COLUMNS)
    assert only(f"{head}\n{','.join(row.values())}\n").moved is not None
    file = read(f"{head}\n{','.join((row | {column: '1.2E+09'}).values())}\n".encode())
    assert [place for place, _ in said(file, Level.BAD)] == [2]
    assert not file.entries


def test_digests_of_two_peppers_are_no_export() -> None:
    row = "{},n,default,active,2026-01-01,,never,yes,,{},{}\n"
    text = row.format("0123456789", "ab" * 32, "00c0ffee") + row.format("1123456789", "cd" * 32, "00c0ffef")
    assert fatal(keyfiles.export_head() + text) == (0, "holds digests of more than one pepper")


# --- whatever comes ---------------------------------------------------------------------------------------------

TABLE_WORDS = [
    "name",
    "key",
    "Name,Key",
    "enabled",
    "expires",
    "plan",
    "usageplanids",
    "sep=;",
    "true",
    "2027-01-01",
    "=1",
]
EXPORT_WORDS = [*EXPORT_COLUMNS, ",".join(EXPORT_COLUMNS), "0123456789", "ab" * 32, "00c0ffee"]
JSON_WORDS = ["[", "]", ":", '"items"', '"value"', f'"{KEY}"']
NGINX_WORDS = ["map $http_x_api_key $c {", "map $http_authorization $c {", "Token ", "Bearer ", "~^", "~*", "$", "#"]
MORE_WORDS = ["include x;", "default", "content_by_lua_block {", "{", "}", KEY, OTHER, "\0", "\ufeff", " ", "\\", "é"]
MARKS = [",", ";", "\t", "\n", "\r\n", "\r", '"', "'"]
words = st.sampled_from([*TABLE_WORDS, *EXPORT_WORDS, *JSON_WORDS, *NGINX_WORDS, *MORE_WORDS, *MARKS])
texts = st.lists(words, max_size=60).map("".join)


@given(
    st.binary(max_size=200) | texts.map(str.encode) | st.text(max_size=200).map(lambda t: t.encode("utf-8", "replace"))
)
@example(b"\xef\xbb\xbf")
@example(b'{"items":[{"value":"\\ud800"}]}')
@example(b"map $http_x_api_key $c {;;{}}")
def test_no_file_raises_and_no_finding_repeats_a_key(data: bytes) -> None:
    for form in (None, *Format):
        file = with_plans(read(data, form), {"a": "default"}, None, ("default",))
        for finding in file.findings:
            assert KEY not in finding.message
            assert OTHER not in finding.message
            assert "ab" * 32 not in finding.message
        assert not (file.fatal() and file.format is None and file.entries)
        for entry in file.entries:
            assert (entry.key is None) != (entry.moved is None)
            assert msgspec.json.decode(msgspec.json.encode(entry), type=Entry) == entry
            assert KEY not in repr(entry)


def test_no_repr_holds_a_key_or_a_digest() -> None:
    moved = Moved(id=KeyId("0123456789"), digest=b"d" * 32, state=State.ACTIVE, created=0, not_before=0, foreign=True)
    for thing in (Entry(place=1, key=KEY), Entry(place=1, moved=moved), moved, Finding(1, "x")):
        assert KEY not in repr(thing)
        assert "dddd" not in repr(thing)
