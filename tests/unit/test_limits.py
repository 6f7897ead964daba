"""The ledger: a slot is held from its admission to its end, and no limit or rate is ever passed; the pace of a body."""

import math
from collections import Counter
from typing import Final

import pytest
from hypothesis import example, given, settings, strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from dgproxy.access.keys import KeyId
from dgproxy.access.limits import Ledger, Owner, Pace, Slot, source
from dgproxy.config import Plan
from dgproxy.units import MinimumRate, Rate
from dgproxy.wire.deepgram import Class
from dgproxy.wire.refusals import TOO_MANY_CONNECTIONS, Refusal
from tests.support.clock import Clock

KEYS: Final = [KeyId("aaaaaaaaaa"), KeyId("bbbbbbbbbb")]
ONE, TWO = KEYS
PLAN: Final = Plan(streams=3, streams_by_class={"flux": 1, "stream": 2})
# Powers of two, and times of a 64th of a second, so that the test's own arithmetic is exact.
PLANS: Final = [
    Plan(streams=3, streams_by_class={"flux": 1, "stream": 2}, rate=Rate(2.0, 1.0), burst=4),
    Plan(streams=5, rate=Rate(8.0, 1.0), burst=2),
    Plan(streams=1, streams_by_class={"flux": 3}, rate=Rate(2.0, 1.0), burst=16),
    Plan(streams=0),
]


def new_ledger() -> Ledger:
    """One whose clock stands still."""
    return Ledger(Clock())


def taken(verdict: Refusal | None) -> bool:
    """Whether a slot was given; a refusal must be the 429 that says so."""
    if verdict is None:
        return True
    assert (verdict.status, verdict.code, verdict.close) == (429, "TOO_MANY_REQUESTS", False)
    assert verdict.retry_after is not None
    assert verdict.retry_after >= 1
    told = dict(verdict.headers)
    assert told["RateLimit-Remaining"] == "0"
    assert told["RateLimit-Reset"] == str(verdict.retry_after)
    assert int(told["RateLimit-Limit"]) >= 0
    return False


class Conversation(RuleBasedStateMachine):
    """Any order of what workers say, of time and of changed plans, against the plain list of what is held and begun."""

    owners: Bundle[Owner] = Bundle("owners")
    slots: Bundle[tuple[Owner, Slot]] = Bundle("slots")

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.ledger = Ledger(self.clock)
        self.held: dict[tuple[Owner, Slot], tuple[KeyId, Class]] = {}
        self.plans = dict.fromkeys(KEYS, PLANS[0])
        self.judged_by = dict(self.plans)  # a bucket knows a new plan when it is asked under it
        self.begun = dict.fromkeys(KEYS, 0.0)
        self.last_owner = 0
        self.last_slot = 0

    def _new_owner(self) -> Owner:
        self.last_owner += 1
        return Owner(self.last_owner)

    @initialize(target=owners)
    def two_workers(self) -> MultipleResults[Owner]:
        return multiple(self._new_owner(), self._new_owner())

    @rule(target=owners)
    def another_worker(self) -> Owner:
        return self._new_owner()

    @rule(sixty_fourths=st.integers(1, 256))
    def time_goes_on(self, sixty_fourths: int) -> None:
        self.clock.now += sixty_fourths / 64
        for key, plan in self.judged_by.items():
            self.begun[key] = max(0.0, self.begun[key] - plan.rate.per_second * sixty_fourths / 64)

    @rule(key=st.sampled_from(KEYS), plan=st.sampled_from(PLANS))
    def change_plan(self, key: KeyId, plan: Plan) -> None:
        self.plans[key] = plan

    @rule(target=slots, owner=owners, key=st.sampled_from(KEYS), cls=st.sampled_from(Class))
    def admit(self, owner: Owner, key: KeyId, cls: Class) -> tuple[Owner, Slot]:
        self.last_slot += 1
        slot = Slot(self.last_slot)
        plan = self.plans[key]
        of_key = [held for held in self.held.values() if held[0] == key]
        room = len(of_key) < plan.streams and of_key.count((key, cls)) < plan.streams_by_class.get(cls, plan.streams)
        if room:
            self.judged_by[key] = plan
            room = self.begun[key] + 1 <= plan.burst
        assert taken(self.ledger.admit(owner, slot, key, cls, plan)) is room
        if room:
            self.held[owner, slot] = (key, cls)
            self.begun[key] += 1
        return owner, slot

    @rule(slot=slots, key=st.sampled_from(KEYS))
    def ask_again_for_a_slot_that_is_held(self, slot: tuple[Owner, Slot], key: KeyId) -> None:
        if slot in self.held:
            with pytest.raises(ValueError, match="held"):
                self.ledger.admit(*slot, key, Class.BATCH, PLAN)

    @rule(slot=slots)
    def give_back_once_or_again(self, slot: tuple[Owner, Slot]) -> None:
        assert self.ledger.give_back(*slot) is (self.held.pop(slot, None) is not None)

    @rule(slot=slots, owner=owners)
    def give_back_what_another_holds(self, slot: tuple[Owner, Slot], owner: Owner) -> None:
        if slot[0] != owner:
            assert self.ledger.give_back(owner, slot[1]) is False

    @rule(owner=consumes(owners))
    def a_worker_dies(self, owner: Owner) -> None:
        freed = [slot for slot in self.held if slot[0] == owner]
        assert self.ledger.forget(owner) == len(freed)
        assert self.ledger.forget(owner) == 0
        for slot in freed:
            del self.held[slot]

    @invariant()
    def in_use_is_what_is_held(self) -> None:
        by_class = Counter(self.held.values())
        for key in KEYS:
            assert self.ledger.in_use(key) == sum(count for (holder, _), count in by_class.items() if holder == key)
            for cls in Class:
                assert self.ledger.in_use(key, cls) == by_class[key, cls]

    @invariant()
    def who_holds_nothing_costs_nothing(self) -> None:
        assert set(self.ledger._by_key) == {key for key, _ in self.held.values()}
        assert set(self.ledger._by_class) == set(self.held.values())
        assert set(self.ledger._held) <= {Owner(number) for number in range(self.last_owner + 1)}


