"""Whatever a client sends on its connections, in any order: it is answered as spec part 5 says, and the upstream sees
exactly what was admitted, in order, once, with its body; what was cut off is never completed.

`foretell` is that part of the spec in a few lines. The upstream is the judge (tests/support/judge.py), which answers in
the styles that HTTP knows. What bodies hold looks like requests with a good key: whoever lost their frame serves them.
"""

import contextlib
import itertools
import re
import socket
import ssl
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final

import pytest
from hypothesis import HealthCheck, Phase, event, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from tests.bad_inputs import test_c_credentials, test_f_framing, test_h_headers, test_w_handshake
from tests.support import scripted
from tests.support.frames import frame
from tests.support.judge import Judge, Request
from tests.support.logs import is_event, mentions
from tests.support.proxy import Key, Proxy, dgproxy
from tests.support.raw import CODES, PATIENCE, WS, connect

SWITCHING: Final = 101
SMALL: Final = 1000  # bytes; --max-body of a key
TEXT, BINARY, CLOSING, PING = 1, 2, 8, 9  # RFC 6455 5.2
FRAMES: Final = ((TEXT, b"hello"), (BINARY, b""), (PING, b"ping"), (CLOSING, b"\x03\xe8"))
FORGED: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"
BROKEN: Final = {
    **test_f_framing.CLOSED,
    **test_h_headers.CLOSED,
    **test_c_credentials.CLOSED,
    **test_w_handshake.CLOSED,
}
FAULTS: Final = (is_event("worker.fault"), is_event("worker.died"), is_event("proxy.failed"))
_numbers = itertools.count()


# --- the upstream ----------------------------------------------------------------------------------------------------


class Teller(Judge):
    """A judge that answers in the style that the target names, and echoes frames."""

    def due(self, request: Request) -> bool:
        return request.whole or (bool(request.version) and style_of(request) in ("early", "half"))

    def answer(self, sock: socket.socket, request: Request) -> bool:
        style, body = style_of(request), b"" if request.method == b"HEAD" else request.target
        length = b"Content-Length: %d\r\n" % len(request.target)
        chunks = b"".join(b"%x;x=y\r\n%b\r\n" % (len(part), part) for part in (body[:5], body[5:]) if part)
        match style:
            case "drop":
                return False
            case "close":
                said = b"HTTP/1.1 200 OK\r\nConnection: close\r\n" + length + b"\r\n" + body
            case "end":
                said = b"HTTP/1.1 200 OK\r\n\r\n" + body
            case "empty":
                said = b"HTTP/1.1 204 No Content\r\n\r\n"
            case "hints":
                said = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\n" + length + b"\r\n" + body
            case "chunked":
                last = b"" if request.method == b"HEAD" else chunks + b"0\r\nX-Sum: 1\r\n\r\n"
                said = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + last
            case "surplus":  # a body for HEAD too, and what the next request must not get to see
                said = b"HTTP/1.1 200 OK\r\n" + length + b"\r\n" + request.target + FORGED
            case "half":
                said = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + body
            case _:
                said = b"HTTP/1.1 200 OK\r\n" + length + b"\r\n" + body
        sock.sendall(said)
        return style not in ("close", "end")

    def tunnel(self, sock: socket.socket, request: Request, rest: bytes) -> None:
        """Every small frame comes back, a Close as the last."""
        sock.sendall(scripted.switching_protocols(b"\r\n".join(b": ".join(line) for line in request.headers)))
        request.after, told, opcode = rest, 0, 0
        while opcode != CLOSING:
            frames = request.after[told:]
            if len(frames) < 2 or len(frames) < (size := 6 + (frames[1] & 0x7F)):
                data = sock.recv(65536)
                if not data:
                    return
                request.after += data
                continue
            opcode, mask = frames[0] & 0xF, frames[2:6]
            payload = bytes(byte ^ mask[at % 4] for at, byte in enumerate(frames[6:size]))
            sock.sendall(frame(opcode, payload, masked=False))
            told += size

    def seen(self, target: bytes) -> bool:
        """Whether a request's head has come."""
        with self._lock:
            return any(request.target == target and request.version for request in self._requests)


def style_of(request: Request) -> str:
    return request.target.rpartition(b"style=")[2].decode()


