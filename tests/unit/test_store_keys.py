"""The key store on real files: what it keeps, what it refuses, and that it never makes a bad thing worse."""

import contextlib
import multiprocessing
import os
import random
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from dgproxy.access.keys import Delta, KeyId, Minted, Pepper, Record, State, Table, build
from dgproxy.config import Config, Overrides, Plan, parse_overrides
from dgproxy.store import StateBusy, StoreError, database, keys, lock, service
from dgproxy.store.keys import FILE_NAME, TURNS, KeyStore, NameTaken, RevokedForEver, Turn, UnknownKey, inspect
from dgproxy.store.service import Rejected, create_key, list_keys, show_key, turn_key
from dgproxy.wire.refusals import KEY_DISABLED, KEY_EXPIRED, KEY_REVOKED, Refusal

PEPPER = Pepper(bytes(range(32)))
NOW = 1_800_000_000
CONFIG = Config(plans={"default": Plan(), "gold": Plan(streams=500)})


@pytest.fixture
def state(tmp_path: Path) -> Path:
    directory = tmp_path / "state"
    directory.mkdir(mode=0o700)
    return directory


@pytest.fixture
def path(state: Path) -> Path:
    return state / FILE_NAME


@pytest.fixture
def store(path: Path) -> Iterator[KeyStore]:
    with KeyStore.open(path, PEPPER) as opened:
        yield opened


def create(store: KeyStore, name: str = "first", **fields: Any) -> tuple[Minted, Record]:
    given: dict[str, Any] = {"plan": "default", "overrides": Overrides(), "expires": None, "uid": 7, "now": NOW}
    return store.create(name=name, **(given | {"random_bytes": os.urandom} | fields))


def turned(store: KeyStore, key_id: KeyId, turn: Turn, **fields: Any) -> tuple[Record, bool]:
    return store.turn(key_id, turn, **({"uid": 7, "now": NOW} | fields))


def audit(path: Path) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute("SELECT at, uid, action, key_id, generation FROM audit ORDER BY number").fetchall()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- what it keeps ----------------------------------------------------------------------------------------------


def test_a_created_key_is_there_after_a_restart_and_opens_the_door(path: Path) -> None:
    own = parse_overrides({"streams": "5", "rate": "10/s", "quota-audio": "100h/month", "models": "a,b"})
    with KeyStore.open(path, PEPPER) as store:
        minted, record = create(store, overrides=own, plan="gold", expires=NOW + 9)
    with KeyStore.open(path, PEPPER) as store:
        assert list(store.records()) == [record]
        assert store.get(minted.id) == record
        assert store.generation() == 1
        table = Table(build(store.records(), store.generation()))
    assert table.check(minted.key.encode(), PEPPER, NOW) == record
    assert (record.name, record.plan, record.overrides, record.state) == ("first", "gold", own, State.ACTIVE)
    assert (record.created, record.expires, record.foreign) == (NOW, NOW + 9, False)


def test_a_keys_text_is_nowhere_on_disk(path: Path, store: KeyStore) -> None:
    minted, _ = create(store)
    secret = minted.key.rpartition("_")[2].encode()
    store.close()
    for file in path.parent.iterdir():
        assert secret not in file.read_bytes()


def test_each_change_makes_one_generation_and_one_audit_entry(path: Path, store: KeyStore) -> None:
    ids = []
    for generation in range(1, 5):
        ids.append(create(store, f"key {generation}", now=NOW + generation)[0].id)
        assert store.generation() == generation
    assert audit(path) == [(NOW + n, 7, "create", key_id, n) for n, key_id in enumerate(ids, 1)]


def test_a_name_is_free_again_only_when_its_key_is_revoked(store: KeyStore) -> None:
    first, _ = create(store, "same")
    for turn in ("enable", "disable"):
        turned(store, first.id, turn)
        with pytest.raises(NameTaken):
            create(store, "same")
    assert len(list(store.records())) == 1
    turned(store, first.id, "revoke")
    second, _ = create(store, "same")
    assert second.id != first.id
    with pytest.raises(RevokedForEver):  # else two keys would have the name
        turned(store, first.id, "enable")


