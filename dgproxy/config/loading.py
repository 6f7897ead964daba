"""From a file to a Config, or to all that is wrong with it."""

import contextlib
import os
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from dgproxy.config.findings import FILE_SIZE, ConfigError, Finding, printable, read_file
from dgproxy.config.kinds import Here, Told, worded
from dgproxy.config.schema import DEFAULTS, PLAN, SECTIONS, SETTINGS, Config, Plan, Setting, unknown
from dgproxy.config.values import socket_path
from dgproxy.units import quoted

DEFAULT_PATHS: Final = ("dgproxy.toml", "/etc/dgproxy/dgproxy.toml")


def find_config(option: str | None) -> Path:
    """The file to use: the option, $DGPROXY_CONFIG, or the first of DEFAULT_PATHS; ConfigError if there is none."""
    if option is not None:
        return Path(option)
    if named := os.environ.get("DGPROXY_CONFIG"):
        return Path(named)
    for path in DEFAULT_PATHS:
        if os.path.exists(path):  # noqa: PTH110 - Path's raises where a directory may not be searched
            return Path(path)
    tried = ", ".join(("$DGPROXY_CONFIG (not set)", *DEFAULT_PATHS))
    raise ConfigError(
        [Finding("error", DEFAULT_PATHS[0], "", f"no configuration found; tried {tried}; name one with -c FILE")]
    )


def load(path: Path) -> Config:
    """The configuration in this file, or ConfigError with everything that is wrong with it."""
    config, findings = examine(path)
    if config is None:
        raise ConfigError(findings)
    return config


def examine(path: Path) -> tuple[Config | None, list[Finding]]:
    """The configuration, unless a finding is an error; and all findings: errors, then what is not enforced yet."""
    try:
        data, _ = read_file(str(path), FILE_SIZE, missing="no such file; `dgproxy init DIR` makes one")
    except ValueError as error:
        return None, [Finding("error", printable(path), "", str(error))]
    return examine_bytes(data, path)


def examine_bytes(data: bytes, path: Path) -> tuple[Config | None, list[Finding]]:
    """The same for what is, or shall be, in this file."""
    absolute = os.path.normpath(path.absolute())
    here = Here(file=printable(path), directory=os.path.dirname(absolute), key="", findings=[])  # noqa: PTH120
    try:
        if printable(absolute) != absolute:
            raise ValueError("this path is not UTF-8; move the file to one that is")  # noqa: TRY301
        document = _parse(data)
    except ValueError as error:
        here.error(str(error))
        return None, here.findings
    config = msgspec.structs.replace(_read_document(document, here), path=absolute)
    _combinations(config, here)
    _not_enforced(config, here)
    failed = any(finding.severity == "error" for finding in here.findings)
    return None if failed else config, here.findings


_HINTS: Final = {
    "Invalid value": 'text needs quotes, like level = "info"',
    "Expected newline": 'text needs quotes, like level = "info"',
    "Cannot overwrite": "a key or section may stand only once",
    "Cannot declare": "a section may stand only once; put its keys together",
    "Cannot mutate": "a table in braces is whole; put all its keys inside",
    "Expected '='": "a line is a [section], key = value, or a # comment",
    "Invalid statement": "a line is a [section], key = value, or a # comment",
}


def _parse(data: bytes) -> dict[str, Any]:
    """The TOML document; ValueError says where it is none."""
    if data.startswith(b"\xef\xbb\xbf"):
        raise ValueError("line 1: begins with a byte order mark; save it as UTF-8 without one")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line}: byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        problem, _, place = str(error).rpartition(" (at ")
        where = place.removesuffix(")") if place.startswith("line ") else f"line {text.rstrip().count(chr(10)) + 1}"
        hint = next((f"; {hint}" for start, hint in _HINTS.items() if problem.startswith(start)), "")
        raise ValueError(f"{where}: {problem}{hint}") from None
    except RecursionError:
        raise ValueError("is nested too deeply; no setting is deeper than three tables") from None
    except ValueError as error:  # a number of thousands of digits
        raise ValueError(f"holds a value that is no TOML: {error}") from None


def _read_document(document: dict[str, Any], here: Here) -> Config:
    for name in document:
        if name not in SECTIONS:
            here.at(name).error(unknown(name, "", tuple(SECTIONS)))
    sections: dict[str, Any] = {
        name: _read_section(getattr(DEFAULTS, name), settings, document.get(name, {}), here.at(name))
        for name, settings in SECTIONS.items()
        if name != "plans"
    }
    return msgspec.structs.replace(DEFAULTS, plans=_read_plans(document.get("plans", {}), here.at("plans")), **sections)


_Section = TypeVar("_Section", bound=msgspec.Struct)


