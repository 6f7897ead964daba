"""The control socket, both ends, over real Unix sockets: what passes, what is bounded, and who may."""

import asyncio
import contextlib
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from dgproxy.admin import control
from dgproxy.admin.control import Call, ControlError, ControlServer, ControlTimeout, NotRunning, call


class Running:
    """A server with a few handlers in a loop of its own, as in the supervisor."""

    def __init__(self, path: Path, loop: asyncio.AbstractEventLoop) -> None:
        self.path = path
        self.loop = loop
        self.failures: list[tuple[str, Exception]] = []
        self.done: list[str] = []
        self.gate = asyncio.Event()
        handlers = {"echo": self.echo, "refuse": self.refuse, "fail": self.fail, "wait": self.wait, "big": self.big}
        self.server = ControlServer(handlers, lambda command, error: self.failures.append((command, error)))

    def run(self, what: Awaitable[Any]) -> Any:
        async def wrapped() -> Any:
            return await what

        return asyncio.run_coroutine_threadsafe(wrapped(), self.loop).result(30)

    def ask(self, command: str, **args: Any) -> Any:
        return call(self.path, command, args, 30)

    async def echo(self, asked: Call) -> object:
        return {"args": asked.args, "uid": asked.uid, "pid": asked.pid}

    async def refuse(self, _: Call) -> object:
        raise ControlError("not_found", "there is no such thing")

    async def fail(self, _: Call) -> object:
        raise RuntimeError("secret detail")

    async def wait(self, asked: Call) -> object:
        self.done.append("begun")
        await self.gate.wait()
        self.done.append("ended")
        return asked.args

    async def big(self, _: Call) -> object:
        return "x" * control.MAX_LINE


