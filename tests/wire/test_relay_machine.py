"""Whatever two peers do, in any order: what each hears is what the other said, then perhaps one whole Close of ours."""

import asyncio
import contextlib
import itertools
import ssl
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from hypothesis import HealthCheck, Phase, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dgproxy.net import pump
from dgproxy.net.relay import Direction, Side
from dgproxy.wire.frames import BINARY, CLOSE, CONTINUATION, PING, TEXT
from tests.support import pumps
from tests.support.frames import frame
from tests.support.rig import PATIENCE, SMALL, VIOLATION, VIOLATION_MASKED, Rig, build, ticks

T = TypeVar("T")
OURS: Final = {Side.DOWNSTREAM: VIOLATION, Side.UPSTREAM: VIOLATION_MASKED}  # by who gets it
MOST: Final = 100  # turns in which what was said must have passed


class Talker:
    """A peer that never waits: it sends what the kernel takes and reads what is there."""

    def __init__(self, rig: Rig, side: Side) -> None:
        self.side = side
        self.peer, _ = rig.peer(side)
        self.said: list[bytes] = []  # whole frames
        self.pushed = 0  # bytes of them that were given to TLS, or to the kernel
        self.heard = bytearray()
        self.raw = bytearray()  # under TLS, and still to be sent
        self.fragmented = False
        self.closed = False  # its Close, or a frame that breaks the rules, is among what it said
        self.bad = False
        self.over = ""  # how it ended, if it did
        self.deaf = False  # nothing more will come to it
        self.lost_some = False  # of what it was sent, or its own, by a reset

    def say(self, opcode: int, size: int, *, fin: bool = True, payload: bytes | None = None, rsv: int = 0) -> None:
        body = bytes([len(self.said) % 251]) * size if payload is None else payload
        self.said.append(frame(opcode, body, fin=fin, rsv=rsv, masked=self.side is Side.DOWNSTREAM))

    @property
    def stream(self) -> bytes:
        return b"".join(self.said)

    def push(self, most: int) -> None:
        if self.over:
            return
        data = self.stream[self.pushed : self.pushed + most]
        tls = self.peer._tls
        if tls is None:
            with contextlib.suppress(BlockingIOError):
                self.pushed += self._send(data) if data else 0
            return
        if data:
            with contextlib.suppress(ssl.SSLError):  # it was told the end: OpenSSL sends no more
                self.pushed += tls.write(data)
        self.raw += self.peer._out.read()
        with contextlib.suppress(BlockingIOError):
            while self.raw:
                del self.raw[: self._send(self.raw)]

    def _send(self, data: bytes | bytearray) -> int:
        try:
            return self.peer.sock.send(data)
        except ConnectionError:
            self.lost_some = True
            self.over = "told"
            self.raw.clear()
            return 0

    def read(self) -> None:
        if self.over == "reset" or self.deaf:
            return
        try:
            while True:
                data = self.peer.sock.recv(65536)
                if self.peer._tls is None:
                    self.heard += data
                elif data:
                    self.peer._in.write(data)
                    self._decrypt()
                if not data:
                    self.deaf = True
                    return
        except BlockingIOError:
            pass
        except ConnectionError:
            self.deaf = self.lost_some = True

    def _decrypt(self) -> None:
        tls = self.peer._tls
        assert tls is not None
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            while piece := tls.read(65536):
                self.heard += piece

    def half_close(self) -> None:
        self.push(0)
        if self.over or self.raw:
            return
        self.read()
        self.over = "ended"
        if self.peer._tls is not None:
            with contextlib.suppress(ssl.SSLError):
                self.peer._tls.unwrap()
            with contextlib.suppress(OSError):  # close_notify has room, or it is a truncation
                self.peer.sock.send(self.peer._out.read())
        with contextlib.suppress(OSError):
            self.peer.sock.shutdown(1)

    def reset(self) -> None:
        if self.over != "reset":
            self.over = "reset"
            self.peer.reset()


