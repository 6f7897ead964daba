"""A key's rate and burst: never more, within one, than they say over any time, and never less."""

import math
from typing import Final

import pytest
from hypothesis import given, strategies as st

from dgproxy.access.keys import KeyId
from dgproxy.access.rates import Bucket, Buckets
from dgproxy.units import Rate
from tests.support.clock import Clock

RATES: Final = st.builds(Rate, st.integers(1, 5000).map(float), st.sampled_from([1.0, 60.0, 3600.0, 86400.0]))
BURSTS: Final = st.integers(1, 2000)
STEPS: Final = st.lists(st.floats(0, 5) | st.floats(0, 100_000), max_size=60)
TOLERANCE: Final = 1e-6  # of a request: floating point


@given(RATES, BURSTS, STEPS, st.data())
def test_over_any_time_no_more_begin_than_burst_and_rate_allow(
    rate: Rate, burst: int, steps: list[float], data: st.DataObject
) -> None:
    clock = Clock()
    bucket = Bucket(clock, rate, burst)
    taken: list[float] = []
    for step in steps:
        clock.now += step
        taken += [clock.now for _ in range(data.draw(st.integers(1, 50))) if bucket.take()]
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            most = burst + (taken[last] - taken[first]) * rate.per_second
            assert last - first + 1 <= most + TOLERANCE * (1 + most)


@given(RATES, BURSTS, STEPS)
def test_who_keeps_to_the_rate_is_never_refused(rate: Rate, burst: int, steps: list[float]) -> None:
    clock = Clock()
    bucket = Bucket(clock, rate, burst)
    for step in steps:
        clock.now += max(step, 1.001 / rate.per_second)  # a thousandth of a request late: floating point
        assert bucket.take()


@given(RATES, BURSTS)
def test_a_burst_is_exactly_so_many_and_who_waits_as_told_has_one_more(rate: Rate, burst: int) -> None:
    clock = Clock()
    bucket = Bucket(clock, rate, burst)
    assert sum(bucket.take() for _ in range(burst + 5)) == burst
    wait = bucket.wait
    assert wait == pytest.approx(1 / rate.per_second)
    clock.now += wait * 0.99
    assert not bucket.take()
    clock.now += wait * 0.01 + TOLERANCE / rate.per_second
    assert bucket.take()
    assert not bucket.take()


@given(RATES, BURSTS, st.integers(0, 3000), RATES, BURSTS)
def test_another_rate_or_burst_holds_from_the_next_decision_and_keeps_what_was_begun(
    rate: Rate, burst: int, begun: int, new_rate: Rate, new_burst: int
) -> None:
    clock = Clock()
    bucket = Bucket(clock, rate, burst)
    begun = sum(bucket.take() for _ in range(begun))
    bucket.adjust(new_rate, new_burst)
    assert bucket.wait == pytest.approx(max(0, begun + 1 - new_burst) / new_rate.per_second)
    assert sum(bucket.take() for _ in range(new_burst + 5)) == max(0, new_burst - begun)


def test_the_time_before_a_change_counts_at_the_old_rate() -> None:
    clock = Clock()
    bucket = Bucket(clock, Rate(4.0, 1.0), 4)
    assert all(bucket.take() for _ in range(4))
    clock.now += 0.5
    bucket.adjust(Rate(1.0, 60.0), 4)
    assert [bucket.take() for _ in range(3)] == [True, True, False]


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.floats(0, 3)), max_size=200))
def test_a_key_is_forgotten_only_when_that_changes_nothing(uses: list[tuple[str, float]]) -> None:
    clock = Clock()
    rate, burst = Rate(1.0, 1.0), 3
    buckets = Buckets(clock)
    kept = {name: Bucket(clock, rate, burst) for name in "abcdefgh"}
    for name, step in uses:
        clock.now += step
        bucket = buckets.of(KeyId(name), rate, burst)
        assert bucket.take() is kept[name].take()
        assert math.isclose(bucket.wait, kept[name].wait, abs_tol=1e-9)


def test_keys_that_are_used_once_cost_no_memory_for_long() -> None:
    clock = Clock()
    buckets = Buckets(clock)
    for number in range(10_000):
        clock.now += 0.1
        assert buckets.of(KeyId(str(number)), Rate(1.0, 1.0), 5).take()
    assert len(buckets) < 30
