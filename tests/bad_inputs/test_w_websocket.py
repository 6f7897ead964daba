"""Group W of the attack catalogue, on real TLS sockets: what each side sees, what the log says, and that it passes.

Each row is judged on the wire at the client, at the upstream, in the stream's last log line, and by the next stream of
the same key, which may have one at a time: so the slot was given back.
"""

import hashlib
import queue
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from dgproxy.wire.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT
from tests.support import usage
from tests.support.frames import frame
from tests.support.proxy import Proxy
from tests.support.raw_ws import RawStream, Stage, before, honest, reset, stage
from tests.support.scripted import PATIENCE, read_head, switching_protocols
from tests.support.upstreams import Upstream

MIB: Final = 2**20
FLAT: Final = 24 * MIB  # that a worker's memory may grow by for no reason of the row's
BEFORE: Final = frame(BINARY, b"before")
HEARD: Final = (0x80 | BINARY, b"before")
BLAME: Final = b"The %s broke the WebSocket protocol."
Act = Callable[[socket.socket], None]


def close(code: int, reason: bytes = b"", *, masked: bool = True) -> bytes:
    return frame(CLOSE, struct.pack("!H", code) + reason, masked=masked)


def faults(*, masked: bool) -> dict[str, tuple[bytes, str]]:
    """What breaks RFC 6455 from either side, and a word of what the log says of it."""

    def make(opcode: int, payload: bytes = b"", **options: Any) -> bytes:
        return frame(opcode, payload, masked=masked, **options)

    begun = make(TEXT, b"a", fin=False)
    return {
        "W5 RSV1": (make(TEXT, b"a", rsv=4), "reserved"),
        "W6 RSV2": (make(BINARY, b"a", rsv=2), "reserved"),
        "W6 RSV3": (make(PING, b"a", rsv=1), "reserved"),
        "W6 reserved opcode 3": (make(3, b"a"), "reserved"),
        "W6 reserved opcode 7": (make(7), "reserved"),
        "W6 reserved opcode 11": (make(11, b"a"), "reserved"),
        "W6 reserved opcode 15": (make(15), "reserved"),
        "W6 the wrong mask": (frame(TEXT, b"a", masked=not masked), "masked"),
        "W6 ping of 126": (make(PING, bytes(126)), "control"),
        "W6 pong of 65,536": (make(PONG, bytes(65_536)), "control"),
        "W6 close of 126": (make(CLOSE, b"\x03\xe8" + bytes(124)), "control"),
        "W6 fragmented ping": (make(PING, b"a", fin=False), "reserved"),
        "W6 fragmented close": (make(CLOSE, b"\x03\xe8", fin=False), "reserved"),
        "W6 16-bit length of 125": (make(BINARY, bytes(125), length=b"\x7e\x00\x7d"), "minimal"),
        "W6 64-bit length of 65,535": (make(BINARY, length=b"\x7f" + struct.pack("!Q", 65_535)), "minimal"),
        "W6 64-bit length with the top bit": (make(BINARY, length=b"\x7f" + struct.pack("!Q", 1 << 63)), "63 bits"),
        "W7 continuation of nothing": (make(CONTINUATION, b"a"), "message"),
        "W7 last continuation of nothing": (make(CONTINUATION), "message"),
        "W7 a message within another": (begun + make(BINARY, b"a"), "message"),
        "W7 a fragmented message within another": (begun + make(TEXT, b"a", fin=False), "message"),
        "W11 close of one byte": (make(CLOSE, b"\x03"), "half a code"),
        "W11 bad UTF-8": (make(CLOSE, b"\x03\xe8\xc3"), "UTF-8"),
        **{
            f"W11 close {code}": (make(CLOSE, struct.pack("!H", code)), "may not be sent")
            for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535)
        },
    }


