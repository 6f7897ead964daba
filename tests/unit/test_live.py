"""What is in flight, by key: a key's end is the end of all that is its, and of nothing else."""

import asyncio
import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, cast

import pytest

from dgproxy.access.keys import Delta, KeyId, Record, State
from dgproxy.config import Overrides
from dgproxy.wire.refusals import (
    KEY_DISABLED,
    KEY_EXPIRED,
    KEY_NOT_YET_VALID,
    KEY_REVOKED,
    OPERATOR_ENDED,
    Refusal,
)
from dgproxy.worker.live import AHEAD, Live
from dgproxy.worker.meter import Meter

ONE, TWO = KeyId("aaaaaaaaaa"), KeyId("bbbbbbbbbb")
NOW: Final = 1_800_000_000.0  # Unix seconds
TOLERANCE: Final = 0.01  # seconds


@dataclass
class Timer:
    """As asyncio.TimerHandle."""

    call: Callable[[], Any]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """A loop's timers, and a wall clock that may be set; `early` seconds before its time each timer fires."""

    def __init__(self) -> None:
        self.monotonic = 0.0
        self.wall = NOW
        self.early = 0.0
        self.fired = 0
        self._timers: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()

    def call_later(self, delay: float, call: Callable[..., Any], *args: Any) -> Timer:
        assert delay > 0
        timer = Timer(lambda: call(*args))
        due = self.monotonic + max(delay - self.early, 0.0005)
        heapq.heappush(self._timers, (due, next(self._numbers), timer))
        return timer

    def passes(self, seconds: float) -> None:
        end = self.monotonic + seconds
        while self._timers and self._timers[0][0] <= end:
            due, _, timer = heapq.heappop(self._timers)
            if not timer.cancelled:
                self._to(due)
                self.fired += 1
                assert self.fired < 100, "a timer that sets itself again and again"
                timer.call()
        self._to(end)

    def _to(self, monotonic: float) -> None:
        self.wall += monotonic - self.monotonic
        self.monotonic = monotonic

    @property
    def armed(self) -> int:
        return sum(not timer.cancelled for _, _, timer in self._timers)


@dataclass(eq=False)
class Held:
    """A request or stream: what it was cut with, and when by the wall's clock."""

    key_id: KeyId
    loop: Loop
    request_id: str = ""
    cuts: list[tuple[Refusal, float]] = field(default_factory=list)
    on_cut: Callable[[], None] = lambda: None

    @property
    def meter(self) -> Meter:
        return cast("Meter", self)

    def row(self) -> dict[str, Any]:
        return {"id": self.request_id, "key_id": self.key_id}

    def cut(self, refusal: Refusal) -> None:
        self.cuts.append((refusal, self.loop.wall))
        self.on_cut()

    @property
    def reasons(self) -> set[Refusal]:
        return {refusal for refusal, _ in self.cuts}


def record(key_id: KeyId = ONE, **changed: Any) -> Record:
    whole: dict[str, Any] = {
        "id": key_id,
        "digest": bytes(32),
        "name": "a",
        "pepper_id": "00000000",
        "plan": "default",
        "overrides": Overrides(),
        "state": State.ACTIVE,
        "created": 0,
        "not_before": 0,
        "expires": None,
        "foreign": False,
    }
    return Record(**{**whole, **changed})


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def live(loop: Loop) -> Live:
    return Live(cast("asyncio.AbstractEventLoop", loop), lambda: loop.wall)


def in_flight(live: Live, loop: Loop, key: Record, count: int = 1) -> list[Held]:
    held = [Held(key.id, loop, f"{key.id}-{number}") for number in range(count)]
    for one in held:
        live.add(key, one)
    return held


def test_what_is_added_is_in_flight_until_it_is_removed_once_or_again(live: Live, loop: Loop) -> None:
    one, another = in_flight(live, loop, record(), 2)
    (other,) = in_flight(live, loop, record(TWO))
    assert set(live) == {one, another, other}
    for _ in range(2):
        live.remove(record(), one)
    assert set(live) == {another, other}
    live.remove(record(), another)
    live.remove(record(), another)
    assert set(live) == {other}
    assert live._parties.keys() == {TWO}  # a key that nobody uses costs nothing


