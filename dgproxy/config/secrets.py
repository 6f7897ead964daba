"""The secrets that a configuration names: from a file, the environment or systemd's credentials."""

import os
import re
from typing import Final

from dgproxy.config.findings import FILE_SIZE, PATH_QUOTED, ConfigError, Finding, read_file
from dgproxy.config.schema import Config
from dgproxy.units import quoted

PEPPER_SIZE: Final = 32  # bytes


def read_pepper(config: Config) -> bytes:
    """The 32 bytes of keys.pepper_file, or ConfigError.

    A path or "credential:NAME" ($CREDENTIALS_DIRECTORY/NAME) holds the raw bytes; "env:NAME" names a variable of 64 hex
    digits, such as `openssl rand -hex 32` prints. A file's mode must be closed to group and others; systemd's
    credentials are exempt, as systemd guards their directory.
    """
    source, _, name = config.keys.pepper_file.partition(":")
    try:
        if source == "env":
            return _pepper_of_environment(name)
        pepper = _secret(config.keys.pepper_file, missing=f"no such file; {_LOST_PEPPER}")
        if len(pepper) != PEPPER_SIZE:
            raise ValueError(f"holds {len(pepper)} bytes, and a pepper has {PEPPER_SIZE}; {_LOST_PEPPER}")  # noqa: TRY301
    except ValueError as error:
        raise _unusable(config, "keys.pepper_file", config.keys.pepper_file, error) from None
    return pepper


_LOST_PEPPER: Final = "restore the one that the keys were made with: without it they are lost"


def _pepper_of_environment(name: str) -> bytes:
    text = os.environ.get(name)
    if not text:
        raise ValueError("is not set in the environment; set it to 64 hex digits")
    if re.fullmatch(r"[0-9A-Fa-f]{64}", text) is None:
        raise ValueError(
            f"does not hold the 64 hex digits of a pepper's {PEPPER_SIZE} bytes, but {len(text)} characters"
        )
    return bytes.fromhex(text)


def read_private_key(config: Config) -> bytes:
    """The PEM text of tls.private_key, or ConfigError; modes as for read_pepper."""
    try:
        return _secret(config.tls.private_key)
    except ValueError as error:
        raise _unusable(config, "tls.private_key", config.tls.private_key, error) from None


def private_key_path(config: Config) -> str:
    """The file that tls.private_key means, for OpenSSL to open; ConfigError if systemd gave no such credential."""
    try:
        return _secret_path(config.tls.private_key)
    except ValueError as error:
        raise _unusable(config, "tls.private_key", config.tls.private_key, error) from None


def _unusable(config: Config, key: str, source: str, error: ValueError) -> ConfigError:
    return ConfigError([Finding("error", config.path, key, f"{quoted(source, PATH_QUOTED)} {error}")])


def _secret_path(setting: str) -> str:
    if not setting.startswith("credential:"):
        return setting
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        raise ValueError("needs $CREDENTIALS_DIRECTORY, which systemd sets for a unit with LoadCredential=")
    return f"{directory}/{setting.removeprefix('credential:')}"


def _secret(setting: str, *, missing: str = "no such file") -> bytes:
    data, mode = read_file(_secret_path(setting), FILE_SIZE, missing=missing)
    if mode & 0o077 and not setting.startswith("credential:"):
        raise ValueError(f"has mode {mode:04o}, so that others than its owner can use it; chmod 600")
    return data
