"""Keys of other systems, as their holders meet them: they work as they did, at once, everywhere (spec parts 3, 5)."""

import asyncio
import contextlib
import json
import shutil
import sqlite3
import ssl
import stat
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import websockets
from websockets.asyncio.client import ClientConnection, connect

from tests.support.clients import Answer, assert_refusal, request
from tests.support.logs import SECRETS, mentions, parse
from tests.support.proxy import DGPROXY, Proxy, dgproxy

# What is shown here is the proxy's own; one upstream is enough.
pytestmark = pytest.mark.parametrize("upstream_process", ["standin"], indirect=True)

NewProxy = Callable[..., Proxy]
Headers = list[tuple[str, str]]

STREAM: Final = "/v1/listen?model=nova-3&encoding=linear16&sample_rate=16000"
FORMS: Final[dict[str, Callable[[str], Headers]]] = {
    "Token": lambda key: [("Authorization", f"Token {key}")],
    "Bearer": lambda key: [("Authorization", f"Bearer {key}")],
    "X-Api-Key": lambda key: [("X-Api-Key", key)],
}


def secret(length: int) -> str:
    """A key as API Gateway makes them: letters and digits."""
    return SECRETS.add((uuid.uuid4().hex + uuid.uuid4().hex).replace("0", "Z")[:length])