TestAnyConversation = Conversation.TestCase
TestAnyConversation.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_the_limit_is_of_the_key_over_all_workers_and_of_no_other_key() -> None:
    ledger = new_ledger()
    assert [taken(ledger.admit(Owner(worker), Slot(1), ONE, Class.BATCH, PLAN)) for worker in (1, 2, 3, 4)] == [
        True,
        True,
        True,
        False,
    ]
    assert taken(ledger.admit(Owner(4), Slot(1), TWO, Class.BATCH, PLAN))


def test_a_class_is_limited_beside_the_key() -> None:
    ledger = new_ledger()
    assert taken(ledger.admit(Owner(1), Slot(1), ONE, Class.FLUX, PLAN))
    verdict = ledger.admit(Owner(1), Slot(2), ONE, Class.FLUX, PLAN)
    assert verdict is not None
    assert "1 of 1" in verdict.message
    assert "flux" in verdict.message
    assert taken(ledger.admit(Owner(1), Slot(2), ONE, Class.STREAM, PLAN))


def test_a_limit_of_none_and_a_lowered_one_refuse_what_is_new_and_keep_what_is_held() -> None:
    ledger = new_ledger()
    assert not taken(ledger.admit(Owner(1), Slot(1), ONE, Class.BATCH, Plan(streams=0)))
    assert taken(ledger.admit(Owner(1), Slot(1), ONE, Class.BATCH, PLAN))
    assert not taken(ledger.admit(Owner(1), Slot(2), ONE, Class.BATCH, Plan(streams=1)))
    assert ledger.in_use(ONE) == 1


def test_a_late_word_of_a_dead_worker_frees_nothing_of_its_successor() -> None:
    ledger = new_ledger()
    assert taken(ledger.admit(Owner(1), Slot(7), ONE, Class.BATCH, PLAN))
    assert ledger.forget(Owner(1)) == 1
    assert taken(ledger.admit(Owner(2), Slot(7), ONE, Class.BATCH, PLAN))
    assert ledger.give_back(Owner(1), Slot(7)) is False
    assert ledger.in_use(ONE) == 1


def test_a_request_that_is_refused_is_not_counted_as_begun() -> None:
    clock = Clock()
    ledger = Ledger(clock)
    plan = Plan(streams=1, rate=Rate(1.0, 60.0), burst=2)
    assert taken(ledger.admit(Owner(1), Slot(1), ONE, Class.BATCH, plan))
    for number in range(2, 12):
        assert not taken(ledger.admit(Owner(1), Slot(number), ONE, Class.BATCH, plan))
    assert ledger.give_back(Owner(1), Slot(1))
    assert taken(ledger.admit(Owner(1), Slot(2), ONE, Class.BATCH, plan))


