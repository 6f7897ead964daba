"""What a key has of its own in place of its plan's fields."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import msgspec

from dgproxy import units
from dgproxy.config.kinds import ALLOWANCES, Here, Kind, Told
from dgproxy.config.schema import PLAN, Plan, unknown
from dgproxy.config.values import Quota
from dgproxy.units import Rate, quoted


class Overrides(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a key has of its own in place of its plan's fields; None: the plan's."""

    rate: Rate | None = None
    burst: int | None = None
    streams: int | None = None
    streams_by_class: dict[str, int] | None = None
    quota: Quota | None = None  # entry by entry: what is None here is the plan's
    classes: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    allow_callback: tuple[str, ...] | None = None
    allow_url: tuple[str, ...] | None = None
    max_body: int | None = None
    stream_max_life: float | None = None


def effective(plan: Plan, overrides: Overrides) -> Plan:
    """What a key may do: its plan's fields, but for those that it overrides."""
    changes = {name: value for name, value in msgspec.structs.asdict(overrides).items() if value is not None}
    if overrides.quota is not None:
        own = {name: value for name, value in msgspec.structs.asdict(overrides.quota).items() if value is not None}
        changes["quota"] = msgspec.structs.replace(plan.quota, **own)
    return msgspec.structs.replace(plan, **changes)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _pairs(text: str) -> dict[str, int]:
    pairs = {}
    for word in _words(text):
        name, separator, count = word.partition("=")
        if not separator:
            raise ValueError(f'{quoted(word)} is no pair; write them like "flux=10,stream=40"')
        pairs[name] = units.parse_count(count)
    return pairs


_AS_TOML: Final[Mapping[str, Callable[[str], Any]]] = {  # what a field's text on the command line is in TOML
    "rate": str,
    "burst": units.parse_count,
    "streams": units.parse_count,
    "streams_by_class": _pairs,
    "classes": _words,
    "models": _words,
    "allow_callback": _words,
    "allow_url": _words,
    "max_body": str,
    "stream_max_life": str,
}


def parse_overrides(options: Mapping[str, str | None]) -> Overrides:
    """The Overrides of command line options: {"streams": "50", "quota-audio": "100h/month", "classes": "batch,stream"}.

    Names are a plan's fields, with - or _, and quota-audio, quota-requests, quota-bytes, quota-characters; lists are
    separated by commas, streams-by-class is "flux=10,stream=40"; None: not given. ValueError tells all that is wrong.
    """
    here = Here(file="", directory="", key="", findings=[])
    kinds = {setting.name: setting.kind for setting in PLAN}
    known = (*_AS_TOML, *(f"quota_{counted}" for counted in ALLOWANCES))
    values: dict[str, Any] = {}
    quota: dict[str, Any] = {}
    for option, text in options.items():
        name = option.replace("-", "_")
        place = here.at(option)
        if text is None:
            continue
        with contextlib.suppress(Told):
            if name not in known:
                place.error(unknown(name, "", known))
            elif name in kinds:
                values[name] = place.read(replace(kinds[name], read=_after(_AS_TOML[name], kinds[name])), text)
            else:
                counted = name.removeprefix("quota_")
                quota[counted] = place.read(ALLOWANCES[counted], text)
    if here.findings:
        raise ValueError("; ".join(f"{finding.key}: {finding.message}" for finding in here.findings))
    return Overrides(quota=Quota(**quota) if quota else None, **values)


def _after(convert: Callable[[str], Any], kind: Kind) -> Callable[[Any, Here], Any]:
    return lambda text, here: kind.read(convert(text), here)
