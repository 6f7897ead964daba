"""Identifiers: of their form, and none twice."""

import uuid

from hypothesis import given, strategies as st

from dgproxy.ids import Random


def test_a_uuid_is_one_of_version_4_and_none_comes_twice() -> None:
    random = Random()
    seen = [random.uuid() for _ in range(3000)]  # many pages' worth
    assert len(set(seen)) == len(seen)
    for text in seen:
        found = uuid.UUID(text)
        assert str(found) == text
        assert (found.version, found.variant) == (4, uuid.RFC_4122)
    assert {text[19] for text in seen} == set("89ab")


@given(st.lists(st.integers(1, 8192), min_size=1, max_size=20))
def test_digits_are_as_many_as_asked_for_and_hex(counts: list[int]) -> None:
    random = Random()
    for count in counts:
        text = random.digits(count)
        assert len(text) == count
        assert bytes.fromhex(text.zfill(count + count % 2)).hex() == text.zfill(count + count % 2)


def test_two_sources_share_nothing() -> None:
    assert Random().digits(64) != Random().digits(64)
