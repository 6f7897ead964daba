"""Installing as `make` does it: what a newcomer is told when it goes wrong, and that a stopped one leaves nothing.

The whole of it, from a fresh clone, is what the gate begins with. Here pip is played by a script, but for one test.
"""

import ast
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.support import processes
from tests.support.impatient import until
from tests.support.proxy import MARK

ROOT: Final = Path(__file__).parents[2]
INSTALL: Final = ROOT / "deploy" / "install.py"
MAIN: Final = ROOT / "dgproxy" / "__main__.py"
WITHIN: Final = 60.0

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def install(tmp_path: Path) -> Run:
    """Runs install.py with an environment whose Python says `said` instead of running pip, and fails."""

    def run(said: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        venv = played(tmp_path, f"cat <<'EOF'\n{said}\nEOF\nexit 1")
        return subprocess.run(
            [sys.executable, str(INSTALL), *arguments, "--venv", str(venv)],
            cwd=tmp_path,
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            timeout=WITHIN,
            check=False,
        )

    return run


def played(directory: Path, pip: str) -> Path:
    """A virtual environment whose Python is a script: a sound one, until it is to run pip."""
    venv = directory / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "pyvenv.cfg").touch()
    (venv / ".clone").write_text(str(ROOT))
    python = venv / "bin" / "python"
    python.write_text(f'#!/bin/sh\n[ "$2" = -c ] && exit 0\n{pip}\n')
    python.chmod(0o755)
    return venv


# --- what goes wrong is told in a line -------------------------------------------------------------------------------

RETRYING: Final = "WARNING: Retrying (Retry(total=1, read=None, redirect=None)) after connection broken by "
NOT_FOUND: Final = """
ERROR: Could not find a version that satisfies the requirement anyio==4.16.0 (from versions: none)
ERROR: No matching distribution found for anyio==4.16.0"""


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            RETRYING + "'NewConnectionError('<HTTPSConnection object>: Failed to establish a new connection: "
            "[Errno 111] Connection refused')': /simple/anyio/" + NOT_FOUND,
            "the package index cannot be reached",
        ),
        (
            RETRYING + "'NameResolutionError(\"HTTPSConnection: Failed to resolve 'pypi.org' ([Errno -3] Temporary "
            "failure in name resolution)\")': /simple/anyio/" + NOT_FOUND,
            "the package index cannot be reached",
        ),
        (
            RETRYING + "'ProxyError('Cannot connect to proxy.', OSError(''))': /simple/anyio/" + NOT_FOUND,
            "the proxy that the environment names does not let pip through",
        ),
        ("ERROR: Could not install packages due to an OSError: Missing dependencies for SOCKS support.", "ALL_PROXY"),
        (
            RETRYING + "'SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify "
            "failed'))': /simple/anyio/" + NOT_FOUND,
            "export PIP_CERT=/path/to/ca.pem",
        ),
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
            "the disk is full",
        ),
        (
            "error: could not create 'dgproxy.egg-info': Read-only file system\nERROR: failed",
            "cannot be: error: could not create 'dgproxy.egg-info': Read-only file system",
        ),
        (NOT_FOUND, "anyio==4.16.0 was not found: it has no wheel for Python 3."),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", "not the one whose hash"),
        ("ERROR: something new", "pip failed; all that it said is in "),
    ],
)
def test_why_pip_failed_is_told_in_a_line_and_its_own_words_are_kept(
    install: Run, tmp_path: Path, said: str, told: str
) -> None:
    done = install("Looking in indexes: https://pypi.org/simple\n" + said)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("dgproxy: ")
    assert told in line
    assert done.stdout.splitlines() == [f"  … installing into {tmp_path}/venv"]
    assert said in (tmp_path / "venv/install.log").read_text()
    assert not (tmp_path / "venv/.demo").exists()