CHANGES: Final = {
    "revoked": (Delta(1, (record(state=State.REVOKED),)), KEY_REVOKED),
    "disabled": (Delta(1, (record(state=State.DISABLED),)), KEY_DISABLED),
    "gone": (Delta(1, gone=(ONE,)), KEY_REVOKED),
    "expired": (Delta(1, (record(expires=int(NOW)),)), KEY_EXPIRED),
    "of later": (Delta(1, (record(not_before=int(NOW) + 1),)), KEY_NOT_YET_VALID),
    "renamed": (Delta(1, (record(name="b"),)), None),
    "expires tomorrow": (Delta(1, (record(expires=int(NOW) + 86_400),)), None),
}


@pytest.mark.parametrize(("delta", "refusal"), CHANGES.values(), ids=CHANGES)
def test_a_change_cuts_all_of_that_key_and_nothing_of_another(
    live: Live, loop: Loop, delta: Delta, refusal: Refusal | None
) -> None:
    own = in_flight(live, loop, record(), 3)
    (other,) = in_flight(live, loop, record(TWO))
    live.apply(delta)
    assert [one.reasons for one in own] == [set() if refusal is None else {refusal}] * 3
    assert other.cuts == []


def test_a_change_of_a_key_that_has_nothing_in_flight_changes_nothing(live: Live, loop: Loop) -> None:
    (other,) = in_flight(live, loop, record(TWO))
    live.apply(
        Delta(1, (record(state=State.REVOKED), record(KeyId("c" * 10), expires=int(NOW) + 1)), (KeyId("d" * 10),))
    )
    assert other.cuts == []
    assert loop.armed == 0


@pytest.mark.parametrize(("delta", "refusal"), CHANGES.values(), ids=CHANGES)
def test_a_whole_new_table_is_judged_as_a_change_of_every_key(
    live: Live, loop: Loop, delta: Delta, refusal: Refusal | None
) -> None:
    own = in_flight(live, loop, record(), 3)
    (other,) = in_flight(live, loop, record(TWO))
    table = {changed.id: changed for changed in (record(TWO), *delta.records)}
    live.renew(table.get)
    assert [one.reasons for one in own] == [set() if refusal is None else {refusal}] * 3
    assert other.cuts == []
    loop.wall += 2 * 86_400
    live.tick()
    expiring = any(changed.expires for changed in delta.records)
    assert [bool(one.cuts) for one in own] == [refusal is not None or expiring] * 3


def test_what_ends_while_it_is_cut_keeps_nothing_else_from_being_cut(live: Live, loop: Loop) -> None:
    key = record()
    held = in_flight(live, loop, key, 5)
    for one in held:
        one.on_cut = lambda one=one: live.remove(key, one)  # type: ignore[misc]
    live.apply(Delta(1, gone=(ONE,)))
    assert [one.reasons for one in held] == [{KEY_REVOKED}] * 5
    assert list(live) == []


@pytest.mark.parametrize("early", [0.0, 0.002], ids=["timers in time", "timers a little early"])
@pytest.mark.parametrize("left", [0.25, 1.0, AHEAD, 5.0, 61.7])
def test_an_expiry_cuts_in_its_moment_however_far_ahead_it_was(
    live: Live, loop: Loop, early: float, left: float
) -> None:
    loop.early = early
    loop.wall = int(NOW) + 100 - left
    (one,) = in_flight(live, loop, record(expires=int(NOW) + 100))
    for _ in range(int(left) + 2):
        loop.passes(1.0)
        live.tick()
    (first, *_) = one.cuts
    assert first[0] == KEY_EXPIRED
    assert 0 <= first[1] - (int(NOW) + 100) <= TOLERANCE


