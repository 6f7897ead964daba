"""`dgproxy check`: all that is wrong with a configuration and what it names, before it is used."""

import datetime as dt
import itertools
import os
import resource
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import rich_click as click
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from rich.text import Text

from dgproxy.access.keys import Pepper
from dgproxy.cli import reach
from dgproxy.cli.common import config_option, emit, json_option
from dgproxy.config import (
    FILE_SIZE,
    Config,
    ConfigError,
    Finding,
    Severity,
    examine,
    find_config,
    locate,
    private_key_path,
    read_file,
    read_pepper,
    read_private_key,
)
from dgproxy.net.tls import TlsError, server_context
from dgproxy.store import StoreError, check_directory
from dgproxy.store.keys import FILE_NAME, inspect

EXPIRY_WARNING: Final = dt.timedelta(days=14)
_DER: Final = b"\x30\x82"  # SEQUENCE of 256 to 65,535 bytes, X.690 8.1
DESCRIPTORS: Final = 2, 100  # for each connection (the client's and the upstream's), and for all else


@click.command()
@config_option
@json_option
def check(*, config: str | None, as_json: bool) -> None:
    """Tell all that is wrong with the configuration and what it names, a line each.

    Exit 1 if there is an error; warnings, such as of settings that this release does not enforce yet, are none.
    """
    try:
        path = find_config(config)
    except ConfigError as error:
        shown, findings = "dgproxy.toml", error.findings
    else:
        shown = str(path)
        loaded, findings = examine(path)
        if loaded is not None:
            around = locate([_as_named(each, loaded, shown) for each in _around(loaded)], path)
            findings = [*around, *findings]
    errors = sum(finding.severity == "error" for finding in findings)
    document = {"ok": not errors, "findings": findings}
    emit(document, _report(shown, findings, errors), as_json=as_json)
    if errors:
        raise SystemExit(1)


def _as_named(finding: Finding, config: Config, shown: str) -> Finding:
    """The finding with the configuration's file as the user named it, and others as seen from here."""
    if finding.file == config.path:
        return msgspec.structs.replace(finding, file=shown)
    here = f"{Path.cwd()}/"
    return msgspec.structs.replace(finding, file=finding.file.removeprefix(here))


