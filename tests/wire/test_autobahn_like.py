"""Groups 1 to 7 and 10 of Autobahn's fuzzing client (github.com/crossbario/autobahn-testsuite), whose package needs
Python 2: through a proxy, before three servers of three authors.

What keeps RFC 6455 must come back as it does without the proxy between: same messages, same pongs, same Close. What
breaks its framing ends with the proxy's own 1002. Whether text is UTF-8 (group 6) is the server's to judge, so there
too nothing may differ.
"""

import socket
import ssl
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from dgproxy.wire.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT
from tests.support.echo_servers import SERVERS, running
from tests.support.frames import frame
from tests.support.proxy import Proxy
from tests.support.raw_ws import RawStream, before

PATIENCE: Final = 10.0
BYE: Final = b"\x03\xe8bye"
KEY: Final = "dGhlIHNhbXBsZSBub25jZQ=="


@dataclass(frozen=True)
class Case:
    """`sent`, in pieces of `chop` bytes if it is set, is answered with `messages` messages and `pongs` pongs."""

    sent: list[bytes]
    messages: int = 0
    pongs: int = 0
    chop: int = 0
    broken: bool = False  # the last of `sent` breaks RFC 6455
    closed: bool = False  # there is a Close in it


@dataclass
class Heard:
    """What came back; control frames may overtake messages that a server still handles, so they are kept apart."""

    messages: list[tuple[int, bytes]] = field(default_factory=list)
    pongs: list[bytes] = field(default_factory=list)
    close: bytes | None = None


class Talk:
    """A WebSocket's client side, after the handshake."""

    def __init__(self, sock: socket.socket, got: bytes) -> None:
        self._sock = sock
        self._got = bytearray(got)
        self._begun: tuple[int, bytearray] | None = None
        self.heard = Heard()
        self.over = False

    def say(self, data: bytes, chop: int = 0) -> None:
        step = chop or len(data) or 1
        try:
            for at in range(0, len(data), step):
                self._sock.sendall(data[at : at + step])
        except (ConnectionError, ssl.SSLError):  # who has heard enough closes; what it said is still read
            self.over = self.heard.close is not None

    def listen(self, messages: int, pongs: int) -> None:
        """Until so much was heard, or a Close, or the end."""
        heard = self.heard
        while (len(heard.messages) < messages or len(heard.pongs) < pongs) and heard.close is None and not self.over:
            self._take()

    def listen_to_the_end(self) -> None:
        while not self.over:
            self._take()

    def _take(self) -> None:
        head = self._exactly(2)
        if head is None:
            return
        first, size = head
        if size >= 126:
            size = int.from_bytes(self._exactly(2 if size == 126 else 8) or b"\0", "big")
        payload = self._exactly(size)
        if payload is None:
            return
        opcode, fin = first & 0x0F, bool(first & 0x80)
        assert self.heard.close is None, f"opcode {opcode} came behind a Close"
        if opcode == CLOSE:
            self.heard.close = payload
        elif opcode == PONG:
            self.heard.pongs.append(payload)
        else:
            assert opcode in (CONTINUATION, TEXT, BINARY)
            assert (opcode == CONTINUATION) == (self._begun is not None)
            self._begun = self._begun or (opcode, bytearray())
            self._begun[1].extend(payload)
            if fin:
                self.heard.messages.append((self._begun[0], bytes(self._begun[1])))
                self._begun = None

    def _exactly(self, size: int) -> bytes | None:
        while len(self._got) < size:
            try:
                piece = self._sock.recv(65536)
            except (ConnectionResetError, ssl.SSLEOFError):
                piece = b""
            if not piece:
                self.over = True
                return None
            self._got += piece
        taken = bytes(self._got[:size])
        del self._got[:size]
        return taken


def play(case: Case, talk: Talk) -> Heard:
    """One case, to the end of the connection."""
    sent = case.sent
    if case.broken:  # what the server said before counts: it may be overtaken by the end
        talk.say(b"".join(sent[:-1]), case.chop)
        talk.listen(case.messages, case.pongs)
        sent = sent[-1:]
    talk.say(b"".join(sent), case.chop)
    if not case.broken:
        talk.listen(case.messages, case.pongs)
    if not case.closed and not case.broken:
        talk.say(frame(CLOSE, BYE))
    talk.listen_to_the_end()
    return talk.heard


# --- the cases -------------------------------------------------------------------------------------------------------


def chopped(opcode: int, payload: bytes, size: int) -> list[bytes]:
    """A message in fragments of so many bytes."""
    parts = [payload[at : at + size] for at in range(0, len(payload), size)] or [b""]
    return [
        frame(CONTINUATION if number else opcode, part, fin=number == len(parts) - 1)
        for number, part in enumerate(parts)
    ]