class Conversation(RuleBasedStateMachine):
    """Two talkers around a relay; the rules are what peers and the relay's owner may do."""

    form: pump.Form = "pure"
    spliced = False

    def __init__(self) -> None:
        super().__init__()
        pumps.form, pumps.spliced = self.form, self.spliced
        self.runner = asyncio.Runner(loop_factory=pumps.new_event_loop)
        self.finished = False
        self.patient = False  # somebody wanted our Close between two messages
        self.calm = True  # neither peer leaves
        self.talkers: dict[Side, Talker] = {}

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(asyncio.wait_for(work, PATIENCE))

    @initialize(secure=st.booleans(), both=st.booleans(), calm=st.booleans())
    def begin(self, secure: bool, both: bool, calm: bool) -> None:  # noqa: FBT001
        self.calm = calm
        self.rig = self.do(build(secure_client=secure, secure_server=secure and both, buffer=SMALL))
        self.talkers = {side: Talker(self.rig, side) for side in Side}
        self.do(self._start())

    async def _start(self) -> None:
        self.rig.start(frames=True)

    # --- what may happen ---------------------------------------------------------------------------------------------

    @rule(
        side=st.sampled_from(Side),
        size=st.sampled_from([0, 1, 125, 126, 3200, 65_535, 65_536, 200_000]),
        fin=st.booleans(),
        text=st.booleans(),
    )
    def say(self, side: Side, size: int, fin: bool, text: bool) -> None:  # noqa: FBT001
        talker = self.talkers[side]
        if talker.closed:
            return
        opcode = CONTINUATION if talker.fragmented else TEXT if text else BINARY
        talker.say(opcode, size, fin=fin)
        talker.fragmented = not fin

    @rule(side=st.sampled_from(Side))
    def say_ping(self, side: Side) -> None:
        if not self.talkers[side].closed:
            self.talkers[side].say(PING, 5)

    @rule(side=st.sampled_from(Side))
    def say_close(self, side: Side) -> None:
        talker = self.talkers[side]
        if not talker.closed:
            talker.say(CLOSE, 0, payload=b"\x03\xe8bye")
            talker.closed = True

    @precondition(lambda self: self.talkers and not any(talker.bad for talker in self.talkers.values()))
    @rule(side=st.sampled_from(Side))
    def break_the_rules(self, side: Side) -> None:
        talker = self.talkers[side]
        if not talker.closed:
            talker.say(BINARY, 3, rsv=4)
            talker.closed = talker.bad = True

    @rule(side=st.sampled_from(Side), most=st.sampled_from([1, 2, 7, 100, 5000, 500_000]))
    def push(self, side: Side, most: int) -> None:
        self.talkers[side].push(most)
        self.do(ticks(3))

    @rule(side=st.sampled_from(Side))
    def read(self, side: Side) -> None:
        self.talkers[side].read()
        self.do(ticks(3))

    @rule(between_messages=st.booleans())
    def finish(self, between_messages: bool) -> None:  # noqa: FBT001
        async def work() -> None:
            if not self.rig.ends:
                self.rig.finish(between_messages=between_messages)

        self.finished = True
        self.patient |= between_messages
        self.do(work())

    @precondition(lambda self: not self.calm)
    @rule(side=st.sampled_from(Side))
    def half_close(self, side: Side) -> None:
        self.talkers[side].half_close()
        self.do(ticks(3))

    @precondition(lambda self: not self.calm)
    @rule(side=st.sampled_from(Side))
    def reset(self, side: Side) -> None:
        self.talkers[side].reset()
        self.do(ticks(3))

    # --- what must hold ----------------------------------------------------------------------------------------------

    @invariant()
    def each_heard_what_the_other_said_and_at_most_one_frame_of_ours(self) -> None:
        for side, talker in self.talkers.items():
            speaker = self.talkers[Side.UPSTREAM if side is Side.DOWNSTREAM else Side.DOWNSTREAM]
            heard, said = bytes(talker.heard), speaker.stream
            if said.startswith(heard):
                continue
            good = speaker.said[:-1] if speaker.closed else speaker.said  # nothing goes behind a Close
            places = [0, *itertools.accumulate(map(len, good))]
            assert any(
                heard[:place] == said[:place] and OURS[side].startswith(heard[place:])
                for place in places
                if place <= len(heard)
            ), f"the {side} heard {len(heard)} bytes that were not said"

    @invariant()
    def it_ends_once_and_counts_what_waits(self) -> None:
        if self.talkers:
            assert len(self.rig.ends) <= 1
            assert self.rig.budget.used == self.rig.relay.held
            if self.rig.ends:
                assert not self.rig.watched()
                assert not self.rig.budget.used

    def teardown(self) -> None:
        try:
            if self.talkers:
                self.do(self._settle())
                self.each_heard_what_the_other_said_and_at_most_one_frame_of_ours()
                self.it_ends_once_and_counts_what_waits()
                self._what_came_of_it()
        finally:
            if self.talkers:
                self.do(self._clean_up())
            pumps.spliced = False
            self.runner.close()

    async def _settle(self) -> None:
        """All that was said is sent and read, as far as it goes."""
        still = 0
        seen: object = None
        while still < MOST:
            for talker in self.talkers.values():
                talker.push(1 << 20)
                talker.read()
            if not self.rig.ends:
                self.rig.relay.check()  # as a Stream does each second
            await ticks(1)
            now = [(talker.pushed, len(talker.raw), len(talker.heard), talker.deaf) for talker in self.talkers.values()]
            still = still + 1 if now == seen else 0
            seen = now

    def _what_came_of_it(self) -> None:
        one, other = self.talkers.values()
        if one.over or other.over:
            if "reset" in (one.over, other.over):
                assert self.rig.ends
            return
        bad = any(talker.bad for talker in self.talkers.values())
        if not self.finished and not bad:
            assert not self.rig.ends
        for talker, speaker in ((one, other), (other, one)):
            heard = bytes(talker.heard)
            if self.finished or bad:
                way: Direction = self.rig.relay.up if speaker.side is Side.DOWNSTREAM else self.rig.relay.down
                if way.tracker.closed:
                    assert heard.endswith(speaker.said[-1])
                elif way.finished:
                    assert heard.endswith(OURS[talker.side])
                else:  # it waits for the end of a message, which was not said; or the message was broken
                    assert self.patient
                    assert way.tracker.fragmented
            else:
                assert heard == speaker.stream

    async def _clean_up(self) -> None:
        rig = self.rig
        rig.relay.stop()
        watched, used = rig.watched(), rig.budget.used
        for end in (rig.downstream, rig.upstream):
            end.abort()
        for peer in (rig.client, rig.server):
            peer.close()
        assert not watched
        assert not used
        assert not rig.held_pipes()


class NativeConversation(Conversation):
    """The same with the native pump."""

    form = "native"


class SplicedConversation(Conversation):
    """The same with all payloads spliced that can be."""

    spliced = True


class NativeSplicedConversation(NativeConversation):
    """The same before the native pump."""

    spliced = True


TestPure = Conversation.TestCase
TestNative = pumps.native_only(NativeConversation.TestCase)
TestPureSpliced = SplicedConversation.TestCase
TestNativeSpliced = pumps.native_only(NativeSplicedConversation.TestCase)
for case in (TestPure, TestNative, TestPureSpliced, TestNativeSpliced):
    case.settings = settings(
        max_examples=40,
        stateful_step_count=30,
        deadline=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