def test_a_state_outlives_the_store_and_nothing_else_of_the_key_changes(path: Path) -> None:
    own = parse_overrides({"streams": "5"})
    for turn, state in TURNS.items():
        with KeyStore.open(path, PEPPER) as store:
            _, before = create(store, turn, overrides=own, plan="gold", expires=NOW + 9)
            _, other = create(store, f"not {turn}")
            if turn == "enable":
                turned(store, before.id, "disable")
            after, changed = turned(store, before.id, turn)
        assert changed
        assert after == msgspec.structs.replace(before, state=state)
        with KeyStore.open(path, PEPPER) as store:
            assert store.get(before.id) == after
            assert store.get(other.id) == other


def test_a_change_that_fails_midway_leaves_the_state(path: Path, store: KeyStore) -> None:
    _, record = create(store)
    store._db.execute("CREATE TEMP TRIGGER t BEFORE INSERT ON main.audit BEGIN SELECT RAISE(ABORT, 'no'); END")
    with pytest.raises(StoreError):
        turned(store, record.id, "revoke")
    store._db.execute("DROP TRIGGER temp.t")
    assert (store.generation(), store.get(record.id), len(audit(path))) == (1, record, 1)
    turned(store, record.id, "revoke")
    assert store.generation() == 2


def test_an_unknown_key_is_told_and_changes_nothing(path: Path, store: KeyStore) -> None:
    for turn in TURNS:
        with pytest.raises(UnknownKey):
            turned(store, KeyId("0000000000"), turn)
    assert (store.generation(), audit(path)) == (0, [])


def test_an_id_that_is_taken_is_drawn_again(store: KeyStore) -> None:
    taken = random.Random(1).randbytes(64)
    first, _ = create(store, "a", random_bytes=_cycle(taken))
    second, _ = create(store, "b", random_bytes=_cycle(bytes(42)))
    third, _ = create(store, "c", random_bytes=_cycle(bytes(2 * 42) + taken[::-1]))
    assert len({first.id, second.id, third.id}) == 3
    with pytest.raises(StoreError, match="randomness is broken"):
        create(store, "d", random_bytes=_cycle(b"\0"))
    assert store.generation() == 3


def _cycle(data: bytes) -> Callable[[int], bytes]:
    source = (byte for _ in iter(int, 1) for byte in data)
    return lambda n: bytes(next(source) for _ in range(n))


def test_pages_follow_each_other_without_gap_or_repetition(store: KeyStore) -> None:
    ids = [create(store, str(n))[0].id for n in range(7)]
    seen: list[str] = []
    after = 0
    while page := store.page(after, 3):
        seen += [record.id for _, record in page]
        after = page[-1][0]
    assert seen == ids == [record.id for record in store.records()]


def test_another_thread_may_use_it(store: KeyStore) -> None:
    worker = threading.Thread(target=create, args=(store,))
    worker.start()
    worker.join()
    assert store.generation() == 1