FROM_CLIENT: Final = faults(masked=True)
FROM_UPSTREAM: Final = faults(masked=False)
BAD_101: Final[dict[str, Callable[[bytes], bytes]]] = {
    "W4 wrong accept": lambda _: switching_protocols(b"Sec-WebSocket-Key: c29tZWJvZHkgZWxzZSdzLg==\r\n\r\n"),
    "W4 no accept": lambda head: _without(switching_protocols(head), b"Sec-WebSocket-Accept"),
    "W4 no Upgrade": lambda head: _without(switching_protocols(head), b"Upgrade"),
    "W4 no Connection": lambda head: _without(switching_protocols(head), b"Connection"),
    "W4 an extension nobody asked for": lambda head: _with(head, b"Sec-WebSocket-Extensions: permessage-deflate"),
    "W4 a subprotocol nobody asked for": lambda head: _with(head, b"Sec-WebSocket-Protocol: chat"),
}
STATUSES: Final = {f"W4 {status}": status for status in (200, 401, 426, 429, 503)}


def _without(answer: bytes, name: bytes) -> bytes:
    return b"\r\n".join(line for line in answer.split(b"\r\n") if not line.startswith(name + b":"))


def _with(head: bytes, line: bytes) -> bytes:
    return switching_protocols(head)[:-2] + line + b"\r\n\r\n"


# --- where it happens ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def key(proxy: Proxy) -> Iterator[str]:
    """One stream at a time; after all rows, none."""
    made = proxy.new_key("w-rows", streams="1")
    yield made.key
    assert proxy.status()["usage"][made.id]["in_flight"] == 0


@pytest.fixture(scope="module")
def playing(tmp_path_factory: pytest.TempPathFactory, leaks: list[str]) -> Iterator[tuple[Stage, Proxy, str]]:
    """A proxy before an upstream that does as it is told, and a key of one stream."""
    directory = tmp_path_factory.mktemp("w-stage")
    with stage() as made, before(made.url, directory, leaks, timeouts__stream_idle='"3s"') as proxy:
        one = proxy.new_key("w-stage", streams="1")
        yield made, proxy, one.key
        assert proxy.status()["usage"][one.id]["in_flight"] == 0


def echo_once(sock: socket.socket) -> None:
    """What `honest` needs: the first frame goes back, the next, its Close, too."""
    sock.sendall(switching_protocols(read_head(sock)))
    for _ in range(2):
        first, size = _exactly(sock, 2)
        mask, payload = _exactly(sock, 4), _exactly(sock, size & 0x7F)
        sock.sendall(bytes([first, size & 0x7F]) + bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload)))


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        assert piece, "ended"
        data += piece
    return data


def everything(sock: socket.socket, got: bytes = b"") -> bytes:
    """All that comes, however it ends."""
    try:
        while piece := sock.recv(65536):
            got += piece
    except ConnectionResetError:
        pass
    return got


def unmasked_close(raw: bytes) -> tuple[int, bytes]:
    """The code and reason of a masked Close that is all there is."""
    assert raw[0] == 0x80 | CLOSE
    assert raw[1] == 0x80 | (len(raw) - 6)
    payload = bytes(byte ^ raw[2 + at % 4] for at, byte in enumerate(raw[6:]))
    return int.from_bytes(payload[:2], "big"), payload[2:]


# --- W5, W6, W7, W11: frames that break the rules --------------------------------------------------------------------


@pytest.mark.parametrize("row", FROM_CLIENT, ids=list(FROM_CLIENT))
def test_a_client_that_breaks_the_rules_gets_1002_and_so_does_its_upstream(
    proxy: Proxy, upstream: Upstream, key: str, row: str
) -> None:
    bad, word = FROM_CLIENT[row]
    with RawStream(proxy, key) as stream:
        stream.send(BEFORE)
        assert stream.frame() == HEARD
        stream.send(bad + frame(BINARY, b"after"))
        assert stream.close_code() == 1002
        assert stream.rest() == (b"", "orderly")
    line = stream.log()
    assert word in line["fault"]
    assert line["fault"].startswith("client: ")
    assert (line["end"], line["code_sent"], line["code_from_client"]) == ("client_fault", 1002, None)
    (head,) = upstream.wait_for(lambda heads: all(head.get("complete", True) for head in heads))
    if upstream.name == "second":
        assert head["close_code"] == 1002
        assert [tuple(message) for message in head["messages"]] == [("binary", 6)]
    else:
        assert head["body_bytes"] <= len(b"before") + 1  # W7: the fragment before the bad frame is no fault
    honest(proxy, key)