def test_a_rate_that_is_passed_takes_no_slot_and_says_which_and_when_to_come_back() -> None:
    clock = Clock()
    ledger = Ledger(clock)
    plan = Plan(streams=9, rate=Rate(2.0, 60.0), burst=2)
    assert taken(ledger.admit(Owner(1), Slot(1), ONE, Class.BATCH, plan))
    assert taken(ledger.admit(Owner(2), Slot(1), ONE, Class.STREAM, plan))  # of all workers and classes together
    verdict = ledger.admit(Owner(1), Slot(2), ONE, Class.BATCH, plan)
    assert verdict is not None
    assert not taken(verdict)
    assert (verdict.retry_after, dict(verdict.headers)["RateLimit-Limit"]) == (30, "2")
    assert "2/m" in verdict.message
    assert ledger.in_use(ONE) == 2
    assert taken(ledger.admit(Owner(1), Slot(2), TWO, Class.BATCH, plan))  # another key has its own
    clock.now += 30.0
    assert taken(ledger.admit(Owner(1), Slot(3), ONE, Class.BATCH, plan))


# --- connections of an address ----------------------------------------------------------------------------------------


class Arrivals(RuleBasedStateMachine):
    """Any order of what workers say of connections and of requests, against the plain list of what is held."""

    owners: Bundle[Owner] = Bundle("owners")
    seats: Bundle[tuple[Owner, Slot]] = Bundle("seats")

    def __init__(self) -> None:
        super().__init__()
        self.ledger = new_ledger()
        self.seated: dict[tuple[Owner, Slot], str] = {}
        self.requests: set[tuple[Owner, Slot]] = set()
        self.last = 0

    def _number(self) -> int:
        self.last += 1
        return self.last

    @initialize(target=owners)
    def two_workers(self) -> MultipleResults[Owner]:
        return multiple(Owner(self._number()), Owner(self._number()))

    @rule(target=owners)
    def another_worker(self) -> Owner:
        return Owner(self._number())

    @rule(target=seats, owner=owners, address=st.sampled_from(["192.0.2.1", "2001:db8::/64"]))
    def arrive(self, owner: Owner, address: str) -> tuple[Owner, Slot]:
        slot = Slot(self._number())
        room = list(self.seated.values()).count(address) < 3
        assert self.ledger.admit_connection(owner, slot, address, 3) is (None if room else TOO_MANY_CONNECTIONS)
        if room:
            self.seated[owner, slot] = address
        return owner, slot

    @rule(target=seats, owner=owners)
    def request(self, owner: Owner) -> tuple[Owner, Slot]:
        slot = Slot(self._number())
        if taken(self.ledger.admit(owner, slot, ONE, Class.BATCH, Plan(streams=2))):
            self.requests.add((owner, slot))
        return owner, slot

    @rule(seat=seats)
    def take_one_that_is_held(self, seat: tuple[Owner, Slot]) -> None:
        if seat in self.seated or seat in self.requests:
            with pytest.raises(ValueError, match="held"):
                self.ledger.admit_connection(*seat, "198.51.100.1", 3)

    @rule(seat=seats)
    def leave_once_or_again(self, seat: tuple[Owner, Slot]) -> None:
        held = self.seated.pop(seat, None) is not None or seat in self.requests
        self.requests.discard(seat)
        assert self.ledger.give_back(*seat) is held

    @rule(owner=consumes(owners))
    def a_worker_dies(self, owner: Owner) -> None:
        own = [seat for seat in (*self.seated, *self.requests) if seat[0] == owner]
        assert self.ledger.forget(owner) == len(own)
        for seat in own:
            self.seated.pop(seat, None)
            self.requests.discard(seat)

    @invariant()
    def what_is_counted_is_what_is_held_and_no_more_than_the_limit(self) -> None:
        held = Counter(self.seated.values())
        assert self.ledger._by_source == held  # who holds nothing costs nothing, too
        assert all(count <= 3 for count in held.values())
        assert self.ledger.in_use(ONE) == len(self.requests)


TestAnyArrivals = Arrivals.TestCase
TestAnyArrivals.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_an_address_has_so_many_connections_over_all_workers_and_another_address_its_own() -> None:
    ledger = new_ledger()
    for worker in (1, 2):
        assert ledger.admit_connection(Owner(worker), Slot(1), "192.0.2.1", 2) is None
    for worker in (1, 2, 3):
        assert ledger.admit_connection(Owner(worker), Slot(2), "192.0.2.1", 2) is TOO_MANY_CONNECTIONS
    assert ledger.admit_connection(Owner(1), Slot(2), "192.0.2.2", 2) is None
    assert ledger.give_back(Owner(2), Slot(1))
    assert ledger.admit_connection(Owner(3), Slot(2), "192.0.2.1", 2) is None
    assert ledger.forget(Owner(1)) == 2
    assert ledger.admit_connection(Owner(3), Slot(3), "192.0.2.1", 2) is None