def _framing() -> Iterator[tuple[str, Case]]:
    for number, (opcode, letter) in enumerate(((TEXT, b"*"), (BINARY, b"\xfe")), 1):
        for at, size in enumerate((0, 125, 126, 127, 128, 65_535, 65_536), 1):
            yield f"1.{number}.{at}", Case([frame(opcode, letter * size)], 1)
        yield f"1.{number}.8", Case([frame(opcode, letter * 65_536)], 1, chop=997)


def _pings() -> Iterator[tuple[str, Case]]:
    yield "2.1", Case([frame(PING)], pongs=1)
    yield "2.2", Case([frame(PING, b"Hello, world!")], pongs=1)
    yield "2.3", Case([frame(PING, b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff")], pongs=1)
    yield "2.4", Case([frame(PING, b"\xfe" * 125)], pongs=1)
    yield "2.5", Case([frame(PING, b"\xfe" * 126)], broken=True)
    yield "2.6", Case([frame(PING, b"\xfe" * 125)], pongs=1, chop=1)
    yield "2.7", Case([frame(PONG)])
    yield "2.8", Case([frame(PONG, b"unsolicited pong payload")])
    yield "2.9", Case([frame(PONG, b"unsolicited pong payload"), frame(PING, b"ping payload")], pongs=1)
    ten = [frame(PING, b"payload-%d" % number) for number in range(10)]
    yield "2.10", Case(ten, pongs=10)
    yield "2.11", Case(ten, pongs=10, chop=1)


def _reserved_bits() -> Iterator[tuple[str, Case]]:
    hello = frame(TEXT, b"Hello, world!")
    bad = frame(TEXT, b"Hello, world!", rsv=1)
    yield "3.1", Case([bad], broken=True)
    yield "3.2", Case([hello, frame(TEXT, b"Hello, world!", rsv=2)], 1, broken=True)
    yield "3.3", Case([hello, frame(TEXT, b"Hello, world!", rsv=3)], 1, broken=True)
    yield "3.4", Case([hello, frame(TEXT, b"Hello, world!", rsv=4)], 1, chop=1, broken=True)
    yield "3.5", Case([frame(BINARY, b"\x00\xff\xfe", rsv=5)], broken=True)
    yield "3.6", Case([frame(PING, b"Hello, world!", rsv=6)], broken=True)
    yield "3.7", Case([frame(CLOSE, BYE, rsv=7)], broken=True)


def _opcodes() -> Iterator[tuple[str, Case]]:
    hello = frame(TEXT, b"Hello, world!")
    for group, opcodes in ((1, range(3, 8)), (2, range(11, 16))):
        for number, opcode in enumerate(opcodes, 1):
            good = [hello] if number > 2 else []
            payload = b"reserved opcode payload" if number % 2 == 0 else b""
            yield (
                f"4.{group}.{number}",
                Case([*good, frame(opcode, payload)], len(good), chop=1 if number > 3 else 0, broken=True),
            )


def _fragments() -> Iterator[tuple[str, Case]]:
    one, two = frame(TEXT, b"fragment1", fin=False), frame(CONTINUATION, b"fragment2")
    more = frame(CONTINUATION, b"fragment2", fin=False)
    ping = frame(PING, b"ping payload")
    yield "5.1", Case([frame(PING, b"fragment1", fin=False)], broken=True)
    yield "5.2", Case([frame(PONG, b"fragment1", fin=False)], broken=True)
    yield "5.3", Case([one, two], 1)
    yield "5.4", Case([one, two], 1, chop=5)
    yield "5.5", Case([one, two], 1, chop=1)
    yield "5.6", Case([one, ping, two], 1, 1)
    yield "5.7", Case([one, ping, two], 1, 1, chop=5)
    yield "5.8", Case([one, ping, two], 1, 1, chop=1)
    orphan = frame(CONTINUATION, b"non-continuation payload")
    begun = frame(CONTINUATION, b"non-continuation payload", fin=False)
    for number, (bad, chop) in enumerate(
        ((orphan, 0), (orphan, 5), (orphan, 1), (begun, 0), (begun, 5), (begun, 1)), 9
    ):
        yield f"5.{number}", Case([bad], chop=chop, broken=True)
    yield "5.15", Case([one, two, begun], 1, broken=True)
    yield "5.16", Case([begun], broken=True)
    yield "5.17", Case([orphan], broken=True)
    yield "5.18", Case([one, frame(TEXT, b"fragment2")], broken=True)
    last = frame(CONTINUATION, b"fragment5")
    yield "5.19", Case([one, more, ping, more, more, ping, last], 1, 2)
    yield "5.20", Case([one, more, ping, more, more, ping, last], 1, 2, chop=1)


# Group 6: RFC 3629, and Markus Kuhn's stress test as Autobahn has it.
KOSME: Final = "κόσμε".encode()
VALID: Final[dict[str, bytes]] = {
    "6.1.1": b"",
    "6.2.1": "Hello-µ@ßöäüàá-UTF-8!!".encode(),
    "6.5.1": KOSME,
    "6.6.2": KOSME,
    "6.7.1": b"\x00",
    "6.7.2": b"\xc2\x80",
    "6.7.3": b"\xe0\xa0\x80",
    "6.7.4": b"\xf0\x90\x80\x80",
    "6.9.1": b"\x7f",
    "6.9.2": b"\xdf\xbf",
    "6.9.3": b"\xef\xbf\xbf",
    "6.9.4": b"\xf4\x8f\xbf\xbf",
    "6.11.1": b"\xed\x9f\xbf",
    "6.11.2": b"\xee\x80\x80",
    "6.11.3": b"\xef\xbf\xbd",
    "6.22.1": b"\xef\xbf\xbe",
    "6.22.2": b"\xef\xbf\xbf",
}
INVALID: Final[dict[str, bytes]] = {
    "6.3.1": KOSME + b"\xed\xa0\x80edited",
    "6.4.1": KOSME + b"\xf4\x90\x80\x80edited",
    "6.6.1": KOSME[:1],
    "6.6.3": KOSME[:3],
    "6.8.1": b"\xf8\x88\x80\x80\x80",
    "6.8.2": b"\xfc\x84\x80\x80\x80\x80",
    "6.10.1": b"\xf7\xbf\xbf\xbf",
    "6.10.2": b"\xfb\xbf\xbf\xbf\xbf",
    "6.10.3": b"\xfd\xbf\xbf\xbf\xbf\xbf",
    "6.11.5": b"\xf4\x90\x80\x80",
    "6.12.1": b"\x80",
    "6.12.2": b"\xbf",
    "6.12.8": bytes(range(0x80, 0xC0)),
    "6.13.1": b"".join(bytes([byte, 0x20]) for byte in range(0xC0, 0xE0)),
    "6.14.1": b"\xc0",
    "6.14.6": b"\xdf",
    "6.15.1": b"\xc0\xe0\x80\xf0\x80\x80",
    "6.16.1": b"\xfe",
    "6.16.2": b"\xff",
    "6.17.1": b"\xc0\xaf",
    "6.17.2": b"\xe0\x80\xaf",
    "6.17.3": b"\xf0\x80\x80\xaf",
    "6.18.1": b"\xc1\xbf",
    "6.19.1": b"\xc0\x80",
    "6.20.1": b"\xed\xa0\x80",
    "6.20.7": b"\xed\xbf\xbf",
    "6.21.1": b"\xed\xa0\x80\xed\xb0\x80",
    "6.21.8": b"\xed\xaf\xbf\xed\xbf\xbf",
}


def _utf8() -> Iterator[tuple[str, Case]]:
    for name, payload in {**VALID, **INVALID}.items():
        yield name, Case([frame(TEXT, payload)], 1)
        if len(payload) > 1:
            yield f"{name} in fragments of a byte", Case(chopped(TEXT, payload, 1), 1)
            yield f"{name} in pieces of a byte", Case([frame(TEXT, payload)], 1, chop=1)


GOOD_CODES: Final = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999)
BAD_CODES: Final = (0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999, 5000, 65_535)


def _closing() -> Iterator[tuple[str, Case]]:
    hello, bye = frame(TEXT, b"Hello World!"), frame(CLOSE, BYE)
    yield "7.1.1", Case([hello, bye], closed=True)
    yield "7.1.2", Case([bye, bye], closed=True)
    yield "7.1.3", Case([bye, frame(PING)], closed=True)
    yield "7.1.4", Case([bye, hello], closed=True)
    yield "7.1.5", Case([frame(TEXT, b"fragment1", fin=False), bye, frame(CONTINUATION, b"fragment2")], closed=True)
    yield "7.1.6", Case([frame(TEXT, b"BAsd7&jh23" * 26_214), hello, bye, frame(PING)], closed=True)
    yield "7.3.1", Case([frame(CLOSE)], closed=True)
    yield "7.3.2", Case([frame(CLOSE, b"a")], broken=True)
    yield "7.3.3", Case([frame(CLOSE, b"\x03\xe8")], closed=True)
    yield "7.3.4", Case([frame(CLOSE, b"\x03\xe8Hello World!")], closed=True)
    yield "7.3.5", Case([frame(CLOSE, b"\x03\xe8" + b"*" * 123)], closed=True)
    yield "7.3.6", Case([frame(CLOSE, b"\x03\xe8" + b"*" * 124)], broken=True)
    yield "7.5.1", Case([frame(CLOSE, b"\x03\xe8" + INVALID["6.3.1"])], broken=True)
    for number, code in enumerate(GOOD_CODES, 1):
        yield f"7.7.{number}", Case([frame(CLOSE, struct.pack("!H", code))], closed=True)
        yield f"7.7.{number} with a reason", Case([frame(CLOSE, struct.pack("!H", code) + b"why")], closed=True)
    for number, code in enumerate(BAD_CODES, 1):
        yield f"7.9.{number}", Case([frame(CLOSE, struct.pack("!H", code))], broken=True)


BEHIND_A_CLOSE: Final = ("7.1.2", "7.1.3", "7.1.4", "7.1.5", "7.1.6")
CASES: Final[dict[str, Case]] = dict(
    [
        *_framing(),
        *_pings(),
        *_reserved_bits(),
        *_opcodes(),
        *_fragments(),
        *_utf8(),
        *_closing(),
        ("10.1.1", Case(chopped(TEXT, b"*" * 65_536, 1300), 1)),
    ]
)


# --- direct, and through a proxy -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """A server, and a proxy before it."""

    name: str
    port: int
    proxy: Proxy

    def direct(self, case: Case) -> Heard:
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(
                b"GET /v1/listen HTTP/1.1\r\nHost: dg\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + KEY.encode() + b"\r\n\r\n"
            )
            got = b""
            while b"\r\n\r\n" not in got:
                got += sock.recv(65536) or pytest.fail("ended within a head")
            assert got.startswith(b"HTTP/1.1 101")
            return play(case, Talk(sock, got.partition(b"\r\n\r\n")[2]))

    def proxied(self, case: Case) -> tuple[Heard, dict[str, Any]]:
        with RawStream(self.proxy, self.proxy.key, "/v1/listen") as stream:
            stream.sock.settimeout(PATIENCE)
            heard = play(case, Talk(stream.sock, bytes(stream.got)))
        return heard, stream.log()


@pytest.fixture(scope="module", params=list(SERVERS))
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, leaks: list[str]
) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp(f"autobahn-{request.param}")
    with (
        running(request.param) as port,
        before(f"http://127.0.0.1:{port}", directory, leaks, log__level='"info"') as proxy,
    ):
        yield Place(request.param, port, proxy)


@pytest.mark.parametrize("name", CASES)
def test_a_case(place: Place, name: str) -> None:
    case = CASES[name]
    heard, line = place.proxied(case)
    if case.broken:
        assert heard.close is not None
        assert heard.close == b"\x03\xeaThe client broke the WebSocket protocol."
        assert (len(heard.messages), len(heard.pongs)) == (case.messages, case.pongs)
        assert (line["end"], line["code_sent"]) == ("client_fault", 1002)
        return
    if place.name == "picows" and name in BEHIND_A_CLOSE:  # it answers that too, which RFC 6455 1.4 has nobody do
        assert heard.close == BYE
        assert not heard.pongs
    else:
        assert heard == place.direct(case)
    assert heard.close is not None
    assert (line["code_sent"], line["fault"]) == (None, None)
    if not name.startswith("6.") and not case.closed:
        assert (len(heard.messages), len(heard.pongs)) == (case.messages, case.pongs)
        assert heard.close[:2] == BYE[:2]  # aiohttp does not give the reason back
    if name in INVALID and place.name != "picows":
        assert heard.close[:2] == b"\x03\xef"  # 1007, by the server


def test_of_what_breaks_the_framing_nothing_reaches_even_a_server_that_would_take_it(place: Place) -> None:
    """picows passes text on whose RSV1 says that it is compressed, which was never agreed."""
    case = Case([frame(TEXT, b"never", rsv=4)])
    heard, line = place.proxied(case)
    assert heard == Heard(close=b"\x03\xeaThe client broke the WebSocket protocol.")
    assert line["bytes_in"] == 0


def test_1000_messages_come_back_in_order(place: Place) -> None:
    """Groups 9 and 12 are for time; here, that nothing is lost or swapped."""
    case = Case([frame(TEXT if n % 2 else BINARY, b"%d" % n * (n % 50)) for n in range(1000)], 1000)
    heard, _ = place.proxied(case)
    assert heard.messages == [(TEXT if n % 2 else BINARY, b"%d" % n * (n % 50)) for n in range(1000)]
    assert heard.close is not None
    assert heard.close[:2] == BYE[:2]
