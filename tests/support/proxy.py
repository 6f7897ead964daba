"""A real proxy, started, asked and stopped only as an operator would: through the command line (spec part 3).

`DGPROXY_BIN` names another command than the one beside this Python, so that the same tests judge a packaged binary.
"""

import json
import os
import re
import shlex
import signal
import ssl
import stat
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from tests.support import processes
from tests.support.logs import SECRETS, Capture, parse

DGPROXY: Final = shlex.split(os.environ.get("DGPROXY_BIN", "")) or [str(Path(sys.executable).with_name("dgproxy"))]
MARK: Final = "DGPROXY_TEST_MARK"
STOP_WITHIN: Final = 10.0  # seconds from SIGINT to exit
READY_WITHIN: Final = 20.0

# Limits that no test but those of limits should meet.
GENEROUS: Final = {
    "server.workers": "2",
    "auth.failures_per_address": '"100000/m"',
    "plans.default.rate": '"10000/s"',
    "plans.default.burst": "10000",
    "plans.default.allow_url": '["audio.example"]',
}


@dataclass(frozen=True)
class Key:
    """What `keys create --json` said."""

    id: str
    key: str
    name: str


def dgproxy(
    *args: str, timeout: float = 30.0, check: bool = True, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end. AssertionError with what it said if it fails and `check` is set."""
    done = subprocess.run(
        [*DGPROXY, *args],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, **(env or {})},
    )
    if check:
        assert done.returncode == 0, f"dgproxy {' '.join(args)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def edit(config: Path, entries: Mapping[str, str]) -> None:
    """Set one-line entries of a configuration file: `{"server.workers": "2"}`, the value as TOML writes it.

    An entry that `init` did not write is an error: the file that operators get must show every key.
    """
    lines = config.read_text().splitlines()
    for dotted, value in entries.items():
        section, _, key = dotted.rpartition(".")
        here = None
        for number, line in enumerate(lines):
            if header := re.fullmatch(r"\s*\[([\w.\"-]+)\]\s*(#.*)?", line):
                here = header[1]
            elif here == section and re.match(rf"\s*{re.escape(key)}\s*=", line):
                lines[number] = f"{key} = {value}"
                break
        else:
            raise AssertionError(f"{config} has no one-line entry {key} under [{section}]:\n" + "\n".join(lines))
    config.write_text("\n".join(lines) + "\n")


class Proxy:
    """One `dgproxy run` with its directory, its key, and all that it said. A context manager: start, then stop."""

    def __init__(self, directory: Path, upstream: str, settings: Mapping[str, str] | None = None) -> None:
        self.directory = directory / "dg"
        self.config = self.directory / "dgproxy.toml"
        self.port = processes.free_port()
        self.base_url = f"https://127.0.0.1:{self.port}"
        self.wss_url = f"wss://127.0.0.1:{self.port}"
        self.upstream = upstream
        self.ca = self.directory / "certs" / "ca.pem"
        self.admin_port = processes.free_port()
        self.key_id = ""
        self.key = ""
        self._mark = uuid.uuid4().hex
        self._output = directory
        self._runs = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._captures: list[Capture] = []
        dgproxy("init", str(self.directory), "--listen", f"127.0.0.1:{self.port}", "--upstream", upstream)
        edit(self.config, {"admin.listen": f'"127.0.0.1:{self.admin_port}"', **GENEROUS, **(settings or {})})

    # --- life --------------------------------------------------------------------------------------------------------

    def start(self, *, key: bool = True) -> Self:
        """Run it, wait until every worker accepts, and make a first key."""
        assert self._process is None, "already running"
        self._runs += 1
        self._process = subprocess.Popen(
            [*DGPROXY, "run", "-c", str(self.config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, MARK: self._mark},
            start_new_session=True,  # a Ctrl-C at the tests' terminal is not the proxy's
        )
        self.stdout = self._capture(self._process.stdout, f"run{self._runs}.stdout")
        self.stderr = self._capture(self._process.stderr, f"run{self._runs}.stderr")
        try:
            self.stderr.wait_for(lambda line: "proxy.ready" in line, READY_WITHIN)  # in either format
            if key and not self.key:
                made = self.new_key(name="tests")
                self.key_id, self.key = made.id, made.key
        except BaseException:
            self.kill()
            raise
        return self

    def _capture(self, stream: IO[bytes] | None, name: str) -> Capture:
        assert stream is not None
        capture = Capture(stream, self._output / name)
        self._captures.append(capture)
        return capture

    @property
    def pid(self) -> int:
        """The supervisor's."""
        assert self._process is not None, "not running"
        return self._process.pid

    def stop(self, signal_number: signal.Signals = signal.SIGINT, within: float = STOP_WITHIN) -> None:
        """Ask it to stop and see that it does: exit 0 in time, no process and no socket file left."""
        assert self._process is not None, "not running"
        family = processes.marked(f"{MARK}={self._mark}") | processes.children(self.pid) | {self.pid}
        asked = time.monotonic()
        self._process.send_signal(signal_number)
        try:
            code = self._process.wait(within)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{within} s after {signal_number.name} it still ran; {self._tail()}") from None
        left = processes.wait_gone(family, max(0.5, within - (time.monotonic() - asked)))
        quiet = all(capture.join() for capture in self._captures)
        self._process = None
        processes.kill(left)
        assert code == 0, f"exit {code} after {signal_number.name}; {self._tail()}"
        assert not left, f"processes {left} outlived the supervisor"
        assert quiet, "somebody still holds its stdout or stderr"
        assert not self.sockets(), f"socket files left: {self.sockets()}"

    def kill(self) -> None:
        """End all of it at once, for a test that failed."""
        if self._process is not None:
            processes.kill(processes.marked(f"{MARK}={self._mark}") | {self._process.pid})
            self._process.wait(5)
            self._process = None
        for capture in self._captures:
            capture.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process is None:
            return
        if error is None:
            self.stop()
        else:
            self.kill()

    # --- asking ------------------------------------------------------------------------------------------------------

    def new_key(self, name: str = "another", **options: str) -> Key:
        """Make a key; `streams="1"` is `--streams 1`, `quota_audio="1h/day"` is `--quota-audio 1h/day`."""
        flags = [part for option, value in options.items() for part in (f"--{option.replace('_', '-')}", value)]
        made = self.ask("keys", "create", "--name", name, *flags)
        key = Key(id=made["id"], key=made["key"], name=made["name"])
        SECRETS.add(key.key)
        return key

    def ask(self, *args: str) -> Any:
        """A command's one JSON document."""
        return json.loads(dgproxy(*args, "--json", "-c", str(self.config)).stdout)

    def status(self) -> dict[str, Any]:
        """`dgproxy status`."""
        answer: dict[str, Any] = self.ask("status")
        return answer

    def worker_pids(self) -> list[int]:
        """The workers' process ids, by index."""
        workers = sorted(self.status()["workers"], key=lambda worker: int(worker["index"]))
        return [int(worker["pid"]) for worker in workers]

    def kill_worker(self, index: int) -> int:
        """kill -9 one worker; its process id."""
        pid = self.worker_pids()[index]
        os.kill(pid, signal.SIGKILL)
        return pid

    def client_tls(self) -> ssl.SSLContext:
        """TLS as a client does it that trusts this proxy's CA and nothing else."""
        return ssl.create_default_context(cafile=str(self.ca))

    # --- what it left ------------------------------------------------------------------------------------------------

    def log_lines(self) -> list[Mapping[str, Any]]:
        """Every JSON line of this run's stderr and stdout, parsed."""
        return parse([*self.stderr.lines(), *self.stdout.lines()])

    def output(self) -> bytes:
        """All that its processes said, in every run so far."""
        return b"".join(capture.path.read_bytes() for capture in self._captures)

    def files(self) -> list[Path]:
        """Every regular file that it keeps."""
        return [path for path in self.directory.rglob("*") if path.is_file()]

    def sockets(self) -> list[Path]:
        """Every socket file under its directory."""
        return [path for path in self.directory.rglob("*") if stat.S_ISSOCK(path.lstat().st_mode)]

    def leaks(self) -> list[str]:
        """Credentials that its output or its files hold."""
        found = [f"{name} in its output" for name in SECRETS.found_in(self.output())]
        for path in self.files():
            found += [f"{name} in {path.name}" for name in SECRETS.found_in(path.read_bytes())]
        return found

    def _tail(self) -> str:
        return "last said:\n" + "\n".join(self.stderr.lines()[-40:])