@contextlib.contextmanager
def running(path: Path, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> Iterator[Running]:
    loop = new_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    one = Running(path, loop)
    try:
        one.run(one.server.start(path))
        yield one
    finally:
        loop.call_soon_threadsafe(one.gate.set)
        one.run(one.server.close())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def proxy(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Running]:
    with running(tmp_path / "admin.sock", request.param) as one:
        yield one


def connected(proxy: Running) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(30)
    peer.connect(str(proxy.path))
    return peer


def said(peer: socket.socket) -> bytes:
    """All that comes until the server closes."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := peer.recv(65536):
            received += data
    return received


def eventually(is_so: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < give_up
        time.sleep(0.005)


# --- what passes ------------------------------------------------------------------------------------------------


def test_a_command_reaches_its_handler_with_the_kernels_word_on_who_asks(proxy: Running) -> None:
    asked: dict[str, Any] = {"name": "Café\n", "n": 5, "nested": {"a": [1, None, True]}}
    assert proxy.ask("echo", **asked) == {"args": asked, "uid": os.getuid(), "pid": os.getpid()}


def test_the_protocol_is_one_line_of_json_each_way(proxy: Running) -> None:
    with connected(proxy) as peer, peer.makefile("rb") as lines:
        for request, response in (
            ({"v": 1, "command": "wait", "args": {"a": 1}}, {"ok": True, "result": {"a": 1}}),
            (
                {"v": 1, "command": "refuse", "args": {}},
                {"ok": False, "code": "not_found", "error": "there is no such thing"},
            ),
            ({"v": 1, "command": "wait"}, {"ok": True, "result": {}}),
        ):
            proxy.loop.call_soon_threadsafe(proxy.gate.set)
            peer.sendall(json.dumps(request).encode() + b"\n")
            assert json.loads(lines.readline()) == response


def test_requests_in_pieces_and_in_one_piece_are_the_same(proxy: Running) -> None:
    line = b'{"v":1,"command":"refuse","args":{}}\n'
    with connected(proxy) as peer, peer.makefile("rb") as lines:
        for byte in line:
            peer.send(bytes([byte]))
        peer.sendall(line * 3)
        for _ in range(4):
            assert json.loads(lines.readline())["code"] == "not_found"


def test_a_refusal_has_a_code_and_a_sentence(proxy: Running) -> None:
    with pytest.raises(ControlError, match="there is no such thing") as caught:
        proxy.ask("refuse")
    assert caught.value.code == "not_found"


def test_a_handler_that_breaks_tells_its_server_all_and_its_client_nothing(proxy: Running) -> None:
    with pytest.raises(ControlError) as caught:
        proxy.ask("fail")
    assert caught.value.code == "internal"
    assert "secret" not in str(caught.value)
    assert [(command, str(error)) for command, error in proxy.failures] == [("fail", "secret detail")]
    assert proxy.ask("echo")["args"] == {}


def test_fifty_clients_at_once_are_each_answered(proxy: Running) -> None:
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda n=n: answers.append(proxy.ask("echo", n=n)["args"]["n"])) for n in range(50)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == list(range(50))


# --- what is bounded --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_line",
    [
        b"\n",
        b"GET / HTTP/1.1\r\n",
        b"{}\n",
        b"[]\n",
        b'{"v":1,"command":5}\n',
        b'{"v":1,"command":"echo","args":[]}\n',
        b'{"v":1,"command":"echo","other":1}\n',
        b'{"v":1,"command":"\xff"}\n',
        b"\x00\x01\x02\n",
        b'{"v":1,"command":"echo","args":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}\n",
    ],
    ids=lambda line: repr(line[:40]),
)
def test_what_is_no_request_is_told_and_ends_the_connection(proxy: Running, request_line: bytes) -> None:
    with connected(proxy) as peer:
        peer.sendall(request_line)
        assert json.loads(said(peer))["code"] == "bad_request"
    assert proxy.ask("echo")["args"] == {}


@pytest.mark.parametrize(
    ("request_line", "code"),
    [(b'{"v":2,"command":"echo"}\n', "version"), (b'{"v":1,"command":"none"}\n', "unknown_command")],
)
def test_what_this_proxy_does_not_know_is_told(proxy: Running, request_line: bytes, code: str) -> None:
    with connected(proxy) as peer, peer.makefile("rb") as lines:
        peer.sendall(request_line)
        assert json.loads(lines.readline())["code"] == code


def test_a_line_of_more_than_a_mebibyte_is_refused_both_ways(proxy: Running) -> None:
    with connected(proxy) as peer:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            peer.sendall(b"x" * (control.MAX_LINE + 200_000))
        answer = said(peer)
    assert answer == b"" or json.loads(answer)["code"] == "too_long"
    for command, text in (("echo", "x" * control.MAX_LINE), ("big", "")):
        with pytest.raises(ControlError) as caught:
            proxy.ask(command, a=text)
        assert caught.value.code == "too_long"
    assert len(proxy.ask("echo", a="x" * 900_000)["args"]["a"]) == 900_000


def test_a_silent_client_is_let_go(proxy: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "READ_TIMEOUT", 0.05)
    for begun in (b"", b'{"v":1,"comm'):
        with connected(proxy) as peer:
            peer.sendall(begun)
            assert said(peer) == b""
    eventually(lambda: not proxy.server._clients)


def test_a_client_that_takes_no_answer_is_let_go(proxy: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "READ_TIMEOUT", 0.2)
    line = json.dumps({"v": 1, "command": "echo", "args": {"a": "x" * 900_000}}).encode() + b"\n"
    with connected(proxy) as peer:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            peer.sendall(line * 4)
        eventually(lambda: not proxy.server._clients)
    assert proxy.ask("echo")["args"] == {}


def test_clients_beyond_the_bound_are_told_to_come_again(proxy: Running) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(control.MAX_CLIENTS):
            stack.enter_context(connected(proxy))
        eventually(lambda: len(proxy.server._clients) == control.MAX_CLIENTS)
        with pytest.raises(ControlError) as caught:
            proxy.ask("echo")
        assert caught.value.code == "busy"
    eventually(lambda: not proxy.server._clients)
    assert proxy.ask("echo")["args"] == {}


def test_a_command_whose_client_has_gone_is_finished(proxy: Running) -> None:
    with connected(proxy) as peer:
        peer.sendall(b'{"v":1,"command":"wait"}\n')
        eventually(lambda: proxy.done == ["begun"])
    proxy.loop.call_soon_threadsafe(proxy.gate.set)
    eventually(lambda: proxy.done == ["begun", "ended"])
    eventually(lambda: not proxy.server._clients)
    assert proxy.failures == []


# --- its life ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_o12_the_socket_is_its_owners_alone_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with running(tmp_path / "s", asyncio.new_event_loop):
            assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
        after = os.umask(umask)
    finally:
        os.umask(before)
    assert after == umask


def test_closing_removes_the_socket_and_lets_idle_clients_go(proxy: Running) -> None:
    with connected(proxy) as idle:
        eventually(lambda: len(proxy.server._clients) == 1)
        proxy.run(proxy.server.close())
        assert said(idle) == b""
    assert not proxy.path.exists()
    with pytest.raises(NotRunning):
        proxy.ask("echo")


def test_closing_waits_for_a_command_that_has_begun_and_its_answer(proxy: Running) -> None:
    with connected(proxy) as peer, peer.makefile("rb") as lines:
        peer.sendall(b'{"v":1,"command":"wait"}\n')
        eventually(lambda: proxy.done == ["begun"])
        closing = asyncio.run_coroutine_threadsafe(proxy.server.close(), proxy.loop)
        eventually(lambda: not proxy.path.exists())
        assert not closing.done()
        proxy.loop.call_soon_threadsafe(proxy.gate.set)
        assert json.loads(lines.readline()) == {"ok": True, "result": {}}
        assert lines.readline() == b""
        closing.result(30)


def test_closing_leaves_a_socket_that_is_no_longer_ours(proxy: Running) -> None:
    proxy.path.unlink()
    with running(proxy.path, asyncio.new_event_loop) as successor:
        proxy.run(proxy.server.close())
        assert successor.ask("echo")["args"] == {}


def test_o2_a_stale_socket_is_replaced_and_a_live_one_is_not(proxy: Running, tmp_path: Path) -> None:
    stale = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(stale))
    with pytest.raises(NotRunning):
        call(stale, "echo", {}, 5)
    with running(stale, asyncio.new_event_loop) as one:
        assert one.ask("echo")["args"] == {}
    with pytest.raises(OSError, match="another process listens"), running(proxy.path, asyncio.new_event_loop):
        pass
    assert proxy.ask("echo")["args"] == {}


def test_what_is_no_socket_is_never_replaced(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("data")
    with pytest.raises(OSError, match="is no socket"), running(precious, asyncio.new_event_loop):
        pass
    assert precious.read_text() == "data"


def test_o2_a_path_that_is_too_long_is_told_by_both_ends(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 108)
    with pytest.raises(OSError, match="at most 107 bytes"), running(path, asyncio.new_event_loop):
        pass
    with pytest.raises(OSError, match="at most 107 bytes"):
        call(path, "echo", {}, 5)


def test_a_directory_that_is_missing_is_told(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match="cannot listen here"),
        running(tmp_path / "none" / "s", asyncio.new_event_loop),
    ):
        pass


# --- the client -------------------------------------------------------------------------------------------------


def test_a_client_without_a_proxy_knows_that_nothing_was_done(tmp_path: Path) -> None:
    with pytest.raises(NotRunning, match="no proxy answers"):
        call(tmp_path / "none", "echo", {}, 5)


def test_a_path_that_leads_nowhere_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotRunning, match="no proxy answers"):
        call(tmp_path / "file" / "admin.sock", "status", {}, 1)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ControlError, match=r"loop: Too many levels of symbolic links") as told:
        call(tmp_path / "loop", "status", {}, 1)
    assert told.value.code == "unreachable"


def test_a_client_waits_no_longer_than_it_said(proxy: Running) -> None:
    with pytest.raises(ControlTimeout, match=r"no answer within 0\.05 seconds"):
        call(proxy.path, "wait", {}, 0.05)


def test_a_client_waits_for_a_place_in_a_full_queue(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as full, contextlib.ExitStack() as stack:
        full.bind(str(path))
        full.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)  # noqa: FBT003
                waiting.connect(str(path))
        with pytest.raises(ControlTimeout):
            call(path, "echo", {}, 0.1)


@pytest.mark.parametrize(
    ("answer", "code"),
    [(b"", "closed"), (b'{"ok":true', "closed"), (b"hello\n", "bad_answer"), (b'{"result":1}\n', "bad_answer")],
)
def test_a_client_takes_half_an_answer_for_none(tmp_path: Path, answer: bytes, code: str) -> None:
    path = tmp_path / "s"

    def serve() -> None:
        peer, _ = listener.accept()
        with peer:
            peer.recv(65536)
            peer.sendall(answer)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        server = threading.Thread(target=serve)
        server.start()
        with pytest.raises(ControlError) as caught:
            call(path, "echo", {}, 30)
        server.join()
    assert caught.value.code == code


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_is_told_that_the_socket_is_not_theirs(proxy: Running) -> None:
    for directory in proxy.path.parents[:3]:
        directory.chmod(0o755)
    os.seteuid(65534)
    try:
        with pytest.raises(ControlError, match="only its owner") as caught:
            proxy.ask("echo")
    finally:
        os.seteuid(0)
    assert caught.value.code == "forbidden"
