"""The fuzz harnesses over their seeds and over what once failed, without a fuzzer; and that they would fail."""

import random
import re
from types import ModuleType
from typing import Final

import h11
import msgspec
import pytest

from dgproxy.access.credentials import Credential
from dgproxy.wire import refusals, response
from dgproxy.wire.chunked import Chunked
from dgproxy.wire.frames import Tracker
from dgproxy.wire.head import judge
from dgproxy.wire.refusals import Refusal
from tests.fuzz import chunked, credentials, frames, head, response as fuzz_response
from tests.fuzz.harness import inputs, load, names

ROUNDS: Final = 40  # mutations of each input; `make fuzz` is for finding, this for not forgetting


def mutations(data: bytes, words: tuple[bytes, ...], seed: str) -> list[bytes]:
    """The same ones in every run: words put in, bytes changed, parts cut out or doubled."""
    chance = random.Random(seed)
    made = []
    for _ in range(ROUNDS):
        at, to = sorted(chance.choices(range(len(data) + 1), k=2))
        put = chance.choice([b"", *words, data[at:to] * 2, bytes((chance.randrange(256),))])
        made.append(data[:at] + put + data[chance.choice([at, to]) :])
    return made


@pytest.mark.parametrize("name", names())
def test_a_harness_holds_for_its_seeds_for_what_once_failed_and_near_them(name: str) -> None:
    harness = load(name)
    known = dict(inputs(name))
    assert known
    for label, data in known.items():
        assert len(data) <= harness.longest, label
        for one in (data, *mutations(data, tuple(harness.words), label)):
            try:
                harness.check(one)
            except Exception as fault:
                raise AssertionError(f"{name}, near {label}: {one!r}") from fault


@pytest.mark.parametrize(
    ("lenient", "sent"),
    [
        ((rb"(?<!\r)\n", b"\r\n"), b"GET / HTTP/1.1\r\nHost: dg\nX: y\r\n\r\n"),
        ((b"\r\n ", b" "), b"GET / HTTP/1.1\r\nHost: dg\r\nX: a\r\n b\r\n\r\n"),
        ((b" :", b":"), b"GET / HTTP/1.1\r\nHost: dg\r\nX : a\r\n\r\n"),
        ((b"\0", b""), b"GET / HTTP/1.1\r\nHost: dg\r\nX: \0a\r\n\r\n"),
        ((b"Content-Length: 5", b"X: 5"), b"GET / HTTP/1.1\r\nHost: dg\r\nContent-Length: 5\r\n\r\n"),
        ((b"#", b""), b"GET /#a HTTP/1.1\r\nHost: dg\r\n\r\n"),
    ],
)
def test_a_head_check_that_repairs_what_it_reads_is_found_out(
    monkeypatch: pytest.MonkeyPatch, lenient: tuple[bytes, bytes], sent: bytes
) -> None:
    head.check(sent)
    with monkeypatch.context() as patch:
        patch.setattr(head, "find_end", lambda data, _=0: end + 4 if (end := data.find(b"\r\n\r\n")) >= 0 else None)

        def judge_repaired(raw: bytes) -> object:
            found = judge(re.sub(*lenient, raw))
            return found if isinstance(found, Refusal) else msgspec.structs.replace(found, raw=raw)

        patch.setattr(head, "judge", judge_repaired)
        with pytest.raises((AssertionError, h11.RemoteProtocolError)):
            head.check(sent)


def test_a_head_whose_end_hangs_on_its_pieces_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        head, "find_end", lambda data, seen=0: end + 4 if (end := data.find(b"\r\n\r\n", seen)) > 0 else None
    )
    with pytest.raises(AssertionError):
        head.check(b"GET / HTTP/1.1\r\nA: b\r\n\r\n" + b" " * 19)  # the half ends within CRLF CRLF


@pytest.mark.parametrize(
    ("found", "sent"),
    [
        (Credential(b"other", "x-api-key"), b"-X-Api-Key: a"),
        (Credential(b"a", "x-api-key"), b"-X-Api-Key: a\nAuthorization: Token b"),
        (Credential(b"a", "x-api-key"), b"-X-Api-Key: a\nX-Api-Key: a"),
        (Credential(b"a b", "x-api-key"), b"-X-Api-Key: a b"),
        (Credential(b"a", "subprotocol", "token"), b"-Sec-WebSocket-Protocol: token, a"),
        (Refusal(401, "INVALID_AUTH", "No key like a."), b"-X-Api-Key: a"),
        (Refusal(400, "BAD_REQUEST", refusals.BAD_FRAMING.message), b"-X-Api-Key: a b"),
    ],
)
def test_a_wrong_credential_is_found_out(
    monkeypatch: pytest.MonkeyPatch, found: Credential | Refusal, sent: bytes
) -> None:
    credentials.check(sent)
    monkeypatch.setattr(credentials, "find", lambda *_, **__: found)
    with pytest.raises(AssertionError):
        credentials.check(sent)


class ForgivesAnEmptyLine(Chunked):
    def feed(self, data: bytes) -> None:
        super().feed(data.replace(b"\r\n\r\n0", b"\r\n0"))


class ForgetsItsPlace(Tracker):
    def scan(self, data: bytes | bytearray | memoryview, size: int, *, stop: bool = False) -> int:
        self.left = 0
        return super().scan(data, size, stop=stop)


class PassesAll(Tracker):
    def scan(self, data: bytes | bytearray | memoryview, size: int, *, stop: bool = False) -> int:  # noqa: ARG002
        return size


@pytest.mark.parametrize(
    ("harness", "name", "broken", "sent"),
    [
        (chunked, "Chunked", ForgivesAnEmptyLine, b"5\r\naudio\r\n\r\n0\r\n\r\n"),
        (frames, "Tracker", ForgetsItsPlace, b"\x82\x05\x82\x01\x82\x03\x82\x01a"),
        (frames, "Tracker", PassesAll, b"\x82\x05audio\xc2\x00"),
    ],
    ids=["a chunk's end", "a frame's place", "a frame's bits"],
)
def test_a_reader_that_forgives_or_forgets_is_found_out(
    monkeypatch: pytest.MonkeyPatch, harness: ModuleType, name: str, broken: type, sent: bytes
) -> None:
    harness.check(sent)
    monkeypatch.setattr(harness, name, broken)
    with pytest.raises(AssertionError):
        harness.check(sent)


def test_an_answer_that_is_not_what_its_bytes_say_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
    monkeypatch.setattr(fuzz_response, "judge", lambda raw: msgspec.structs.replace(response.judge(raw), status=204))
    with pytest.raises(AssertionError):
        fuzz_response.check(sent)