# --- modes and places -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_o12_files_have_mode_0600_whatever_the_umask(path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with lock(path.parent, 0), KeyStore.open(path, PEPPER) as store:
            create(store)
            modes = {file.name: mode(file) for file in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(["dgproxy.lock", "keys.db", "keys.db-shm", "keys.db-wal"], 0o600)


def test_o3_a_bad_state_directory_is_told(tmp_path: Path, state: Path) -> None:
    state.chmod(0o777)
    (tmp_path / "file").touch()
    for directory, said in (
        (state, "mode 0777"),
        (tmp_path / "none", "dgproxy init"),
        (tmp_path / "file", "directory"),
    ):
        with pytest.raises(StoreError, match=said):
            KeyStore.open(directory / FILE_NAME, PEPPER)
        with pytest.raises(StoreError, match=said), lock(directory, 0):
            pass
        assert any(said in line for line in inspect(directory / FILE_NAME, PEPPER))


def test_a_file_that_others_can_read_is_refused(path: Path) -> None:
    KeyStore.open(path, PEPPER).close()
    path.chmod(0o640)
    with pytest.raises(StoreError, match=r"0640.*chmod 600"):
        KeyStore.open(path, PEPPER)
    assert inspect(path, PEPPER) == [f"{path}: has mode 0640, so others than its owner can use it; chmod 600"]


# --- what it refuses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(b"", "is empty", id="empty"),
        pytest.param(b"hello", "not a SQLite database", id="short text"),
        pytest.param(b"id,name\n" * 5000, "not a SQLite database", id="text"),
        pytest.param(b"SQLite format 3\0" + b"\0" * 5000, "not a SQLite database|damaged", id="header alone"),
    ],
)
def test_o4_what_is_no_store_is_told_and_left_as_it_is(path: Path, content: bytes, said: str) -> None:
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(StoreError, match=said) as caught:
        KeyStore.open(path, PEPPER)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == content
    assert len(inspect(path, PEPPER)) == 1
    assert [file.name for file in path.parent.iterdir()] == [FILE_NAME]


@pytest.mark.parametrize("left", [0.1, 0.5, 0.95])
def test_o4_a_store_that_was_cut_short_is_told_and_left_as_it_is(path: Path, left: float) -> None:
    with KeyStore.open(path, PEPPER) as store:
        for n in range(200):
            create(store, f"key {n}")
    content = path.read_bytes()
    content = content[: int(len(content) * left)]
    path.write_bytes(content)
    with pytest.raises(StoreError, match="damaged or cut short; restore"):
        KeyStore.open(path, PEPPER)
    assert path.read_bytes() == content
    assert "damaged" in inspect(path, PEPPER)[0]


def test_a_store_that_is_gone_while_its_journal_is_there_is_not_made_anew(path: Path) -> None:
    path.with_name("keys.db-wal").write_bytes(b"changes")
    with pytest.raises(StoreError, match="-wal file is there; restore both"):
        KeyStore.open(path, PEPPER)
    assert not path.exists()


def test_o4_a_newer_schema_is_left_to_newer_releases(path: Path) -> None:
    KeyStore.open(path, PEPPER).close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 9")
    with pytest.raises(StoreError, match="schema 9, and this release knows up to 1"):
        KeyStore.open(path, PEPPER)
    assert "schema 9" in inspect(path, PEPPER)[0]


