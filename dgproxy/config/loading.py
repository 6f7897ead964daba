"""From a file to a Config, or to all that is wrong with it."""

import contextlib
import difflib
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from dgproxy.config import lines
from dgproxy.config.document import NoToml, parse
from dgproxy.config.findings import FILE_SIZE, ConfigError, Finding, printable, read_file
from dgproxy.config.kinds import Here, Told, worded
from dgproxy.config.lines import joined
from dgproxy.config.schema import DEFAULTS, PLAN, SECTIONS, SETTINGS, Config, Plan, Setting, places, unknown
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
    directory = os.path.dirname(absolute)  # noqa: PTH120 - as text: it is kept as text
    here = Here(file=printable(path), directory=directory, key="", findings=[], elsewhere=places)
    if printable(absolute) != absolute:
        here.error("this path is not UTF-8; move the file to one that is")
        return None, here.findings
    try:
        document, text = parse(data)
    except NoToml as error:
        return None, [Finding("error", here.file, "", str(error), error.line)]
    config = msgspec.structs.replace(_read_document(document, here), path=absolute)
    _combinations(config, here)
    _not_enforced(config, here)
    failed = any(finding.severity == "error" for finding in here.findings)
    return None if failed else config, _located(here.findings, text)


def locate(findings: list[Finding], path: Path) -> list[Finding]:
    """The findings that others have against this file's settings, each with the line of its key."""
    try:
        data, _ = read_file(str(path), FILE_SIZE)
        return _located(findings, data.decode())
    except ValueError:
        return findings  # it was there a moment ago


def _located(findings: list[Finding], text: str) -> list[Finding]:
    """The findings, each with the line of its key."""
    if not any(finding.key for finding in findings):
        return findings
    known = lines.of_keys(text)
    return [
        msgspec.structs.replace(finding, line=known.get(finding.key)) if finding.key else finding
        for finding in findings
    ]


def _read_document(document: dict[str, Any], here: Here) -> Config:
    for name, value in document.items():
        if name not in SECTIONS:
            what = "section" if isinstance(value, dict) else "key"
            here.at(name).error(unknown(name, "", tuple(SECTIONS), what))
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
        near = difflib.get_close_matches("default", table, 1)
        remedy = f"did you mean it by {joined(here.key, near[0])}?" if near else "it may be empty"
        here.at("default").error(f"is missing; every key has a plan, so add a section [plans.default]; {remedy}")
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
