"""Whatever is broken around it, every command ends with a line that says what, and never with a traceback.

A command that has no rows in COMMANDS fails test_every_command_has_its_rows: give it its words there.
"""

import os
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import pytest

from dgproxy.cli import main
from tests.support.processes import free_port
from tests.support.proxy import DGPROXY, dgproxy, edit

NOBODY: Final = 65534
WITHIN: Final = 60  # seconds
ID: Final = "0123456789"

# What each command needs besides -c FILE; {d} is a directory of the test's own. None: it has no configuration.
COMMANDS: Final[dict[str, list[str] | None]] = {
    "init": None,
    "check": [],
    "run": [],
    "keys create": ["--name", "n"],
    "keys list": [],
    "keys show": [ID],
    "keys disable": [ID],
    "keys enable": [ID],
    "keys revoke": [ID],
    "keys import": ["{d}/keys.csv"],
    "keys export": ["{d}/out.csv"],
    "status": [],
    "streams list": [],
    "streams kill": ["s"],
    "demo": None,
    "standin": None,
}
OFF_LINE: Final = tuple(name for name in COMMANDS if name.startswith("keys "))  # work on the store if no proxy runs
CONFIGURED: Final = tuple(name for name, words in COMMANDS.items() if words is not None)


def _leaves(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[str]:
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from _leaves(inner, (*path, name))
    else:
        yield " ".join(path)


def test_every_command_has_its_rows() -> None:
    assert set(_leaves(main)) == set(COMMANDS)


# --- a place, and what is broken in it -------------------------------------------------------------------------------


@dataclass
class Place:
    """A directory that `init` made, which a fault then breaks."""

    directory: Path

    @property
    def config(self) -> Path:
        return self.directory / "dg" / "dgproxy.toml"

    @property
    def state(self) -> Path:
        return self.directory / "dg" / "state"

    def words(self, command: str) -> list[str]:
        """The command line, but for the program."""
        own = COMMANDS[command]
        if own is None:
            return command.split()
        return [*command.split(), *(word.format(d=self.directory) for word in own), "-c", str(self.config)]


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound place with one key, to be copied."""
    directory = tmp_path_factory.mktemp("pattern")
    dgproxy("init", str(directory / "dg"), "--listen", f"127.0.0.1:{free_port()}")
    edit(directory / "dg" / "dgproxy.toml", {"admin.listen": f'"127.0.0.1:{free_port()}"'})
    dgproxy("keys", "create", "--name", "first", "-c", str(directory / "dg" / "dgproxy.toml"))
    (directory / "keys.csv").write_text("name,key\nacme,abcdefghijklmnopqrstuvwxyz\n")
    return directory


@pytest.fixture
def place(pattern: Path, tmp_path: Path) -> Iterator[Place]:
    shutil.copytree(pattern, tmp_path / "place", symlinks=True)
    yield Place(tmp_path / "place")
    for path in (tmp_path, *tmp_path.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)


# Python itself may lie where nobody but root can reach it, so it is root still, without any of root's powers.
POWERLESS: Final = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")


def run(
    words: list[Any], *, prepare: Callable[[], None] | None = None, powerless: bool = False, **options: Any
) -> "subprocess.CompletedProcess[bytes]":
    """One command to its end. `powerless`: as somebody who may not do what only root may."""
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.run(
        [*(POWERLESS if powerless else ()), *DGPROXY, *words],
        timeout=WITHIN,
        check=False,
        preexec_fn=prepare,
        **{**streams, **options},
    )


def assert_told(done: "subprocess.CompletedProcess[bytes]", *said: str, codes: tuple[int, ...] = (1, 2)) -> None:
    out, err = (done.stdout or b"").decode(), (done.stderr or b"").decode()
    told = f"{' '.join(map(str, done.args[1:]))}: exit {done.returncode}\n{out}\n{err}"
    assert done.returncode in codes, told
    assert "Traceback" not in out + err, told
    assert "fault of dgproxy" not in err, told
    assert "Exception ignored" not in err, told
    assert len((out + err).splitlines()) <= 12, told
    for words in said:
        assert words in out + err, told


def all_told(place: Place, commands: tuple[str, ...], *said: str, **options: Any) -> None:
    """Each of these commands is told of it. They run side by side: most of a command's time is Python's start."""
    with ThreadPoolExecutor(4) as pool:
        for done in pool.map(lambda command: run(place.words(command), **options), commands):
            assert_told(done, *said)


# --- broken files ----------------------------------------------------------------------------------------------------


def _config_is(data: bytes) -> Callable[[Place], Any]:
    return lambda place: place.config.write_bytes(data)


def _config_is_endless(place: Place) -> None:
    place.config.unlink()
    place.config.symlink_to("/dev/zero")


def _fifo(place: Place) -> None:
    place.config.unlink()
    os.mkfifo(place.config)


def _directory(place: Place) -> None:
    place.config.unlink()
    place.config.mkdir()


def _loop(place: Place) -> None:
    place.config.unlink()
    place.config.symlink_to(place.config)


CONFIGS: Final[dict[str, tuple[Callable[[Place], Any], str]]] = {
    "missing": (lambda place: place.config.unlink(), "no such file"),
    "empty": (_config_is(b""), "plans.default"),
    "no TOML": (_config_is(b"[server\n"), "dgproxy.toml:1:"),
    "not UTF-8": (_config_is(b'[log]\nlevel = "\xff"\n'), "dgproxy.toml:2:"),
    "UTF-16": (_config_is('[log]\nlevel = "info"\n'.encode("utf-16")), "UTF-16"),
    "NULs": (_config_is(b"\0" * 100), "dgproxy.toml:1:"),
    "2 MB": (_config_is(b"#" * 2_000_000), "larger than"),
    "deep": (_config_is(b"a = " + b"[" * 100_000), "nested too deeply"),
    "a directory": (_directory, "is a directory"),
    "a FIFO": (_fifo, "no regular file"),
    "a loop of links": (_loop, "symbolic links"),
    "/dev/zero": (_config_is_endless, "no regular file"),
}


@pytest.mark.parametrize("fault", CONFIGS)
def test_a_configuration_that_is_none(fault: str, place: Place) -> None:
    breaks, said = CONFIGS[fault]
    breaks(place)
    commands = CONFIGURED if fault == "missing" else ("check", "run", "keys list", "status")
    all_told(place, commands, said, "dgproxy.toml")


def _corrupt(place: Place) -> None:
    (place.state / "keys.db").write_bytes(b"this is no database" * 1000)


def _newer(place: Place) -> None:
    with sqlite3.connect(place.state / "keys.db") as database:
        database.execute("PRAGMA user_version = 9999")
    database.close()


def _store_is_directory(place: Place) -> None:
    (place.state / "keys.db").unlink()
    (place.state / "keys.db").mkdir()


def _state_is_file(place: Place) -> None:
    shutil.rmtree(place.state)
    place.state.write_text("")


def _pepper_is_directory(place: Place) -> None:
    (place.state / "pepper").unlink()
    (place.state / "pepper").mkdir()


STORES: Final[dict[str, tuple[Callable[[Place], Any], str]]] = {
    "keys.db is no database": (_corrupt, "keys.db"),
    "keys.db is newer": (_newer, "keys.db"),
    "keys.db is a directory": (_store_is_directory, "keys.db"),
    "state is missing": (lambda place: shutil.rmtree(place.state), "state"),
    "state is a file": (_state_is_file, "state"),
    "pepper is missing": (lambda place: (place.state / "pepper").unlink(), "pepper"),
    "pepper is short": (lambda place: (place.state / "pepper").write_bytes(b"short"), "pepper"),
    "pepper is another": (lambda place: (place.state / "pepper").write_bytes(b"\1" * 32), "pepper"),
    "pepper may be read by all": (lambda place: (place.state / "pepper").chmod(0o644), "pepper"),
    "pepper is a directory": (_pepper_is_directory, "pepper"),
}


@pytest.mark.parametrize("fault", STORES)
def test_a_state_that_is_broken(fault: str, place: Place) -> None:
    breaks, said = STORES[fault]
    breaks(place)
    all_told(place, ("check", "run", *OFF_LINE), said)


def _pem(name: str, data: bytes | None) -> Callable[[Place], None]:
    def breaks(place: Place) -> None:
        path = place.directory / "dg" / "certs" / name
        if data is None:
            path.unlink()
        else:
            path.write_bytes(data)

    return breaks


CERTIFICATES: Final[dict[str, tuple[Callable[[Place], Any], str]]] = {
    "no certificate": (_pem("server.pem", None), "server.pem"),
    "no private key": (_pem("server-key.pem", None), "server-key.pem"),
    "garbage for a certificate": (_pem("server.pem", b"garbage"), "server.pem"),
    "garbage for a key": (_pem("server-key.pem", b"garbage"), "key"),
    "another key": (
        lambda place: shutil.copy(
            place.directory / "dg" / "certs" / "ca-key.pem", place.directory / "dg" / "certs" / "server-key.pem"
        ),
        "key",
    ),
}


@pytest.mark.parametrize("fault", CERTIFICATES)
def test_a_certificate_that_is_none(fault: str, place: Place) -> None:
    breaks, said = CERTIFICATES[fault]
    breaks(place)
    all_told(place, ("check", "run"), said)


# --- rights ----------------------------------------------------------------------------------------------------------


root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can run commands as somebody else")


@root_only
@pytest.mark.parametrize("of", ["dgproxy.toml", "state", "state/keys.db", "state/pepper", "certs/server-key.pem", "."])
def test_what_belongs_to_another_user(of: str, place: Place) -> None:
    path = place.directory / "dg" / of
    path.chmod(0o700 if path.is_dir() else 0o600)
    shutil.chown(path, NOBODY)
    commands = ("check", "run") if of.startswith("certs") else ("check", "run", *OFF_LINE)
    all_told(place, commands, powerless=True)


@root_only
def test_a_privileged_port_and_one_that_is_taken(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        edit(place.config, {"server.listen": f'["127.0.0.1:{port}"]'})
        with ThreadPoolExecutor(4) as pool:
            runs = [
                pool.submit(run, place.words("run")),
                pool.submit(run, ["standin", "--listen", f"127.0.0.1:{port}"]),
                pool.submit(run, ["demo", "--listen", f"127.0.0.1:{port}", "--dir", str(place.directory / "demo")]),
                pool.submit(run, ["standin", "--listen", "127.0.0.1:81"], powerless=True),
            ]
        for future in runs[:3]:
            assert_told(future.result(), str(port))
        assert_told(runs[3].result(), "81", "ermission")


@pytest.mark.parametrize("directory", ["/proc/dg", "/dev/null/dg", "/dev/null", "x" * 300, "a\nb/\x1b[31m/c"])
def test_a_place_where_init_can_make_nothing(directory: str, tmp_path: Path) -> None:
    done = run(["init", directory], cwd=tmp_path)
    if directory.startswith("a\n"):  # odd, but a path like any other
        assert_told(done, codes=(0, 1))
        assert b"\x1b" not in done.stderr
    else:
        assert_told(done)


# --- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [6, 8, 12, 16, 24])
def test_too_few_file_descriptors(most: int, place: Place) -> None:
    def prepare() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    with ThreadPoolExecutor(4) as pool:
        for done in pool.map(
            lambda command: run(place.words(command), prepare=prepare), ("check", "keys list", "keys create", "status")
        ):
            assert_told(done, codes=(0, 1, 2))
    done = run(place.words("run"), prepare=prepare)
    assert_told(done, codes=(1,))
    assert b"file" in done.stderr


def test_a_full_disk(place: Place) -> None:
    def prepare() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    with ThreadPoolExecutor(4) as pool:
        runs = [
            pool.submit(run, place.words(command), prepare=prepare)
            for command in ("keys create", "keys import", "keys export", "keys disable", "run")
        ]
        runs += [
            pool.submit(run, [*words, str(place.directory / f"new{number}")], prepare=prepare)
            for number, words in enumerate((["init"], ["demo", "--once", "--dir"]))
        ]
    for future in runs:
        assert_told(future.result())


# --- surroundings ----------------------------------------------------------------------------------------------------


def test_an_answer_that_can_not_be_written(place: Place) -> None:
    with Path("/dev/full").open("wb") as full:
        for words in (place.words("keys list"), ["--version"], ["--help"], place.words("check")):
            assert_told(run(words, stdout=full), "No space left on device", codes=(1,))
            assert_told(run([*words, "--help"], stdout=full), codes=(1,))


def test_a_reader_that_has_seen_enough(place: Place) -> None:
    for words in (place.words("keys list"), ["--help"]):
        reader, writer = os.pipe()
        os.close(reader)
        try:
            done = run(words, stdout=writer)
        finally:
            os.close(writer)
        assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_standard_streams(closed: tuple[int, ...], place: Place) -> None:
    def prepare() -> None:
        for number in closed:
            os.close(number)

    good = place.words("keys list")
    done = run(good, prepare=prepare)
    assert_told(done, codes=(1,) if 1 in closed else (0,))
    assert_told(run(["keys", "list", "-c", "/nowhere"], prepare=prepare), codes=(1,))
    made = run(["keys", "create", "--name", "b", "-c", str(place.config)], prepare=prepare)
    assert_told(made, codes=(1,) if 1 in closed else (0,))
    with sqlite3.connect(place.state / "keys.db") as database:  # nothing was printed into it
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()


def test_a_directory_that_has_gone(tmp_path: Path) -> None:
    def prepare() -> None:
        gone = tmp_path / "gone"
        gone.mkdir(exist_ok=True)
        os.chdir(gone)
        gone.rmdir()

    for words in (["check"], ["init", "x"], ["keys", "list"], ["demo", "--once"], ["keys", "list", "-c", "x.toml"]):
        assert_told(run(words, prepare=prepare), codes=(1, 2))


@pytest.mark.parametrize(
    "environment",
    [
        {"HOME": None},
        {"TERM": "dumb"},
        {"TERM": None},
        {"LANG": "C", "LC_ALL": "C"},
        {"COLUMNS": "0"},
        {"COLUMNS": "3"},
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONUTF8": "0", "LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0"},
        {"DGPROXY_CONFIG": "\udcff"},
        {"DGPROXY_PUMP": "fast"},
        {"NO_COLOR": "1", "FORCE_COLOR": "1"},
    ],
    ids=str,
)
def test_odd_surroundings(environment: dict[str, str | None], place: Place) -> None:
    kept = {**os.environ, **environment}
    env = {name: value for name, value in kept.items() if value is not None}
    with ThreadPoolExecutor(4) as pool:
        runs = [
            pool.submit(run, words, env=env)
            for words in (place.words("keys list"), place.words("check"), ["--help"], ["keys", "list"], ["nonsense"])
        ]
    for future, codes in zip(runs, ((0,), (0,), (0,), (0, 1), (2,)), strict=True):
        done = future.result()
        told = done.stdout + done.stderr
        assert done.returncode in codes, told
        assert b"Traceback" not in told, told


def test_arguments_that_no_one_types(place: Place) -> None:
    for words in (
        ["keys", "show", "\udcff\udcfe", "-c", str(place.config)],
        ["keys", "create", "--name", "\udcff", "-c", str(place.config)],
        ["keys", "create", "--name", "a\nb", "-c", str(place.config)],
        ["keys", "create", "--name", "x" * 100_000, "-c", str(place.config)],
        ["keys", "create", "--name", "n", "--expires", "9" * 400 + "d", "-c", str(place.config)],
        ["check", "-c", "\udcff"],
        ["init", "\udcff", "--listen", "\udcff"],
        ["streams", "kill", "\0"[:0] or "''", "-c", str(place.config)],
        ["standin", "--listen", "unix:/x"],
        ["standin", "--listen", "systemd:x"],
        ["demo", "--listen", "nonsense"],
        ["keys", "import", str(place.directory), "-c", str(place.config)],
        ["keys", "import", "/dev/null", "-c", str(place.config)],
        ["keys", "export", "/nowhere/x", "-c", str(place.config)],
    ):
        assert_told(run([os.fsencode(word) for word in words]))


def test_an_interruption_is_no_error_message(place: Place) -> None:
    """While it waits for a proxy that does not answer."""
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(place.state / "admin.sock"))
        deaf.listen()
        process = subprocess.Popen(
            [*DGPROXY, *place.words("status")], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        connection, _ = deaf.accept()
        with connection:
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=WITHIN)
    assert (process.returncode, out, err) == (130, b"", b"")


def test_a_fault_of_our_own_is_a_line_and_its_traceback_is_shown_to_who_asks_for_it(place: Place) -> None:
    program = (
        "import sys; from dgproxy.cli import live, start\n"
        "def fault(*_): raise ValueError('odd dgp_0123456789_' + 'x' * 38)\n"
        f"live.load = fault; sys.argv[1:] = ['status', '-c', {str(place.config)!r}]; start()"
    )
    for asked in ("", "1"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            timeout=WITHIN,
            check=False,
            env={**os.environ, "DGPROXY_TRACEBACK": asked},
        )
        assert done.returncode == 1
        assert "this is a fault of dgproxy, please report it: ValueError: odd" in done.stderr
        assert ("Traceback" in done.stderr) == bool(asked)
        assert asked or "xxxx" not in done.stderr
