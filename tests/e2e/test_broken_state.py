"""State, control socket and disk that fail while somebody uses them: a line that names what, and nothing is lost."""

import contextlib
import datetime as dt
import fcntl
import os
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest

from dgproxy import bootstrap
from tests.support.processes import free_port
from tests.support.proxy import DGPROXY, dgproxy, edit

WITHIN: Final = 60  # seconds
Done = subprocess.CompletedProcess[str]

READ: Final = (("keys", "list"), ("keys", "show", "0123456789"))
CHANGE: Final = (("keys", "create", "--name", "new"), ("keys", "disable", "0123456789"))
ON_THE_STORE: Final = (("check",), ("run",), *READ, *CHANGE)
LIVE: Final = (("status",), ("streams", "list"), ("streams", "kill", "s"))


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound place with a key, to be copied."""
    directory = tmp_path_factory.mktemp("pattern") / "dg"
    dgproxy("init", str(directory), "--listen", f"127.0.0.1:{free_port()}")
    edit(directory / "dgproxy.toml", {"admin.listen": f'"127.0.0.1:{free_port()}"'})
    dgproxy("keys", "create", "--name", "first", "-c", str(directory / "dgproxy.toml"))
    return directory


@pytest.fixture
def place(pattern: Path, tmp_path: Path) -> Path:
    """A copy of it, to be broken."""
    return Path(shutil.copytree(pattern, tmp_path / "dg"))


def run(place: Path, *words: str, powerless: bool = False, prepare: Callable[[], None] | None = None) -> Done:
    """One command to its end. `powerless`: without what only root may, as Python may lie where nobody else gets to."""
    as_who = ("setpriv", "--bounding-set=-all", "--inh-caps=-all") if powerless else ()
    command = [*as_who, *DGPROXY, *words, "-c", str(place / "dgproxy.toml")]
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=WITHIN,
        check=False,
        preexec_fn=prepare,
    )


def assert_told(done: Done, *said: str, codes: tuple[int, ...] = (1,)) -> None:
    told = f"{' '.join(done.args)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert done.returncode in codes, told
    for word in ("Traceback", "Exception ignored", "fault of dgproxy", "Warning:", "was destroyed", "never retrieved"):
        assert word not in told, told
    lines = [line for line in done.stderr.splitlines() if not line.startswith('{"time"')]  # but for the log's
    assert len(lines) <= 2, told
    assert all(word in told for word in said), told


def all_told(place: Path, commands: tuple[tuple[str, ...], ...], *said: str, **options: Any) -> None:
    """Each is told of it. Side by side, as most of a command's time is Python's start."""
    with ThreadPoolExecutor(4) as pool:
        for done in pool.map(lambda words: run(place, *words, **options), commands):
            assert_told(done, *said)


# --- the store --------------------------------------------------------------------------------------------------------


def _emptied(place: Path) -> None:
    (place / "state/keys.db").write_bytes(b"")


def _cut(place: Path) -> None:
    store = place / "state/keys.db"
    store.write_bytes(store.read_bytes()[:-1000])


def _fifo(place: Path) -> None:
    (place / "state/keys.db").unlink()
    os.mkfifo(place / "state/keys.db", 0o600)


def _only_wal(place: Path) -> None:
    (place / "state/keys.db").rename(place / "state/keys.db-wal")


def _scribbled(place: Path) -> None:
    store = place / "state/keys.db"
    data = bytearray(store.read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    store.write_bytes(data)


def _without_tables(place: Path) -> None:
    with contextlib.closing(sqlite3.connect(place / "state/keys.db", isolation_level=None)) as db:
        db.execute("DROP TABLE keys")


def _of_else(place: Path) -> None:
    (place / "state/keys.db").unlink()
    with contextlib.closing(sqlite3.connect(place / "state/keys.db", isolation_level=None)) as db:
        db.execute("CREATE TABLE songs (title)")
    (place / "state/keys.db").chmod(0o600)


def _loose(place: Path) -> None:
    (place / "state/keys.db").chmod(0o644)


STORES: Final[dict[str, tuple[Callable[[Path], None], str]]] = {
    "empty": (_emptied, "is empty, though it was made"),
    "cut": (_cut, "is damaged or cut short"),
    "scribbled over": (_scribbled, "keys.db"),
    "a FIFO": (_fifo, "is no regular file"),
    "its -wal alone": (_only_wal, "is missing, but its -wal file is there"),
    "without its tables": (_without_tables, "keys.db"),
    "of another program": (_of_else, "is a database of something else"),
    "read by all": (_loose, "has mode 0644"),
}


@pytest.mark.parametrize("fault", STORES)
def test_a_key_store_that_is_broken(fault: str, place: Path) -> None:
    breaks, said = STORES[fault]
    breaks(place)
    all_told(place, ON_THE_STORE, said, "keys.db")


def test_a_key_store_that_another_program_holds(place: Path) -> None:
    with contextlib.closing(sqlite3.connect(place / "state/keys.db", isolation_level=None)) as db:
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("BEGIN EXCLUSIVE")
        all_told(place, (("keys", "list"),), "keys.db", "is locked by another process")
        all_told(place, (("run",),), "keys.db", "is locked by another process")


def test_a_state_directory_that_another_dgproxy_holds(place: Path) -> None:
    with (place / "state/dgproxy.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        all_told(place, (("run",), *READ, *CHANGE), "state: in use by another dgproxy")


@pytest.mark.parametrize("mode", [0o500, 0o000])
def test_a_state_directory_that_its_owner_made_read_only(mode: int, place: Path) -> None:
    (place / "state").chmod(mode)
    try:
        all_told(place, ON_THE_STORE, "state", powerless=True)
    finally:
        (place / "state").chmod(0o700)


def test_files_of_the_state_that_its_owner_made_read_only(place: Path) -> None:
    (place / "state/keys.db").chmod(0o400)
    all_told(place, ON_THE_STORE, "keys.db: cannot be written", powerless=True)


# --- the control socket -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def listening(path: Path, answer: bytes | None) -> Iterator[None]:
    """Something that is no dgproxy; it says `answer` to each line and hangs up."""

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    connection.recv(65536)
                    connection.sendall(answer or b"")

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize(
    "answer", [None, b"HTTP/1.1 400\r\n\r\n", b"\xff\n", b"{}\n", b"[" * 100_000 + b"\n"], ids=repr
)
def test_a_control_socket_that_something_else_serves(answer: bytes | None, place: Path) -> None:
    with listening(place / "state/admin.sock", answer):
        commands = (*LIVE, ("keys", "list"), ("keys", "create", "--name", "new"))
        all_told(place, commands, "went away" if answer is None else "admin.sock")


ODD_RESULTS: Final = (
    "null",
    "[]",
    "{}",
    '"x"',
    '{"keys":[{}],"next":null}',
    '{"streams":[1],"total":9,"complete":true}',
)


@pytest.mark.parametrize("result", ODD_RESULTS)
def test_an_answer_of_another_release(result: str, place: Path) -> None:
    with listening(place / "state/admin.sock", f'{{"ok":true,"result":{result}}}\n'.encode()):
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda words: run(place, *words), LIVE))
        for done in found:
            assert_told(done, codes=(0, 1))


def test_a_control_socket_that_a_dead_proxy_left(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(place / "state/admin.sock"))
    all_told(place, LIVE, "no proxy is running")
    assert_told(run(place, "keys", "list"), "first", codes=(0,))


@pytest.mark.parametrize("made", [Path.touch, Path.mkdir])
def test_a_control_socket_that_is_none(made: Callable[[Path], None], place: Path) -> None:
    made(place / "state/admin.sock")
    all_told(place, (("run",),), "admin.sock")
    all_told(place, LIVE, "no proxy is running")


def test_a_control_socket_of_somebody_else(place: Path) -> None:
    with listening(place / "state/admin.sock", None):
        (place / "state/admin.sock").chmod(0)
        all_told(place, (*LIVE, ("keys", "list")), "admin.sock: only its owner and root may use it", powerless=True)


def test_a_control_socket_below_what_is_missing_too_long_or_a_file(place: Path) -> None:
    for socket_path, said in (
        ("missing/admin.sock", "missing/admin.sock"),
        ("dgproxy.toml/admin.sock", "dgproxy.toml/admin.sock"),
        ("x" * 120, "a Unix socket's path at most"),
    ):
        edit(place / "dgproxy.toml", {"admin.socket": f'"{socket_path}"'})
        all_told(place, (("run",),), said)
        assert_told(run(place, "status"))


# --- the disk ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[None]:
    """A file system of a quarter of a megabyte."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


