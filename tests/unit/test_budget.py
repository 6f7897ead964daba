"""The bytes that a worker may hold: counted both ways, told once when they are too many."""

from hypothesis import given, strategies as st

from dgproxy.net.budget import Budget, unbounded


class Told:
    """Counts how often it was told."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1


def test_up_to_the_limit_nobody_is_told_and_one_byte_over_it_once() -> None:
    told = Told()
    budget = Budget(100, told)
    budget.take(60)
    budget.take(40)
    assert (told.times, budget.excess) == (0, 0)
    budget.take(1)
    assert (told.times, budget.excess) == (1, 1)
    budget.take(50)
    assert (told.times, budget.excess) == (1, 51)


def test_it_is_told_again_only_after_it_was_mended() -> None:
    told = Told()
    budget = Budget(100, told)
    budget.take(150)
    budget.give_back(49)
    budget.take(49)
    assert told.times == 1
    budget.give_back(50)
    assert budget.excess == 0
    budget.take(1)
    assert told.times == 2


def test_what_is_bearable_is_less_than_the_limit() -> None:
    budget = Budget(1000, Told())
    assert budget.bearable == 900
    assert Budget(1, Told()).bearable == 0


def test_who_holds_little_is_never_told_of() -> None:
    budget = unbounded()
    budget.take(1 << 40)
    assert budget.excess == 0


@given(st.integers(1, 1000), st.lists(st.tuples(st.booleans(), st.integers(0, 500))))
def test_it_is_told_at_each_passing_of_the_limit_and_at_no_other_time(
    limit: int, steps: list[tuple[bool, int]]
) -> None:
    told = Told()
    budget = Budget(limit, told)
    used = passed = 0
    for takes, size in steps:
        before = used
        if takes:
            budget.take(size)
            used += size
        else:
            budget.give_back(min(size, used))
            used -= min(size, used)
        passed += before <= limit < used
        assert (budget.used, told.times, budget.excess) == (used, passed, max(0, used - limit))
