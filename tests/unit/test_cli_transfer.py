"""`dgproxy keys import` and `keys export` as they are typed: what is said, what is written, and that no key is."""

import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from dgproxy.access.keyfiles import EXPORT_COLUMNS
from dgproxy.access.keys import Pepper, Record
from dgproxy.cli import main
from dgproxy.config import render_default
from dgproxy.store.imports import IN_ONE_DELTA
from dgproxy.store.keys import FILE_NAME, KeyStore

PEPPER = bytes(range(32))
KEY = "apikey1234abcdefghij0123456789"
OTHER = "bpikey1234abcdefghij0123456789"
REMEDY = "correct them, or take the others with --skip-bad"
ROWS = f"Name,key,Enabled,usageplanIds\nApp,{KEY},TRUE,\nBatch,{OTHER},false,\n"


class Place:
    """A configuration with its state, and files beside it. No proxy runs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "dgproxy.toml"
        self.state = directory / "state"
        self.store = self.state / FILE_NAME
        self.config.write_text(render_default("127.0.0.1:8443", "http://127.0.0.1:8080"))
        self.state.mkdir(mode=0o700)
        pepper = self.state / "pepper"
        pepper.touch(mode=0o600)
        pepper.write_bytes(PEPPER)

    def file(self, text: str | bytes, name: str = "keys.csv", mode: int = 0o600) -> Path:
        path = self.directory / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        path.chmod(mode)
        return path

    def run(self, *args: str | Path, given: str | None = None) -> Result:
        words = ["keys", *(str(arg) for arg in args), "-c", str(self.config)]
        result = CliRunner().invoke(main, words, input=given)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        for key in (KEY, OTHER):
            assert key not in result.output
        return result

    def json(self, *args: str | Path, exit_code: int = 0) -> Any:
        result = self.run(*args, "--json")
        assert result.exit_code == exit_code, result.output
        return json.loads(result.stdout)

    def records(self) -> list[Record]:
        with KeyStore.open(self.store, Pepper(PEPPER)) as store:
            return list(store.records())

    def names(self) -> list[str]:
        return [record.name for record in self.records()]


@pytest.fixture
def place() -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="dgp") as directory:  # short, as it would hold a socket
        yield Place(Path(directory))


# --- import -----------------------------------------------------------------------------------------------------


def test_people_read_what_happens_to_each_key_and_what_is_left_to_do(place: Place) -> None:
    file = place.file(ROWS)
    dry = place.run("import", file, "--dry-run")
    assert (dry.exit_code, place.names(), dry.stderr) == (0, [], "")
    for said in ("│ 2    │ App", "would be created", "│ new", "2 would be created; this was a dry run"):
        assert said in dry.stdout
    done = place.run("import", file)
    assert (done.exit_code, place.names()) == (0, ["App", "Batch"])
    for said in ("created (disabled)", place.records()[0].id, "2 created\n"):
        assert said in done.stdout
    assert done.stderr == f"dgproxy: {file} still holds the keys; delete it when it is not needed any more\n"
    again = place.run("import", file)
    assert again.stdout == "2 unchanged\n"
    file = place.file(ROWS.replace("TRUE", "false"), mode=0o644)
    changed = place.run("import", file, "--plan", "default")
    assert "state: active -> disabled" in changed.stdout
    assert f"dgproxy: {file} holds keys and others can read it; chmod 600\n" in changed.stderr


def test_programs_read_one_document(place: Place) -> None:
    file = place.file(ROWS)
    found = place.json("import", file, "--dry-run")
    assert found == {
        "file": str(file),
        "format": "csv",
        "dry_run": True,
        "applied": False,
        "generation": 0,
        "counts": {"created": 2, "changed": 0, "unchanged": 0, "revoked": 0, "bad": 0},
        "entries": [
            {"line": 2, "outcome": "created", "name": "App"},
            {"line": 3, "outcome": "created", "name": "Batch", "note": "disabled"},
        ],
        "findings": [],
    }
    found = place.json("import", file)
    ids = [record.id for record in place.records()]
    assert (found["applied"], found["generation"], [entry["id"] for entry in found["entries"]]) == (True, 1, ids)


def test_one_bad_line_leaves_all_as_it_was_and_every_bad_line_is_named(place: Place) -> None:
    file = place.file(f"{ROWS}x,short,,\ny,,,\nz,{KEY},,\nw,{KEY[:-1]},,gold\n")
    result = place.run("import", file)
    assert (result.exit_code, place.names()) == (1, [])
    none_named = 'no plan is named like its usage plan "gold"; say which is meant with --plan-map ID=PLAN'
    assert result.stderr.splitlines() == [
        f"{file}:4: its key has 5 characters; 20 to 512 are possible",
        f"{file}:5: has no key",
        f"{file}:6: the same key as in line 2",
        f"{file}:7: {none_named}, or give --plan for all such keys",
        f"dgproxy: {file}: nothing was imported, as 4 of its entries can't be; {REMEDY}",
    ]
    assert "2 would be created, 4 bad\n" in result.stdout
    found = place.json("import", file, exit_code=1)
    assert (found["applied"], found["counts"]["bad"]) == (False, 4)
    assert [finding["line"] for finding in found["findings"]] == [4, 5, 6, 7]
    assert place.names() == []
    result = place.run("import", file, "--skip-bad", "--plan-map", "gold=default")
    assert (result.exit_code, place.names()) == (0, ["App", "Batch", "w"])
    assert "3 created, 3 bad\n" in result.stdout


def test_a_file_that_can_t_be_read_as_one_is_told_in_a_line(place: Place) -> None:
    for text in ("", "hello", "name,key\n\0", "map $http_x_api_key $c {"):
        file = place.file(text)
        result = place.run("import", file)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.endswith(f"dgproxy: {file}: nothing was imported\n")
        assert place.json("import", file, exit_code=1)["applied"] is False
    result = place.run("import", place.directory / "none.csv")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    result = place.run("import", place.directory)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert not place.store.exists()


def test_a_file_comes_through_stdin_and_its_format_may_be_said(place: Place) -> None:
    result = place.run("import", "-", given=ROWS)
    assert (result.exit_code, place.names(), result.stderr) == (0, ["App", "Batch"], "")
    result = place.run("import", "-", "--format", "nginx", given=f'map $http_x_api_key $c {{ {KEY} "App"; }}')
    assert result.stdout == "1 unchanged\n"
    assert result.stderr == (
        "-: nginx compared these keys without regard to case; here a key must be sent as it is written\n"
    )
    result = place.run("import", "-", "--format", "export", given=ROWS)
    assert result.exit_code == 1


def test_items_of_a_list_are_named_as_such(place: Place) -> None:
    result = place.run("import", place.file(json.dumps({"items": [{"id": "a", "value": KEY}, {"id": "b"}]}), "k.json"))
    file = place.directory / "k.json"
    assert f"{file}: item 2: holds no value: get-api-keys gives it with --include-values\n" in result.stderr
    assert "┃ item ┃ name" in result.stdout


@pytest.mark.parametrize("pair", ["x", "=y", "x=", "="])
def test_a_plan_map_has_two_sides(place: Place, pair: str) -> None:
    assert place.run("import", place.file(ROWS), "--plan-map", pair).exit_code == 2


def test_thousands_of_keys_are_written_at_once_and_shown_in_part(place: Place) -> None:
    many = "".join(f"client {number},{number:030d}\n" for number in range(1200))
    result = place.run("import", place.file(f"name,key\n{many}"))
    assert (result.exit_code, len(place.records())) == (0, 1200)
    assert "and 200 more; --json has them all\n1200 created\n" in result.stdout
    assert IN_ONE_DELTA < 1200
    bad = "".join(f"client {number},short\n" for number in range(60))
    result = place.run("import", place.file(f"name,key\n{bad}"))
    assert ": and 10 more of this kind; --json has them all\n" in result.stderr


def test_a_name_is_no_markup_and_no_escape(place: Place) -> None:
    result = place.run("import", place.file(f"name,key\n[red]n[/red],{KEY}\nm\x1b[31m,{OTHER}\n"), "--skip-bad")
    assert "[red]n[/red]" in result.stdout
    assert "\x1b" not in result.output
    assert place.names() == ["[red]n[/red]"]


# --- export -----------------------------------------------------------------------------------------------------


def test_an_export_is_its_owners_alone_and_never_written_over_another(place: Place) -> None:
    place.run("import", place.file(ROWS))
    out = place.directory / "out.csv"
    umask = os.umask(0)
    try:
        assert place.run("export", out).stdout == f"2 keys went into {out}\n"
    finally:
        os.umask(umask)
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    text = out.read_bytes()
    assert text.startswith(",".join(EXPORT_COLUMNS).encode() + b"\r\n")
    assert place.records()[0].digest.hex().encode() in text
    assert KEY.encode() not in text
    refused = place.run("export", out)
    assert (refused.exit_code, refused.stderr) == (1, f"dgproxy: {out}: is there already; --force replaces it\n")
    place.run("disable", place.records()[0].id)
    assert out.read_bytes() == text
    assert place.json("export", out, "--force") == {"file": str(out), "dry_run": False, "keys": 2, "generation": 2}
    assert out.read_bytes() == text.replace(b"active", b"disabled")
    assert {path.name for path in place.directory.iterdir()} == {"dgproxy.toml", "state", "keys.csv", "out.csv"}


def test_an_export_goes_to_stdout_as_it_would_into_a_file(place: Place) -> None:
    place.run("import", place.file(ROWS))
    out = place.directory / "out.csv"
    place.run("export", out)
    command = [sys.executable, "-m", "dgproxy", "keys", "export", "-", "-c", str(place.config)]
    done = subprocess.run(command, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (out.read_bytes(), b"")
    assert place.run("export", "-", "--json").exit_code == 2


def test_a_dry_run_of_an_export_tells_how_the_file_there_differs(place: Place) -> None:
    out = place.directory / "out.csv"
    place.run("import", place.file(ROWS))
    first, second = (record.id for record in place.records())
    assert place.run("export", out, "--dry-run").stdout == f"2 keys would go into {out}\n"
    assert place.json("export", out, "--dry-run")["exists"] is False
    assert not out.exists()
    place.run("export", out)
    same = place.run("export", out, "--dry-run")
    assert same.stdout == f"2 keys would go into {out}, which is there already: the same keys; --force replaces it\n"
    place.run("revoke", first)
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join(line for line in lines if not line.startswith(second)))
    made = place.json("create", "--name", "new")["id"]
    before = out.read_bytes()
    found = place.json("export", out, "--dry-run")
    assert (found["exists"], found["changed"], found["gone"]) == (True, [first], [])
    assert found["added"] == sorted([second, made])
    assert "2 added, 1 changed; --force replaces it" in place.run("export", out, "--dry-run").stdout
    assert out.read_bytes() == before
    out.write_bytes(b"\xff")
    assert place.json("export", out, "--dry-run")["exists"] is True


def test_an_export_that_can_t_be_written_leaves_nothing(place: Place) -> None:
    place.run("import", place.file(ROWS))
    result = place.run("export", place.directory / "none" / "out.csv")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    result = place.run("export", place.state, "--force")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert {path.name for path in place.directory.iterdir()} == {"dgproxy.toml", "state", "keys.csv"}


def test_an_export_comes_back_as_it_went(place: Place) -> None:
    place.run("import", place.file(ROWS))
    out = place.directory / "out.csv"
    place.run("export", out)
    before = place.records()
    place.store.unlink()
    result = place.run("import", out)
    assert (result.exit_code, result.stderr, place.records()) == (0, "", before)
    (place.state / "pepper").write_bytes(bytes(32))
    place.store.unlink()
    result = place.run("import", out)
    assert result.exit_code == 1
    assert "the file's digests were made with the pepper" in result.stderr
    assert result.stderr.count("\n") == 1