@dataclass
class House:
    """The judge, the proxy before it and its keys; and every request that was cut, until the end."""

    teller: Teller
    proxy: Proxy
    keys: dict[str, Key]
    cut: list[Request] = field(default_factory=list)
    cut_targets: set[bytes] = field(default_factory=set)  # such may come in part, late, or not at all
    left_targets: set[bytes] = field(default_factory=set)  # these wholly as well: their client did not wait

    def key(self, name: str) -> str:
        """What is sent for the key of this name."""
        return self.keys[name].key if name in self.keys else self.proxy.key if name == "good" else "wrong"

    def said(self, *wanted: Callable[[str], bool]) -> list[str]:
        """The proxy's log lines that are one of these."""
        return [line for line in self.proxy.stderr.lines() if any(one(line) for one in wanted)]

    def switch(self, word: str) -> None:
        """`keys disable` or `keys enable`, of the key that is for it."""
        dgproxy("keys", word, self.keys["switched"].id, "-c", str(self.proxy.config))


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, leaks: list[str]) -> Iterator[House]:
    teller = Teller()
    with scripted.upstream(teller.serve) as url:
        proxy = Proxy(tmp_path_factory.mktemp("connections"), url, {"log.level": '"debug"'})
        with proxy:
            keys = {
                "small": proxy.new_key("small", max_body=f"{SMALL}B", models="nova-3"),
                "switched": proxy.new_key("switched"),
            }
            made = House(teller, proxy, keys)
            yield made
            deadline = time.monotonic() + PATIENCE
            while in_flight := [usage for usage in proxy.status()["usage"].values() if usage["in_flight"]]:
                assert time.monotonic() < deadline, in_flight
            proxy.stop()
            assert not [request for request in made.cut if request.whole]
            assert not made.said(*FAULTS)
        leaks += proxy.leaks()


# --- what is asked, and what spec part 5 says of it ------------------------------------------------------------------

ROUTES: Final = {
    (b"GET", b"/v1/models"),
    (b"HEAD", b"/v1/models"),
    (b"GET", b"/v1/models/nova-3"),
    (b"POST", b"/v1/listen"),
    (b"POST", b"/v1/read"),
}
OTHERS: Final = (
    (b"GET", b"/v1/listen"),
    (b"PUT", b"/v1/listen"),
    (b"POST", b"/v1/models"),
    (b"DELETE", b"/v1/models"),
    (b"GET", b"/v1/other"),
    (b"HEAD", b"/v1/models/"),
    (b"OPTIONS", b"/v1/status"),
)
STYLES: Final = ("plain", "plain", "plain", "close", "end", "empty", "hints", "chunked", "surplus", "drop")


