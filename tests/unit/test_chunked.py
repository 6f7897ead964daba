"""Chunked bodies to the byte: what is payload, where it ends, and what is refused (bad-inputs.md F16-F19)."""

import itertools
import re
import tracemalloc
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import pytest
from hypothesis import given, strategies as st

from dgproxy.wire.chunked import MAX_EXTENSION, MAX_EXTENSIONS, MAX_TRAILERS, BadChunks, Chunked
from dgproxy.wire.head import Head, judge

LAST: Final = b"0\r\n\r\n"
MORE, BAD, ENDED = "needs more", "bad", "ended"


@dataclass(frozen=True)
class Outcome:
    """What came of some bytes."""

    how: str
    payload: bytes
    rest: bytes = b""


def read(pieces: Iterable[bytes]) -> Outcome:
    """Feeds and reads in turns, as an exchange does; whoever is refused stays so."""
    chunked = Chunked()
    payload = b""
    for piece in pieces:
        chunked.feed(piece)
        try:
            while (data := chunked.read()) is not None:
                assert data
                payload += data
        except BadChunks:
            with pytest.raises(BadChunks, match=r"^[a-z ]+$"):  # it goes into the log: it quotes nothing
                chunked.read()
            assert not chunked.ended
            return Outcome(BAD, payload)
    return Outcome(ENDED, payload, chunked.rest()) if chunked.ended else Outcome(MORE, payload)


def cut(raw: bytes, at: Iterable[int]) -> list[bytes]:
    places = sorted({min(place, len(raw)) for place in at} | {0, len(raw)})
    return [raw[start:stop] for start, stop in itertools.pairwise(places)]


def single(raw: bytes) -> list[bytes]:
    return [bytes((byte,)) for byte in raw]


# --- a reader of whole bodies, by patterns alone ---------------------------------------------------------------------

HEADER: Final = rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*\r\n)"
FIRST_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;([\x20-\x7e\x80-\xff]{0,1024}))?\r\n")
TRAILERS: Final = re.compile(rb"(" + HEADER + rb"*)\r\n")


def reference(raw: bytes) -> tuple[bytes, bytes] | None:
    """Payload and rest; None for what does not begin with a whole chunked body that we take."""
    payload, at, extensions = b"", 0, 0
    while line := FIRST_LINE.match(raw, at):
        size, at = int(line[1], 16), line.end()
        extensions += len(line[2] or b"")
        if extensions > 8192 or size >> 63:
            return None
        if size == 0:
            trailers = TRAILERS.match(raw, at)
            return (payload, raw[trailers.end() :]) if trailers and len(trailers[1]) <= 8192 else None
        if raw[at + size : at + size + 2] != b"\r\n":
            return None
        payload += raw[at : at + size]
        at += size + 2
    return None


def assert_as_the_reference(raw: bytes, pieces: Iterable[bytes]) -> Outcome:
    got = read(pieces)
    assert got == read([raw])
    assert reference(raw) == ((got.payload, got.rest) if got.how == ENDED else None)
    return got


# --- what a body may be ----------------------------------------------------------------------------------------------

sizes = st.sampled_from([b"%x", b"%X", b"0%x", b"%016x"])
extensions = st.sampled_from([b"", b";", b";a", b";a=b", b';a="; \\" b"', b";a=\xe9"])
trailers = st.lists(st.sampled_from([b"A: b\r\n", b"Content-Length: 5\r\n", b"a:\r\n", b"x: \t\xe9\r\n"]), max_size=3)
cuts = st.lists(st.integers(0, 300), max_size=12)


@st.composite
def bodies(draw: st.DrawFn, data: st.SearchStrategy[bytes]) -> list[tuple[bytes, str]]:
    """Chunks in every spelling that is allowed, as parts of which each is told what it is."""
    parts: list[tuple[bytes, str]] = []
    for chunk in draw(st.lists(data, max_size=5)):
        parts += [(draw(sizes) % len(chunk), "size"), (draw(extensions) + b"\r\n", "frame")]
        parts += [(chunk, "data"), (b"\r\n", "frame")]
    parts += [(draw(st.sampled_from([b"0", b"00", b"0" * 16])), "size"), (draw(extensions) + b"\r\n", "frame")]
    return [*parts, (b"".join(draw(trailers)) + b"\r\n", "frame")]


def joined(parts: list[tuple[bytes, str]], kind: str = "") -> bytes:
    return b"".join(text for text, what in parts if kind in {"", what})


