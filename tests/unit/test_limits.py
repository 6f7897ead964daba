"""The ledger: a slot is held from its admission to its end, and no limit is ever passed."""

from collections import Counter
from typing import Final

import pytest
from hypothesis import settings, strategies as st
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
from dgproxy.access.limits import Ledger, Owner, Slot
from dgproxy.config import Plan
from dgproxy.wire.deepgram import Class
from dgproxy.wire.refusals import Refusal

KEYS: Final = [KeyId("aaaaaaaaaa"), KeyId("bbbbbbbbbb")]
ONE, TWO = KEYS
PLAN: Final = Plan(streams=3, streams_by_class={"flux": 1, "stream": 2})


def taken(verdict: Refusal | None) -> bool:
    """Whether a slot was given; a refusal must be the 429 that says so."""
    if verdict is None:
        return True
    assert (verdict.status, verdict.code, verdict.close) == (429, "TOO_MANY_REQUESTS", False)
    assert verdict.retry_after is not None
    assert verdict.retry_after >= 1
    return False


class Conversation(RuleBasedStateMachine):
    """Any order of what workers say, against the plain list of what is held."""

    owners: Bundle[Owner] = Bundle("owners")
    slots: Bundle[tuple[Owner, Slot]] = Bundle("slots")

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.held: dict[tuple[Owner, Slot], tuple[KeyId, Class]] = {}
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

    @rule(target=slots, owner=owners, key=st.sampled_from(KEYS), cls=st.sampled_from(Class))
    def admit(self, owner: Owner, key: KeyId, cls: Class) -> tuple[Owner, Slot]:
        self.last_slot += 1
        slot = Slot(self.last_slot)
        of_key = [held for held in self.held.values() if held[0] == key]
        limit = PLAN.streams_by_class.get(cls, PLAN.streams)
        room = len(of_key) < PLAN.streams and of_key.count((key, cls)) < limit
        assert taken(self.ledger.admit(owner, slot, key, cls, PLAN)) is room
        if room:
            self.held[owner, slot] = (key, cls)
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
    def no_limit_is_passed(self) -> None:
        for key in KEYS:
            assert self.ledger.in_use(key) <= PLAN.streams
            for cls, limit in PLAN.streams_by_class.items():
                assert self.ledger.in_use(key, Class(cls)) <= limit

    @invariant()
    def who_holds_nothing_costs_nothing(self) -> None:
        assert set(self.ledger._by_key) == {key for key, _ in self.held.values()}
        assert set(self.ledger._by_class) == set(self.held.values())
        assert set(self.ledger._held) <= {Owner(number) for number in range(self.last_owner + 1)}


TestAnyConversation = Conversation.TestCase
TestAnyConversation.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_the_limit_is_of_the_key_over_all_workers_and_of_no_other_key() -> None:
    ledger = Ledger()
    assert [taken(ledger.admit(Owner(worker), Slot(1), ONE, Class.BATCH, PLAN)) for worker in (1, 2, 3, 4)] == [
        True,
        True,
        True,
        False,
    ]
    assert taken(ledger.admit(Owner(4), Slot(1), TWO, Class.BATCH, PLAN))


def test_a_class_is_limited_beside_the_key() -> None:
    ledger = Ledger()
    assert taken(ledger.admit(Owner(1), Slot(1), ONE, Class.FLUX, PLAN))
    verdict = ledger.admit(Owner(1), Slot(2), ONE, Class.FLUX, PLAN)
    assert verdict is not None
    assert "1 of 1" in verdict.message
    assert "flux" in verdict.message
    assert taken(ledger.admit(Owner(1), Slot(2), ONE, Class.STREAM, PLAN))


def test_a_limit_of_none_and_a_lowered_one_refuse_what_is_new_and_keep_what_is_held() -> None:
    ledger = Ledger()
    assert not taken(ledger.admit(Owner(1), Slot(1), ONE, Class.BATCH, Plan(streams=0)))
    assert taken(ledger.admit(Owner(1), Slot(1), ONE, Class.BATCH, PLAN))
    assert not taken(ledger.admit(Owner(1), Slot(2), ONE, Class.BATCH, Plan(streams=1)))
    assert ledger.in_use(ONE) == 1


def test_a_late_word_of_a_dead_worker_frees_nothing_of_its_successor() -> None:
    ledger = Ledger()
    assert taken(ledger.admit(Owner(1), Slot(7), ONE, Class.BATCH, PLAN))
    assert ledger.forget(Owner(1)) == 1
    assert taken(ledger.admit(Owner(2), Slot(7), ONE, Class.BATCH, PLAN))
    assert ledger.give_back(Owner(1), Slot(7)) is False
    assert ledger.in_use(ONE) == 1