def test_a_database_of_something_else_is_left_alone(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE t (x)")
    path.chmod(0o600)
    content = path.read_bytes()
    with pytest.raises(StoreError, match="database of something else"):
        KeyStore.open(path, PEPPER)
    assert path.read_bytes() == content


def test_o9_another_pepper_is_told_apart_from_wrong_keys(path: Path) -> None:
    KeyStore.open(path, PEPPER).close()
    other = Pepper(b"o" * 32)
    said = f"pepper \\({other.id}\\) is not the one that the store was made with \\({PEPPER.id}\\)"
    with pytest.raises(StoreError, match=said):
        KeyStore.open(path, other)
    assert "is not the one" in inspect(path, other)[0]
    assert inspect(path, PEPPER) == []


def test_o4_a_locked_store_fails_and_stays(path: Path, store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store._db.execute("PRAGMA busy_timeout = 10")
    monkeypatch.setattr(database, "_BUSY", 0.01)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked by another process"):
            create(store)
        assert store.generation() == 0  # reading goes on
        other.execute("ROLLBACK")
    create(store)
    assert store.generation() == 1


def test_a_damaged_row_is_told_and_not_guessed(path: Path, store: KeyStore) -> None:
    minted, _ = create(store)
    for column, value in (("overrides", "{"), ("overrides", '{"streams":"many"}'), ("created", "x"), ("plan", b"\xff")):
        with contextlib.closing(sqlite3.connect(path)) as db, db:
            (before,) = db.execute(f"SELECT {column} FROM keys").fetchone()  # noqa: S608
            db.execute(f"UPDATE keys SET {column} = ?", (value,))  # noqa: S608
        for read in (lambda: store.get(minted.id), lambda: list(store.records()), lambda: store.page(0, 9)):
            with pytest.raises(StoreError, match=f"row of key {minted.id} is damaged"):
                read()
        with contextlib.closing(sqlite3.connect(path)) as db, db:
            db.execute(f"UPDATE keys SET {column} = ?", (before,))  # noqa: S608


def test_a_change_that_fails_midway_leaves_nothing(store: KeyStore) -> None:
    store._db.execute("CREATE TEMP TRIGGER t BEFORE INSERT ON main.audit BEGIN SELECT RAISE(ABORT, 'no'); END")
    with pytest.raises(StoreError):
        create(store)
    store._db.execute("DROP TRIGGER temp.t")
    assert (store.generation(), list(store.records())) == (0, [])
    create(store)
    assert store.generation() == 1


def test_o5_what_was_answered_is_there_after_a_kill(state: Path, path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    answered = context.SimpleQueue()
    maker = context.Process(target=_make_until_killed, args=(path, answered))
    maker.start()
    ids = [answered.get() for _ in range(20)]
    maker.kill()
    maker.join()
    with lock(state, 0), KeyStore.open(path, PEPPER) as store:
        made = [record.id for record in store.records()]
        assert made[:20] == ids
        assert store.generation() == len(made)


def _make_until_killed(path: Path, answered: Any) -> None:
    with lock(path.parent, 0), KeyStore.open(path, Pepper(bytes(range(32)))) as store:
        for n in range(1_000_000):
            answered.put(create(store, str(n))[0].id)


def test_a_maker_that_died_halfway_leaves_nothing_that_is_taken_for_a_store(path: Path) -> None:
    path.with_name("keys.db.new").write_bytes(b"half")
    with KeyStore.open(path, PEPPER) as store:
        assert store.generation() == 0
    assert [file.name for file in path.parent.iterdir()] == [FILE_NAME]


def test_inspecting_leaves_no_trace(path: Path) -> None:
    assert inspect(path, PEPPER) == []
    assert list(path.parent.iterdir()) == []
    with KeyStore.open(path, PEPPER) as store:
        create(store)
        assert inspect(path, PEPPER) == []
    assert [file.name for file in path.parent.iterdir()] == [FILE_NAME]
    assert inspect(path, PEPPER) == []
    assert [file.name for file in path.parent.iterdir()] == [FILE_NAME]


# --- migrations -------------------------------------------------------------------------------------------------


def test_an_older_store_is_brought_up_to_date_with_its_keys(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with KeyStore.open(path, PEPPER) as store:
        _, record = create(store)
    more = (*keys._SCHEMA.migrations, "ALTER TABLE keys ADD COLUMN note TEXT;", "CREATE TABLE extra (x);")
    monkeypatch.setattr(keys, "_SCHEMA", database.Schema(keys._SCHEMA.application_id, more))
    with KeyStore.open(path, PEPPER) as store:
        assert list(store.records()) == [record]
        assert store._db.execute("PRAGMA user_version").fetchone() == (3,)
        create(store, "second")


def test_a_migration_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with KeyStore.open(path, PEPPER) as store:
        _, record = create(store)
    good = keys._SCHEMA
    bad = (*good.migrations, "CREATE TABLE extra (x); INSERT INTO nowhere VALUES (1);")
    monkeypatch.setattr(keys, "_SCHEMA", database.Schema(good.application_id, bad))
    with pytest.raises(StoreError, match="no such table: nowhere"):
        KeyStore.open(path, PEPPER)
    monkeypatch.setattr(keys, "_SCHEMA", good)
    with KeyStore.open(path, PEPPER) as store:
        assert list(store.records()) == [record]
        assert store._db.execute("SELECT name FROM sqlite_master WHERE name = 'extra'").fetchone() is None


# --- the lock ---------------------------------------------------------------------------------------------------


def test_o8_the_state_has_one_holder_at_a_time(state: Path) -> None:
    with lock(state, 0), pytest.raises(StateBusy, match=f"another dgproxy \\(process {os.getpid()}\\)"), lock(state, 0):
        pass
    with lock(state, 0):
        pass


def test_who_waits_gets_the_lock_when_it_is_free(state: Path) -> None:
    order: list[str] = []

    def wait() -> None:
        with lock(state, 30):
            order.append("second")

    with lock(state, 0):
        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.1)
        order.append("first")
    waiting.join()
    assert order == ["first", "second"]


def test_o5_a_killed_holder_leaves_no_stale_lock(state: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held, holder = context.Event(), None
    holder = context.Process(target=_hold, args=(state, held))
    holder.start()
    assert held.wait(30)
    with pytest.raises(StateBusy), lock(state, 0):
        pass
    holder.kill()
    holder.join()
    with lock(state, 0):
        pass


def _hold(state: Path, held: Any) -> None:
    with lock(state, 0):
        held.set()
        time.sleep(60)


# --- commands ---------------------------------------------------------------------------------------------------


def command(store: KeyStore, **args: Any) -> tuple[dict[str, Any], Delta]:
    return create_key(store, CONFIG, args, uid=0, now=NOW + 0.5, random_bytes=os.urandom)


def test_create_shows_the_key_once_and_tells_the_workers(store: KeyStore) -> None:
    options = {
        "streams": "5",
        "rate": "10/s",
        "quota-audio": "100h/month",
        "quota-requests": "9/day",
        "classes": "batch,stream",
        "max-body": "2GiB",
        "stream-max-life": "2h",
    }
    answer, delta = command(store, name="Café 北京", plan="gold", expires="90d", overrides=options)
    assert list(answer) == ["id", "key", "name", "plan", "expires", "created", "overrides"]
    assert (answer["name"], answer["plan"], answer["created"]) == ("Café 北京", "gold", "2027-01-15T08:00:00Z")
    assert answer["expires"] == "2027-04-15T08:00:00Z"
    assert answer["overrides"] == {
        "rate": "10/s",
        "streams": 5,
        "quota": {"audio": "100h/month", "requests": "9/day"},
        "classes": ["batch", "stream"],
        "max_body": "2GiB",
        "stream_max_life": "2h",
    }
    table = Table(build([], 0))
    table.apply(delta)
    assert table.check(answer["key"].encode(), PEPPER, NOW) == delta.records[0]
    for later in (show_key(store, {"id": answer["id"]}, now=NOW), *list_keys(store, {}, now=NOW)["keys"]):
        text = msgspec.json.encode(later).decode()
        assert "key" not in later
        assert "digest" not in text
        assert answer["key"] not in text
        assert {name: later[name] for name in answer if name != "key"} == {
            name: value for name, value in answer.items() if name != "key"
        }


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        ({}, "bad_request", "name"),
        ({"name": 5}, "bad_request", "str"),
        ({"name": "n", "extra": 1}, "bad_request", "extra"),
        ({"name": ""}, "bad_name", "empty"),
        ({"name": "  "}, "bad_name", "empty"),
        ({"name": "n" * 201}, "bad_name", "201"),
        ({"name": "a\nb"}, "bad_name", "printable"),
        ({"name": "a\x1b[31mb"}, "bad_name", "printable"),
        ({"name": "a\u202eb"}, "bad_name", "printable"),
        ({"name": "a\u2066b"}, "bad_name", "printable"),
        ({"name": "a\u2028b"}, "bad_name", "printable"),
        ({"name": "a\ud800"}, "bad_name", "printable"),
        ({"name": "n", "plan": "silver"}, "unknown_plan", 'no plan "silver"; the plans are: default, gold'),
        ({"name": "n", "expires": "soon"}, "bad_expiry", "expires"),
        ({"name": "n", "expires": "0s"}, "bad_expiry", "second"),
        ({"name": "n", "expires": "-5d"}, "bad_expiry", "expires"),
        ({"name": "n", "overrides": {"streams": "-1", "rate": "fast"}}, "bad_override", "streams.*rate"),
        ({"name": "n", "overrides": {"speed": "9"}}, "bad_override", "speed"),
        ({"name": "n", "overrides": {"models": ",".join(f"model-{n}" for n in range(2000))}}, "bad_override", "8192"),
    ],
)
def test_bad_arguments_are_told_and_change_nothing(store: KeyStore, args: dict[str, Any], code: str, said: str) -> None:
    with pytest.raises(Rejected, match=said) as caught:
        command(store, **args)
    assert caught.value.code == code
    assert store.generation() == 0


def test_a_taken_name_is_told(store: KeyStore) -> None:
    command(store, name="=cmd|' /C calc'!A0")
    with pytest.raises(Rejected, match="choose another name") as caught:
        command(store, name="=cmd|' /C calc'!A0")
    assert caught.value.code == "name_taken"


def test_show_takes_an_id_with_and_without_its_prefix_and_repeats_no_key(store: KeyStore) -> None:
    answer, _ = command(store, name="n")
    assert show_key(store, {"id": answer["id"]}, now=NOW) == show_key(store, {"id": f"dgp_{answer['id']}"}, now=NOW)
    with pytest.raises(Rejected, match="no key with the id 0000000000"):
        show_key(store, {"id": "0000000000"}, now=NOW)
    for text in (answer["key"], "", "x", "n", answer["id"][:9]):
        with pytest.raises(Rejected) as caught:
            show_key(store, {"id": text}, now=NOW)
        assert caught.value.code == "bad_id"
        assert answer["key"] not in str(caught.value)


@pytest.mark.parametrize("turn", TURNS)
def test_turning_takes_an_id_as_show_does_and_repeats_no_key(store: KeyStore, turn: Turn) -> None:
    made = [command(store, name=f"n{n}")[0] for n in range(2)]
    for key in made:
        turn_key(store, "disable", {"id": key["id"]}, uid=0, now=NOW)
    for key_id in (made[0]["id"], f"dgp_{made[1]['id']}"):
        answer, _ = turn_key(store, turn, {"id": key_id}, uid=0, now=NOW)
        assert answer == show_key(store, {"id": key_id}, now=NOW) | {"changed": turn != "disable"}
        assert answer["state"] == TURNS[turn]
    generation = store.generation()
    for args, code in (
        ({"id": made[0]["key"]}, "bad_id"),
        ({"id": made[0]["id"][:9]}, "bad_id"),
        ({"id": ""}, "bad_id"),
        ({"id": "0000000000"}, "not_found"),
        ({}, "bad_request"),
        ({"id": 5}, "bad_request"),
        ({"id": made[0]["id"], "state": "active"}, "bad_request"),
    ):
        with pytest.raises(Rejected) as caught:
            turn_key(store, turn, args, uid=0, now=NOW)
        assert caught.value.code == code
        assert made[0]["key"] not in str(caught.value)
    assert store.generation() == generation


TURNED: dict[tuple[State, Turn], State | None] = {  # what becomes of it; None: it is refused
    (State.ACTIVE, "disable"): State.DISABLED,
    (State.ACTIVE, "enable"): State.ACTIVE,
    (State.ACTIVE, "revoke"): State.REVOKED,
    (State.DISABLED, "disable"): State.DISABLED,
    (State.DISABLED, "enable"): State.ACTIVE,
    (State.DISABLED, "revoke"): State.REVOKED,
    (State.REVOKED, "disable"): None,
    (State.REVOKED, "enable"): None,
    (State.REVOKED, "revoke"): State.REVOKED,
}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(get_args(Turn))), max_size=12))
def test_whatever_is_asked_in_whatever_order_store_audit_and_workers_agree(
    tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[int, Turn]]
) -> None:
    path = tmp_path_factory.mktemp("state") / FILE_NAME
    with KeyStore.open(path, PEPPER) as store:
        made = [create(store, f"n{n}")[0] for n in range(3)]
        worker = Table(build(store.records(), store.generation()))
        states = dict.fromkeys((key.id for key in made), State.ACTIVE)
        entries = audit(path)
        for number, turn in asked:
            key_id = made[number].id
            wanted = TURNED[states[key_id], turn]
            if wanted is None:
                with pytest.raises(Rejected, match=f"the key {key_id} is revoked, and that is for ever") as caught:
                    turn_key(store, turn, {"id": key_id}, uid=5, now=NOW + 0.5)
                assert caught.value.code == "revoked"
            else:
                answer, delta = turn_key(store, turn, {"id": key_id}, uid=5, now=NOW + 0.5)
                assert answer["changed"] == (delta is not None) == (states[key_id] is not wanted)
                assert answer["state"] == wanted
                if delta is not None:
                    worker.apply(delta)  # which raises, if it is not the next
                    entries.append((NOW, 5, turn, key_id, delta.generation))
                states[key_id] = wanted
        assert {record.id: record.state for record in store.records()} == states
        assert audit(path) == entries
        assert store.generation() == worker.generation
        started_later = Table(build(store.records(), store.generation()))
    for key in made:
        found = [table.check(key.key.encode(), PEPPER, NOW) for table in (worker, started_later)]
        refusal = {State.DISABLED: KEY_DISABLED, State.REVOKED: KEY_REVOKED}.get(states[key.id])
        assert found[0] == found[1]
        if refusal is None:
            assert isinstance(found[0], Record)
        else:
            assert found[0] is refusal