@pytest.mark.parametrize("row", FROM_UPSTREAM, ids=list(FROM_UPSTREAM))
def test_an_upstream_that_breaks_the_rules_gets_1002_and_so_does_its_client(
    playing: tuple[Stage, Proxy, str], row: str
) -> None:
    set_, proxy, key = playing
    bad, word = FROM_UPSTREAM[row]
    good = frame(BINARY, b"before", masked=False)
    got: queue.Queue[bytes] = queue.Queue()

    def act(sock: socket.socket) -> None:
        sock.sendall(switching_protocols(read_head(sock)) + good + bad + frame(BINARY, b"after", masked=False))
        got.put(everything(sock))

    set_.act = act
    with RawStream(proxy, key) as stream:
        assert stream.frame() == HEARD
        if row.startswith("W7 a "):
            assert stream.frame() == (TEXT, b"a")
        assert stream.close_code() == 1002
        assert stream.rest() == (b"", "orderly")
        assert unmasked_close(got.get(timeout=PATIENCE)) == (1002, BLAME % b"upstream")
    line = stream.log()
    assert word in line["fault"]
    assert line["fault"].startswith("upstream: ")
    assert (line["end"], line["code_sent"], line["code_from_upstream"]) == ("upstream_fault", 1002, None)
    set_.act = echo_once
    honest(proxy, key)


def test_w11_what_may_be_sent_passes_and_is_in_the_log(proxy: Proxy, upstream: Upstream, key: str) -> None:
    for code in (1000, 1001, 1003, 1007, 1011, 1014, 3000, 4999):
        with RawStream(proxy, key) as stream:
            stream.send(close(code, b"bye"))
            assert stream.close_code() == code
        line = stream.log()
        assert (line["code_from_client"], line["code_from_upstream"], line["code_sent"]) == (code, code, None)
        assert (line["end"], line["fault"]) == ("complete", None)
    with RawStream(proxy, key) as stream:
        stream.send(frame(CLOSE))
        first, payload = stream.frame()
        assert first == 0x80 | CLOSE
        assert payload in (b"", b"\x03\xe8")  # aiohttp answers with 1000
    assert stream.log()["code_from_client"] == 1005
    assert len(upstream.heads()) == 9


