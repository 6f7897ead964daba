"""Keys that are disabled, enabled, revoked or expired, as their holders and their operators meet it (spec parts 3, 5).

A change counts on every worker when the command returns: so each worker is asked over connections that it had before.
"""

import os
import signal
import sqlite3
import ssl
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any, Final

import pytest

from dgproxy.admin import control
from tests.support.clients import Answer, assert_refusal, connection, request
from tests.support.logs import SECRETS, is_event, mentions, parse
from tests.support.proxy import Key, Proxy, dgproxy
from tests.support.upstreams import Upstream

# What is shown here is the proxy's own; one upstream is enough.
pytestmark = pytest.mark.parametrize("upstream_process", ["standin"], indirect=True)

NewProxy = Callable[..., Proxy]

DISABLED: Final = "This ingress API key is disabled."
REVOKED: Final = "This ingress API key was revoked."
EXPIRED: Final = "This ingress API key has expired."


class Kept:
    """A connection that is kept alive, and the worker that has it. No client of ours connects again by itself."""

    def __init__(self, proxy: Proxy, tls: ssl.SSLContext, key: Key) -> None:
        self._proxy = proxy
        self._wire = connection(proxy.base_url, tls)
        try:
            self._wire.connect()
            self._wire.auto_open = 0  # NotConnected, rather than a new connection
            marker = uuid.uuid4().hex
            assert self.ask(key, marker).status == 200
            (entry,) = parse([proxy.stderr.wait_for(mentions(client_request_id=marker))])
        except BaseException:
            self.close()
            raise
        self.worker: str = entry["process"]

    def ask(self, key: Key, marker: str = "") -> Answer:
        """One small request."""
        self._wire.putrequest("GET", "/v1/models", skip_accept_encoding=True)
        self._wire.putheader("Authorization", f"Token {key.key}")
        if marker:
            self._wire.putheader("X-Request-Id", marker)
        self._wire.endheaders()
        with self._wire.getresponse() as response:
            found = [(name.lower(), value) for name, value in response.getheaders()]
            return Answer(response.status, found, response.read())

    def close(self) -> None:
        self._wire.close()


@contextmanager
def at_every_worker(proxy: Proxy, key: Key) -> Iterator[list[Kept]]:
    """Kept-alive connections, two or more at each of the two workers, on each of which the key was let in."""
    tls = proxy.client_tls()
    with ExitStack() as stack:
        kept: list[Kept] = []
        workers: list[str] = []
        for _ in range(60):  # 1 in 10^16 that this many leave one of two workers with less than two
            kept.append(stack.enter_context(closing(Kept(proxy, tls, key))))
            workers = [one.worker for one in kept]
            if all(workers.count(f"worker {index}") > 1 for index in range(2)):
                yield kept
                return
    raise AssertionError(f"connections went to one worker only: {workers}")


def knock(proxy: Proxy, key: Key) -> Answer:
    """One small request on a connection of its own."""
    return request(proxy.base_url, proxy.client_tls(), "GET", "/v1/models", [("Authorization", f"Token {key.key}")])


def assert_refused(answer: Answer, said: str) -> None:
    assert_refusal(answer, 401, "INVALID_AUTH")
    assert answer.json()["err_msg"] == said


def assert_everywhere(proxy: Proxy, key: Key, said: str | None) -> None:
    """On new connections until both workers were asked: let in (None), or refused with this sentence."""
    tls = proxy.client_tls()
    seen: set[str] = set()
    for _ in range(60):
        marker = uuid.uuid4().hex
        headers = [("Authorization", f"Token {key.key}"), ("X-Request-Id", marker)]
        answer = request(proxy.base_url, tls, "GET", "/v1/models", headers)
        if said is None:
            assert answer.status == 200
        else:
            assert_refused(answer, said)
        (entry,) = parse([proxy.stderr.wait_for(mentions(client_request_id=marker))])
        seen.add(entry["process"])
        if seen == {"worker 0", "worker 1"}:
            return
    raise AssertionError(f"connections went to one worker only: {seen}")


def changes(proxy: Proxy, key: Key) -> list[str]:
    """What the log says of this key's changes, without its making."""
    mine = [line for line in proxy.log_lines() if line["event"] == "keys.changed" and line["key_id"] == key.id]
    return [line["change"] for line in mine if line["change"] != "create"]


