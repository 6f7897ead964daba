"""`dgproxy streams`: what is in flight is shown as it is, and what an operator ends is told why it ended."""

import contextlib
import json
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.logs import is_event
from tests.support.proxy import Proxy, dgproxy
from tests.support.scripted import PATIENCE, read_head, switching_protocols, upstream

# The proxy here has an upstream of its own; which one the session has besides does not matter.
pytestmark = [
    pytest.mark.usefixtures("upstream_process"),
    pytest.mark.parametrize("upstream_process", ["second"], indirect=True),
]

SOON: Final = 10.0
FIELDS: Final = {
    "id",
    "key_id",
    "class",
    "websocket",
    "peer",
    "upstream",
    "status",
    "age_s",
    "bytes_in",
    "bytes_out",
    "dg_request_id",
    "worker",
}


def speak(sock: socket.socket) -> None:
    """A WebSocket for GET, a download without end for /v1/speak, and no answer to an upload before it is whole."""
    asked = read_head(sock)
    if asked.startswith(b"GET"):
        sock.sendall(switching_protocols(asked))
    elif asked.startswith(b"POST /v1/speak"):
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\ndg-request-id: theirs\r\n\r\n" + bytes(1000))
    with contextlib.suppress(ConnectionError):
        while sock.recv(65536):
            pass


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, leaks: list[str]) -> Iterator[Proxy]:
    with upstream(speak) as url:
        proxy = Proxy(tmp_path_factory.mktemp("streams"), url, {"upstream.urls": f'["{url}"]'})
        try:
            with proxy:
                yield proxy
        finally:
            leaks += proxy.leaks()


Begin = Callable[[ssl.SSLSocket, str], None]


def websocket(client: ssl.SSLSocket, key: str) -> None:
    lines = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
    client.sendall(head("GET", "/v1/listen", key, *lines, f"Sec-WebSocket-Key: {'A' * 22}=="))
    assert client.recv(65536).startswith(b"HTTP/1.1 101 ")
    client.sendall(b"\x82\xfe" + struct.pack("!H", 200) + bytes(4) + bytes(200))


def upload(client: ssl.SSLSocket, key: str) -> None:
    client.sendall(head("POST", "/v1/listen", key, "Content-Length: 5000") + bytes(1000))


def download(client: ssl.SSLSocket, key: str) -> None:
    client.sendall(head("POST", "/v1/speak", key, "Content-Length: 0"))
    heard = b""
    while len(heard.partition(b"\r\n\r\n")[2]) < 1000:
        heard += client.recv(65536)
    assert heard.startswith(b"HTTP/1.1 200 ")


def head(method: str, target: str, key: str, *lines: str) -> bytes:
    return "\r\n".join(
        [f"{method} {target} HTTP/1.1", "Host: dg", f"Authorization: Token {key}", *lines, "", ""]
    ).encode()


@contextlib.contextmanager
def begun(proxy: Proxy, begin: Begin, key: str = "") -> Iterator[ssl.SSLSocket]:
    """A client of whose request some is on its way."""
    raw = socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE)
    with proxy.client_tls().wrap_socket(raw, server_hostname="127.0.0.1", suppress_ragged_eofs=False) as client:
        begin(client, key or proxy.key)
        yield client