def test_an_index_that_cannot_be_reached_by_pip_itself(tmp_path: Path) -> None:
    nowhere = f"https://127.0.0.1:{processes.free_port()}/simple"
    keep = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    done = subprocess.run(
        [sys.executable, str(INSTALL)],
        cwd=tmp_path,
        env={**keep, "PIP_CONFIG_FILE": "/dev/null", "PIP_INDEX_URL": nowhere, "PIP_RETRIES": "1", "no_proxy": "*"},
        capture_output=True,
        text=True,
        timeout=WITHIN,
        check=False,
    )
    assert done.returncode == 1
    assert "the package index cannot be reached" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_directory_that_is_no_environment_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    done = subprocess.run(
        [sys.executable, str(INSTALL), "--venv", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "is no virtual environment; nothing in it was touched" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


# --- an old Python ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [INSTALL, MAIN, ROOT / "dgproxy" / "__init__.py"], ids=lambda path: path.name)
def test_an_old_python_can_parse_what_tells_it_so(path: Path) -> None:
    assert ast.parse(path.read_text(), feature_version=(3, 6)).body


def as_if(python: str, path: Path, *, goals: str | None, platform: str = "linux") -> str:
    """The last word of a script that is run by a Python which says that it is another."""
    version = tuple(map(int, python.split(".")))
    program = (
        f"import runpy, sys; sys.version_info = {version}; sys.version = '{python} (main)';"
        f"sys.platform = '{platform}';"
        f"sys.path.insert(0, {str(ROOT)!r}); sys.argv = [{str(path)!r}, 'demo'];"
        f"runpy.run_path({str(path)!r}, run_name='__main__')"
    )
    make = {} if goals is None else {"MAKELEVEL": "1", "DGPROXY_GOALS": goals}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**{name: value for name, value in os.environ.items() if name != "MAKELEVEL"}, **make},
        capture_output=True,
        text=True,
        timeout=WITHIN,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    return line


def test_an_old_python_is_told_what_to_type() -> None:
    old = f"dgproxy: needs Python 3.11 or newer, and {sys.executable} is 3.9.2. "
    assert as_if("3.9.2", MAIN, goals=None) == old + "Try another, like: python3.11 -m dgproxy demo"
    by_make = as_if("3.9.2", INSTALL, goals="demo")
    assert by_make.startswith(old)
    assert by_make.partition(": make PYTHON=python3.1")[2][1:] == " demo"
    assert as_if("3.9.2", INSTALL, goals=None).endswith("/install.py demo")


def test_another_system_than_linux_is_told() -> None:
    for path in (INSTALL, MAIN):
        assert as_if("3.12.1", path, goals=None, platform="darwin").startswith("dgproxy: runs on Linux, and this is ")


def test_a_clone_that_nothing_was_installed_for_says_what_to_type(tmp_path: Path) -> None:
    (tmp_path / "dgproxy").mkdir()
    (tmp_path / "deploy").mkdir()
    (tmp_path / "dgproxy/__main__.py").write_text(MAIN.read_text())
    (tmp_path / "dgproxy/__init__.py").touch()
    (tmp_path / "dgproxy/cli.py").write_text("import rich_clack")
    (tmp_path / "deploy/install.py").touch()

    def said() -> str:
        done = subprocess.run(
            [sys.executable, "-m", "dgproxy", "demo"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        return done.stderr

    missing = f"dgproxy: rich_clack is not installed for {sys.executable}. Try: "
    assert said() == f"{missing}make demo, or without make: python3 deploy/install.py && .venv/bin/dgproxy demo\n"
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/dgproxy").touch()
    assert said() == f"{missing}.venv/bin/dgproxy demo\n"
    (tmp_path / "dgproxy/cli.py").write_text("import dgproxy.gone")
    assert "ModuleNotFoundError: No module named 'dgproxy.gone'" in said()  # a fault of ours is not hidden


# --- make ------------------------------------------------------------------------------------------------------------


def test_make_without_python_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        ["make", "-C", str(ROOT), "install", "PYTHON=python3.77", f"VENV={tmp_path}/venv"],
        capture_output=True,
        text=True,
        timeout=WITHIN,
        check=False,
    )
    assert done.returncode == 2
    assert "dgproxy: there is no python3.77; install Python 3.11 or newer, or name one: " in done.stderr


def test_make_installs_anew_in_a_clone_that_was_moved(tmp_path: Path) -> None:
    venv = played(tmp_path, "exit 0")
    (venv / ".demo").touch()

    def wanted() -> list[str]:
        done = subprocess.run(
            ["make", "-C", str(ROOT), "-n", "install", f"VENV={venv}"],
            capture_output=True,
            text=True,
            timeout=WITHIN,
            check=True,
        )
        return [line for line in done.stdout.splitlines() if "install.py" in line]

    assert not wanted()
    (venv / ".clone").write_text("/elsewhere/dgproxy")
    assert len(wanted()) == 1
    (venv / ".clone").write_text(str(ROOT))
    (venv / "bin" / "python").unlink()  # the system's Python was replaced
    assert len(wanted()) == 1


# --- stopped ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "whole_group"), [(signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGHUP, True)]
)
def test_a_stopped_installation_leaves_no_process(tmp_path: Path, number: signal.Signals, *, whole_group: bool) -> None:
    mark = uuid.uuid4().hex
    venv = played(tmp_path, "echo 'Collecting'; exec sleep 600")
    process = subprocess.Popen(
        [sys.executable, str(INSTALL), "--venv", str(venv)],
        env={**os.environ, MARK: mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    log = venv / "install.log"
    try:
        until("pip runs", lambda: log.exists() and log.read_text() == "Collecting\n", WITHIN)
        (os.killpg if whole_group else os.kill)(process.pid, number)
        out, err = process.communicate(timeout=WITHIN)
        assert process.returncode == 130
        assert "the same command goes on from there" in out
        assert not err
        assert not processes.marked(f"{MARK}={mark}")
        assert not (venv / ".demo").exists()
    finally:
        processes.kill(processes.marked(f"{MARK}={mark}"))
