"""What `dgproxy init` makes: a configuration, a local CA and a server certificate, a state directory with a pepper.

Rules of this file: it is made whole or not at all, beside its place, and moved there last; nothing that exists is
written over; a secret's file is closed to others from its first moment, whatever the umask.
"""

import contextlib
import datetime as dt
import ipaddress
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dgproxy.config import PEPPER_SIZE, examine_bytes, parse_listen, render_default

CA_LIFE: Final = dt.timedelta(days=3650)
SERVER_LIFE: Final = dt.timedelta(days=825)  # the most that Apple's clients take: support.apple.com/103769
SKEW: Final = dt.timedelta(hours=1)  # a client's clock may be behind ours

_CONFIG: Final = "dgproxy.toml"
_CERTIFICATES: Final = "certs"
_STATE: Final = "state"
_SECRET: Final = 0o600
_PUBLIC: Final = 0o644


class BootstrapError(Exception):
    """Nothing was made: why, and what to do."""


@dataclass(frozen=True, slots=True)
class Paths:
    """What was made, and where."""

    directory: Path
    config: Path
    ca: Path
    ca_key: Path
    certificate: Path
    private_key: Path
    state: Path
    pepper: Path


def create(directory: Path, listen: str, upstream: str) -> Paths:
    """Makes `directory` with all that `dgproxy run` needs to serve `listen` in front of `upstream`.

    Raises:
        ValueError: `listen` or `upstream` is none.
        BootstrapError: the directory holds such things already, or can't be written. Nothing is left of the attempt.
    """
    text = render_default(listen, upstream).encode()
    _refuse_to_overwrite(directory)
    _, findings = examine_bytes(text, directory / _CONFIG)
    problems = [str(finding) for finding in findings if finding.severity == "error"]
    if problems:
        raise BootstrapError("\n".join(problems))
    try:
        with _stage(directory) as stage:
            _fill(stage, text, parse_listen(listen).host)
            _move(stage, directory)
    except OSError as error:
        raise BootstrapError(f"{error.filename or directory}: {error.strerror}; nothing was made") from None
    certificates, state = directory / _CERTIFICATES, directory / _STATE
    return Paths(
        directory=directory,
        config=directory / _CONFIG,
        ca=certificates / "ca.pem",
        ca_key=certificates / "ca-key.pem",
        certificate=certificates / "server.pem",
        private_key=certificates / "server-key.pem",
        state=state,
        pepper=state / "pepper",
    )


def _refuse_to_overwrite(directory: Path) -> None:
    if os.path.lexists(directory) and not directory.is_dir():
        raise BootstrapError(f"{directory}: is no directory; choose another")
    there = [name for name in (_CONFIG, _CERTIFICATES, _STATE) if os.path.lexists(directory / name)]
    if there:
        raise BootstrapError(
            f"{directory}: holds {', '.join(there)} already, and nothing is written over; choose another directory"
        )


@contextlib.contextmanager
def _stage(directory: Path) -> Iterator[Path]:
    """A new directory on the same file system; on failure it is gone again, with the parents that were made for it."""
    parent = directory if directory.is_dir() else directory.absolute().parent
    made = [path for path in (parent, *parent.parents) if not path.exists()]
    stage = parent / f".dgproxy-init-{secrets.token_hex(4)}"
    try:
        for path in reversed(made):
            path.mkdir(mode=0o755)
        stage.mkdir(mode=0o755)
        yield stage
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()
        raise


def _fill(stage: Path, config: bytes, host: str) -> None:
    (stage / _CERTIFICATES).mkdir(mode=0o755)
    (stage / _STATE).mkdir(mode=0o700)
    _write(stage / _CONFIG, config, _PUBLIC)
    for name, pem in certificates(host, dt.datetime.now(dt.UTC)).items():
        _write(stage / _CERTIFICATES / name, pem, _SECRET if name.endswith("-key.pem") else _PUBLIC)
    _write(stage / _STATE / "pepper", secrets.token_bytes(PEPPER_SIZE), _SECRET)


def _write(path: Path, data: bytes, mode: int) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode), "wb") as file:
        file.write(data)


def _move(stage: Path, directory: Path) -> None:
    """The stage becomes the directory; or, where there is one, its content moves in, the configuration last."""
    if not directory.is_dir():
        stage.rename(directory)
        return
    moved: list[Path] = []
    try:
        for name in (_CERTIFICATES, _STATE, _CONFIG):
            (stage / name).rename(directory / name)
            moved.append(directory / name)
        stage.rmdir()
    except BaseException:
        for path in moved:
            path.rename(stage / path.name)
        raise


# --- certificates -----------------------------------------------------------------------------------------------


def certificates(host: str, now: dt.datetime) -> dict[str, bytes]:
    """PEM files by name: a local CA, and a server certificate of it for this machine and `host`; ECDSA P-256.

    The chain passes OpenSSL's strict checks (X509_V_FLAG_X509_STRICT, RFC 5280 4.2.1): key identifiers everywhere,
    critical basic constraints and key usage.
    """
    ca_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = _name(f"dgproxy local CA {secrets.token_hex(4)}")  # two CAs of one name confuse a trust store
    ca = (
        _builder(ca_name, ca_name, ca_key.public_key(), ca_key.public_key(), now, CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    server = (
        _builder(_name("dgproxy"), ca_name, server_key.public_key(), ca_key.public_key(), now, SERVER_LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_names(host)), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    return {
        "ca.pem": ca.public_bytes(Encoding.PEM),
        "ca-key.pem": _key_pem(ca_key),
        "server.pem": server.public_bytes(Encoding.PEM),
        "server-key.pem": _key_pem(server_key),
    }


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
    now: dt.datetime,
    life: dt.timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + life - SKEW)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _names(host: str) -> list[x509.GeneralName]:
    """This machine by its usual names, and the host that is listened on, unless it means every address."""
    names: list[x509.GeneralName] = [
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("::1")),
    ]
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        own: x509.GeneralName = x509.DNSName(host)
    else:
        if address.is_unspecified:
            return names
        own = x509.IPAddress(address)
    return names if own in names else [*names, own]


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