def refused_command(proxy: Proxy, *args: str) -> str:
    """What a command says that fails: exit 1, nothing on stdout, one line."""
    done = dgproxy(*args, "-c", str(proxy.config), "--json", check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done
    return done.stderr


# --- with a running proxy --------------------------------------------------------------------------------------------


def test_c10_a_key_that_is_turned_off_is_refused_on_every_worker_and_kept_connection_when_the_command_returns(
    proxy: Proxy, upstream: Upstream
) -> None:
    key, other = proxy.new_key("on and off"), proxy.new_key("the other")
    with at_every_worker(proxy, key) as kept:
        for turn, said in (
            ("disable", DISABLED),
            ("enable", None),
            ("disable", DISABLED),
            ("enable", None),
            ("revoke", REVOKED),
        ):
            assert proxy.ask("keys", turn, key.id)["changed"] is True
            answers = [one.ask(key) for one in kept]  # nothing between: on the very next request
            upstream.clear()
            if said is None:
                assert [answer.status for answer in answers] == [200] * len(kept)
                assert_everywhere(proxy, key, None)
                continue
            for one, answer in zip(kept, answers, strict=True):
                assert_refused(answer, said)
                assert_refused(one.ask(key), said)
            assert not upstream.heads()
            assert [one.ask(other).status for one in kept] == [200] * len(kept)
        assert_everywhere(proxy, key, REVOKED)
        assert_everywhere(proxy, other, None)
    assert changes(proxy, key) == ["disable", "enable", "disable", "enable", "revoke"]
    assert changes(proxy, other) == []


def test_each_state_and_expiry_has_its_own_sentence_and_a_wrong_secret_learns_none_of_them(proxy: Proxy) -> None:
    keys = {said: proxy.new_key(f"c6 {said}") for said in (DISABLED, REVOKED)}
    proxy.ask("keys", "disable", keys[DISABLED].id)
    proxy.ask("keys", "revoke", keys[REVOKED].id)
    for said, key in keys.items():
        assert_refused(knock(proxy, key), said)
        stranger = SECRETS.add(key.key[:20] + ("x" if key.key[20] != "x" else "y") + key.key[21:])
        answer = knock(proxy, Key(key.id, stranger, key.name))
        assert_refusal(answer, 401, "INVALID_AUTH")
        assert answer.json()["err_msg"] not in {DISABLED, REVOKED, EXPIRED}


def test_c6_a_key_expires_by_itself_and_is_shown_so(proxy: Proxy) -> None:
    key = proxy.new_key("short-lived", expires="8s")
    with at_every_worker(proxy, key) as kept:
        deadline = time.monotonic() + 20
        while not proxy.ask("keys", "show", key.id)["expired"]:
            assert time.monotonic() < deadline, "it never expired"
        for one in kept:
            assert_refused(one.ask(key), EXPIRED)
    shown = proxy.ask("keys", "show", key.id)
    assert (shown["state"], shown["expired"]) == ("active", True)
    told = dgproxy("keys", "show", key.id, "-c", str(proxy.config)).stdout
    assert "state" in told
    assert "expired" in told
    assert proxy.ask("keys", "enable", key.id)["changed"] is False  # it does not wake what time has ended
    assert_refused(knock(proxy, key), EXPIRED)
    proxy.ask("keys", "revoke", key.id)
    assert_refused(knock(proxy, key), REVOKED)


def test_a_command_that_changes_nothing_says_so_and_leaves_no_trace(proxy: Proxy) -> None:
    key = proxy.new_key("again and again")
    for turn, times in (("enable", 0), ("disable", 1), ("enable", 1), ("revoke", 1)):
        before = proxy.status()["generation"]
        answers = [proxy.ask("keys", turn, key.id) for _ in range(2)]
        assert [answer["changed"] for answer in answers] == [times == 1, False]
        assert proxy.status()["generation"] == before + times
        shown = proxy.ask("keys", "show", key.id)
        assert all(answer == shown | {"changed": answer["changed"], "everywhere": True} for answer in answers)
    assert changes(proxy, key) == ["disable", "enable", "revoke"]
    with closing(sqlite3.connect(f"file:{proxy.directory}/state/keys.db?mode=ro", uri=True)) as db:
        entries = db.execute("SELECT uid, action FROM audit WHERE key_id = ? ORDER BY number", (key.id,)).fetchall()
    assert entries == [(os.getuid(), action) for action in ("create", "disable", "enable", "revoke")]


def test_what_cannot_be_done_is_told_in_a_sentence_and_changes_nothing(proxy: Proxy) -> None:
    key = proxy.new_key("refusals")
    before = proxy.status()["generation"]
    for turn in ("disable", "enable", "revoke"):
        assert "there is no key with the id 0000000000" in refused_command(proxy, "keys", turn, "0000000000")
        said = refused_command(proxy, "keys", turn, key.key)
        assert "10 letters and digits" in said
        assert key.key[-38:] not in said
    assert proxy.status()["generation"] == before
    proxy.ask("keys", "revoke", f"dgp_{key.id}")
    for turn in ("disable", "enable"):
        assert f"the key {key.id} is revoked, and that is for ever" in refused_command(proxy, "keys", turn, key.id)
    assert_refused(knock(proxy, key), REVOKED)
    assert proxy.status()["generation"] == before + 1


def test_a_revoked_keys_name_goes_to_a_new_key_and_the_old_one_stays_out(proxy: Proxy) -> None:
    old = proxy.new_key("handed on")
    assert "choose another name" in refused_command(proxy, "keys", "create", "--name", "handed on")
    proxy.ask("keys", "disable", old.id)
    assert "choose another name" in refused_command(proxy, "keys", "create", "--name", "handed on")
    proxy.ask("keys", "revoke", old.id)
    new = proxy.new_key("handed on")
    assert_everywhere(proxy, new, None)
    assert_everywhere(proxy, old, REVOKED)


def test_a_repeated_command_too_returns_when_every_worker_has_the_change(new_proxy: NewProxy) -> None:
    """The first one gave up on a worker that hung. Were the second's success immediate, it would promise too much."""
    with new_proxy() as proxy:
        key = proxy.new_key("while one sleeps")
        sleeper = proxy.worker_pids()[0]
        os.kill(sleeper, signal.SIGSTOP)
        try:
            assert proxy.ask("keys", "revoke", key.id)["changed"] is True
            proxy.stderr.wait_for(is_event("proxy.notice"))
            asked = time.monotonic()
            answer = control.call(proxy.directory / "state" / "admin.sock", "keys.revoke", {"id": key.id}, 20)
            assert answer["changed"] is False
            assert time.monotonic() - asked > 0.9  # it waited for the sleeper, in vain; else it takes milliseconds
        finally:
            os.kill(sleeper, signal.SIGCONT)
        assert proxy.ask("keys", "revoke", key.id)["changed"] is False
        assert_everywhere(proxy, key, REVOKED)


# --- what outlives what ----------------------------------------------------------------------------------------------


def test_states_outlive_killed_workers_restarts_and_a_killed_supervisor(new_proxy: NewProxy) -> None:
    proxy = new_proxy().start()
    states: dict[str, tuple[Key, str | None]] = {}
    for name, turns, said in (
        ("disabled", ("disable",), DISABLED),
        ("enabled again", ("disable", "enable"), None),
        ("revoked", ("revoke",), REVOKED),
        ("untouched", (), None),
    ):
        key = proxy.new_key(name)
        for turn in turns:
            proxy.ask("keys", turn, key.id)
        states[name] = key, said

    def hold() -> None:
        for key, said in states.values():
            assert_everywhere(proxy, key, said)

    hold()
    for index in range(2):
        pid = proxy.kill_worker(index)
        proxy.stderr.wait_for(is_event("worker.died", pid=pid))
    born = {f"worker {index}": 0 for index in range(2)}
    deadline = time.monotonic() + 20
    while min(born.values()) < 2:  # each was ready twice
        assert time.monotonic() < deadline, born
        time.sleep(0.02)
        ready = [line["process"] for line in proxy.log_lines() if line["event"] == "worker.ready"]
        born = {process: ready.count(process) for process in born}
    hold()
    generation = proxy.status()["generation"]
    proxy.stop()
    proxy.start()
    hold()
    assert proxy.status()["generation"] == generation
    states["late"] = proxy.new_key("late"), REVOKED
    proxy.ask("keys", "revoke", states["late"][0].id)
    os.kill(proxy.pid, signal.SIGKILL)
    proxy.kill()
    with proxy:
        hold()


def test_without_a_proxy_the_commands_do_the_same(new_proxy: NewProxy) -> None:
    proxy = new_proxy()
    kept, disabled, revoked = (proxy.new_key(name) for name in ("kept", "disabled", "revoked"))

    def turn(word: str, key: Key) -> tuple[Any, Any]:
        answer = proxy.ask("keys", word, key.id)
        return answer["state"], answer["changed"]

    assert turn("disable", disabled) == ("disabled", True)
    assert turn("disable", disabled) == ("disabled", False)
    assert turn("enable", disabled) == ("active", True)
    assert turn("disable", disabled) == ("disabled", True)
    assert turn("revoke", revoked) == ("revoked", True)
    assert turn("revoke", revoked) == ("revoked", False)
    assert "is revoked, and that is for ever" in refused_command(proxy, "keys", "enable", revoked.id)
    assert "there is no key with the id" in refused_command(proxy, "keys", "revoke", "0000000000")
    assert [key["state"] for key in proxy.ask("keys", "list")] == ["active", "disabled", "revoked"]
    proxy.start(key=False)
    assert_everywhere(proxy, kept, None)
    assert_everywhere(proxy, disabled, DISABLED)
    assert_everywhere(proxy, revoked, REVOKED)
    assert proxy.status()["generation"] == 3 + 4
    proxy.stop()
    assert turn("enable", disabled) == ("active", True)
    with proxy:
        assert_everywhere(proxy, disabled, None)
        assert_everywhere(proxy, revoked, REVOKED)
