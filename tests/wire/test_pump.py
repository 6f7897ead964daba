"""The forms of the relay's inner loop do the same with the same bytes, whatever these are and however they come."""

import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest
import uvloop
from hypothesis import given, settings, strategies as st

from dgproxy.net import pump
from dgproxy.net.endpoint import Endpoint
from dgproxy.net.pipes import Pipe, Pipes
from dgproxy.net.splice import Splicer
from dgproxy.wire.frames import Tracker
from tests.support.frames import conversations, frame
from tests.support.pumps import FORMS, native_only

_EXAMPLES: Final = int(os.environ.get("DGPROXY_EXAMPLES", "300"))
_BUFFER: Final = 64  # bytes, so that a piece takes several reads
_START: Final = {"left": st.sampled_from([0, 1, 7, 300, 1 << 40]), "fragmented": st.booleans()}


class Direction:
    """What a relay's direction does for its pump, without a loop: all that may pass is kept."""

    def __init__(self, form: pump.Form, *, masked: bool, spliced: bool) -> None:
        self.loop = uvloop.new_event_loop()
        self.speaker, source = socket.socketpair()
        sink, self.listener = socket.socketpair()
        self.source, self.sink = Endpoint(self.loop, source, "source"), Endpoint(self.loop, sink, "sink")
        self.listener.settimeout(0)
        self.buffer = bytearray(_BUFFER)
        self.tracker = Tracker(masked=masked)
        self.pipes = Pipes(least=1, bulk=0) if spliced else None
        self.pump = pump.make(form, self.source, self.sink, self.buffer, self.tracker, self)
        if self.pipes is not None:
            ends = (self.source, self.sink, self.tracker, self)
            self.pump = Splicer(self.pump, *ends, self.pipes)
        self.passed = bytearray()
        self.ends: list[str] = []

    def judge(self, size: int) -> None:
        data = self.tracker.held + self.buffer[:size]
        self._pass(data[: self.tracker.scan(data, len(data))])

    def part(self, size: int) -> None:
        self._pass(bytes(self.buffer[:size]))

    def _pass(self, data: bytes) -> None:
        self.collect()
        self.passed += data
        self.pump.count += len(data)

    def keep(self, at: int, size: int) -> None:
        self.ends.append(f"keep {size - at}")

    def keep_pipe(self, pipe: Pipe) -> None:
        self.ends.append(f"keep {len(pipe)}")

    def end_of_stream(self) -> None:
        self.ends.append("end of stream")

    def lost(self) -> None:
        self.ends.append("lost")

    def refused(self) -> None:
        self.ends.append("refused")

    def again(self) -> None:
        raise AssertionError("plain sockets hold nothing back")

    def collect(self) -> None:
        try:
            while data := self.listener.recv(65536):
                self.passed += data
        except BlockingIOError:
            pass

    def say(self, piece: bytes) -> None:
        self.speaker.sendall(piece)
        while not (self.tracker.fault or self.ends) and self.pump.run():
            self.collect()
        self.collect()

    @property
    def state(self) -> dict[str, Any]:
        tracker = self.tracker
        names = ("left", "fragmented", "held", "closed", "close_code", "fault")
        return {"passed": bytes(self.passed), "count": self.pump.count, "ends": self.ends} | {
            name: getattr(tracker, name) for name in names
        }


@contextmanager
def each_form(*, masked: bool) -> Iterator[list[Direction]]:
    """The plain twin first."""
    directions = [
        Direction(form, masked=masked, spliced=spliced) for form, spliced in itertools.product(FORMS, (False, True))
    ]
    try:
        yield directions
    finally:
        for each in directions:
            each.pump.stop()
            each.source.close()
            each.sink.close()
            each.speaker.close()
            each.listener.close()
            each.loop.close()
            if each.pipes is not None:
                each.pipes.close()
                assert not each.pipes.open


def _pieces(raw: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(raw) + 1) for cut in cuts} | {0, len(raw)})
    return [raw[one:other] for one, other in itertools.pairwise(places)]


_CUTS: Final = st.lists(st.integers(0, 1 << 20), max_size=8)
_NEAR_FRAMES: Final = st.lists(
    st.one_of(
        st.binary(max_size=12),
        st.builds(
            lambda opcode, size, fin, rsv, masked: frame(opcode, bytes(size), fin=fin, rsv=rsv, masked=masked),
            st.integers(0, 15),
            st.sampled_from([0, 1, 2, 60, 124, 125, 126, 127, 300]),
            st.booleans(),
            st.sampled_from([0, 0, 0, 0, 1, 4]),
            st.booleans(),
        ),
    ),
    max_size=6,
).map(b"".join)


def _compare(raw: bytes, cuts: list[int], start: dict[str, Any], *, masked: bool) -> None:
    with each_form(masked=masked) as (twin, *others):
        for each in (twin, *others):
            for name, value in start.items():
                setattr(each.tracker, name, value)
        for piece in _pieces(raw, cuts):
            twin.say(piece)
            for other in others:
                other.say(piece)
                assert other.state == twin.state


@native_only
@settings(max_examples=_EXAMPLES, deadline=None)
@given(raw=_NEAR_FRAMES, cuts=_CUTS, start=st.fixed_dictionaries(_START), masked=st.booleans())
def test_any_bytes_in_any_pieces_come_to_the_same_in_every_form(
    raw: bytes,
    cuts: list[int],
    start: dict[str, Any],
    masked: bool,  # noqa: FBT001
) -> None:
    _compare(raw, cuts, start, masked=masked)


@native_only
@settings(max_examples=_EXAMPLES // 5, deadline=None)
@given(data=st.data(), cuts=_CUTS, masked=st.booleans())
def test_any_conversation_that_keeps_the_rules_comes_to_the_same_in_every_form(
    data: st.DataObject,
    cuts: list[int],
    masked: bool,  # noqa: FBT001
) -> None:
    raw = b"".join(data.draw(conversations(masked=masked)))[:100_000]
    _compare(raw, cuts, {}, masked=masked)


@native_only
@pytest.mark.parametrize("length", [1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
@pytest.mark.parametrize("masked", [True, False])
def test_lengths_that_fill_64_bits_come_to_the_same_in_every_form(*, length: int, masked: bool) -> None:
    bit = 0x80 if masked else 0
    head = bytes([0x82, bit | 127]) + length.to_bytes(8, "big") + (b"mask" if masked else b"")
    _compare(head + bytes(50), [14, 20], {}, masked=masked)


# --- which form is used -----------------------------------------------------------------------------------------------


def _said(variable: str | None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != pump.VARIABLE}
    if variable is not None:
        environment[pump.VARIABLE] = variable
    program = "from dgproxy.net import pump; print(pump.form())"
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=30, check=False
    )


@native_only
def test_the_native_form_is_used_where_it_can_be_and_either_can_be_forced() -> None:
    assert [_said(variable).stdout.strip() for variable in (None, "", *FORMS)] == ["native", "native", *FORMS]


def test_a_form_that_there_is_not_is_refused() -> None:
    answer = _said("fast")
    assert answer.returncode == 1
    assert 'write "pure" or "native"' in answer.stderr