def shown(proxy: Proxy, *args: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = proxy.ask("streams", "list", *args)
    return rows


def until(what: str, holds: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + SOON
    while not (found := holds()):
        assert time.monotonic() < deadline, f"not within {SOON} s: {what}"
        time.sleep(0.02)
    return found


def of(client: ssl.SSLSocket, rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The row of this client."""
    peer = "{}:{}".format(*client.getsockname())
    return next((row for row in rows if row["peer"] == peer), None)


def nothing_left(proxy: Proxy) -> None:
    until("nothing is shown", lambda: shown(proxy) == [])
    until("no slot is held", lambda: all(not key["in_flight"] for key in proxy.status()["usage"].values()))


ROWS: Final = {
    "WebSocket": (websocket, {"class": "stream", "websocket": True, "status": 101, "bytes_in": 208}),
    "upload": (upload, {"class": "batch", "websocket": False, "status": None, "bytes_in": 1000}),
    "download": (download, {"class": "speak", "websocket": False, "status": 200, "bytes_out": 1000}),
}


@pytest.mark.parametrize(("begin", "wanted"), ROWS.values(), ids=ROWS)
def test_what_is_in_flight_is_listed_as_it_is(running: Proxy, begin: Begin, wanted: dict[str, Any]) -> None:
    with begun(running, begin) as client:

        def row() -> dict[str, Any] | None:
            found = of(client, shown(running))
            return found if found is not None and wanted.items() <= found.items() else None

        found = until(f"it is listed with {wanted}", row)
        assert found.keys() == FIELDS
        assert found["key_id"] == running.key_id
        assert found["upstream"].startswith("http://127.0.0.1:")
        assert found["age_s"] >= 0
        assert found["worker"] in {0, 1}
        assert found["dg_request_id"] == ("theirs" if begin is download else None)
        table = dgproxy("streams", "list", "-c", str(running.config)).stdout
        assert found["id"] in table
        assert ("request, waiting" in table) is (begin is upload)
    nothing_left(running)


def test_the_oldest_comes_first_and_a_key_may_be_asked_for_alone(running: Proxy) -> None:
    other = running.new_key("other")
    with begun(running, upload) as first, begun(running, websocket, other.key) as second:
        until("both are listed", lambda: len(shown(running)) == 2)
        rows = shown(running)
        assert [of(client, rows) for client in (first, second)] == rows
        for named in (other.id, f"dgp_{other.id}"):
            (row,) = shown(running, "--key", named)
            assert row["key_id"] == other.id
        assert shown(running, "--key", running.new_key("idle").id) == []
    nothing_left(running)


def test_a_key_that_is_none_is_an_error_and_never_repeated_whole(running: Proxy) -> None:
    no_id = "a key's id is 10 letters and digits"
    for named, wanted in {
        "zzz": no_id,
        "": no_id,
        running.key: no_id,
        "nobody0000": "there is no key with the id nobody0000",
        "dgp_nobody0000": "there is no key with the id nobody0000",
    }.items():
        asked = dgproxy("streams", "list", "--key", named, "-c", str(running.config), check=False)
        assert (asked.returncode, asked.stdout) == (1, "")
        assert wanted in asked.stderr
        assert running.key not in asked.stderr
        assert asked.stderr == dgproxy("keys", "show", named, "-c", str(running.config), check=False).stderr


def request_id(proxy: Proxy, client: ssl.SSLSocket) -> str:
    row = until("it is listed", lambda: of(client, shown(proxy)))
    return str(row["id"])


def test_a_killed_websocket_gets_a_close_that_says_why(running: Proxy) -> None:
    with begun(running, websocket) as client:
        killed = request_id(running, client)
        assert running.ask("streams", "kill", killed) == {"id": killed, "ended": 1}
        heard = b""
        with contextlib.suppress(ssl.SSLEOFError, ConnectionError):
            while piece := client.recv(65536):
                heard += piece
        assert heard[0] == 0x88  # RFC 6455 5.2: FIN, Close
        assert struct.unpack("!H", heard[2:4]) == (1008,)
        assert heard[4:] == b"An operator ended this request."
    running.stderr.wait_for(is_event("stream.close", request_id=killed, end="cut", code_sent=1008), SOON)
    running.stderr.wait_for(is_event("stream.killed", request_id=killed), SOON)
    nothing_left(running)


def test_a_killed_upload_gets_a_403_that_says_why(running: Proxy) -> None:
    with begun(running, upload) as client:
        killed = request_id(running, client)
        assert killed in dgproxy("streams", "kill", killed, "-c", str(running.config)).stdout
        heard = b""
        while piece := client.recv(65536):
            heard += piece
        start, _, body = heard.partition(b"\r\n\r\n")
        assert start.startswith(b"HTTP/1.1 403 ")
        assert json.loads(body) == {
            "err_code": "INSUFFICIENT_PERMISSIONS",
            "err_msg": "An operator ended this request.",
            "request_id": killed,
        }
    running.stderr.wait_for(is_event("request.close", request_id=killed, end="cut", status=403), SOON)
    nothing_left(running)


def test_a_killed_download_is_reset_so_that_nobody_takes_it_for_the_whole(running: Proxy) -> None:
    with begun(running, download) as client:
        killed = request_id(running, client)
        running.ask("streams", "kill", killed)
        with pytest.raises((ConnectionError, ssl.SSLEOFError)):
            client.recv(65536)
    running.stderr.wait_for(is_event("request.close", request_id=killed, end="cut", status=200), SOON)
    nothing_left(running)


def test_an_id_that_is_not_in_flight_is_an_error(running: Proxy) -> None:
    done = dgproxy("streams", "kill", "00000000-0000-0000-0000-000000000000", "-c", str(running.config), check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "dgproxy: no stream or request of this id is in flight\n"


@pytest.mark.parametrize("command", [("list",), ("list", "--json"), ("kill", "some")])
def test_without_a_running_proxy_the_command_says_so(tmp_path: Path, command: tuple[str, ...]) -> None:
    stopped = Proxy(tmp_path, "http://127.0.0.1:1")
    done = dgproxy("streams", *command, "-c", str(stopped.config), check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no proxy is running" in done.stderr
    assert "Traceback" not in done.stderr