def _report(shown: str, findings: list[Finding], errors: int) -> Text:
    lines = Text()
    for finding in findings:
        lines.append(f"{finding.place}: ")
        if finding.key:
            lines.append(f"{finding.key}: ", "bold")
        if finding.severity == "warning":
            lines.append("warning: ", "yellow")
        lines.append(f"{finding.message}\n")
    warnings = len(findings) - errors
    counts = [_plural(errors, "error")] if errors else []
    counts += [_plural(warnings, "warning")] if warnings else []
    counted = ", ".join(counts)
    if errors:
        return lines.append(counted, "bold red")
    return lines.append(f"{shown}: ok", "bold green").append(f" ({counted})" if counted else "")


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _around(config: Config) -> Iterator[Finding]:
    """What is wrong with what a valid configuration names, and with the limits of this shell or unit."""
    if config.server.tls:
        yield from _tls(config, dt.datetime.now(dt.UTC))
    yield from _state(config)
    yield from _descriptors(config, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    yield from reach.listeners(config)
    yield from reach.upstreams(config)


# --- certificates


def _tls(config: Config, now: dt.datetime) -> Iterator[Finding]:
    """The chain and its key, each alone, then together, then as OpenSSL takes them when dgproxy runs."""
    findings = [*_chain_findings(config, now), *_pair_findings(config)]
    if not any(finding.severity == "error" for finding in findings):
        try:
            server_context(config.tls.certificate, private_key_path(config), config.tls.min_version)
        except (OSError, TlsError) as error:
            findings.append(_of_chain(config, f"OpenSSL does not take it with its key: {error}"))
    yield from findings


def _of_chain(config: Config, message: str, severity: Severity = "error") -> Finding:
    return Finding(severity, config.tls.certificate, "", message)


def _chain(config: Config) -> list[x509.Certificate]:
    """The certificates of tls.certificate; ValueError says why there are none."""
    pem, _ = read_file(config.tls.certificate, FILE_SIZE, missing="no such file; tls.certificate names it")
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        if b"PRIVATE KEY-----" in pem:
            raise ValueError("holds a private key and no certificate; that belongs in tls.private_key") from None
        if pem.startswith(_DER):
            remedy = "`openssl x509 -inform DER -in FILE -out FILE.pem` makes it of this one"
            raise ValueError(f"is not PEM, but DER; {remedy}") from None
        raise ValueError("holds no certificate in PEM; put the server's there, then what it is signed by") from None


def _chain_findings(config: Config, now: dt.datetime) -> Iterator[Finding]:
    try:
        chain = _chain(config)
    except ValueError as error:
        yield _of_chain(config, str(error))
        return
    for number, certificate in enumerate(chain):
        which = f"certificate {number + 1} of {len(chain)} " if len(chain) > 1 else ""
        if certificate.not_valid_before_utc > now:
            yield _of_chain(config, f"{which}is not valid before {_day(certificate.not_valid_before_utc)}", "warning")
        left = certificate.not_valid_after_utc - now
        if left <= dt.timedelta():
            yield _of_chain(config, f"{which}expired on {_day(certificate.not_valid_after_utc)}; renew it", "warning")
        elif left < EXPIRY_WARNING:
            yield _of_chain(config, f"{which}expires in {_plural(left.days, 'day')}; renew it", "warning")
    for certificate, issuer in itertools.pairwise(chain):
        if not _signed_by(certificate, issuer):
            name = certificate.subject.rfc4514_string()
            yield _of_chain(config, f"what follows {name} did not sign it; order the chain leaf first, root last")
            return  # whichever is first, it may not be the leaf
    try:
        chain[0].extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (x509.ExtensionNotFound, ValueError):
        yield _of_chain(config, "has no subjectAltName, so that clients refuse it; renew it with its names", "warning")


def _signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _day(moment: dt.datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M UTC")


def _pair_findings(config: Config) -> Iterator[Finding]:
    def of_key(message: str) -> Finding:
        return Finding("error", config.path, "tls.private_key", message)

    if _is_certificate(config):  # before its mode is told: others may well read it
        yield of_key("holds a certificate and no private key; that belongs in tls.certificate")
        return
    try:
        key = load_pem_private_key(read_private_key(config), None)
    except ConfigError as error:
        yield from error.findings
        return
    except TypeError:
        yield of_key("is encrypted, and nobody is there to type its passphrase; store it decrypted, mode 0600")
        return
    except (ValueError, UnsupportedAlgorithm):
        yield of_key("holds no private key in PEM that is known here; ECDSA P-256 or RSA 2048 serve every client")
        return
    try:
        belongs = [certificate.public_key() == key.public_key() for certificate in _chain(config)]
    except (ValueError, UnsupportedAlgorithm):
        return  # the chain's own finding says why
    if not belongs[0]:
        remedy = "put that one first" if any(belongs) else "name the key that it was made with"
        yield of_key(f"does not belong to the first certificate in tls.certificate; {remedy}")


def _is_certificate(config: Config) -> bool:
    try:
        pem, _ = read_file(private_key_path(config), FILE_SIZE)
    except (ConfigError, ValueError):
        return False
    return b"BEGIN CERTIFICATE-----" in pem and b"PRIVATE KEY-----" not in pem


# --- state and limits


def _state(config: Config) -> Iterator[Finding]:
    """Pepper, state directory and key store; the store is looked into only where both others are sound."""
    pepper: Pepper | None = None
    try:
        pepper = Pepper(read_pepper(config))
    except ConfigError as error:
        yield from error.findings
    directory = Path(config.state.directory)
    try:
        check_directory(directory)
    except StoreError as error:
        yield _of_file(directory, str(error))
        return
    status = directory.stat()
    if os.geteuid() not in {0, status.st_uid}:
        yield _of_file(directory, f"belongs to user {status.st_uid}, not to {os.geteuid()}; run this as its owner")
        return
    if not os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
        yield _of_file(directory, "cannot be written; check its mode and its file system")
    if status.st_mode & 0o077:
        mode = f"has mode {stat.S_IMODE(status.st_mode):04o}, so that others can look into it; chmod 700"
        yield _of_file(directory, mode, "warning")
    if pepper is not None:
        store = directory / FILE_NAME
        for problem in inspect(store, pepper):
            yield _of_file(store, problem)


def _of_file(path: Path, problem: str, severity: Severity = "error") -> Finding:
    return Finding(severity, str(path), "", problem.removeprefix(f"{path}: "))


def _descriptors(config: Config, hard: int) -> Iterator[Finding]:
    each, others = DESCRIPTORS
    needed = config.limits.connections * each + others
    if hard != resource.RLIM_INFINITY and hard < needed:
        remedy = f"set LimitNOFILE={needed} or fewer connections"
        message = f"{config.limits.connections} need {needed} file descriptors, and the hard limit is {hard}; {remedy}"
        yield Finding("warning", config.path, "limits.connections", message)