def written(path: Path, text: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(text)
    return path


def ask(proxy: Proxy, headers: Headers) -> Answer:
    return request(proxy.base_url, proxy.client_tls(), "GET", "/v1/models", headers)


def assert_works_everywhere(proxy: Proxy, key: str) -> None:
    """Every form of credential on new connections until both workers have let it in, and in streams."""
    for form in FORMS.values():
        seen: set[str] = set()
        for _ in range(60):
            marker = uuid.uuid4().hex
            assert ask(proxy, [*form(key), ("X-Request-Id", marker)]).status == 200
            (entry,) = parse([proxy.stderr.wait_for(mentions(client_request_id=marker))])
            seen.add(entry["process"])
            if len(seen) == 2:
                break
        assert seen == {"worker 0", "worker 1"}
    asyncio.run(_streams(proxy, key))


async def _streams(proxy: Proxy, key: str) -> None:
    tls = proxy.client_tls()
    for scheme in ("token", "bearer"):
        async with stream(proxy, tls, subprotocols=[scheme, key]) as ws:
            assert ws.subprotocol == scheme
    for form in FORMS.values():
        async with stream(proxy, tls, additional_headers=form(key)):
            pass


def stream(proxy: Proxy, tls: ssl.SSLContext, **options: Any) -> Any:
    return connect(f"{proxy.wss_url}{STREAM}", ssl=tls, proxy=None, compression=None, **options)


def test_a_key_of_api_gateway_works_as_it_did_at_once_on_every_worker_and_after_a_restart(
    new_proxy: NewProxy, tmp_path: Path
) -> None:
    short, long, off = secret(20), secret(40), secret(40)
    head = "Name,key,description,Enabled,usageplanIds\r\n"
    rows = f'App,{short},An imported key,TRUE,\r\nBatch,{long},,,"a1b2c3,d4e5f6"\r\nOff,{off},,FALSE,\r\n'
    file = written(tmp_path / "keys.csv", head + rows)
    proxy = new_proxy()
    with proxy:
        assert_refusal(ask(proxy, FORMS["Token"](short)), 401, "INVALID_AUTH")
        options = ("--plan-map", "a1b2c3=default", "--plan-map", "d4e5f6=default")
        before = proxy.status()["generation"]
        told = proxy.ask("keys", "import", str(file), "--dry-run", *options)
        assert (told["applied"], told["counts"]["created"]) == (False, 3)
        assert proxy.status()["generation"] == before
        assert_refusal(ask(proxy, FORMS["Token"](short)), 401, "INVALID_AUTH")

        told = proxy.ask("keys", "import", str(file), *options)
        assert (told["applied"], told["counts"]["created"]) == (True, 3)
        assert proxy.status()["generation"] == before + 1
        for key in (short, long):
            assert_works_everywhere(proxy, key)
        answer = ask(proxy, FORMS["Token"](off))
        assert answer.json()["err_msg"] == "This ingress API key is disabled."
        for form in FORMS.values():
            assert_refusal(ask(proxy, form(short[:-1] + "-")), 401, "INVALID_AUTH")
            assert_refusal(ask(proxy, form(short.swapcase())), 401, "INVALID_AUTH")

        again = proxy.ask("keys", "import", str(file), *options)
        assert again["counts"]["unchanged"] == 3
        assert proxy.status()["generation"] == before + 1
        (line,) = [line for line in proxy.log_lines() if line["event"] == "keys.imported" and line["created"]]
        assert (line["created"], line["changed"], line["left_out"], line["generation"]) == (3, 0, 0, before + 1)
    with proxy:
        assert_works_everywhere(proxy, short)


def test_keys_of_an_nginx_map_work_as_they_did(new_proxy: NewProxy, tmp_path: Path) -> None:
    mobile, web, denied = secret(32), secret(32), secret(32)
    config = f"""
        map $http_authorization $client {{
            default "";
            "Token {mobile}"  "mobile";  # the app
            "~^Bearer {web}$" web;
            "Token {denied}"  "";
        }}
        map $http_x_api_key $client2 {{ {mobile} mobile; }}
        """
    with new_proxy() as proxy:
        told = proxy.ask("keys", "import", str(written(tmp_path / "keys.conf", config)))
        assert [(entry["name"], entry["line"]) for entry in told["entries"]] == [("mobile", 4), ("web", 5)]
        for key in (mobile, web):
            assert_works_everywhere(proxy, key)
        assert_refusal(ask(proxy, FORMS["Token"](denied)), 401, "INVALID_AUTH")


def test_very_many_keys_come_as_a_new_table_that_cuts_what_it_disables_and_nothing_else(
    new_proxy: NewProxy, tmp_path: Path
) -> None:
    first, going, other = secret(40), secret(40), secret(40)
    many = [secret(40) for _ in range(700)]
    with new_proxy() as proxy:
        proxy.ask(
            "keys", "import", str(written(tmp_path / "a.csv", f"name,key\nfirst,{first}\ngoing,{going}\n,{other}\n"))
        )
        made = proxy.new_key("native")
        rows = "".join(f"client {number},{key},true\n" for number, key in enumerate(many))
        file = written(tmp_path / "b.csv", f"name,key,enabled\nfirst,{first},false\n{rows}")

        async def while_it_is_read() -> tuple[int | None, str, list[str | bytes]]:
            tls = proxy.client_tls()
            async with (
                stream(proxy, tls, subprotocols=["token", first]) as cut,
                stream(proxy, tls, subprotocols=["token", going]) as kept,
            ):
                told = await asyncio.to_thread(proxy.ask, "keys", "import", str(file))
                assert told["counts"] == {"created": 700, "changed": 1, "unchanged": 0, "revoked": 0, "bad": 0}
                code, reason = await _end(cut)
                await kept.send(json.dumps({"type": "CloseStream"}))
                return code, reason, [message async for message in kept]

        code, reason, messages = asyncio.run(while_it_is_read())
        assert (code, reason) == (1008, "This ingress API key is disabled.")
        assert json.loads(messages[-1])["type"] == "Metadata"
        for key in (many[0], many[-1], going, other):
            assert_works_everywhere(proxy, key)
        assert_works_everywhere(proxy, made.key)
        victim = next(entry for entry in proxy.ask("keys", "list") if entry["name"] == "client 699")
        proxy.ask("keys", "revoke", victim["id"])  # a delta follows the new table
        assert ask(proxy, FORMS["Token"](many[-1])).json()["err_msg"] == "This ingress API key was revoked."
        proxy.kill_worker(0)
        proxy.stderr.wait_for(lambda line: "worker.died" in line, 10)
        assert_works_everywhere(proxy, many[0])
        assert proxy.ask("keys", "import", str(file))["counts"]["revoked"] == 1
        assert ask(proxy, FORMS["Token"](many[-1])).json()["err_msg"] == "This ingress API key was revoked."


async def _end(ws: ClientConnection) -> tuple[int | None, str]:
    try:
        while True:
            await asyncio.wait_for(ws.recv(), 5)
    except websockets.ConnectionClosed:
        return ws.close_code, ws.close_reason or ""


def test_an_export_moves_the_keys_to_another_machine_that_has_the_pepper_and_to_no_other(
    new_proxy: NewProxy, tmp_path: Path
) -> None:
    foreign = secret(40)
    out = tmp_path / "out.csv"
    with new_proxy() as here:
        here.ask("keys", "import", str(written(tmp_path / "keys.csv", f"name,key,streams\n=1+1,{foreign},7\n")))
        off = here.new_key("off")
        here.ask("keys", "disable", off.id)
        told = here.ask("keys", "export", str(out))
        assert told["keys"] == 3
        assert stat.S_IMODE(out.stat().st_mode) == 0o600
        listed = here.ask("keys", "list")
        text = out.read_text()
        assert not SECRETS.found_in(text.encode())
        assert ",'=1+1," in text  # no formula
        native = here.key
    there, stranger = new_proxy(), new_proxy()
    pepper = Path("state", "pepper")
    shutil.copy(here.directory / pepper, there.directory / pepper)
    there.key = stranger.key = native
    with there, stranger:
        told = there.ask("keys", "import", str(out))
        assert told["counts"]["created"] == 3
        assert there.ask("keys", "list") == listed
        for key in (native, foreign):
            assert_works_everywhere(there, key)
        assert ask(there, FORMS["Token"](off.key)).json()["err_msg"] == "This ingress API key is disabled."
        done = dgproxy("keys", "import", str(out), "-c", str(stranger.config), check=False)
        assert done.returncode == 1
        assert "were made with the pepper" in done.stderr
        assert stranger.ask("keys", "list") == []
        assert_refusal(ask(stranger, FORMS["Token"](native)), 401, "INVALID_AUTH")


def test_an_import_that_the_proxys_death_breaks_off_is_there_whole_or_not_at_all(
    new_proxy: NewProxy, tmp_path: Path
) -> None:
    many = 20_000
    rows = "".join(f"client {number},{uuid.uuid4().hex}\n" for number in range(many))
    file = written(tmp_path / "keys.csv", f"name,key\n{rows}")
    command = [*DGPROXY, "keys", "import", str(file), "--json"]
    proxy = new_proxy()
    found = []
    for at in (1, 3):  # MB of it in SQLite's journal
        proxy.start(key=False)
        importing = subprocess.Popen(
            [*command, "-c", str(proxy.config)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        wal = proxy.directory / "state" / "keys.db-wal"
        before = wal.stat().st_size
        while importing.poll() is None and wal.stat().st_size < before + at * 1_000_000:
            time.sleep(0.001)
        proxy.kill()
        said, told = importing.communicate(timeout=60)
        left = stored(proxy)
        assert left in {0, many}
        if importing.returncode:  # it can't know; else it was done before the end came
            assert (said, told.count("\n")) == ("", 1), told
        else:
            assert left == many
        found.append(left)
        if left:
            break
    with proxy:
        told = proxy.ask("keys", "import", str(file))
        assert told["counts"]["created" if not found[-1] else "unchanged"] == many
        assert_works_everywhere(proxy, SECRETS.add(rows.splitlines()[-1].partition(",")[2]))


def stored(proxy: Proxy) -> int:
    """How many keys the store of a proxy has that is not running, as SQLite alone sees it."""
    with contextlib.closing(sqlite3.connect(proxy.directory / "state" / "keys.db")) as db:
        (count,) = db.execute("SELECT count(*) FROM keys").fetchone()
    return int(count)


def test_two_imports_at_once_are_one_after_the_other_or_told_so(new_proxy: NewProxy, tmp_path: Path) -> None:
    files = [
        written(
            tmp_path / f"{name}.csv",
            "name,key\n" + "".join(f"{name} {number},{uuid.uuid4().hex}\n" for number in range(3000)),
        )
        for name in "ab"
    ]
    with new_proxy() as proxy:
        running = [
            subprocess.Popen(
                [*DGPROXY, "keys", "import", str(file), "--json", "-c", str(proxy.config)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for file in files
        ]
        done = []
        for one in running:
            said, told = one.communicate(timeout=60)
            if one.returncode:
                assert (said, told) == ("", "dgproxy: another import is under way; try again when it is done\n")
            else:
                assert json.loads(said)["counts"]["created"] == 3000
                done.append(one)
        assert done
        listed = proxy.ask("keys", "list")
        assert len(listed) == 1 + 3000 * len(done)
