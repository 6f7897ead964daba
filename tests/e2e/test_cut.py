"""A key that is revoked, disabled or expired: what is in flight ends, whatever it is doing, and nobody else's does."""

import contextlib
import http.client
import json
import os
import select
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import pytest

from dgproxy.wire.frames import BINARY, CLOSE, TEXT
from tests.conftest import second_only
from tests.support import scripted
from tests.support.clients import Answer, assert_refusal
from tests.support.frames import frame
from tests.support.logs import is_event
from tests.support.proxy import Key, Proxy, dgproxy
from tests.support.raw_ws import RawStream
from tests.support.upstreams import Upstream

pytestmark = [second_only]

ECHO: Final = "/v1/listen?standin_echo=1"
PATIENCE: Final = 20.0
REVOKED: Final = (1008, "This ingress API key was revoked.")
CUT: Final = (ConnectionError, ssl.SSLEOFError)  # a reset, which Python's ssl calls one or the other
ENDLESS: Final = b"\x82\x7f" + (1 << 40).to_bytes(8, "big")  # the head of a frame that will not end


@pytest.fixture
def key(proxy: Proxy) -> Key:
    return proxy.new_key(name=f"cut {time.monotonic_ns()}")


def revoke(proxy: Proxy, key: Key) -> None:
    assert proxy.ask("keys", "revoke", key.id)["changed"]


def last_line(proxy: Proxy, key: Key, event: str = "stream.close") -> dict[str, Any]:
    """The last line of this key's only stream or request."""
    wanted = is_event(event, key_id=key.id)
    line: dict[str, Any] = json.loads(proxy.stderr.wait_for(wanted, PATIENCE))
    return line


def assert_no_slot_left(proxy: Proxy, key: Key) -> None:
    usage = proxy.status()["usage"].get(key.id)
    assert usage is None or usage["in_flight"] == 0


def wait_until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.01)


def echoing(proxy: Proxy, key: Key) -> RawStream:
    """A stream that has said something and heard it back."""
    stream = RawStream(proxy, key.key, ECHO)
    stream.send(frame(BINARY, b"audio"))
    assert stream.frame() == (0x80 | BINARY, b"audio")
    return stream


def assert_closed(stream: RawStream, code: int, reason: str) -> None:
    """It gets this Close, and then the orderly end."""
    while (found := stream.frame())[0] != 0x80 | CLOSE:
        pass
    assert found[1] == code.to_bytes(2, "big") + reason.encode()
    assert stream.rest() == (b"", "orderly")
    stream.sock.close()


# --- streams ---------------------------------------------------------------------------------------------------------


def test_revoking_closes_a_live_stream_with_1008_and_the_reason_and_tells_the_upstream(
    proxy: Proxy, upstream: Upstream, key: Key
) -> None:
    stream = echoing(proxy, key)
    revoke(proxy, key)
    assert_closed(stream, *REVOKED)
    line = last_line(proxy, key)
    assert (line["end"], line["code_sent"]) == ("cut", 1008)
    assert line["bytes_in"] == len(frame(BINARY, b"audio"))
    wait_until(lambda: bool(upstream.only().get("close_code")))
    assert upstream.only()["close_code"] == 1001
    assert_no_slot_left(proxy, key)


def test_a_disabled_key_is_cut_and_works_again_after_enable(proxy: Proxy, upstream: Upstream, key: Key) -> None:
    stream = echoing(proxy, key)
    proxy.ask("keys", "disable", key.id)
    assert_closed(stream, 1008, "This ingress API key is disabled.")
    proxy.ask("keys", "enable", key.id)
    echoing(proxy, key).sock.close()
    assert len(upstream.heads()) == 2


def test_expiry_closes_a_live_stream(proxy: Proxy, upstream: Upstream) -> None:
    key = proxy.new_key(name=f"short {time.monotonic_ns()}", expires="3s")
    stream = echoing(proxy, key)
    assert_closed(stream, 1008, "This ingress API key has expired.")
    assert last_line(proxy, key)["end"] == "cut"
    assert len(upstream.heads()) == 1


HELD_UP: Final[dict[str, bytes]] = {
    "silent": b"",
    "in the middle of a frame's head": b"\x82",
    "in the middle of a frame": frame(BINARY, bytes(1000))[:500],
    "in the middle of a large frame": frame(BINARY, bytes(1 << 20))[: 1 << 19],
    "between fragments": frame(TEXT, b"{", fin=False),
}


@pytest.mark.parametrize("state", HELD_UP)
def test_a_client_that_says_nothing_more_is_closed_all_the_same(
    proxy: Proxy, upstream: Upstream, key: Key, state: str
) -> None:
    stream = echoing(proxy, key)
    stream.send(HELD_UP[state])
    revoke(proxy, key)
    assert_closed(stream, *REVOKED)
    assert last_line(proxy, key)["end"] == "cut"
    assert_no_slot_left(proxy, key)
    assert len(upstream.heads()) == 1