any_body = bodies(st.binary(min_size=1, max_size=40))


@given(any_body, cuts, st.binary(max_size=30))
def test_the_payload_and_the_rest_are_exact_however_the_bytes_are_cut(
    parts: list[tuple[bytes, str]], at: list[int], rest: bytes
) -> None:
    raw = joined(parts) + rest
    wanted = Outcome(ENDED, joined(parts, "data"), rest)
    assert assert_as_the_reference(raw, cut(raw, at)) == wanted
    assert read(single(raw)) == wanted


@given(any_body)
def test_no_beginning_of_a_valid_body_is_refused_or_taken_for_the_whole(parts: list[tuple[bytes, str]]) -> None:
    raw = joined(parts)
    for end in range(len(raw)):
        assert read([raw[:end]]).how == MORE


STRAY: Final = b'\r\n\x00\t ;:,0aAfFgx+-_"\x7f\xff'


@given(
    bodies(st.text("audio", min_size=1, max_size=20).map(str.encode)),
    st.integers(0),
    st.sampled_from(STRAY),
    st.sampled_from(["put", "insert", "drop"]),
    cuts,
)
def test_one_wrong_byte_changes_nothing_or_is_not_taken(
    parts: list[tuple[bytes, str]], where: int, byte: int, how: str, at: list[int]
) -> None:
    kinds = [kind for text, kind in parts for _ in text]
    raw = joined(parts)
    where %= len(raw)
    mutated = raw[:where] + (b"" if how == "drop" else bytes((byte,))) + raw[where + (how != "insert") :]
    got = assert_as_the_reference(mutated, cut(mutated, at))
    # Another size is another body, which may be a valid one, and so is another payload. No other byte can do that.
    if kinds[where] == "frame" and kinds[where - 1] != "size" and got.how == ENDED:
        assert got.payload == joined(parts, "data")


@given(
    st.lists(st.sampled_from([*single(STRAY), b"\r\n", b"5\r\naudio\r\n", b"0\r\n"]), max_size=12).map(b"".join), cuts
)
def test_no_bytes_are_taken_that_the_reference_refuses(raw: bytes, at: list[int]) -> None:
    assert_as_the_reference(raw, cut(raw, at))


# --- refused ---------------------------------------------------------------------------------------------------------