# --- W3, W4: the handshake's other end -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 30_000, 200_000])
def test_w3_frames_that_came_before_the_101_are_the_first_to_pass(playing: tuple[Stage, Proxy, str], size: int) -> None:
    set_, proxy, key = playing
    arrived, go = threading.Event(), threading.Event()
    got: queue.Queue[bytes] = queue.Queue()
    early = frame(BINARY, bytes(range(250)) * (size // 250) + b"x" * (size % 250))

    def act(sock: socket.socket) -> None:
        head = read_head(sock)
        arrived.set()
        assert go.wait(PATIENCE)
        assert head.endswith(b"\r\n\r\n")  # nothing passes before the 101
        sock.sendall(switching_protocols(head))
        got.put(_exactly(sock, len(early)))

    set_.act = act
    with RawStream(proxy, key, begin=False) as stream:
        sending = threading.Thread(target=stream.send, args=(early,))
        sending.start()
        assert arrived.wait(PATIENCE)
        go.set()
        assert stream.begin() == 101
        assert got.get(timeout=PATIENCE) == early
        sending.join(PATIENCE)
    set_.act = echo_once
    honest(proxy, key)


def test_w3_a_bad_frame_before_the_101_ends_the_stream_after_it(playing: tuple[Stage, Proxy, str]) -> None:
    set_, proxy, key = playing
    got: queue.Queue[bytes] = queue.Queue()

    def act(sock: socket.socket) -> None:
        sock.sendall(switching_protocols(read_head(sock)))
        got.put(everything(sock))

    set_.act = act
    with RawStream(proxy, key, early=frame(3, b"bad")) as stream:
        assert stream.close_code() == 1002
        assert stream.rest() == (b"", "orderly")
        assert unmasked_close(got.get(timeout=PATIENCE)) == (1002, BLAME % b"client")
    assert stream.log()["end"] == "client_fault"
    set_.act = echo_once
    honest(proxy, key)


@pytest.mark.parametrize("row", BAD_101, ids=list(BAD_101))
def test_w4_a_101_that_is_none_is_a_502(playing: tuple[Stage, Proxy, str], row: str) -> None:
    set_, proxy, key = playing
    got: queue.Queue[bytes] = queue.Queue()

    def act(sock: socket.socket) -> None:
        sock.sendall(BAD_101[row](read_head(sock)) + frame(TEXT, b"never", masked=False))
        got.put(everything(sock))

    set_.act = act
    with RawStream(proxy, key, early=BEFORE) as stream:
        assert stream.head.startswith(b"HTTP/1.1 502")
        body, _ = stream.rest()
        assert b"never" not in body
    assert got.get(timeout=PATIENCE) == b""  # no frame went through
    assert stream.log()["end"] == "upstream_fault"
    set_.act = echo_once
    honest(proxy, key)


@pytest.mark.parametrize("row", STATUSES, ids=list(STATUSES))
def test_w4_a_plain_answer_is_passed_as_it_is_and_no_tunnel(playing: tuple[Stage, Proxy, str], row: str) -> None:
    set_, proxy, key = playing
    got: queue.Queue[bytes] = queue.Queue()

    def act(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(b"HTTP/1.1 %d X\r\nContent-Length: 2\r\n\r\nno" % STATUSES[row])
        got.put(everything(sock))

    set_.act = act
    with RawStream(proxy, key, early=BEFORE) as stream:
        assert stream.head.startswith(b"HTTP/1.1 %d" % STATUSES[row])
        assert stream.rest() == (b"no", "orderly")
    assert got.get(timeout=PATIENCE) == b""
    assert stream.log()["status"] == STATUSES[row]
    set_.act = echo_once
    honest(proxy, key)


# --- W8, W9, W10: much, long, in pieces ------------------------------------------------------------------------------


def workers(proxy: Proxy) -> int:
    return sum(usage.memory(pid) for pid in proxy.worker_pids())


def test_w8_ten_thousand_pings_are_answered_in_order(proxy: Proxy, upstream: Upstream, key: str) -> None:
    grown = workers(proxy)
    with RawStream(proxy, key) as stream:
        pings = [b"%d" % number for number in range(10_000)]
        # Not in a thread of its own: Python's ssl (before 3.13) breaks where one reads while another writes, and the
        # kernel's buffers hold all of this.
        stream.send(*(frame(PING, payload) for payload in pings))
        assert [stream.frame() for _ in pings] == [(0x80 | PONG, payload) for payload in pings]
        stream.send(close(1000))
        assert stream.close_code() == 1000
    assert workers(proxy) - grown < FLAT
    assert upstream.only()


def test_w8_a_megabyte_of_pongs_that_nobody_asked_for_is_relayed(proxy: Proxy, upstream: Upstream, key: str) -> None:
    count = MIB // 125
    with RawStream(proxy, key) as stream:
        stream.send(frame(PONG, b"p" * 125) * count, BEFORE)
        assert stream.frame() == HEARD
        stream.send(close(1000))
        assert stream.close_code() == 1000
    head = upstream.only()
    if upstream.name == "second":
        assert head["pongs"] == ["p" * 125] * count
    honest(proxy, key)


def test_w8_pings_whose_pongs_nobody_reads_stop_at_the_sender_and_cost_no_memory(
    proxy: Proxy, upstream: Upstream, key: str
) -> None:
    """Backpressure goes the whole way: from the client that does not read to the client that does not send."""
    grown = workers(proxy)
    with RawStream(proxy, key, buffer=8192) as stream:
        stream.sock.settimeout(1.0)
        with pytest.raises(TimeoutError):
            stream.send(frame(PING, bytes(125)) * 1_000_000)
        assert workers(proxy) - grown < FLAT
        stream.reset()
    assert stream.log()["end"] == "client_gone"
    assert upstream.only()
    honest(proxy, key)


def test_w9_a_head_that_announces_2_62_bytes_passes_and_so_does_what_comes_of_them(
    playing: tuple[Stage, Proxy, str],
) -> None:
    set_, proxy, key = playing
    sent = frame(BINARY, length=b"\x7f" + struct.pack("!Q", 1 << 62)) + bytes(range(200)) * 50_000
    got: queue.Queue[bytes] = queue.Queue()

    def act(sock: socket.socket) -> None:
        sock.sendall(switching_protocols(read_head(sock)))
        got.put(_exactly(sock, len(sent)))
        everything(sock)

    set_.act = act
    grown = workers(proxy)
    with RawStream(proxy, key) as stream:
        stream.send(sent)
        assert hashlib.sha256(got.get(timeout=PATIENCE)).digest() == hashlib.sha256(sent).digest()
        assert workers(proxy) - grown < FLAT
        stream.reset()
    line = stream.log()
    assert (line["end"], line["bytes_in"]) == ("client_gone", len(sent))
    set_.act = echo_once
    honest(proxy, key)


def test_w10_byte_by_byte_with_a_head_in_fourteen_packets(proxy: Proxy, upstream: Upstream, key: str) -> None:
    big = bytes(range(256)) * 257  # its head has 14 bytes
    sent = frame(TEXT, b"one") + frame(BINARY, b"x" * 130) + frame(PING, b"p")
    long = frame(BINARY, big)
    with RawStream(proxy, key) as stream:
        for byte in sent + long[:14]:
            stream.send(bytes([byte]))
        stream.send(long[14:])
        expected = [(0x81, b"one"), (0x82, b"x" * 130), (0x80 | PONG, b"p"), (0x82, big)]
        assert [stream.frame() for _ in expected] == expected
        for byte in close(1000, b"bye"):
            stream.send(bytes([byte]))
        assert stream.close_code() == 1000
    assert upstream.only()
    assert stream.log()["bytes_in"] == len(sent + long + close(1000, b"bye"))


def test_w10_a_thousand_frames_in_one_packet(proxy: Proxy, upstream: Upstream, key: str) -> None:
    payloads = [b"%d" % number for number in range(1000)]
    with RawStream(proxy, key) as stream:
        stream.send(b"".join(frame(BINARY, payload) for payload in payloads))
        assert [stream.frame() for _ in payloads] == [(0x82, payload) for payload in payloads]
    assert upstream.only()


# --- W12, W13: a side that goes --------------------------------------------------------------------------------------


def test_w12_a_client_that_resets_ends_its_stream_upstream_at_once(playing: tuple[Stage, Proxy, str]) -> None:
    set_, proxy, key = playing
    gone: queue.Queue[bytes] = queue.Queue()

    def act(sock: socket.socket) -> None:
        sock.sendall(switching_protocols(read_head(sock)))
        gone.put(everything(sock))

    set_.act = act
    with RawStream(proxy, key) as stream:
        stream.send(BEFORE + frame(BINARY, b"half of it")[:-3])
        stream.reset()
    assert BEFORE.startswith(gone.get(timeout=PATIENCE)[: len(BEFORE)])
    line = stream.log()
    assert (line["end"], line["code_sent"], line["code_from_client"]) == ("client_gone", None, None)
    set_.act = echo_once
    honest(proxy, key)


def test_w12_a_client_that_half_closes_still_hears_the_upstreams_last_words(
    playing: tuple[Stage, Proxy, str],
) -> None:
    set_, proxy, key = playing
    last = frame(TEXT, b"last words", masked=False) + close(1000, masked=False)

    def act(sock: socket.socket) -> None:
        sock.sendall(switching_protocols(read_head(sock)))
        assert everything(sock) == BEFORE
        sock.sendall(last)

    set_.act = act
    with RawStream(proxy, key) as stream:
        stream.send(BEFORE)
        stream.half_close()
        # OpenSSL reads no more after its own close_notify; the bytes are on the wire and in the log all the same.
        line = stream.log()
    assert (line["end"], line["code_from_upstream"], line["code_from_client"]) == ("complete", 1000, None)
    assert (line["bytes_in"], line["bytes_out"]) == (len(BEFORE), len(last))
    set_.act = echo_once
    honest(proxy, key)


def test_w12_a_client_that_falls_silent_is_ended_and_the_upstream_told(playing: tuple[Stage, Proxy, str]) -> None:
    set_, proxy, key = playing
    got: queue.Queue[bytes] = queue.Queue()

    def act(sock: socket.socket) -> None:
        sock.sendall(switching_protocols(read_head(sock)))
        got.put(everything(sock))

    set_.act = act
    with RawStream(proxy, key) as stream:
        code, _ = unmasked_close(got.get(timeout=PATIENCE))
        assert code == 1001
        assert stream.close_code() == 1001
    line = stream.log()
    assert (line["end"], line["code_sent"]) == ("idle", 1001)
    set_.act = echo_once
    honest(proxy, key)


@pytest.mark.parametrize("where", ["between two frames", "within a frame"])
def test_w13_an_upstream_that_resets(playing: tuple[Stage, Proxy, str], where: str) -> None:
    set_, proxy, key = playing
    good = frame(TEXT, b"so far", masked=False)
    begun = frame(BINARY, bytes(1000), masked=False)[:500] if where == "within a frame" else b""
    seen = threading.Event()

    def act(sock: socket.socket) -> None:
        sock.sendall(switching_protocols(read_head(sock)) + good + begun)
        assert seen.wait(PATIENCE)  # a reset would overtake it
        reset(sock)

    set_.act = act
    with RawStream(proxy, key) as stream:
        assert stream.exactly(len(good + begun)) == good + begun
        seen.set()
        if begun:
            data, how = stream.rest()
            assert data == b""
            assert how in {"cut", "reset"}  # a client's library reports 1006
        else:
            assert stream.close_code() == 1011
            assert stream.rest()[0] == b""
    line = stream.log()
    assert line["end"] == "upstream_gone"
    assert line["code_sent"] == (None if begun else 1011)  # what the client was told
    set_.act = echo_once
    honest(proxy, key)


@pytest.mark.parametrize("side", ["client", "upstream"])
def test_w12_whoever_drops_the_connection_after_both_have_said_close_has_broken_nothing(
    playing: tuple[Stage, Proxy, str], side: str
) -> None:
    set_, proxy, key = playing
    seen = threading.Event()

    def act(sock: socket.socket) -> None:
        sock.sendall(switching_protocols(read_head(sock)))
        assert _exactly(sock, len(close(1000))) == close(1000)
        sock.sendall(close(1000, masked=False))
        assert seen.wait(PATIENCE)
        if side == "upstream":
            reset(sock)
        else:
            everything(sock)

    set_.act = act
    with RawStream(proxy, key) as stream:
        stream.send(close(1000))
        assert stream.close_code() == 1000
        if side == "client":
            stream.reset()
        seen.set()
        line = stream.log()
    assert (line["end"], line["code_sent"]) == ("complete", None)
    assert (line["code_from_client"], line["code_from_upstream"]) == (1000, 1000)
    set_.act = echo_once
    honest(proxy, key)


def test_w13_what_the_log_says_was_sent_is_what_the_client_got(playing: tuple[Stage, Proxy, str]) -> None:
    """Behind the upstream's own Close nothing of ours is put in."""
    set_, proxy, key = playing
    seen = threading.Event()

    def act(sock: socket.socket) -> None:
        sock.sendall(switching_protocols(read_head(sock)) + close(1011, b"NET-0001", masked=False))
        assert seen.wait(PATIENCE)
        reset(sock)

    set_.act = act
    with RawStream(proxy, key) as stream:
        assert stream.frame() == (0x80 | CLOSE, b"\x03\xf3NET-0001")
        seen.set()
        assert stream.rest()[0] == b""
    line = stream.log()
    assert (line["end"], line["code_sent"], line["code_from_upstream"]) == ("upstream_gone", None, 1011)
    set_.act = echo_once
    honest(proxy, key)
