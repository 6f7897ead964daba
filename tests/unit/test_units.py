"""Durations, sizes, rates, quotas: what is written is what is meant, and what is not understood is told."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, strategies as st

from dgproxy import units
from dgproxy.units import Allowance, MinimumRate, Rate

COUNTS = st.integers(0, units.MAX_COUNT)
SECONDS = st.integers(0, int(units.MAX_DURATION * 1000)).map(lambda milliseconds: milliseconds / 1000)
WINDOWS = st.sampled_from(units.WINDOWS)
PARSERS: list[Callable[[str], Any]] = [
    units.parse_count,
    units.parse_duration,
    units.parse_duration_or_never,
    units.parse_size,
    units.parse_rate,
    units.parse_minimum_rate,
    lambda text: units.parse_allowance(text, "audio"),
    lambda text: units.parse_allowance(text, "requests"),
    lambda text: units.parse_allowance(text, "bytes"),
    lambda text: units.parse_allowance(text, "characters"),
]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10),
        ("1500ms", 1.5),
        ("30m", 1800),
        ("24h", 86_400),
        ("90d", 7_776_000),
        ("0s", 0),
        ("36500d", 3153600000),
    ],
)
def test_a_duration_is_seconds(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "10",
            "s",
            "10 s",
            " 10s",
            "10s ",
            "10s\n",
            "-1s",
            "+1s",
            "1.5s",
            "1e3s",
            "010s",
            "1h30m",
            "10S",
            "10sec",
        ),
        *("never", "٣s", "1_000s", "10µs", "36501d", "99999999999999999999d", "9" * 30 + "s"),
    ],
)
def test_what_is_no_duration_is_refused_and_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no duration; write|is too long; the longest") as told:
        units.parse_duration(text)
    assert units.quoted(text) in str(told.value)


def test_never_is_a_duration_only_where_it_may_be() -> None:
    assert units.parse_duration_or_never("never") is None
    assert units.parse_duration_or_never("30m") == 1800
    assert units.format_duration_or_never(None) == "never"
    assert units.format_duration_or_never(1800.0) == "30m"
    with pytest.raises(ValueError, match='or "never"'):
        units.parse_duration_or_never("Never")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("0B", 0),
        ("1B", 1),
        ("32KiB", 32_768),
        ("256MiB", 268_435_456),
        ("2GiB", 2_147_483_648),
        ("1TiB", 2**40),
    ],
)
def test_a_size_is_bytes(text: str, size: int) -> None:
    assert units.parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "32", "32KB", "32kib", "32K", "1.5GiB", "-1B", "32 KiB", "9007199254740993B", "9999TiB"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no size; write|is too large"):
        units.parse_size(text)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("20/s", Rate(20, 1)),
        ("20/sec", Rate(20, 1)),
        ("1200/min", Rate(1200, 60)),
        ("60/m", Rate(60, 60)),
        ("10/h", Rate(10, 3600)),
        ("10/hour", Rate(10, 3600)),
        ("5/day", Rate(5, 86_400)),
        ("5/d", Rate(5, 86_400)),
    ],
)
def test_a_rate_is_so_many_in_so_many_seconds(text: str, rate: Rate) -> None:
    assert units.parse_rate(text) == rate


def test_a_rate_is_also_events_a_second() -> None:
    assert units.parse_rate("60/m").per_second == 1
    assert units.parse_rate("10/s").per_second == 10


@pytest.mark.parametrize(
    "text",
    ["", "20", "/s", "20/", "20 per second", "20/ms", "20/month", "0/s", "1.5/s", "20 / s", "-1/s", "20/s/s", "20/S"],
)
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r'is no rate; write "20/s", "1200/min"|would let nothing through'):
        units.parse_rate(text)


def test_a_minimum_rate_has_a_window() -> None:
    assert units.parse_minimum_rate("4KiB/s over 30s") == MinimumRate(4096, 30)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "4KiB/s",
        "4KiB over 30s",
        "4KiB/m over 30s",
        "4KB/s over 30s",
        "4KiB/s over 30",
        "4KiB/s over 0s",
        "4KiB/s  over 30s",
    ],
)
def test_what_is_no_minimum_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r'like "4KiB/s over 30s"|a whole one is "4KiB/s over 30s"'):
        units.parse_minimum_rate(text)


def test_an_allowance_counts_what_it_is_of() -> None:
    assert units.parse_allowance("100h/month", "audio") == Allowance(360_000, "month")
    assert units.parse_allowance("100000/day", "requests") == Allowance(100_000, "day")
    assert units.parse_allowance("5GiB/week", "bytes") == Allowance(5 << 30, "week")
    assert units.parse_allowance("7/day", "characters") == Allowance(7, "day")


@pytest.mark.parametrize(
    ("text", "counted"),
    [
        ("100h", "audio"),
        ("100/month", "audio"),
        ("100h/year", "audio"),
        ("0h/day", "audio"),
        ("100h/day", "requests"),
        ("100000/m", "requests"),
        ("5GB/week", "bytes"),
        ("-1/day", "characters"),
        ("/day", "requests"),
    ],
)
def test_what_is_no_allowance_is_refused(text: str, counted: units.Counted) -> None:
    with pytest.raises(ValueError, match=f"no quota of {counted}"):
        units.parse_allowance(text, counted)


@pytest.mark.parametrize("text", ["60s", "75s", "25m", "30m", "24h", "2d", "1s", "1500ms", "0s", "1ms", "90d"])
def test_a_duration_is_written_as_people_do(text: str) -> None:
    assert units.format_duration(units.parse_duration(text)) == text


def test_what_is_quoted_is_short_and_safe_for_a_terminal() -> None:
    assert units.quoted("\x1b[31m\x7f\n\u202e") == '"\\u001b[31m\\u007f\\n\\u202e"'
    assert len(units.quoted("x" * 10_000)) < 80


@given(SECONDS)
def test_durations_survive_being_written(seconds: float) -> None:
    assert units.parse_duration(units.format_duration(seconds)) == seconds


@given(COUNTS)
def test_sizes_survive_being_written(size: int) -> None:
    assert units.parse_size(units.format_size(size)) == size


@given(st.integers(1, units.MAX_COUNT), st.sampled_from(["s", "m", "h", "day"]))
def test_rates_survive_being_written(count: int, unit: str) -> None:
    rate = units.parse_rate(f"{count}/{unit}")
    assert units.format_rate(rate) == f"{count}/{unit}"


@given(COUNTS, SECONDS.filter(bool))
def test_minimum_rates_survive_being_written(size: int, over: float) -> None:
    rate = MinimumRate(size, over)
    assert units.parse_minimum_rate(units.format_minimum_rate(rate)) == rate


@given(SECONDS.filter(bool), WINDOWS)
def test_allowances_of_audio_survive_being_written(seconds: float, window: units.Window) -> None:
    allowance = Allowance(seconds, window)
    assert units.parse_allowance(units.format_allowance(allowance, "audio"), "audio") == allowance


@given(st.integers(1, units.MAX_COUNT), WINDOWS, st.sampled_from(["requests", "bytes", "characters"]))
def test_other_allowances_survive_being_written(count: int, window: units.Window, counted: units.Counted) -> None:
    allowance = Allowance(float(count), window)
    assert units.parse_allowance(units.format_allowance(allowance, counted), counted) == allowance


@given(
    st.sampled_from(PARSERS), st.one_of(st.text(), st.from_regex(r"[0-9]{0,25}[a-zA-Z/ ]{0,12}[0-9]{0,3}[a-z]{0,2}"))
)
def test_any_text_is_a_value_or_a_value_error(parse: Callable[[str], Any], text: str) -> None:
    try:
        parse(text)
    except ValueError as error:
        assert str(error).isprintable()  # noqa: PT017 - either outcome is right


@pytest.mark.parametrize(
    ("parse", "text", "near"),
    [
        (units.parse_duration, "10 s", "10s"),
        (units.parse_duration, "10sec", "10s"),
        (units.parse_duration, "90 Days", "90d"),
        (units.parse_duration_or_never, "30 minutes", "30m"),
        (units.parse_size, "5 MB", "5MiB"),
        (units.parse_size, "2g", "2GiB"),
        (units.parse_size, "100 bytes", "100B"),
    ],
)
def test_what_was_probably_meant_is_proposed(parse: Callable[[str], object], text: str, near: str) -> None:
    with pytest.raises(ValueError, match=rf'; did you mean "{near}"\?$'):
        parse(text)
    parse(near)


@pytest.mark.parametrize("text", ["-1s", "ten seconds", "1.5h", "0 s", "1" * 30 + " s", "10 fortnights", "s"])
def test_where_nothing_is_near_nothing_is_proposed(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration") as told:
        units.parse_duration(text)
    assert "did you mean" not in str(told.value)