def _read_section(default: _Section, settings: tuple[Setting, ...], table: Any, here: Here) -> _Section:
    """The section; what cannot be read stands at its default, and is told."""
    if not isinstance(table, dict):
        here.error(f"found {worded(table)} where a section belongs; write [{here.key}], and its keys below")
        return default
    names = tuple(setting.name for setting in settings)
    for name in table:
        if name not in names:
            here.at(name).error(unknown(name, here.key, names))
    values: dict[str, Any] = {}
    for setting in settings:
        if setting.name in table or setting.kind.relative:
            with contextlib.suppress(Told):
                place = here.at(setting.name)
                values[setting.name] = place.read(setting.kind, table.get(setting.name, setting.default))
    return msgspec.structs.replace(default, **values)


def _read_plans(table: Any, here: Here) -> dict[str, Plan]:
    plans: dict[str, Plan] = {}
    if not isinstance(table, dict):
        here.error(f"found {worded(table)} where plans belong; write [plans.default], and its keys below")
        return plans
    names = {setting.name for setting in PLAN}
    for name, plan in table.items():
        place = here.at(name)
        if name in names and not isinstance(plan, dict):
            place.error(f"is a setting of a plan, and stands outside of one; put it below [{here.key}.default]")
        elif re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) is None:
            place.error("is no name of a plan; use at most 64 letters, digits, _ and -")
        else:
            plans[name] = _read_section(Plan(), PLAN, plan, place)
    if "default" not in table:
        here.at("default").error("is missing; every key has a plan, so add a section [plans.default] (it may be empty)")
    return plans


def _combinations(config: Config, here: Here) -> None:
    """What no setting alone can tell, and what this release cannot serve."""
    _listeners(config, here)
    _certificates(config, here)
    for name, plan in config.plans.items():
        by_class = here.at("plans").at(name).at("streams_by_class")
        for cls, streams in plan.streams_by_class.items():
            if cls not in plan.classes:
                by_class.at(cls).warning(f"has no effect: {cls} is not among this plan's classes")
            elif streams > plan.streams:
                by_class.at(cls).warning(f"has no effect: {streams} are more than this plan's streams, {plan.streams}")


def _listeners(config: Config, here: Here) -> None:
    admin = here.at("admin")
    later = 'is not supported yet by this release; write a TCP address, like "127.0.0.1:8443"'
    for index, listen in enumerate(config.server.listen):
        if listen.kind != "tcp":
            here.at("server").at("listen").item(index).error(f"{quoted(str(listen))} {later}")
    if config.admin.listen.kind != "tcp":
        admin.at("listen").error(f"{quoted(str(config.admin.listen))} {later}")
    elif config.admin.listen in config.server.listen:
        admin.at("listen").error(f"{quoted(str(config.admin.listen))} is in server.listen too; choose another port")
    try:
        socket_path(config.admin.socket)
    except ValueError as error:
        admin.at("socket").error(str(error))


def _certificates(config: Config, here: Here) -> None:
    tls = here.at("tls")
    if config.tls.private_key and not config.tls.certificate:
        tls.at("certificate").error("is empty, but tls.private_key is set; name the certificate that belongs to it")
    elif config.tls.certificate and not config.tls.private_key:
        tls.at("private_key").error("is empty, but tls.certificate is set; name the key that belongs to it")
    elif config.server.tls and not config.tls.certificate:
        tls.at("certificate").error("is empty, but server.tls is true; name a certificate and its key")
    if config.tls.client_ca and not config.server.tls:
        tls.at("client_ca").error("is set, but with server.tls = false no client shows a certificate; drop one of both")
    if config.tls.ktls == "require":
        tls.at("ktls").error('"require" is not supported yet by this release; write "off"')


def _not_enforced(config: Config, here: Here) -> None:
    """Tell each setting that is set and does nothing yet, and in one line those whose defaults do nothing yet."""
    idle: dict[str, list[str]] = {}
    for setting in SETTINGS:
        if setting.enforced:
            continue
        changed = False
        for section, held in _holders(config, setting.section):
            if getattr(held, setting.name) == setting.default:
                continue
            changed = True
            place = replace(here, key=f"{section}.{setting.name}")
            if setting.unsafe:
                place.error("is not supported yet by this release, and to ignore it would be unsafe; remove it")
            else:
                place.warning("parsed, but not enforced yet by this release")
        if not changed:
            idle.setdefault(setting.section, []).append(setting.name)
    listed = "; ".join(f"{section}.{', '.join(names)}" for section, names in idle.items())
    if listed and not any(finding.severity == "error" for finding in here.findings):
        here.warning(f"not enforced yet by this release, and at their defaults: {listed}")


def _holders(config: Config, section: str) -> list[tuple[str, msgspec.Struct]]:
    """The sections that hold a row's setting: one, or each plan."""
    if section == "plans.*":
        return [(f"plans.{name}", plan) for name, plan in config.plans.items()]
    return [(section, getattr(config, section))]