REFUSED: Final[dict[str, bytes]] = {
    **{
        f"F16 {size!r}": size
        for size in (
            b"0x5\r\naudio",
            b"+5\r\naudio",
            b"-5\r\naudio",
            b" 5\r\naudio",
            b"5 \r\naudio",
            b"5\t\r\naudio",
            b"5 ;a\r\naudio",
            b"5 5\r\naudio",
            b"1_0\r\naudio",
            b"\r\naudio",
            b";a\r\naudio",
            b"g\r\n",
            b"\xd9\xa5\r\naudio",
            b"\x005\r\naudio",
            b"00000000000000005",
            b"fffffffffffffffff",
            b"8000000000000005\r\n",
            b"ffffffffffffffff\r\n",
            b"5\naudio",
            b"5\raudio",
            b"5\r\r\naudio",
            b"0\n",
        )
    },
    **{
        f"F17 {chunk!r}": chunk
        for chunk in (
            b"5\r\naudio" + LAST,
            b"5\r\naudioX\r\n",
            b"5\r\naudio\n",
            b"5\r\naudio\rX",
            b"5\r\naudio\r\r\n",
            b"5\r\naudio\r\n\r\n",
            b"5\r\naudi\r\n" + LAST,
        )
    },
    **{f"F18 {byte!r}": b"5;a=" + byte for byte in (b"\n", b"\rX", b"\r\r", b"\x00", b"\x01", b"\t", b"\x1b", b"\x7f")},
    "F18 over 1 KiB": b"5;" + b"x" * (MAX_EXTENSION + 1),
    "F18 over 8 KiB in all": b"".join(b"1;%b\r\na\r\n" % (b"x" * size) for size in [MAX_EXTENSION] * 8 + [1]),
    **{
        f"F19 {line!r}": b"0\r\n" + line
        for line in (
            b"A : b",
            b"A\t: b",
            b" A: b",
            b"A: b\r\n c",
            b"A: b\n",
            b"A: b\rX",
            b"A: b\r\r",
            b"A: \x00",
            b"A: \x7f",
            b"A\r\n",
            b": b",
            b"A(: b",
            b"\xc3\xa9: b",
            b"A\x00: b",
            b"\n",
            b"\rX",
            b"A: b\r\n\n",
            b"GET / HTTP/1.1",
        )
    },
    "F19 one of a byte over 8 KiB": b"0\r\nA: " + b"x" * (MAX_TRAILERS - 4) + b"\r\n",
    "F19 one without end": b"0\r\nA:" + b"x" * MAX_TRAILERS,
    "F19 a name over 8 KiB": b"0\r\n" + b"x" * (MAX_TRAILERS + 1),
    "F19 many over 8 KiB": b"0\r\n" + b"A: b\r\n" * (MAX_TRAILERS // 6) + b"A:x\r\n",
}


@pytest.mark.parametrize("raw", REFUSED.values(), ids=REFUSED)
def test_it_is_refused_at_its_first_wrong_byte(raw: bytes) -> None:
    assert read([raw]).how == BAD
    assert read([raw + LAST]).how == BAD
    assert read(single(raw)).how == BAD
    assert read([b"5\r\naudio\r\n" + raw]) == Outcome(BAD, b"audio" + read([raw]).payload)


# --- taken, and dropped ----------------------------------------------------------------------------------------------


def test_f18_extensions_are_dropped_up_to_their_bounds() -> None:
    raw = b"".join(b"5;%b\r\naudio\r\n" % (b"x" * MAX_EXTENSION) for _ in range(MAX_EXTENSIONS // MAX_EXTENSION)) + LAST
    assert read([raw]) == read(single(raw)) == Outcome(ENDED, b"audio" * 8)


@pytest.mark.parametrize("name", [b"Content-Length", b"Transfer-Encoding", b"Authorization", b"Host", b"Trailer"])
def test_f19_trailers_are_dropped_whatever_they_name(name: bytes) -> None:
    raw = b"5\r\naudio\r\n0\r\n" + name + b": 5\r\n" + name + b":\t6 \r\n\r\nGET /"
    assert read([raw]) == read(single(raw)) == Outcome(ENDED, b"audio", b"GET /")


def test_f19_trailers_are_dropped_up_to_their_bound() -> None:
    for lines in (b"A: " + b"x" * (MAX_TRAILERS - 5) + b"\r\n", b"AB:cde\r\n" * (MAX_TRAILERS // 8)):
        assert len(lines) == MAX_TRAILERS
        assert read([b"0\r\n" + lines + b"\r\nrest"]) == Outcome(ENDED, b"", b"rest")


@given(st.lists(st.sampled_from([*single(STRAY), b"X-A: b", b"\r\n", b"\r\n "]), min_size=1, max_size=6).map(b"".join))
def test_f19_a_trailer_is_held_to_the_rule_of_a_header_in_a_head(lines: bytes) -> None:
    in_head = judge(b"GET / HTTP/1.1\r\nHost: dg\r\n" + lines + b"\r\n\r\n")
    in_trailers = read([b"0\r\n" + lines + b"\r\n\r\n"])
    assert isinstance(in_head, Head) is (in_trailers == Outcome(ENDED, b""))


# --- and what it costs -----------------------------------------------------------------------------------------------


def test_a_piece_that_is_all_payload_is_handed_on_as_it_is() -> None:
    chunked = Chunked()
    chunked.feed(b"7fffffffffffffff\r\n")
    for _ in range(3):
        piece = bytes(65536)
        chunked.feed(piece)
        assert chunked.read() is piece
        assert chunked.read() is None


def test_nothing_is_kept_of_what_was_read_nor_reserved_for_what_was_announced() -> None:
    chunked = Chunked()
    chunked.feed(b"7fffffffffffffff\r\n")
    tracemalloc.start()
    try:
        for _ in range(64):
            chunked.feed(bytes(65536))
            while chunked.read() is not None:
                pass
        assert tracemalloc.get_traced_memory()[0] < 65536
    finally:
        tracemalloc.stop()


def test_of_lines_that_do_not_end_only_the_digits_of_a_size_are_kept() -> None:
    for raw in (b"0" * 16, b"5;" + b"x" * MAX_EXTENSION, b"0\r\n" + b"A: bc\r\n" * 1000 + b"D: " + b"x" * 1000):
        chunked = Chunked()
        for byte in single(raw):
            chunked.feed(byte)
            assert chunked.read() is None
        assert chunked.rest() == b""
        held = [value for value in vars(chunked).values() if isinstance(value, bytes)]
        assert sum(map(len, held)) <= 16
