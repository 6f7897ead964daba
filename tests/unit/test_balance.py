"""Which container is tried first, and by what name it is called."""

import pytest
from hypothesis import given, strategies as st

from dgproxy.config import Url
from dgproxy.upstream.balance import Target, order


def targets(*in_flight: int) -> list[Target]:
    return [Target(Url("http", f"dg{number}", 8080), count) for number, count in enumerate(in_flight)]


@given(st.lists(st.integers(0, 5), max_size=8))
def test_the_least_loaded_comes_first_and_equals_keep_their_configured_order(loads: list[int]) -> None:
    given_ = targets(*loads)
    tried = order(given_)
    assert sorted(map(id, tried)) == sorted(map(id, given_))  # each of them once
    assert [(target.in_flight, given_.index(target)) for target in tried] == sorted(
        (target.in_flight, number) for number, target in enumerate(given_)
    )
    assert [target.in_flight for target in given_] == loads  # and nothing of it was moved


def test_two_targets_of_one_url_are_counted_apart() -> None:
    one, other = Target(Url("http", "dg", 80)), Target(Url("http", "dg", 80))
    one.in_flight = 1
    assert one != other
    assert order([one, other]) == [other, one]
    assert len({one, other}) == 2


@pytest.mark.parametrize(
    ("url", "name", "host"),
    [
        (Url("http", "dg", 8080), "http://dg:8080", b"dg:8080"),
        (Url("http", "dg", 80), None, b"dg"),
        (Url("https", "dg", 443), None, b"dg"),
        (Url("https", "dg", 80), "https://dg:80", b"dg:80"),
        (Url("http", "dg", 443), "http://dg:443", b"dg:443"),
        (Url("http", "::1", 8080), "http://[::1]:8080", b"[::1]:8080"),
        (Url("http", "::1", 80), None, b"[::1]"),
        (Url("http", "dg", 8180), "http://dg:8180", b"dg:8180"),
    ],
)
def test_the_host_header_names_the_port_unless_it_is_the_schemes_own(url: Url, name: str | None, host: bytes) -> None:
    target = Target(url)
    assert target.host == host
    assert target.name == (str(url) if name is None else name)