SOURCES: Final = [
    ("192.0.2.1", "192.0.2.1"),
    ("::ffff:192.0.2.1", "192.0.2.1"),
    ("::ffff:c000:201", "192.0.2.1"),
    ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
    ("2001:db8:1:2::", "2001:db8:1:2::/64"),
    ("2001:db8:1:3::", "2001:db8:1:3::/64"),
    ("2001:DB8:1:2:0:0:0:1", "2001:db8:1:2::/64"),
    ("::1", "::/64"),
    ("fe80::1%eth0", "fe80::/64"),
    ("fe80::2%3", "fe80::/64"),
    ("::ffff:192.0.2.1%eth0", "192.0.2.1"),
]


@pytest.mark.parametrize(("address", "counted"), SOURCES)
def test_a_source_is_an_ipv4_address_or_an_ipv6_network_of_64_bits(address: str, counted: str) -> None:
    assert source(address) == counted


@given(st.ip_addresses(v=6), st.integers(0, (1 << 64) - 1))
def test_all_of_a_64_bit_network_is_one_source(address: object, host: int) -> None:
    network = int(address) >> 64 << 64  # type: ignore[call-overload]
    other = str(type(address)(network | host))  # type: ignore[call-arg]
    if network:  # in ::/64 the mapped IPv4 addresses are apart
        assert source(str(address)) == source(other)


@given(st.ip_addresses(v=4), st.ip_addresses(v=4))
def test_ipv4_addresses_are_one_source_each_mapped_or_not(one: object, other: object) -> None:
    assert (source(str(one)) == source(f"::ffff:{other}")) is (one == other)


# --- pace -------------------------------------------------------------------------------------------------------------

RATES: Final = st.builds(MinimumRate, st.integers(1, 1 << 20), st.integers(1, 240).map(lambda quarters: quarters / 4))
# Waits in 64ths of a second: their sums are exact, so that the test's arithmetic is not what is tested.
WAITS: Final = st.lists(st.tuples(st.integers(0, 640), st.integers(0, 1 << 16)), max_size=60)


def noted(pace: Pace, waited: float, size: int) -> bool:
    """What comes after a wait, as an exchange notes it: no wait is longer than to the next judgement."""
    while waited > pace.left:
        left = pace.left
        waited -= left
        if not pace.note(left, 0):
            return False
    return pace.note(waited, size)


@given(RATES, st.lists(st.integers(1, 640), max_size=60))
def test_a_body_that_comes_at_the_minimum_is_never_refused(rate: MinimumRate, waits: list[int]) -> None:
    pace = Pace(rate)
    for wait in waits:  # just enough bytes, as they trickle in: never less than the minimum over any time
        for _ in range(wait):
            assert pace.note(1 / 64, -(-rate.bytes // 64))


@given(RATES, st.data())
def test_a_body_that_has_the_minimum_in_every_window_is_never_refused_however_it_is_spread(
    rate: MinimumRate, data: st.DataObject
) -> None:
    pace = Pace(rate)
    for _ in range(4):
        steps = int(rate.over * 64)
        burst = data.draw(st.integers(1, steps))  # all of a window's bytes at once, anywhere in it
        for step in range(1, steps + 1):
            assert pace.note(1 / 64, math.ceil(rate.bytes * rate.over) if step == burst else 0)


@given(RATES, WAITS)
def test_a_body_below_the_minimum_is_refused_by_the_end_of_a_window(
    rate: MinimumRate, waits: list[tuple[int, int]]
) -> None:
    pace = Pace(rate)
    short = math.ceil(rate.bytes * rate.over) - 1  # a byte too few, spread as it may be
    waited = 0.0
    for sixty_fourths, size in waits:
        wait = min(sixty_fourths / 64, rate.over - waited)
        waited += wait
        now = min(size, short)
        short -= now
        if waited >= rate.over:
            assert not pace.note(wait, now)
            return
        assert pace.note(wait, now)
    assert not noted(pace, rate.over - waited, short)


@given(RATES, st.lists(st.integers(0, 1 << 16), max_size=100))
@example(MinimumRate(1 << 20, 1.0), [0] * 100)
def test_time_in_which_nobody_waited_for_the_sender_does_not_count(rate: MinimumRate, sizes: list[int]) -> None:
    pace = Pace(rate)
    for size in sizes:  # the upstream took an hour for each of these: it is not told
        assert pace.note(0.0, size)
    assert pace.left == rate.over


def test_each_window_stands_for_itself() -> None:
    pace = Pace(MinimumRate(10, 2.0))
    assert pace.note(1.0, 1_000_000)
    assert pace.left == 1.0
    assert pace.note(1.0, 0)
    assert pace.left == 2.0
    assert pace.note(2.0, 20)
    assert not pace.note(2.0, 19)


def test_without_a_minimum_nothing_is_judged() -> None:
    pace = Pace(MinimumRate(0, 30.0))
    assert pace.left == math.inf
    assert pace.note(1e9, 0)