@dataclass(frozen=True)
class Ask:
    """A request. `framing`: none, length, chunked; `extra` are lines besides."""

    route: tuple[bytes, bytes]
    key: str = "good"
    model: bytes = b"nova-3"
    framing: str = "none"
    size: int = 0  # of the body
    minor: int = 1
    connection: bytes = b""
    expect: bool = False
    style: str = "plain"
    number: int = 0

    @property
    def target(self) -> bytes:
        return self.route[1] + b"?model=%b&n=%d&style=%b" % (self.model, self.number, self.style.encode())

    def head(self, house: House) -> bytes:
        lines = [b"%b %b HTTP/1.%d" % (self.route[0], self.target, self.minor), b"Host: dg"]
        lines.append(b"Authorization: Token " + house.key(self.key).encode())
        if self.framing == "length":
            lines.append(b"Content-Length: %d" % self.size)
        elif self.framing == "chunked":
            lines.append(b"Transfer-Encoding: chunked")
        if self.connection:
            lines.append(b"Connection: " + self.connection)
        if self.expect:
            lines.append(b"Expect: 100-continue")
        return b"\r\n".join([*lines, b"", b""])

    def body(self, house: House) -> bytes:
        """Requests, one after another, that no one may see."""
        inner = b"\r\n0\r\n\r\nGET /v1/models?smuggled HTTP/1.1\r\nHost: dg\r\nAuthorization: Token %b\r\n\r\n"
        inner %= house.proxy.key.encode()
        return (inner * (self.size // len(inner) + 1))[: self.size] if self.framing != "none" else b""

    @property
    def has_body(self) -> bool:
        return self.framing == "chunked" or (self.framing == "length" and self.size > 0)


@dataclass(frozen=True)
class Fate:
    """What an Ask comes to: `admitted` ones reach the upstream, with their bodies whole unless `cut`."""

    status: int
    closes: bool
    admitted: bool = False
    cut: bool = False


def foretell(ask: Ask, *, disabled: bool) -> Fate:
    """The decisions of spec part 5 in their order."""
    options = {option.strip().lower() for option in ask.connection.split(b",")}
    last = ask.minor == 0 or b"close" in options
    refused = last or ask.has_body
    if ask.minor == 0 and ask.framing == "chunked":
        return Fate(400, closes=True)
    if ask.minor == 0 and ask.expect:
        return Fate(417, closes=True)
    if ask.route not in ROUTES:
        return Fate(404, refused)
    if ask.key == "wrong" or (ask.key == "switched" and disabled):
        return Fate(401, refused)
    if ask.key == "small":
        if ask.route[1] == b"/v1/listen" and ask.model != b"nova-3":
            return Fate(403, refused)
        if ask.size > SMALL and ask.framing == "length":
            return Fate(413, closes=True)
        if ask.size > SMALL and ask.framing == "chunked":
            return Fate(413, closes=True, admitted=True, cut=True)
    if ask.style == "drop":
        return Fate(502, last, admitted=True)
    return Fate(204 if ask.style == "empty" else 200, last, admitted=True)


@st.composite
def asks(draw: st.DrawFn) -> Ask:
    good = draw(st.sampled_from([True, True, True, False]))
    return Ask(
        route=draw(st.sampled_from(sorted(ROUTES) if good else OTHERS)),
        key=draw(st.sampled_from(["good", "good", "small", "switched"] if good else ["good", "wrong", "small"])),
        model=draw(st.sampled_from([b"nova-3", b"nova-3", b"nova-2"])),
        framing=draw(st.sampled_from(["none", "length", "chunked"])),
        size=draw(st.sampled_from([0, 1, 5, 300, SMALL, SMALL + 1, 40_000, 100_000])),
        minor=draw(st.sampled_from([1, 1, 1, 1, 1, 0])),
        connection=draw(
            st.sampled_from([b"", b"", b"", b"", b"keep-alive", b"close", b"x-a, Close", b"keep-alive, x-a"])
        ),
        expect=draw(st.sampled_from([False, False, False, True])),
        style=draw(st.sampled_from(STYLES)),
    )


@dataclass(frozen=True)
class Chunking:
    """How a body is cut into chunks, and what stands beside them."""

    sizes: list[int]
    extension: bytes
    trailers: bytes

    def chunks(self, body: bytes) -> list[bytes]:
        """Each chunk, without the last."""
        found: list[bytes] = []
        sizes = itertools.cycle(self.sizes)
        while body:
            part, body = body[: (size := next(sizes))], body[size:]
            found.append(b"%x%b\r\n%b\r\n" % (len(part), self.extension if len(found) < 9 else b"", part))
        return found

    @property
    def last(self) -> bytes:
        return b"0" + self.extension + b"\r\n" + self.trailers + b"\r\n"


chunkings: Final = st.builds(
    Chunking,
    sizes=st.lists(st.sampled_from([1, 2, 15, 700, 16_384, 70_000]), min_size=1, max_size=3).map(
        lambda sizes: [*sizes, 30_000]
    ),
    extension=st.sampled_from([b"", b";a", b';a=b; c="d"']),
    trailers=st.sampled_from([b"", b"X-Sum: 1\r\n", b"Content-Length: 5\r\nHost: other\r\n"]),
)
# Where what is sent is parted into TLS records: every so many bytes, the first 300 of them.
steps: Final = st.sampled_from([0, 0, 0, 1, 7, 100, 1000, 17_000])


# --- the machine -----------------------------------------------------------------------------------------------------


@dataclass
class Due:
    """An answer that is awaited."""

    ask: Ask | None  # None for a head that is none
    fate: Fate
    body: bytes = b""
    after: bytes = b""  # what comes behind a handshake


class Client(RuleBasedStateMachine):
    """One connection at a time; `due` are the answers to what was sent on it."""

    def __init__(self, house: House) -> None:
        super().__init__()
        self.house = house
        self.disabled = False
        self.switches = 0
        self.sock: ssl.SSLSocket | None = None
        self.got = b""
        self.due: list[Due] = []
        self.over = False  # an answer that is due ends the connection
        house.teller.forget()

    # --- the client's hands ------------------------------------------------------------------------------------------

    def send(self, data: bytes, step: int = 0) -> None:
        if self.sock is None:
            self.sock = connect(self.house.proxy)
        pieces = [data[at : at + step] for at in range(0, min(len(data), step * 300), step)] if step else []
        pieces.append(data[step * 300 :] if step else data)
        try:
            for piece in pieces:
                self.sock.sendall(piece)
        except (ConnectionError, ssl.SSLError):
            assert self.over  # the proxy has left, as it said it would

    def receive(self) -> bool:
        """More of what the proxy says; False at an orderly end."""
        assert self.sock is not None
        piece = self.sock.recv(65536)
        self.got += piece
        return bool(piece)

    def until(self, mark: bytes, start: int = 0) -> int:
        """Where what ends with this mark ends."""
        while (at := self.got.find(mark, start)) < 0:
            assert self.receive(), f"ended after {self.got[:300]!r}"
        return at + len(mark)

    def amount(self, size: int) -> bytes:
        while len(self.got) < size:
            assert self.receive(), f"ended after {self.got[:300]!r}"
        found, self.got = self.got[:size], self.got[size:]
        return found

    def head(self) -> tuple[int, dict[str, str]]:
        lines = self.amount(self.until(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        version, status, _ = lines[0].split(" ", 2)
        assert version == "HTTP/1.1"
        pairs = [line.partition(": ") for line in lines[1:] if line]
        names = [name.lower() for name, _, _ in pairs]
        assert len(set(names)) == len(names), names
        return int(status), {name.lower(): value for name, _, value in pairs}

    def final(self, *, expects: bool) -> tuple[int, dict[str, str]]:
        """The next head, after at most one 100 for who asked for it."""
        status, headers = self.head()
        if status == 100:
            assert expects
            assert not headers
            status, headers = self.head()
        return status, headers

    def body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") == "chunked":
            assert "content-length" not in headers
            body = b""
            while size := int(self.amount(self.until(b"\r\n")), 16):
                body += self.amount(size)
                assert self.amount(2) == b"\r\n"
            assert self.amount(2) == b"\r\n"
            return body
        if "content-length" in headers:
            return self.amount(int(headers["content-length"]))
        while self.receive():
            pass
        return self.amount(len(self.got))

    def leave(self) -> None:
        """No connection any more. What answers are due may come to the upstream, wholly or not."""
        self.house.left_targets |= {one.ask.target for one in self.due if one.ask is not None}
        if self.sock is not None:
            self.sock.close()
        self.sock, self.got, self.due, self.over = None, b"", [], False

    # --- what must hold ----------------------------------------------------------------------------------------------

    def collect(self) -> None:
        """Every answer that is due comes, as foretold, and an end where that was foretold; so do the requests."""
        due, self.due = self.due, []
        own = "none" if self.sock is None else "{}:{}".format(*self.sock.getsockname())
        try:
            for one in due:
                self.check_answer(one)
                if one.fate.closes:
                    assert not self.got
                    assert not self.receive(), self.got
                    self.leave()
                    break
        except Exception as failure:
            with contextlib.suppress(AssertionError):
                self.house.proxy.stderr.wait_for(mentions(peer=own), 2.0)
            said = self.house.said(mentions(peer=own), *FAULTS)
            failure.add_note(f"{own}, due: {due}\n" + "\n".join(said))
            raise
        self.check_upstream(due)

    def check_answer(self, due: Due) -> None:
        ask, fate = due.ask, due.fate
        status, headers = self.final(expects=ask is not None and ask.expect)
        assert status == fate.status, (status, headers, due)
        assert (headers.get("connection", "").lower() == "close") == fate.closes, (headers, due)
        none = status == 204 or (ask is not None and ask.route[0] == b"HEAD")
        body = b"" if none else self.body(headers)
        event(f"{status} {'closes' if fate.closes else 'stays'}")
        if status >= 400:
            if ask is not None and ask.route[0] != b"HEAD":
                assert re.fullmatch(rb'\{"err_code":"%b",.*\}' % CODES[status].encode(), body)
            assert headers["dg-error"]
        elif not none:
            assert ask is not None
            assert body == ask.target

    def check_upstream(self, due: list[Due]) -> None:
        self.house.cut_targets |= {one.ask.target for one in due if one.ask is not None and one.fate.cut}
        came = []
        for request in self.house.teller.take():
            if request.target in self.house.cut_targets:
                self.house.cut.append(request)
            elif request.target not in self.house.left_targets:
                came.append(request)
        for one in due:
            if one.ask is None or not one.fate.admitted:
                continue
            if one.fate.cut:
                continue
            assert came, one
            request = came.pop(0)
            assert (request.method, request.target) == (one.ask.route[0], one.ask.target)
            assert (request.body == one.body, request.whole, request.after) == (True, True, one.after)
            if one.ask.framing == "chunked":
                assert request.all(b"transfer-encoding") == [b"chunked"]
            elif one.ask.framing == "length":
                assert request.all(b"content-length") == [b"%d" % one.ask.size]
            if one.ask.style == "drop" and not one.body and came and came[0].target == one.ask.target:
                came.pop(0)  # the connection may have been stale: it was tried again
        assert not came, [request.target for request in came]
        for request in self.house.cut:
            assert not request.whole, request.target

    # --- requests ----------------------------------------------------------------------------------------------------

    def foretold(self, ask: Ask) -> tuple[Ask, Due]:
        ask = replace(ask, number=next(_numbers))
        fate = foretell(ask, disabled=self.disabled)
        return ask, Due(ask, fate, ask.body(self.house))

    def framed(self, ask: Ask, body: bytes, chunking: Chunking) -> bytes:
        return b"".join([*chunking.chunks(body), chunking.last]) if ask.framing == "chunked" else body

    def expect(self, due: Due) -> None:
        if not self.over:
            self.due.append(due)
            self.over = due.fate.closes

    @rule(ask=asks(), chunking=chunkings, step=steps, hold=st.booleans())
    def ask_at_once(self, ask: Ask, chunking: Chunking, step: int, hold: bool) -> None:  # noqa: FBT001
        """With `hold` the answer is left for later, and what comes next is pipelined."""
        ask, due = self.foretold(ask)
        wire = ask.head(self.house) + self.framed(ask, due.body, chunking)
        self.expect(due)
        self.send(wire, step)
        if not hold:
            self.collect()

    @rule(ask=asks(), other=asks(), chunking=chunkings, step=steps, empty_line=st.booleans())
    def ask_two(self, ask: Ask, other: Ask, chunking: Chunking, step: int, empty_line: bool) -> None:  # noqa: FBT001
        """In one piece, or parted without regard to where one ends."""
        wire = b""
        for one in (ask, other):
            numbered, due = self.foretold(one)
            wire += b"\r\n" if empty_line else b""  # RFC 9112 2.2
            wire += numbered.head(self.house) + self.framed(numbered, due.body, chunking)
            self.expect(due)
        self.send(wire, step)
        self.collect()

    @rule(ask=asks().filter(lambda ask: ask.framing != "none"), chunking=chunkings)
    def ask_and_wait_for_100(self, ask: Ask, chunking: Chunking) -> None:
        """The body follows the 100, if there is one; a refusal comes without."""
        self.collect()
        ask, due = self.foretold(replace(ask, expect=True, minor=1))
        self.expect(due)
        self.send(ask.head(self.house))
        if due.fate.admitted:
            assert self.head() == (100, {})
            self.send(self.framed(ask, due.body, chunking))
        self.collect()

    @rule(name=st.sampled_from(sorted(BROKEN)), hold=st.booleans(), step=st.sampled_from([0, 1, 50]))
    def break_a_head(self, name: str, hold: bool, step: int) -> None:  # noqa: FBT001
        sent, status = BROKEN[name]
        self.expect(Due(None, Fate(status, closes=True)))
        self.send(sent.replace(b"KEY", self.house.proxy.key.encode()), step)
        if not hold:
            self.collect()

    # --- WebSockets --------------------------------------------------------------------------------------------------

    @rule(
        key=st.sampled_from(["good", "good", "wrong"]),
        path=st.sampled_from([b"/v1/listen", b"/v1/listen", b"/v1/models", b"/v1/other"]),
        without=st.sampled_from([b"-", b"-", b"-", b"Sec-WebSocket-Key", b"Connection"]),
        ahead=st.booleans(),
        step=steps,
    )
    def upgrade(self, key: str, path: bytes, without: bytes, ahead: bool, step: int) -> None:  # noqa: FBT001
        """Accepted, frames come back; `ahead`: they are sent before the 101. Refused, none of it is ever a request."""
        ask = Ask((b"GET", path), key, number=next(_numbers))
        lines = b"".join(line + b"\r\n" for line in WS if not line.startswith(without))
        frames = b"".join(frame(opcode, payload) for opcode, payload in FRAMES)
        sent = ask.head(self.house)[:-2] + lines + b"\r\n" + (frames if ahead else b"")
        refusal = 400 if without != b"-" else 404 if path != b"/v1/listen" else 401 if key == "wrong" else 0
        if refusal or self.over:
            self.expect(Due(ask, Fate(refusal, closes=True)))
            self.send(sent, step)
            self.collect()
            return
        self.send(sent, step)
        due, self.due = self.due, []
        for one in due:
            self.check_answer(one)
        assert self.head()[0] == SWITCHING
        if not ahead:
            self.send(frames, step)
        replies = b"".join(frame(opcode, payload, masked=False) for opcode, payload in FRAMES)
        assert self.amount(len(replies)) == replies
        assert not self.receive(), self.got
        self.leave()
        self.check_upstream([*due, Due(ask, Fate(SWITCHING, closes=True, admitted=True), after=frames)])

    # --- ends in the midst -------------------------------------------------------------------------------------------

    @rule(part=st.floats(0.01, 0.99), how=st.sampled_from(["reset", "fin", "notify", "close"]), ask=asks())
    def leave_in_a_head(self, part: float, how: str, ask: Ask) -> None:
        self.collect()
        head = replace(ask, number=next(_numbers)).head(self.house)
        self.send(head[: max(1, int(len(head) * part))])
        self.end(how, [])

    @rule(
        ask=asks().filter(lambda ask: ask.framing != "none"),
        chunking=chunkings,
        part=st.floats(0, 0.99),
        how=st.sampled_from(["reset", "fin", "notify", "close"]),
        known=st.booleans(),
    )
    def leave_in_a_body(self, ask: Ask, chunking: Chunking, part: float, how: str, known: bool) -> None:  # noqa: FBT001
        """`known`: the upstream has begun to read it."""
        self.collect()
        ask, due = self.foretold(replace(ask, size=max(ask.size, 5), minor=1))
        wire = self.framed(ask, due.body, chunking)
        self.send(
            ask.head(self.house)
            + wire[: int((len(wire) - 8) * part) if ask.framing == "chunked" else int(len(wire) * part)]
        )
        if not due.fate.admitted:
            self.end(how, [due])
            return
        if due.fate.cut:  # it is refused when enough of it came
            how = "reset"
        due.fate = replace(due.fate, status=0, cut=True)
        if known:
            self.wait_for(ask)
        self.end(how, [due])
        self.check_upstream([due])

    @rule(ask=asks(), chunking=chunkings, whole=st.integers(0, 3), known=st.booleans())
    def break_a_body(self, ask: Ask, chunking: Chunking, whole: int, known: bool) -> None:  # noqa: FBT001
        """After some whole chunks comes one that is none, and behind it a good request."""
        self.collect()
        ask, due = self.foretold(replace(ask, framing="chunked", minor=1))
        chunks = chunking.chunks(due.body)[:whole]
        self.send(ask.head(self.house) + b"".join(chunks))
        if due.fate.admitted:
            payload = sum(itertools.islice(itertools.cycle(chunking.sizes), len(chunks)))
            too_large = due.fate.cut and min(payload, ask.size) > SMALL
            due.fate = Fate(413 if too_large else 400, closes=True, admitted=True, cut=True)
            if known and not too_large:
                self.wait_for(ask)
        self.expect(due)
        self.send(b"0x\r\n\r\n" + Ask((b"GET", b"/v1/models"), number=next(_numbers)).head(self.house))
        self.collect()

    @rule(
        ask=asks(),
        chunking=chunkings,
        style=st.sampled_from(["early", "half"]),
        then=st.sampled_from(["finish", "break", "leave"]),
    )
    def hear_an_answer_before_the_body_is_sent(self, ask: Ask, chunking: Chunking, style: str, then: str) -> None:
        """The connection ends with it; an answer that breaks off is not ended in good order."""
        self.collect()
        ask = replace(ask, style=style, key="good", route=(b"POST", b"/v1/listen"), size=max(ask.size, 5), minor=1)
        ask, due = self.foretold(replace(ask, framing="chunked", expect=False))
        wire = self.framed(ask, due.body, chunking)
        due.fate = Fate(200, closes=True, admitted=True, cut=True)
        first = chunking.chunks(due.body)[0]
        self.send(ask.head(self.house) + first)
        self.over = True
        if style == "early":
            self.check_answer(due)
            if then != "leave":
                self.send(wire[len(first) :] if then == "finish" else b"0x\r\n")
                assert not self.receive(), self.got
            self.leave()
            self.check_upstream([due])
            return
        status, headers = self.head()
        assert (status, headers["content-length"]) == (200, "1000")
        assert self.amount(len(ask.target)) == ask.target
        if then != "leave":
            self.send(b"0x\r\n")
            with pytest.raises((ConnectionResetError, ssl.SSLEOFError)):
                self.receive()
        self.leave()
        self.check_upstream([due])

    @precondition(lambda self: self.due and not self.over)
    @rule(how=st.sampled_from(["reset", "close"]))
    def leave_before_the_answers(self, how: str) -> None:
        self.end(how, [])
        self.check_upstream([])

    def wait_for(self, ask: Ask) -> None:
        """Until the upstream has the head of this request."""
        deadline = time.monotonic() + PATIENCE
        while not self.house.teller.seen(ask.target):
            assert time.monotonic() < deadline, ask
            time.sleep(0.001)

    def end(self, how: str, due: list[Due]) -> None:
        """Ends the connection; `due` are the answers that must come first, none where the client's own end cut it."""
        assert self.sock is not None
        if how == "reset":
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif how == "fin":
            socket.socket.shutdown(self.sock, socket.SHUT_WR)
        elif how == "notify":
            self.sock.settimeout(0)
            with contextlib.suppress(ssl.SSLError):  # it sends the close_notify, and may not throw away what comes
                self.sock.unwrap()
        if how == "fin":
            # The refusal of a head comes first, unless the proxy sees an end that is no orderly one before.
            with contextlib.suppress(ConnectionResetError, ssl.SSLError):
                for one in due:
                    if one.fate.status:
                        self.check_answer(one)
                while self.receive():
                    pass
            expects = any(one.ask is not None and one.ask.expect for one in due)
            assert self.got in ((b"", b"HTTP/1.1 100 Continue\r\n\r\n") if expects else (b"",)), self.got
        self.leave()

    # --- the operator ------------------------------------------------------------------------------------------------

    def switch(self) -> None:
        self.switches += 1
        self.house.switch("enable" if self.disabled else "disable")
        self.disabled = not self.disabled

    @precondition(lambda self: self.switches < 2)
    @rule(luck=st.integers(0, 3), ask=asks(), begun=st.booleans())
    def turn_the_key(self, luck: int, ask: Ask, begun: bool) -> None:  # noqa: FBT001
        """Off, or on again; `begun`: while it has a request in flight. Seldom, since a command takes long."""
        if luck < 3:
            return
        self.collect()
        if self.disabled or not begun:
            self.switch()
            return
        ask = replace(ask, key="switched", route=(b"POST", b"/v1/listen"), framing="length", size=5, minor=1)
        ask, due = self.foretold(ask)
        self.send(ask.head(self.house) + due.body[:3])
        self.wait_for(ask)
        self.switch()
        due.fate = Fate(401, closes=True, admitted=True, cut=True)
        self.expect(due)
        self.send(due.body[3:])
        self.collect()

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:  # no rule has failed, and Hypothesis has not broken it off
                self.collect()
        finally:
            self.leave()
            if self.disabled:
                self.switch()


def test_every_answer_and_every_request_upstream_is_as_foretold(house: House) -> None:
    def client() -> Client:
        return Client(house)

    run_state_machine_as_test(
        client,  # type: ignore[arg-type]  # whatever makes a machine will do
        settings=settings(
            max_examples=40,
            stateful_step_count=12,
            deadline=None,
            phases=(Phase.explicit, Phase.generate),
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
