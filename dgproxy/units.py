"""Durations, sizes, rates and quotas: what people write, and the plain numbers that the rest of dgproxy computes with.

The grammar is strict, so that a typo is told and never guessed. N is a whole number of ASCII digits without sign,
spaces, fraction or leading zero:

    duration      N and one of ms, s, m, h, d               "10s", "1500ms", "90d"       not "1h30m": "90m"
    size          N and B, KiB, MiB, GiB or TiB; or "0"     "32KiB", "2GiB"              not "32KB": of 1000 or 1024?
    rate          N/s, N/m, N/h or N/day                    "20/s", "60/m", "10/h"       also sec, min, hour, d
    minimum rate  SIZE/s over DURATION                      "4KiB/s over 30s"
    allowance     amount/day, amount/week, amount/month     "100h/month", "100000/day"   amount: duration, size or N

Units are case-sensitive. Each format_* is the inverse of its parse_*: parse(format(x)) == x. Every parse_* raises
ValueError, whose message says what was found and what is allowed.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Final, Literal

import msgspec

Window = Literal["day", "week", "month"]
Counted = Literal["audio", "requests", "bytes", "characters"]

MAX_DURATION: Final = 36_500 * 86_400.0  # seconds: a century; beyond it dates overflow
MAX_COUNT: Final = 2**53  # the last whole number up to which a float is exact
MAX_QUOTED: Final = 60  # characters of a value in a message: it shares the line with its key and the remedy
WINDOWS: Final[tuple[Window, ...]] = ("day", "week", "month")

_MILLISECONDS: Final = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}  # largest first
_BYTES: Final = {"TiB": 1 << 40, "GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10, "B": 1}  # largest first
_PERIODS: Final = {"s": 1, "m": 60, "h": 3_600, "day": 86_400}  # seconds
_PERIOD_ALIASES: Final = {"sec": "s", "second": "s", "min": "m", "minute": "m", "hour": "h", "d": "day"}

_NEAR: Final[Mapping[str, tuple[str, ...]]] = {  # what people write for a unit, in small letters
    "ms": ("msec", "msecs", "millisecond", "milliseconds"),
    "s": ("sec", "secs", "second", "seconds"),
    "m": ("min", "mins", "minute", "minutes"),
    "h": ("hr", "hrs", "hour", "hours"),
    "d": ("day", "days"),
    "B": ("byte", "bytes"),
    "KiB": ("k", "kb"),
    "MiB": ("m", "mb"),
    "GiB": ("g", "gb"),
    "TiB": ("t", "tb"),
}

_NUMBER: Final = r"(0|[1-9][0-9]{0,19})"
_NUMBER_ALONE: Final = re.compile(_NUMBER)
_DURATION: Final = re.compile(_NUMBER + r"(ms|s|m|h|d)")
_SIZE: Final = re.compile(_NUMBER + r"([KMGT]iB|B)")


class Rate(msgspec.Struct, frozen=True):
    """So many events in so many seconds: "60/m" is Rate(60.0, 60.0)."""

    count: float
    per: float  # seconds

    @property
    def per_second(self) -> float:
        """Events a second, as a limiter leaks them."""
        return self.count / self.per


class MinimumRate(msgspec.Struct, frozen=True):
    """The least that a peer must move: bytes a second, measured over a window of seconds. 0 bytes ask for nothing."""

    bytes: int
    over: float  # seconds


class Allowance(msgspec.Struct, frozen=True):
    """An amount (seconds of audio, requests, bytes or characters) in each calendar window."""

    amount: float
    window: Window


def quoted(found: str | float, most: int = MAX_QUOTED) -> str:
    """What was found, in quotes if it is text, safe for a terminal and short."""
    text = json.dumps(found).replace("\x7f", "\\u007f")
    return text if len(text) <= most else text[:most] + "..."


def parse_count(text: str) -> int:
    """A whole number, 0 to MAX_COUNT."""
    if _NUMBER_ALONE.fullmatch(text) is None:
        raise ValueError(f'{quoted(text)} is no whole number; write digits alone, like "50"')
    return _bounded(int(text), text)


def parse_duration(text: str) -> float:
    """Seconds of "10s", "1500ms", "30m", "100h" or "90d"."""
    return _duration(text, 'like "10s"')


def _duration(text: str, like: str) -> float:
    match = _DURATION.fullmatch(text)
    if match is None:
        near = _near(text, _MILLISECONDS)
        raise ValueError(f"{quoted(text)} is no duration; write a whole number and ms, s, m, h or d, {like}{near}")
    seconds = int(match[1]) * _MILLISECONDS[match[2]] / 1000
    if seconds > MAX_DURATION:
        raise ValueError(f'{quoted(text)} is too long; the longest duration is "{format_duration(MAX_DURATION)}"')
    return seconds


def format_duration(seconds: float) -> str:
    """The largest unit that gives a whole number of at least two ("60s", "24h"), to the millisecond."""
    milliseconds = round(seconds * 1000)
    if milliseconds == 1000 or not milliseconds:  # noqa: PLR2004 - one second is "1s", not "1000ms"
        return f"{milliseconds // 1000}s"
    for unit, size in _MILLISECONDS.items():
        count, rest = divmod(milliseconds, size)
        if not rest and count > 1:
            return f"{count}{unit}"
    return f"{milliseconds}ms"


def parse_duration_or_never(text: str) -> float | None:
    """Seconds of a duration, or None for "never"."""
    return None if text == "never" else _duration(text, 'like "10s", or "never"')


def format_duration_or_never(seconds: float | None) -> str:
    """The inverse of parse_duration_or_never."""
    return "never" if seconds is None else format_duration(seconds)


def parse_size(text: str) -> int:
    """Bytes of "32KiB", "256MiB", "2GiB", "100B" or "0"."""
    if text == "0":
        return 0
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{quoted(text)} is no size; write a whole number and KiB, MiB, GiB, TiB or B, "
            f'like "32KiB", or "0"{_near(text, _BYTES)}'
        )
    return _bounded(int(match[1]) * _BYTES[match[2]], text)


def format_size(size: int) -> str:
    """The largest unit that gives a whole number: "2GiB", "1536MiB", "0"."""
    if size:
        for unit, scale in _BYTES.items():
            count, rest = divmod(size, scale)
            if not rest:
                return f"{count}{unit}"
    return "0"


def _near(text: str, units: Mapping[str, int]) -> str:
    """What was probably meant, as the end of a message: "10 sec" is near "10s"; "" where nothing is."""
    match = re.fullmatch(r"([1-9][0-9]{0,14}) ?([A-Za-z]+)", text)
    if match is None:
        return ""
    named = match[2].lower()
    for unit in units:
        if named == unit.lower() or named in _NEAR[unit]:
            return f'; did you mean "{match[1]}{unit}"?'
    return ""


def parse_rate(text: str) -> Rate:
    """The rate of "20/s", "1200/min", "60/m", "10/h" or "5/day"; a rate of nothing is refused."""
    count, _, period = text.partition("/")
    unit = _PERIOD_ALIASES.get(period, period)
    if _NUMBER_ALONE.fullmatch(count) is None or unit not in _PERIODS:
        raise ValueError(f'{quoted(text)} is no rate; write "20/s", "1200/min", "10/h" or "5/day"')
    if count == "0":
        raise ValueError(f'{quoted(text)} would let nothing through; the least rate is "1/day"')
    return Rate(float(_bounded(int(count), text)), float(_PERIODS[unit]))


def format_rate(rate: Rate) -> str:
    """The inverse of parse_rate: "20/s", "60/m", "10/h", "5/day"."""
    unit = next(name for name, seconds in _PERIODS.items() if seconds == rate.per)
    return f"{rate.count:.0f}/{unit}"


def parse_minimum_rate(text: str) -> MinimumRate:
    """The minimum rate of "4KiB/s over 30s"."""
    size, between, window = text.partition("/s over ")
    if not between:
        raise ValueError(f'{quoted(text)} is no minimum rate; write one like "4KiB/s over 30s"')
    try:
        rate = MinimumRate(parse_size(size), parse_duration(window))
    except ValueError as error:
        raise ValueError(f'{quoted(text)} is no minimum rate: {error}; a whole one is "4KiB/s over 30s"') from None
    if not rate.over:
        raise ValueError(f'{quoted(text)} measures over no time; write a longer window, like "4KiB/s over 30s"')
    return rate


def format_minimum_rate(rate: MinimumRate) -> str:
    """The inverse of parse_minimum_rate."""
    return f"{format_size(rate.bytes)}/s over {format_duration(rate.over)}"


_AMOUNTS: Final[Mapping[Counted, tuple[Callable[[str], float], str]]] = {
    "audio": (parse_duration, "100h/month"),
    "requests": (parse_count, "100000/day"),
    "bytes": (parse_size, "500GiB/month"),
    "characters": (parse_count, "2000000/week"),
}


def parse_allowance(text: str, counted: Counted) -> Allowance:
    """The allowance of "100h/month" (audio), "100000/day" (requests, characters) or "500GiB/month" (bytes)."""
    parse, example = _AMOUNTS[counted]
    amount, _, named = text.partition("/")
    window = next((window for window in WINDOWS if window == named), None)
    if window is None:
        raise ValueError(
            f'{quoted(text)} is no quota of {counted}; write an amount and /day, /week or /month, like "{example}"'
        )
    try:
        allowance = Allowance(float(parse(amount)), window)
    except ValueError as error:
        raise ValueError(f'{quoted(text)} is no quota of {counted}: {error}; a whole one is "{example}"') from None
    if not allowance.amount:
        raise ValueError(f"{quoted(text)} allows nothing; to have no quota of {counted}, leave it out")
    return allowance


def format_allowance(allowance: Allowance, counted: Counted) -> str:
    """The inverse of parse_allowance."""
    match counted:
        case "audio":
            amount = format_duration(allowance.amount)
        case "bytes":
            amount = format_size(int(allowance.amount))
        case _:
            amount = f"{allowance.amount:.0f}"
    return f"{amount}/{allowance.window}"


def _bounded(number: int, text: str) -> int:
    if number > MAX_COUNT:
        raise ValueError(f"{quoted(text)} is too large; the largest number is {MAX_COUNT}")
    return number
