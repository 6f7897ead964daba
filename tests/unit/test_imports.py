"""What an import does to the store: once or not at all, again without effect, and no key's text anywhere."""

import contextlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from dgproxy.access import keyfiles
from dgproxy.access.keyfiles import Entry, Format
from dgproxy.access.keys import Delta, KeyId, Pepper, Record, State, Table, build, mint
from dgproxy.config import Config, Overrides, Plan, parse_overrides
from dgproxy.store import StoreError, imports, service
from dgproxy.store.imports import IDLE, IN_ONE_DELTA, Imports, Outcome, export_keys
from dgproxy.store.keys import FILE_NAME, KeyStore
from dgproxy.store.service import MAX_NAME, PAGE_BYTES, Rejected

PEPPER = Pepper(bytes(range(32)))
NOW = 1_800_000_000
CONFIG = Config(plans={"default": Plan(), "gold": Plan(streams=500)})
KEY = "apikey1234abcdefghij0123456789"
OTHER = "bpikey1234abcdefghij0123456789"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Place:
    """A store, and what imports do to it."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700)
        self.path = directory / FILE_NAME
        self.store = KeyStore.open(self.path, PEPPER)
        self.clock = Clock()
        self.imports = Imports(self.clock)
        self.heard: Delta | int | None = None

    def run(self, *entries: Entry, per_part: int = 3, **options: Any) -> dict[str, Any]:
        """The answer to an import of these entries, with its rows."""
        number = self.imports.begin(PEPPER, {})["import"]
        for at in range(0, len(entries), per_part):
            part = msgspec.json.encode(list(entries[at : at + per_part])).decode()
            self.imports.part(PEPPER, {"import": number, "entries": part})
        answer = self.commit(number, **options)
        rows: list[dict[str, Any]] = []
        for page in range(answer["pages"] + 1):
            rows += json.loads(self.imports.rows({"import": number, "page": page})["rows"])
        return answer | {"rows": rows}

    def commit(self, number: str, snapshot: Callable[[Any, int], int] | None = None, **options: bool) -> dict[str, Any]:
        answer, self.heard = self.imports.commit(
            self.store,
            CONFIG,
            {"import": number, **options},
            uid=7,
            now=NOW,
            random_bytes=os.urandom,
            snapshot=snapshot,
        )
        return answer

    def file(self, text: str, **options: Any) -> dict[str, Any]:
        found = keyfiles.read(text.encode())
        assert not found.fatal(), found.findings
        return self.run(*found.entries, **options)

    def records(self) -> list[Record]:
        return list(self.store.records())

    def everything(self) -> tuple[int, list[Record], list[Any]]:
        return self.store.generation(), self.records(), self.audit()

    def audit(self) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(self.path)) as db:
            return db.execute("SELECT at, uid, action, key_id, generation FROM audit ORDER BY number").fetchall()

    def named(self, name: str) -> Record:
        (record,) = (record for record in self.records() if record.name == name)
        return record

    def turn(self, name: str, turn: Any) -> None:
        self.store.turn(self.named(name).id, turn, uid=7, now=NOW)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path / "state")
    yield made
    made.store.close()


def outcomes(answer: Mapping[str, Any]) -> list[tuple[int, str]]:
    return [(row["place"], row["outcome"]) for row in answer["rows"]]


def counted(answer: Mapping[str, Any]) -> dict[str, int]:
    return {outcome: count for outcome, count in answer["counts"].items() if count}


# --- once -------------------------------------------------------------------------------------------------------


def test_a_foreign_key_is_kept_verbatim_and_found_by_its_digest(place: Place) -> None:
    answer = place.file(f"name,key,plan,expires,streams,enabled\nn,{KEY},gold,2030-01-01,5,\noff,{OTHER},,,,no\n")
    assert (answer["applied"], answer["generation"], counted(answer)) == (True, 1, {"created": 2})
    first, second = place.records()
    assert (first.name, first.plan, first.overrides) == ("n", "gold", Overrides(streams=5))
    assert (first.expires, first.created, first.foreign, first.state) == (1893456000, NOW, True, State.ACTIVE)
    assert (second.plan, second.state, second.expires) == ("default", State.DISABLED, None)
    table = Table(build(place.records(), 1))
    assert table.check(KEY.encode(), PEPPER, NOW) == first
    assert place.heard == Delta(1, (first, second))
    assert place.audit() == [(NOW, 7, "import", record.id, 1) for record in (first, second)]
    assert answer["rows"][0] == {"place": 2, "outcome": "created", "id": first.id, "name": "n"}


def test_no_text_of_a_key_is_on_disk_or_waits_in_memory(place: Place) -> None:
    number = place.imports.begin(PEPPER, {})["import"]
    part = msgspec.json.encode([Entry(place=1, key=KEY), Entry(place=2, key=OTHER[:19])]).decode()
    place.imports.part(PEPPER, {"import": number, "entries": part})
    assert place.imports._one is not None
    assert all(KEY.encode() not in page and OTHER[:19].encode() not in page for page in place.imports._one.held)
    place.commit(number, skip_bad=True)
    place.store.close()
    assert all(KEY.encode() not in file.read_bytes() for file in place.path.parent.iterdir())


def test_a_key_of_ours_keeps_its_own_id(place: Place) -> None:
    minted = mint(os.urandom)
    answer = place.run(Entry(place=1, key=minted.key, name="n"))
    assert answer["rows"][0]["id"] == minted.id
    (record,) = place.records()
    assert (record.id, record.foreign) == (minted.id, False)
    assert Table(build([record], 1)).check(minted.key.encode(), PEPPER, NOW) == record
    assert counted(place.run(Entry(place=1, key=minted.key, name="n"))) == {"unchanged": 1}


def test_a_key_of_ours_whose_id_is_another_keys_is_bad(place: Place) -> None:
    minted = mint(os.urandom)
    place.run(Entry(place=1, key=minted.key, name="n"))
    forged = keyfiles.Moved(id=minted.id, digest=bytes(32), state=State.ACTIVE, created=0, not_before=0, foreign=False)
    answer = place.run(Entry(place=4, moved=forged, name="m"))
    assert answer["rows"] == [{"place": 4, "outcome": "bad", "note": f"another key has its id {minted.id}"}]


BAD_KEYS = {
    "19 characters": (KEY[:19], "its key has 19 characters; 20 to 512 are possible"),
    "513 characters": ("k" * 513, "its key has 513 characters; 20 to 512 are possible"),
    "nothing": ("", "its key has 0 characters; 20 to 512 are possible"),
    "a space": (f"{KEY} {KEY}", "its key holds a character that a header's token can't"),
    "a comma": (f"{KEY},", "its key holds a character that a header's token can't"),
    "a letter beyond ASCII": (f"{KEY}é", "its key holds a character that a header's token can't"),
    "ours but for its end": (mint(os.urandom).key[:-1], "its key is one of dgproxy's, but was not copied whole"),
    "ours with a typo": (
        mint(os.urandom).key.translate(str.maketrans("abc", "bca"))[:-6] + "000000",
        "its key is one of dgproxy's, but was not copied whole",
    ),
}


@pytest.mark.parametrize(("key", "message"), BAD_KEYS.values(), ids=BAD_KEYS)
def test_what_can_be_no_key_is_bad_and_not_repeated(place: Place, key: str, message: str) -> None:
    answer = place.run(Entry(place=2, key=KEY), Entry(place=3, key=key, name="n"))
    assert outcomes(answer) == [(2, "created"), (3, "bad")]
    assert answer["rows"][1]["note"].startswith(message)
    assert not key or key not in json.dumps(answer)
    assert (answer["applied"], place.heard, place.everything()) == (False, None, (0, [], []))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"plan": "silver"}, 'there is no plan "silver"; the plans are: default, gold'),
        ({"plan": OTHER}, "there is no plan of this name; the plans are: default, gold"),
        ({"name": "x" * 201}, "a name has at most 200 characters, this one has 201"),
        ({"name": "a\nb"}, "a name holds printable characters only"),
        ({"name": f"of {KEY}"}, "the key stands in its name too"),
        ({"overrides": {"streams": OTHER}}, '"streams" is not as `keys create` takes it'),
        ({"overrides": {"models": ",".join(f"model-{n}" for n in range(2000))}}, "a key's own settings may take"),
    ],
)
def test_an_entry_that_can_t_be_taken_is_bad(place: Place, fields: dict[str, Any], message: str) -> None:
    answer = place.run(Entry(place=2, key=KEY, **fields))
    assert outcomes(answer) == [(2, "bad")]
    assert answer["rows"][0]["note"].startswith(message)
    assert KEY not in json.dumps(answer)
    assert OTHER not in json.dumps(answer)
    assert place.everything() == (0, [], [])


def test_bad_entries_are_skipped_only_if_told_to(place: Place) -> None:
    rows = f"name,key\na,{KEY}\nb,short\nc,{OTHER}\n"
    assert counted(place.file(rows)) == {"created": 2, "bad": 1}
    assert place.everything() == (0, [], [])
    answer = place.file(rows, skip_bad=True)
    assert (answer["applied"], counted(answer)) == (True, {"created": 2, "bad": 1})
    assert [record.name for record in place.records()] == ["a", "c"]


def test_a_dry_run_tells_the_same_and_changes_nothing(place: Place) -> None:
    place.file(f"name,key\na,{KEY}\n")
    before = place.everything()
    rows = f"name,key,plan\na2,{KEY},gold\nb,{OTHER},\n"
    told = place.file(rows, dry_run=True)
    assert (told["applied"], place.heard, place.everything()) == (False, None, before)
    done = place.file(rows)
    for answer in (told, done):
        for row in answer["rows"]:
            del row["id"]
    assert told["rows"] == done["rows"]
    assert done["rows"][0]["changes"] == {"name": ["a", "a2"], "plan": ["default", "gold"]}


def test_a_fault_in_the_store_changes_nothing_and_ends_the_import(place: Place) -> None:
    place.store._db.execute("CREATE TEMP TRIGGER t BEFORE INSERT ON main.audit BEGIN SELECT RAISE(ABORT, 'no'); END")
    with pytest.raises(StoreError):
        place.file(f"name,key\na,{KEY}\n")
    place.store._db.execute("DROP TRIGGER temp.t")
    assert place.everything() == (0, [], [])
    assert counted(place.file(f"name,key\na,{KEY}\n")) == {"created": 1}


# --- again ------------------------------------------------------------------------------------------------------


def test_the_same_file_again_changes_nothing_not_even_the_generation(place: Place) -> None:
    rows = f"name,key,plan,enabled,expires,streams\nsame,{KEY},gold,true,2030-01-01,5\nsame,{OTHER},,false,,\n"
    assert counted(place.file(rows)) == {"created": 2}
    before = place.everything()
    answer = place.file(rows)
    assert (counted(answer), answer["rows"], place.heard, place.everything()) == ({"unchanged": 2}, [], None, before)
    assert [record.name for record in place.records()] == ["same", "same (2)"]
    backwards = f"name,key\nsame,{OTHER}\nsame,{KEY}\n"
    assert counted(place.file(backwards)) == {"unchanged": 2}


def test_what_a_file_does_not_say_stays(place: Place) -> None:
    place.file(f"name,key,plan,enabled,expires,streams,rate\nn,{KEY},gold,no,2030-01-01,5,10/s\n")
    (before,) = place.records()
    assert counted(place.file(f"name,key\nn,{KEY}\n")) == {"unchanged": 1}
    assert counted(place.file(f"name,key\n,{KEY}\n")) == {"unchanged": 1}
    answer = place.file(f"name,key,streams,quota-audio\nn,{KEY},6,100h/month\n")
    (after,) = place.records()
    own = parse_overrides({"streams": "6", "rate": "10/s", "quota-audio": "100h/month"})
    assert after == msgspec.structs.replace(before, overrides=own)
    assert answer["rows"][0]["changes"] == {
        "overrides": [
            {"rate": "10/s", "streams": 5},
            {"rate": "10/s", "streams": 6, "quota": {"audio": "100h/month"}},
        ]
    }
    place.file(f"name,key,quota-requests\nn,{KEY},9/day\n")
    assert place.records()[0].overrides == parse_overrides(
        {"streams": "6", "rate": "10/s", "quota-audio": "100h/month", "quota-requests": "9/day"}
    )


def test_a_file_turns_keys_off_and_on_where_it_says_so(place: Place) -> None:
    place.file(f"name,key\nn,{KEY}\n")
    answer = place.file(f"name,key,enabled\nn,{KEY},false\n")
    assert answer["rows"][0]["changes"] == {"state": ["active", "disabled"]}
    assert isinstance(place.heard, Delta)
    assert place.heard.records == tuple(place.records())
    assert counted(place.file(f"name,key,enabled\nn,{KEY},\n")) == {"unchanged": 1}
    answer = place.file(f"name,key,enabled,expires\nn,{KEY},true,2030-01-01\n")
    assert answer["rows"][0]["changes"] == {"state": ["disabled", "active"], "expires": [None, "2030-01-01T00:00:00Z"]}
    answer = place.file(f"name,key,expires\nn,{KEY},never\n")
    assert answer["rows"][0]["changes"] == {"expires": ["2030-01-01T00:00:00Z", None]}


def test_a_revoked_key_is_never_brought_back(place: Place) -> None:
    place.file(f"name,key\nn,{KEY}\n")
    place.turn("n", "revoke")
    before = place.everything()
    for rows in (f"name,key,enabled\nn,{KEY},true\n", f"name,key,plan\nm,{KEY},gold\n"):
        answer = place.file(rows)
        assert counted(answer) == {"revoked": 1}
        assert answer["rows"][0] == {
            "place": 2,
            "outcome": "revoked",
            "id": before[1][0].id,
            "name": "n",
            "note": "is revoked, and stays so",
        }
        assert place.everything() == before


def test_a_name_that_is_taken_gets_a_number(place: Place) -> None:
    keys = [f"{number:030d}" for number in range(4)]
    long = "x" * MAX_NAME
    answer = place.run(*(Entry(place=n, key=key, name="same") for n, key in enumerate(keys, 1)))
    assert [row["name"] for row in answer["rows"]] == ["same", "same (2)", "same (3)", "same (4)"]
    assert answer["rows"][1]["note"] == 'the name "same" is taken'
    place.run(*(Entry(place=n, key=f"l{key}", name=long) for n, key in enumerate(keys, 1)))
    assert place.named("x" * (MAX_NAME - 4) + " (3)").state is State.ACTIVE
    place.turn("same", "revoke")  # its name is free
    answer = place.run(Entry(place=9, key=keys[3], name="same"))
    assert answer["rows"][0]["changes"] == {"name": ["same (4)", "same"]}


def test_a_key_without_a_name_gets_one_and_keeps_what_it_was_called_since(place: Place) -> None:
    place.run(Entry(place=1, key=KEY, fallback="nginx-1"), Entry(place=2, key=OTHER))
    assert [record.name for record in place.records()] == ["nginx-1", "imported-2"]
    place.run(Entry(place=1, key=KEY, name="mobile"))
    assert counted(place.run(Entry(place=7, key=KEY, fallback="nginx-7"))) == {"unchanged": 1}


def test_an_expiry_that_is_over_is_told(place: Place) -> None:
    answer = place.file(f"name,key,expires\nn,{KEY},2020-01-01\n")
    assert answer["rows"][0]["note"] == "has expired already"


# --- many -------------------------------------------------------------------------------------------------------


def test_very_many_keys_are_one_generation_and_a_snapshot_made_before_it_is_final(place: Place) -> None:
    seen: list[tuple[int, int, int]] = []

    def snapshot(records: Any, generation: int) -> int:
        with contextlib.closing(sqlite3.connect(place.path)) as other:
            (final,) = other.execute("SELECT count(*) FROM keys").fetchone()
        seen.append((len(list(records)), generation, final))
        return os.memfd_create("test")

    entries = [Entry(place=n, key=f"{n:030d}", name=f"client {n}") for n in range(1, IN_ONE_DELTA + 2)]
    answer = place.run(*entries, snapshot=snapshot)
    assert isinstance(place.heard, int)
    os.close(place.heard)
    assert seen == [(IN_ONE_DELTA + 1, 1, 0)]
    assert (answer["generation"], place.store.generation(), len(place.audit())) == (1, 1, IN_ONE_DELTA + 1)
    assert [row["place"] for row in answer["rows"]] == list(range(1, IN_ONE_DELTA + 2))
    place.run(*entries, snapshot=snapshot)
    place.run(*entries[:IN_ONE_DELTA], Entry(place=0, key=KEY), snapshot=snapshot)
    assert isinstance(place.heard, Delta)
    assert len(seen) == 1


def test_without_a_snapshot_nothing_changes(place: Place) -> None:
    def snapshot(_: Any, __: int) -> int:
        raise OSError(12, "no memory")

    entries = [Entry(place=n, key=f"{n:030d}") for n in range(IN_ONE_DELTA + 1)]
    with pytest.raises(Rejected, match=r"could be made \(no memory\); nothing was changed"):
        place.run(*entries, snapshot=snapshot)
    assert place.everything() == (0, [], [])


def test_what_is_told_fits_the_socket_page_by_page(place: Place) -> None:
    entries = [Entry(place=n, key=f"{n:030d}", name="ü" * 190 + str(n)) for n in range(2000)]
    number = place.imports.begin(PEPPER, {})["import"]
    part = msgspec.json.encode(entries).decode()
    place.imports.part(PEPPER, {"import": number, "entries": part})
    answer = place.commit(number)
    assert answer["pages"] > 2
    rows = []
    for page in range(answer["pages"]):
        text = place.imports.rows({"import": number, "page": page})["rows"]
        assert len(text.encode()) < PAGE_BYTES * 1.1
        rows += json.loads(text)
    assert [row["place"] for row in rows] == list(range(2000))


# --- the way there ----------------------------------------------------------------------------------------------


def code_of(ask: Callable[[], object]) -> str:
    with pytest.raises(Rejected) as caught:
        ask()
    assert KEY not in str(caught.value)
    return caught.value.code


def test_one_import_at_a_time_until_it_is_over_or_abandoned(place: Place) -> None:
    number = place.imports.begin(PEPPER, {})["import"]
    assert code_of(lambda: place.imports.begin(PEPPER, {})) == "busy"
    place.clock.now += IDLE - 1
    place.imports.part(PEPPER, {"import": number, "entries": "[]"})
    place.clock.now += IDLE - 1
    assert code_of(lambda: place.imports.begin(PEPPER, {})) == "busy"
    place.clock.now += 1
    other = place.imports.begin(PEPPER, {})["import"]
    assert code_of(lambda: place.imports.part(PEPPER, {"import": number, "entries": "[]"})) == "unknown_import"
    place.clock.now += IDLE
    place.imports.expire()
    assert code_of(lambda: place.commit(other)) == "unknown_import"


def test_an_import_is_committed_once_and_told_to_its_end(place: Place) -> None:
    number = place.imports.begin(PEPPER, {})["import"]
    assert code_of(lambda: place.imports.rows({"import": number})) == "unknown_import"
    place.commit(number)
    assert code_of(lambda: place.commit(number)) == "unknown_import"
    assert code_of(lambda: place.imports.part(PEPPER, {"import": number, "entries": "[]"})) == "too_many"
    assert code_of(lambda: place.imports.rows({"import": number, "page": 1})) == "unknown_import"
    assert place.imports.rows({"import": number}) == {"rows": "[]"}
    assert code_of(lambda: place.imports.rows({"import": number})) == "unknown_import"


@pytest.mark.parametrize(
    "entries", ["", "{", "{}", f'["{KEY}"]', f'[{{"place": 1, "x": "{KEY}"}}]', f'[{{"key": "{KEY}"}}]', "[" * 5000]
)
def test_a_part_that_is_no_list_of_entries_is_refused_and_not_repeated(place: Place, entries: str) -> None:
    number = place.imports.begin(PEPPER, {})["import"]
    assert code_of(lambda: place.imports.part(PEPPER, {"import": number, "entries": entries})) == "bad_request"


@pytest.mark.parametrize("args", [{}, {"import": 1}, {"import": "x", "more": 1}, {"import": "x", "page": -1}])
def test_arguments_are_judged(place: Place, args: dict[str, Any]) -> None:
    assert code_of(lambda: place.imports.rows(args)) == "bad_request"
    assert code_of(lambda: place.imports.part(PEPPER, args)) == "bad_request"


def test_an_import_is_bounded(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports, "MAX_ENTRIES", 2)
    part = msgspec.json.encode([Entry(place=1, key=KEY), Entry(place=2, key=OTHER)]).decode()
    number = place.imports.begin(PEPPER, {})["import"]
    assert place.imports.part(PEPPER, {"import": number, "entries": part}) == {"held": 2}
    assert code_of(lambda: place.imports.part(PEPPER, {"import": number, "entries": part})) == "too_many"
    place.clock.now += IDLE
    monkeypatch.setattr(imports, "MAX_HELD", 10)
    number = place.imports.begin(PEPPER, {})["import"]
    assert code_of(lambda: place.imports.part(PEPPER, {"import": number, "entries": part})) == "too_many"


# --- export -----------------------------------------------------------------------------------------------------


def exported(store: KeyStore) -> str:
    text = keyfiles.export_head()
    after: int | None = 0
    while after is not None:
        page = export_keys(store, {"after": after})
        assert len(page["lines"].encode()) < PAGE_BYTES * 1.1
        text, after = text + page["lines"], page["next"]
    return text


def moved(place: Place, text: str, **options: bool) -> dict[str, Any]:
    file = keyfiles.read(text.encode())
    assert file.format is Format.EXPORT
    return place.run(*file.entries, **options)


def test_an_export_makes_the_same_store_elsewhere(place: Place, tmp_path: Path) -> None:
    place.file(f"name,key,plan,expires,streams\n=n,{KEY},gold,2030-01-01,5\noff,{OTHER},,,\n")
    place.turn("off", "disable")
    minted, _ = place.store.create(
        name="gone", plan="default", overrides=Overrides(), expires=None, uid=7, now=NOW, random_bytes=os.urandom
    )
    place.turn("gone", "revoke")
    there = Place(tmp_path / "there")
    text = exported(place.store)
    assert counted(moved(there, text)) == {"created": 3}
    assert there.records() == place.records()
    assert counted(moved(there, text)) == {"unchanged": 3}
    assert there.store.generation() == 1
    place.turn("off", "revoke")  # what was revoked here is then revoked there
    answer = moved(there, exported(place.store))
    assert answer["rows"][0]["changes"] == {"state": ["disabled", "revoked"]}
    assert counted(moved(there, text)) == {"unchanged": 2, "revoked": 1}  # and no older export brings it back
    assert there.records() == place.records()
    assert minted.key not in text
    there.store.close()


def test_digests_of_another_pepper_are_refused_as_a_whole(place: Place) -> None:
    with pytest.raises(Rejected) as caught:
        place.imports.begin(PEPPER, {"pepper_id": "00000000"})
    assert caught.value.code == "other_pepper"
    assert f"the pepper 00000000, and this store's is {PEPPER.id}" in str(caught.value)
    assert place.imports.begin(PEPPER, {"pepper_id": PEPPER.id})["import"]


def test_an_export_is_paged(place: Place) -> None:
    place.run(*(Entry(place=n, key=f"{n:030d}") for n in range(service.PAGE_KEYS + 1)), per_part=500)
    page = export_keys(place.store, {})
    assert (page["keys"], page["generation"]) == (service.PAGE_KEYS, 1)
    assert len(keyfiles.read(exported(place.store).encode()).entries) == service.PAGE_KEYS + 1


# --- whatever comes ---------------------------------------------------------------------------------------------

entry = st.builds(
    Entry,
    place=st.integers(1, 9),
    key=st.sampled_from([KEY, OTHER, KEY.upper(), "short", "dgp_0123456789_x", ""]),
    name=st.none() | st.sampled_from(["a", "b", "a (2)", "b (2)", " ", "x" * 201]),
    plan=st.none() | st.sampled_from(["default", "gold", "silver"]),
    enabled=st.none() | st.booleans(),
    expires=st.none() | st.just(msgspec.UNSET) | st.integers(0, 4_000_000_000),
    overrides=st.dictionaries(st.sampled_from(["streams", "rate", "no"]), st.sampled_from(["5", "5/s"]), max_size=2),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.lists(entry, max_size=5), st.booleans(), st.booleans()), max_size=4))
def test_whatever_is_imported_names_are_unique_and_a_second_time_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, files: list[tuple[list[Entry], bool, bool]]
) -> None:
    place = Place(tmp_path_factory.mktemp("any") / "state")
    for entries, dry_run, skip_bad in files:
        unique = list({entry.key: entry for entry in entries}.values())
        before = place.everything()
        answer = place.run(*unique, dry_run=dry_run, skip_bad=skip_bad)
        assert sum(answer["counts"].values()) == len(unique)
        if not answer["applied"]:
            assert place.everything() == before
            continue
        live = [record.name for record in place.records() if record.state is not State.REVOKED]
        assert len(live) == len(set(live))
        assert place.store.generation() - before[0] in {0, 1}
        assert Table(build(place.records(), place.store.generation())).generation == place.store.generation()
        renamed = any(row["outcome"] == Outcome.CHANGED and "name" in row["changes"] for row in answer["rows"])
        after = place.everything()
        again = place.run(*unique, skip_bad=skip_bad)
        if not renamed:  # a name that a later entry gave up is taken by an earlier one the next time
            assert set(counted(again)) <= {Outcome.UNCHANGED, Outcome.BAD}
            assert place.everything() == after
    place.store.close()


def test_ids_are_drawn_anew_where_they_are_taken(place: Place) -> None:
    place.run(Entry(place=1, key=KEY))
    (taken,) = place.records()
    drawn = iter([taken.id.encode(), b"9" * 10])
    with place.store.bulk("import", 7, NOW) as bulk:
        found = bulk.unused_id(lambda length: bytes(_LETTERS.index(next_) for next_ in _next(drawn, length)))
    assert found == KeyId("9" * 10)


_LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def _next(drawn: Iterator[bytes], length: int) -> str:
    return next(drawn).decode() if length == 10 else "0" * length