def test_a_client_that_does_not_read_is_reset(proxy: Proxy, upstream: Upstream, key: Key) -> None:
    stream = RawStream(proxy, key.key, ECHO, buffer=4096)
    stream.sock.settimeout(0.5)
    try:
        for _ in range(10_000):  # until nothing goes any more: the echo has nowhere to go
            stream.send(frame(BINARY, bytes(16_000)))
        pytest.fail("everything went")
    except TimeoutError:
        pass
    revoke(proxy, key)
    line = last_line(proxy, key)
    assert line["end"] == "cut"
    assert_no_slot_left(proxy, key)
    stream.sock.settimeout(PATIENCE)
    assert stream.rest()[1] in ("cut", "reset")
    stream.sock.close()
    assert len(upstream.heads()) == 1


def test_a_client_whose_kernel_was_handed_the_close_and_takes_nothing_is_reset_too(
    new_proxy: Callable[..., Proxy],
) -> None:
    """What waits has room in the proxy's kernel, so the Close goes behind it; but the client's window is shut."""

    def serve(sock: socket.socket) -> None:
        sock.sendall(scripted.switching_protocols(scripted.read_head(sock)))
        sock.sendall((b"\x82\x7e\x7d\x00" + bytes(32_000)) * 2)
        with contextlib.suppress(ConnectionError):
            while sock.recv(65536):
                pass

    with scripted.upstream(serve) as url, new_proxy({"upstream.urls": f'["{url}"]'}) as proxy:
        stream = RawStream(proxy, proxy.key, buffer=4096)
        wait_until(lambda: proxy.ask("streams", "list")[0]["bytes_out"] == 2 * 32_004)
        watched = select.poll()
        watched.register(stream.sock, 0)  # errors and hang-ups alone
        proxy.ask("keys", "revoke", proxy.key_id)
        line = last_line(proxy, Key(proxy.key_id, "", ""))
        assert (line["end"], line["code_sent"]) == ("cut", 1008)
        assert watched.poll(PATIENCE * 1000), "still open, with all that it did not read"
        stream.sock.close()


def test_an_upstream_in_the_middle_of_a_frame_gets_no_close_put_into_it(
    new_proxy: Callable[..., Proxy],
) -> None:
    over: list[bytes] = []

    def serve(sock: socket.socket) -> None:
        sock.sendall(scripted.switching_protocols(scripted.read_head(sock)) + ENDLESS + b"half")
        try:
            while data := sock.recv(65536):
                over.append(data)
        except ConnectionError:
            over.append(b"reset")

    with scripted.upstream(serve) as url, new_proxy({"upstream.urls": f'["{url}"]'}) as proxy:
        stream = RawStream(proxy, proxy.key)
        assert stream.exactly(len(ENDLESS) + 4) == ENDLESS + b"half"
        proxy.ask("keys", "revoke", proxy.key_id)
        with pytest.raises(CUT):
            stream.sock.recv(65536)
        stream.sock.close()
        assert last_line(proxy, Key(proxy.key_id, "", ""))["end"] == "cut"
    assert b"".join(over[:-1]) == b"" or over[0][0] == 0x88  # a Close, or nothing


def test_every_stream_of_the_key_ends_on_both_workers_and_nobody_elses(
    proxy: Proxy, upstream: Upstream, key: Key
) -> None:
    other = proxy.new_key(name=f"other {time.monotonic_ns()}")
    theirs = [echoing(proxy, key) for _ in range(24)]
    others = [echoing(proxy, other) for _ in range(8)]
    workers = {row["worker"] for row in proxy.ask("streams", "list", "--key", key.id)}
    assert workers == {0, 1}
    revoke(proxy, key)
    for stream in theirs:
        assert_closed(stream, *REVOKED)
    for stream in others:
        stream.send(frame(BINARY, b"still"))
        assert stream.frame() == (0x80 | BINARY, b"still")
        stream.send(frame(CLOSE, b"\x03\xe8"))
        assert_closed(stream, 1000, "")
    assert len(upstream.heads()) == 32


def test_a_worker_that_hangs_is_told_of_and_cuts_as_soon_as_it_goes_on(new_proxy: Callable[..., Proxy]) -> None:
    with new_proxy({"server.workers": "1"}) as proxy:
        key = Key(proxy.key_id, proxy.key, "")
        stream = echoing(proxy, key)
        (pid,) = proxy.worker_pids()
        os.kill(pid, signal.SIGSTOP)
        try:
            said = dgproxy("keys", "revoke", key.id, "--json", "-c", str(proxy.config))
        finally:
            os.kill(pid, signal.SIGCONT)
        assert json.loads(said.stdout)["everywhere"] is False
        assert "a worker has not confirmed the change" in said.stderr
        assert_closed(stream, *REVOKED)
        assert proxy.ask("keys", "revoke", key.id)["everywhere"] is True


# --- HTTP ------------------------------------------------------------------------------------------------------------


