"""What stands in the way of a start is told in a line, before anything is served."""

import re
import resource
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.processes import free_port
from tests.support.proxy import DGPROXY, READY_WITHIN, dgproxy, edit


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A directory as `init` makes it, for one worker on a free port."""
    directory = tmp_path / "dg"
    dgproxy("init", str(directory), "--listen", f"127.0.0.1:{free_port()}")
    edit(directory / "dgproxy.toml", {"server.workers": "1"})
    return directory


def at_most(files: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))


def refused(*words: str, files: int = 1024) -> str:
    """The line that the command says in the end, at exit."""
    done = subprocess.run(
        [*DGPROXY, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        preexec_fn=at_most(files),
    )
    assert done.returncode in (1, 2), done
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("files", [6, 12, 24, 60])
def test_too_few_file_descriptors_are_told_with_how_many_are_needed(made: Path, files: int) -> None:
    told = refused("run", "-c", str(made / "dgproxy.toml"), files=files)
    assert re.fullmatch(rf"dgproxy: the limit of open files is {files}, and [0-9]+ is the least; raise .*", told)


def test_as_many_as_are_said_to_be_needed_are_enough(made: Path) -> None:
    told = re.search(r"and ([0-9]+) is the least", refused("run", "-c", str(made / "dgproxy.toml"), files=24))
    assert told is not None
    process = subprocess.Popen(
        [*DGPROXY, "run", "-c", str(made / "dgproxy.toml")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=at_most(int(told[1])),  # noqa: PLW1509 - likewise
    )
    try:
        assert process.stderr is not None
        assert any('"proxy.ready"' in line for line in process.stderr)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=READY_WITHIN)
    assert process.returncode == 0


@pytest.mark.parametrize("missing", ["server.pem", "server-key.pem"])
def test_a_certificate_or_key_that_is_not_there_is_named(made: Path, missing: str) -> None:
    path = made / "certs" / missing
    path.unlink()
    said = refused("run", "-c", str(made / "dgproxy.toml"))
    assert said == f"dgproxy: {path}: cannot be read (No such file or directory); `dgproxy check` says more"


@pytest.mark.parametrize("listen", ["unix:/tmp/s", "systemd:s"])
def test_the_stand_in_listens_on_a_port_alone(listen: str) -> None:
    done = dgproxy("standin", "--listen", listen, check=False)
    assert done.returncode == 2
    assert "the stand-in listens on HOST:PORT alone" in done.stderr


def test_a_state_that_is_a_file_is_told_to_who_works_on_keys(made: Path) -> None:
    for path in (made / "state").iterdir():
        path.unlink()
    (made / "state").rmdir()
    (made / "state").touch()
    said = refused("keys", "list", "-c", str(made / "dgproxy.toml"))
    assert said == f"dgproxy: {made}/state: is no directory; name another in [state]"