def test_c6_what_is_shown_as_expired_is_what_the_door_refuses_as_expired(store: KeyStore) -> None:
    made, delta = command(store, name="n", expires="90s")
    never, _ = command(store, name="never")
    table = Table(build([], 0))
    table.apply(delta)
    for now, expired in ((NOW + 89, False), (NOW + 89.9, False), (NOW + 90, True), (NOW + 1e6, True)):
        found = table.check(made["key"].encode(), PEPPER, now)
        assert (found is KEY_EXPIRED) == isinstance(found, Refusal) == expired
        key = show_key(store, {"id": made["id"]}, now=now)
        assert (key["state"], key["expired"]) == ("active", expired)
        listed = list_keys(store, {}, now=now)["keys"]
        assert {key["id"]: key["expired"] for key in listed} == {made["id"]: expired, never["id"]: False}
    answer, _ = turn_key(store, "revoke", {"id": made["id"]}, uid=0, now=NOW + 90)
    assert (answer["state"], answer["expired"]) == ("revoked", True)


def test_a_long_list_comes_in_pages_that_fit_the_socket(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "PAGE_KEYS", 10)
    monkeypatch.setattr(service, "PAGE_BYTES", 1500)
    ids = [command(store, name=f"key {n}" * (1 + n % 20))[0]["id"] for n in range(40)]
    seen: list[str] = []
    after: int | None = 0
    while after is not None:
        page = list_keys(store, {"after": after}, now=NOW)
        assert 0 < len(page["keys"]) <= 10
        assert len(msgspec.json.encode(page)) < 2500
        seen += [key["id"] for key in page["keys"]]
        after = page["next"]
        if after is not None and len(seen) == len(ids):
            assert list_keys(store, {"after": after}, now=NOW) == {"keys": [], "next": None}
            break
    assert seen == ids


@pytest.mark.parametrize("after", [-1, 1 << 63, "1"])
def test_a_page_after_what_is_no_number_of_a_key_is_refused(store: KeyStore, after: object) -> None:
    with pytest.raises(Rejected) as rejected:
        list_keys(store, {"after": after}, now=NOW)
    assert rejected.value.code == "bad_request"


def test_an_unknown_id_is_no_key(store: KeyStore) -> None:
    assert store.get(KeyId("0000000000")) is None
    assert list_keys(store, {}, now=NOW) == {"keys": [], "next": None}