def opened(proxy: Proxy, target: str, key: Key, *lines: bytes) -> ssl.SSLSocket:
    """A request that was begun: its head is out."""
    sock = socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE)
    wrapped = proxy.client_tls().wrap_socket(sock, server_hostname="127.0.0.1", suppress_ragged_eofs=False)
    credential = b"Authorization: Token " + key.key.encode()
    wrapped.sendall(b"\r\n".join([f"POST {target} HTTP/1.1".encode(), b"Host: dg", credential, *lines, b"", b""]))
    return wrapped


def answer_on(sock: ssl.SSLSocket) -> Answer:
    response = http.client.HTTPResponse(sock)
    response.begin()
    headers = [(name.lower(), value) for name, value in response.getheaders()]
    return Answer(response.status, headers, response.read())


def in_flight(proxy: Proxy, key: Key) -> bool:
    return bool(proxy.ask("streams", "list", "--key", key.id))


def test_a_request_that_waits_for_its_answer_is_refused_and_its_upstream_request_dropped(
    new_proxy: Callable[..., Proxy],
) -> None:
    asked, dropped = threading.Event(), threading.Event()

    def serve(sock: socket.socket) -> None:
        scripted.read_head(sock)
        asked.set()
        try:
            while sock.recv(65536):
                pass
        finally:
            dropped.set()

    with scripted.upstream(serve) as url, new_proxy({"upstream.urls": f'["{url}"]'}) as proxy:
        key = Key(proxy.key_id, proxy.key, "")
        with opened(proxy, "/v1/read", key, b"Content-Length: 2") as sock:
            sock.sendall(b"{}")
            assert asked.wait(PATIENCE)
            revoke(proxy, key)
            answer = answer_on(sock)
        assert dropped.wait(PATIENCE)
        assert_refusal(answer, 401, "INVALID_AUTH")
        assert answer.json()["err_msg"] == REVOKED[1]
        assert answer.value("connection") == "close"
        assert last_line(proxy, key, "request.close")["end"] == "cut"
        assert_no_slot_left(proxy, key)


def test_an_upload_in_progress_is_refused_and_never_completed_upstream(
    proxy: Proxy, upstream: Upstream, key: Key
) -> None:
    enough = threading.Event()
    sent = 0
    with opened(proxy, "/v1/listen", key, b"Content-Length: 1000000000") as sock:

        def upload() -> None:
            nonlocal sent
            try:
                while not enough.is_set():
                    sock.sendall(bytes(1000))
                    sent += 1000
                    enough.wait(0.001)
            except OSError:
                pass  # the proxy's bounds on what it discards

        uploading = threading.Thread(target=upload)
        uploading.start()
        try:
            wait_until(lambda: in_flight(proxy, key))
            revoke(proxy, key)
            answer = answer_on(sock)
        finally:
            enough.set()
            uploading.join(PATIENCE)
    assert_refusal(answer, 401, "INVALID_AUTH")
    assert answer.json()["err_msg"] == REVOKED[1]
    assert last_line(proxy, key, "request.close")["end"] == "cut"
    wait_until(lambda: bool(upstream.heads()) and upstream.only().get("cut") is True)
    assert upstream.only()["complete"] is False
    assert_no_slot_left(proxy, key)


def test_a_download_in_progress_is_reset(new_proxy: Callable[..., Proxy]) -> None:
    told = threading.Event()

    def serve(sock: socket.socket) -> None:
        scripted.read_head(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nbegun")
        while sock.recv(65536):
            pass
        told.set()

    with scripted.upstream(serve) as url, new_proxy({"upstream.urls": f'["{url}"]'}) as proxy:
        key = Key(proxy.key_id, proxy.key, "")
        with opened(proxy, "/v1/speak", key, b"Content-Length: 2") as sock:
            sock.sendall(b"{}")
            response = http.client.HTTPResponse(sock)
            response.begin()
            assert response.read(5) == b"begun"
            proxy.ask("keys", "revoke", key.id)
            with pytest.raises(CUT):
                response.read(1)
        assert told.wait(PATIENCE)
        assert last_line(proxy, key, "request.close")["end"] == "cut"
        assert_no_slot_left(proxy, key)


def test_the_next_request_on_a_kept_connection_is_refused(proxy: Proxy, upstream: Upstream, key: Key) -> None:
    client = http.client.HTTPSConnection("127.0.0.1", proxy.port, timeout=PATIENCE, context=proxy.client_tls())
    headers = {"Authorization": f"Token {key.key}"}
    client.request("GET", "/v1/models", headers=headers)
    with client.getresponse() as response:
        response.read()
        assert response.status == 200
    sock = client.sock
    revoke(proxy, key)
    client.request("GET", "/v1/models", headers=headers)
    with client.getresponse() as response:
        assert response.status == 401
        assert json.loads(response.read())["err_msg"] == REVOKED[1]
    assert client.sock is sock
    client.close()
    assert len(upstream.heads()) == 1