def _may_mount() -> bool:
    """Whether this process may mount at all: root of a container often may not."""
    done = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False)
    return done.returncode == 0


if _may_mount():

    def test_a_disk_that_is_full(place: Path, tmp_path: Path) -> None:
        disk = tmp_path / "disk"
        with small_disk(disk):
            on_it = Path(shutil.copytree(place, disk / "dg"))
            with (disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
                while True:
                    filler.write(b"\0" * 4096)
            for words in (("keys", "create", "--name", "new"), ("run",)):
                assert_told(run(on_it, *words), "keys.db", "full")
            made = subprocess.run([*DGPROXY, "init", str(disk / "new")], capture_output=True, text=True, check=False)
            assert_told(made, "No space left on device; nothing was made")
            assert sorted(path.name for path in disk.iterdir()) == ["dg", "filler"]
            (disk / "filler").unlink()
            assert_told(run(on_it, "keys", "list"), "first", codes=(0,))


@pytest.mark.parametrize("most", [0, 4096, 40_000, 70_000])
def test_files_that_may_not_grow(most: int, place: Path) -> None:
    def prepare() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    made = run(place, "keys", "create", "--name", "new", prepare=prepare)
    assert_told(made, codes=(0, 1))
    assert made.returncode == 0 or "keys.db" in made.stderr or "dgproxy.lock" in made.stderr
    listed = run(place, "keys", "list")
    assert_told(listed, "first", codes=(0,))
    assert (" new " in listed.stdout) == (made.returncode == 0)


# --- certificates, limits, Ctrl-C -------------------------------------------------------------------------------------


def test_an_expired_certificate_is_a_warning(place: Path) -> None:
    long_ago = dt.datetime.now(dt.UTC) - bootstrap.SERVER_LIFE - dt.timedelta(days=2)
    for name, pem in bootstrap.certificates("127.0.0.1", long_ago).items():
        (place / "certs" / name).write_bytes(pem)
    assert_told(run(place, "check"), "server.pem: warning: expired on", codes=(0,))


@pytest.mark.parametrize(
    ("words", "most", "codes"),
    [
        (("check",), 5, (1,)),
        (("check",), 16, (0,)),
        (("keys", "list"), 8, (1,)),
        (("keys", "create", "--name", "new"), 16, (0,)),
        *((("run",), most, (1,)) for most in (5, 8, 12, 16, 24, 64)),
    ],
    ids=str,
)
def test_too_few_file_descriptors(words: tuple[str, ...], most: int, codes: tuple[int, ...], place: Path) -> None:
    done = run(place, *words, prepare=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (most, most)))
    assert_told(done, *(("ulimit -n",) if codes == (1,) else ()), codes=codes)


