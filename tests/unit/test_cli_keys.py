"""`dgproxy keys`, with a proxy's control socket and without one: each command applies once or fails clearly."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from dgproxy.access.keys import Pepper, Record, State, Table, build
from dgproxy.admin.control import Call, ControlError, ControlServer
from dgproxy.cli.keys import keys
from dgproxy.config import Overrides, Quota, render_default
from dgproxy.store import lock
from dgproxy.store.keys import FILE_NAME, KeyStore

NOBODY = 65534
PEPPER = bytes(range(32))
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


class Place:
    """A configuration with its state, as `init` makes them, but nothing else."""

    def __init__(self, directory: Path) -> None:
        self.config = directory / "dgproxy.toml"
        self.state = directory / "state"
        self.store = self.state / FILE_NAME
        self.config.write_text(render_default("127.0.0.1:8443", "http://127.0.0.1:8080"))
        self.state.mkdir(mode=0o700)
        self.pepper = self.state / "pepper"
        self.pepper.touch(mode=0o600)
        self.pepper.write_bytes(PEPPER)

    def run(self, *args: str) -> Result:
        return CliRunner().invoke(keys, [*args, "-c", str(self.config)])

    def json(self, *args: str) -> Any:
        result = self.run(*args, "--json")
        assert (result.exit_code, result.stderr) == (0, ""), result.output
        return json.loads(result.stdout)

    def records(self) -> list[Record]:
        with KeyStore.open(self.store, Pepper(PEPPER)) as store:
            return list(store.records())


@pytest.fixture
def place() -> Iterator[Place]:
    directory = Path(tempfile.mkdtemp(prefix="dgp"))  # short, as it holds a socket
    yield Place(directory)
    shutil.rmtree(directory)


@contextmanager
def proxy(place: Place, answers: dict[str, Any]) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """A control socket that gives these answers; what it was asked."""
    asked: list[tuple[str, dict[str, Any]]] = []

    def handler(command: str, answer: Any) -> Any:
        async def handle(call: Call) -> object:
            asked.append((command, call.args))
            if isinstance(answer, Exception):
                raise answer
            return answer

        return handle

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = ControlServer({name: handler(name, answer) for name, answer in answers.items()}, lambda *_: None)
    asyncio.run_coroutine_threadsafe(server.start(place.state / "admin.sock"), loop).result(30)
    try:
        yield asked
    finally:
        asyncio.run_coroutine_threadsafe(server.close(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


# --- without a proxy --------------------------------------------------------------------------------------------


def test_a_created_key_opens_the_door(place: Place) -> None:
    made = place.json("create", "--name", "mobile app", "--expires", "90d", "--streams", "5", "--models", "a,b")
    assert list(made) == ["id", "key", "name", "plan", "expires", "created", "overrides"]
    assert (made["name"], made["plan"]) == ("mobile app", "default")
    assert made["overrides"] == {"streams": 5, "models": ["a", "b"]}
    table = Table(build(place.records(), 1))
    record = table.check(made["key"].encode(), Pepper(PEPPER), 0)
    assert isinstance(record, Record)
    assert record.id == made["id"]


def test_every_field_of_a_plan_is_overridden_by_its_option(place: Place) -> None:
    given = {
        "--streams": "50",
        "--streams-by-class": "flux=10,agent=5",
        "--rate": "10/s",
        "--burst": "20",
        "--quota-audio": "100h/month",
        "--quota-requests": "9/day",
        "--quota-bytes": "1GiB/week",
        "--quota-characters": "5/month",
        "--classes": "batch,stream",
        "--models": "*",
        "--allow-callback": "hooks.example.com",
        "--allow-url": "a.example,b.example",
        "--max-body": "1GiB",
        "--stream-max-life": "2h",
    }
    made = place.json("create", "--name", "n", *(word for pair in given.items() for word in pair))
    assert made["overrides"] == {
        "rate": "10/s",
        "burst": 20,
        "streams": 50,
        "streams_by_class": {"flux": 10, "agent": 5},
        "quota": {"audio": "100h/month", "requests": "9/day", "bytes": "1GiB/week", "characters": "5/month"},
        "classes": ["batch", "stream"],
        "models": ["*"],
        "allow_callback": ["hooks.example.com"],
        "allow_url": ["a.example", "b.example"],
        "max_body": "1GiB",
        "stream_max_life": "2h",
    }
    assert place.json("show", made["id"])["overrides"] == made["overrides"]
    assert set(made["overrides"]) == set(Overrides.__struct_fields__)
    assert set(made["overrides"]["quota"]) == set(Quota.__struct_fields__)


def test_people_see_the_key_once_whole_and_read_that_it_is_once(place: Place) -> None:
    result = place.run("create", "--name", "[red]n[/red]", "--rate", "10/s", "--quota-audio", "2h/day")
    (record,) = place.records()
    assert result.exit_code == 0
    (line,) = [line for line in result.stdout.splitlines() if "dgp_" in line]
    key = next(word for word in line.split() if word.startswith("dgp_"))
    assert Pepper(PEPPER).digest(key.encode()) == record.digest
    for said in ("[red]n[/red]", record.id, "default", "never", "rate=10/s", "quota.audio=2h/day", "only this once"):
        assert said in result.stdout
    for later in (place.run("list").stdout, place.run("show", record.id).stdout, place.run("list", "--json").stdout):
        assert record.id in later
        assert "[red]n[/red]" in later
        assert key not in later
        assert record.digest.hex() not in later


def test_a_key_is_turned_off_and_on_and_off_for_ever(place: Place) -> None:
    made, other = place.json("create", "--name", "n"), place.json("create", "--name", "other")
    turns = [
        ("disable", "disabled", True),
        ("disable", "disabled", False),
        ("enable", "active", True),
        ("enable", "active", False),
        ("revoke", "revoked", True),
        ("revoke", "revoked", False),
    ]
    for turn, state, changed in turns:
        answer = place.json(turn, made["id"])
        assert (answer["state"], answer["changed"]) == (state, changed)
        shown = place.json("show", made["id"])
        assert answer == shown | {"changed": changed}
        assert place.json("list") == [shown, place.json("show", other["id"])]
    for turn in ("disable", "enable"):
        result = place.run(turn, made["id"], "--json")
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == (
            f"dgproxy: the key {made['id']} is revoked, and that is for ever; make a new one with "
            "`dgproxy keys create`\n"
        )
    assert [record.state for record in place.records()] == [State.REVOKED, State.ACTIVE]
    again = place.json("create", "--name", "n")  # its name is free, and only it
    assert place.json("enable", again["id"])["changed"] is False


def test_people_read_in_a_line_what_became_of_the_key(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    made = place.json("create", "--name", "[red]n[/red]", "--expires", "1h")
    start = f"The key {made['id']} ([red]n[/red]) is "
    for turn, first, again in (
        ("disable", "now disabled: requests with it are refused", "already disabled: requests with it are refused"),
        ("enable", "now enabled", "already enabled"),
    ):
        assert place.run(turn, made["id"]).stdout == f"{start}{first}\n"
        assert place.run(turn, f"dgp_{made['id']}").stdout == f"{start}{again}\n"
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + 3600)
    expired = f"but it expired at {made['expires']}"
    assert place.run("enable", made["id"]).stdout == f"{start}already enabled, {expired}\n"
    assert place.run("revoke", made["id"]).stdout == f"{start}now revoked: requests with it are refused, for ever\n"


def test_people_see_the_state_and_that_a_key_has_expired(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"active": None, "disabled": "disable", "revoked": "revoke"}
    ids = {}
    for name, turn in names.items():
        ids[name] = place.json("create", "--name", f"n {name}", "--expires", "1h")["id"]
        if turn:
            place.json(turn, ids[name])

    def states() -> dict[str, str]:
        rows = {name: [line for line in place.run("list").stdout.splitlines() if ids[name] in line] for name in names}
        listed = {name: row[0].split("│")[4].strip() for name, row in rows.items()}
        for name, word in listed.items():
            assert f"state      {word}" in [line.rstrip() for line in place.run("show", ids[name]).stdout.splitlines()]
        return listed

    assert states() == {name: name for name in names}
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + 3600)
    assert states() == {"active": "expired", "disabled": "disabled", "revoked": "revoked"}
    keys_now = place.json("list")
    assert [(key["state"], key["expired"]) for key in keys_now] == [(name, True) for name in names]


def test_a_whole_key_is_no_id_and_is_not_repeated(place: Place) -> None:
    made = place.json("create", "--name", "n")
    for turn in ("show", "disable", "enable", "revoke"):
        for form in ((), ("--json",)):
            result = place.run(turn, made["key"], *form)
            assert (result.exit_code, result.stdout) == (1, "")
            assert "stands between the two underscores" in result.stderr
            assert made["key"][15:] not in result.output
    assert place.records()[0].state is State.ACTIVE


def test_lists_are_whole_and_in_the_order_of_making(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgproxy.store.service.PAGE_KEYS", 2)
    assert place.json("list") == []
    ids = [place.json("create", "--name", f"n{i}")["id"] for i in range(5)]
    listed = place.json("list")
    assert [key["id"] for key in listed] == ids
    assert [place.json("show", f"dgp_{key['id']}") for key in listed] == listed


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("create", "--name", "a\nb"), "printable"),
        (("create", "--name", "n", "--plan", "gold"), 'no plan "gold"; the plans are: default'),
        (("create", "--name", "n", "--expires", "soon"), "expires"),
        (("create", "--name", "n", "--rate", "fast"), "rate"),
        (("create", "--name", "taken"), "choose another name"),
        (("show", "0000000000"), "no key with the id 0000000000"),
        (("show", "x"), "10 letters and digits"),
        (("disable", "x"), "10 letters and digits"),
        (("disable", "0000000000"), "no key with the id 0000000000"),
        (("enable", "0000000000"), "no key with the id 0000000000"),
        (("revoke", "dgp_0000000000"), "no key with the id 0000000000"),
    ],
)
def test_a_refused_command_says_why_in_one_line_and_exits_1(place: Place, args: tuple[str, ...], said: str) -> None:
    place.json("create", "--name", "taken")
    for form in (args, (*args, "--json")):
        result = place.run(*form)
        assert (result.exit_code, result.stdout) == (1, "")
        assert said in result.stderr
        assert result.stderr.count("\n") == 1
    assert len(place.records()) == 1


@pytest.mark.parametrize(
    "args", [("create",), ("show",), ("revoke",), ("create", "--name", "n", "--speed", "9"), ("remove",)]
)
def test_wrong_usage_exits_2(place: Place, args: tuple[str, ...]) -> None:
    assert place.run(*args).exit_code == 2


def test_a_state_that_cannot_be_used_is_told(place: Place) -> None:
    place.pepper.write_bytes(b"short")
    assert "keys.pepper_file" in place.run("list").stderr
    place.pepper.write_bytes(PEPPER)
    place.store.write_bytes(b"")
    place.store.chmod(0o600)
    assert "is empty" in place.run("list").stderr
    shutil.rmtree(place.state)
    result = place.run("list")
    assert "dgproxy init" in result.stderr
    assert result.exit_code == 1


# --- with a proxy -----------------------------------------------------------------------------------------------


def test_with_a_proxy_its_word_counts_and_the_store_is_not_touched(place: Place) -> None:
    key: dict[str, Any] = {
        "id": "0123456789",
        "name": "n",
        "plan": "p",
        "created": "c",
        "expires": None,
        "overrides": {},
    }
    shown, made = key | {"state": "active", "expired": False}, key | {"key": "dgp_k"}
    turned = shown | {"changed": True}
    answers = {"keys.create": made, "keys.show": shown, "keys.list": {"keys": [shown], "next": None}}
    answers |= {f"keys.{turn}": turned for turn in ("disable", "enable", "revoke")}
    with lock(place.state, 0), proxy(place, answers) as asked:
        assert place.json("create", "--name", "n", "--quota-audio", "1h/day") == made
        assert place.json("show", "0123456789") == shown
        assert place.json("list") == [shown]
        for turn in ("disable", "enable", "revoke"):
            assert place.json(turn, "0123456789") == turned
    assert asked == [
        (
            "keys.create",
            {"name": "n", "plan": "default", "expires": None, "overrides": {"quota-audio": "1h/day"}},
        ),
        ("keys.show", {"id": "0123456789"}),
        ("keys.list", {"after": 0}),
        *((f"keys.{turn}", {"id": "0123456789"}) for turn in ("disable", "enable", "revoke")),
    ]
    assert not place.store.exists()


def test_a_proxys_refusal_is_the_last_word(place: Place) -> None:
    with proxy(place, {"keys.create": ControlError("name_taken", "taken; choose another")}):
        result = place.run("create", "--name", "n", "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "dgproxy: taken; choose another\n"
    assert not place.store.exists()


def test_text_that_is_no_unicode_is_refused_either_way(place: Place) -> None:
    results = [place.run("create", "--name", "a\udcff")]
    with proxy(place, {"keys.create": {}}) as asked:
        results.append(place.run("create", "--name", "a\udcff"))
    for result in results:
        assert (result.exit_code, result.stderr) == (1, "dgproxy: an argument is not valid Unicode text\n")
    assert asked == []
    assert not place.store.exists()


def test_o10_a_proxy_that_holds_its_state_and_does_not_answer_is_told(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["dgproxy.cli.keys"], "_PATIENCE", 0.1)
    with lock(place.state, 0):
        result = place.run("create", "--name", "n")
    assert result.exit_code == 1
    assert f"in use by another dgproxy (process {os.getpid()})" in result.stderr
    assert not place.store.exists()


def test_o10_a_command_during_a_start_waits_for_the_proxy(place: Place) -> None:
    results: list[Result] = []
    with lock(place.state, 0):
        command = threading.Thread(target=lambda: results.append(place.run("list", "--json")))
        command.start()
        with proxy(place, {"keys.list": {"keys": [], "next": None}}):
            command.join()
    assert (results[0].exit_code, json.loads(results[0].stdout)) == (0, [])
    assert not place.store.exists()


# --- as real processes ------------------------------------------------------------------------------------------


def started(place: Place, *args: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "dgproxy", "keys", *args, "-c", str(place.config), "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_o10_many_at_once_each_apply_once_or_fail_clearly(place: Place) -> None:
    names = [f"name {i}" for i in range(12)]
    processes = [started(place, "create", "--name", name) for name in (*names, *names)]
    made: list[str] = []
    failed: list[str] = []
    for process in processes:
        out, err = process.communicate(timeout=100)
        assert process.returncode == (0 if out else 1)
        (made if out else failed).append(out or err)
    assert all("choose another name" in line or "in use by another" in line for line in failed), failed
    records = place.records()
    assert sorted(json.loads(out)["id"] for out in made) == sorted(record.id for record in records)
    assert len({record.name for record in records}) == len(records)


def test_o10_of_many_who_revoke_at_once_one_changes_it(place: Place) -> None:
    made = place.json("create", "--name", "n")
    processes = [started(place, "revoke", made["id"]) for _ in range(6)]
    changed: list[bool] = []
    for process in processes:
        out, err = process.communicate(timeout=100)
        assert process.returncode == (0 if out else 1)
        if out:
            changed.append(json.loads(out)["changed"])
        else:
            assert "in use by another" in err
    assert changed.count(True) == 1
    with KeyStore.open(place.store, Pepper(PEPPER)) as store:
        assert store.generation() == 2


@root_only
def test_roots_command_leaves_no_file_that_the_daemon_cannot_use(place: Place) -> None:
    place.config.parent.chmod(0o755)
    os.chown(place.state, NOBODY, NOBODY)  # the pepper stays root's
    place.json("create", "--name", "n")
    assert (os.geteuid(), os.getegid()) == (0, 0)
    for file in place.state.iterdir():
        status = file.stat()
        expected = 0 if file == place.pepper else NOBODY
        assert (file.name, status.st_uid, status.st_gid) == (file.name, expected, expected)


@root_only
def test_somebody_else_is_refused_with_the_owners_name(place: Place) -> None:
    place.config.parent.chmod(0o755)
    place.state.chmod(0o755)
    os.seteuid(NOBODY)
    try:
        result = place.run("create", "--name", "n")
    finally:
        os.seteuid(0)
    assert result.exit_code == 1
    assert "belongs to root, and no proxy is running; run this as root" in result.stderr
    assert not place.store.exists()