def test_a_key_that_expires_between_its_check_and_here_is_cut_at_once(live: Live, loop: Loop) -> None:
    (one,) = in_flight(live, loop, record(expires=int(NOW)))
    loop.passes(TOLERANCE)
    assert one.reasons == {KEY_EXPIRED}


def test_one_that_takes_its_time_to_end_is_not_cut_a_thousand_times(live: Live, loop: Loop) -> None:
    (one,) = in_flight(live, loop, record(expires=int(NOW) + 1))
    for _ in range(5):
        loop.passes(1.0)  # fails where a timer sets itself again and again
        live.tick()
    assert len(one.cuts) <= 6


def test_a_clock_that_is_set_ahead_past_an_expiry_is_noticed_at_the_next_tick(live: Live, loop: Loop) -> None:
    (one,) = in_flight(live, loop, record(expires=int(NOW) + 3600))
    live.tick()
    assert one.cuts == []
    loop.wall += 7200
    live.tick()
    assert one.reasons == {KEY_EXPIRED}


def test_a_clock_that_is_set_back_gives_a_key_the_time_that_it_then_has(live: Live, loop: Loop) -> None:
    (one,) = in_flight(live, loop, record(expires=int(NOW) + 1))
    assert loop.armed == 1
    loop.wall -= 10
    for _ in range(10):
        loop.passes(1.0)
        live.tick()
        assert one.cuts == []
    loop.passes(1.0 + TOLERANCE)
    assert one.reasons == {KEY_EXPIRED}


@pytest.mark.parametrize("to", [None, int(NOW) + 1000], ids=["never", "later"])
def test_an_expiry_that_is_moved_moves_its_timer(live: Live, loop: Loop, to: int | None) -> None:
    (one,) = in_flight(live, loop, record(expires=int(NOW) + 1))
    live.apply(Delta(1, (record(expires=to),)))
    for _ in range(5):
        loop.passes(1.0)
        live.tick()
    assert one.cuts == []
    assert loop.armed == 0
    live.apply(Delta(2, (record(expires=int(loop.wall) + 2),)))
    for _ in range(2):
        loop.passes(1.0)
        live.tick()
    loop.passes(TOLERANCE)
    assert one.reasons == {KEY_EXPIRED}


def test_a_key_without_anything_in_flight_has_no_timer(live: Live, loop: Loop) -> None:
    key = record(expires=int(NOW) + 1)
    one, another = in_flight(live, loop, key, 2)
    live.remove(key, one)
    assert loop.armed == 1
    live.remove(key, another)
    assert loop.armed == 0
    loop.passes(5.0)
    assert one.cuts == another.cuts == []


def test_a_kill_ends_the_one_that_it_names(live: Live, loop: Loop) -> None:
    one, another = in_flight(live, loop, record(), 2)
    (other,) = in_flight(live, loop, record(TWO))
    assert live.kill(another.request_id) == 1
    assert live.kill("nobody's") == 0
    assert (one.cuts, another.reasons, other.cuts) == ([], {OPERATOR_ENDED}, [])


def test_rows_are_of_one_key_or_of_all(live: Live, loop: Loop) -> None:
    in_flight(live, loop, record(), 2)
    in_flight(live, loop, record(TWO))
    assert sorted(row["id"] for row in live.rows(None)) == [f"{ONE}-0", f"{ONE}-1", f"{TWO}-0"]
    assert [row["id"] for row in live.rows(TWO)] == [f"{TWO}-0"]
    assert live.rows(KeyId("c" * 10)) == []


def test_a_fault_with_one_does_not_let_the_others_go_on(live: Live, loop: Loop) -> None:
    def fault() -> None:
        raise RuntimeError("the handler is closed")

    held = in_flight(live, loop, record(), 5)
    for one in held:
        one.on_cut = fault
    with pytest.raises(RuntimeError):
        live.apply(Delta(1, (record(state=State.REVOKED),)))
    assert all(one.reasons == {KEY_REVOKED} for one in held)