@pytest.mark.parametrize("most", [5, 12, 24])
def test_too_few_file_descriptors_for_what_has_no_configuration(most: int, tmp_path: Path) -> None:
    for words in (["standin", "--listen", f"127.0.0.1:{free_port()}"], ["demo", "--once", "--dir", str(tmp_path)]):
        done = subprocess.run(
            [*DGPROXY, *words],
            capture_output=True,
            text=True,
            timeout=WITHIN,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (most, most)),
        )
        assert_told(done, "ulimit -n", str(most))


def test_a_soft_limit_that_is_too_low_is_raised(place: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    done = run(place, "keys", "list", prepare=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (8, hard)))
    assert_told(done, "first", codes=(0,))


# --- what it is told to -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_name_that_the_terminal_cannot_show(encoding: str, place: Path) -> None:
    environment = {"PYTHONIOENCODING": encoding}
    config = str(place / "dgproxy.toml")
    dgproxy("keys", "create", "--name", "\u65e5", "-c", config, env=environment)
    listed = dgproxy("keys", "list", "-c", config, env=environment).stdout
    assert ("\u65e5" if encoding == "utf-8" else r" \u65e5 ") in listed
    shown = dgproxy("check", "-c", str(place / "\u65e5.toml"), env=environment, check=False)
    assert_told(shown, "no such file")


def test_a_stand_in_serves_where_nobody_reads_what_it_says() -> None:
    port = free_port()
    with Path("/dev/full").open("wb") as full:
        process = subprocess.Popen([*DGPROXY, "standin", "--listen", f"127.0.0.1:{port}"], stdout=full)
    try:
        give_up = time.monotonic() + WITHIN
        while time.monotonic() < give_up and process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait(WITHIN)
