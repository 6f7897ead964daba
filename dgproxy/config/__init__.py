"""The configuration: its whole schema, read strictly, with every problem told at once.

Rules of this package:

- A setting is stated once, as a field of its section's Struct (schema.py). What reads, checks, writes and documents
  settings goes through the table that is made of them (SETTINGS); nothing names a setting a second time except where it
  is combined with another (loading.py).
- A Config holds plain values (seconds, bytes, small Structs), so that it crosses to the workers as msgpack.
- Nothing that a file may hold raises anything but ConfigError. A message says what was found, what is allowed and what
  to do; it never shows a secret, nor a URL's user and password.

| module | has |
|---|---|
| `findings` | what is said of a file, and how files are read |
| `values` | addresses, URLs, quotas: their parsers |
| `kinds` | how each kind of value is read from TOML and written |
| `schema` | every setting |
| `document`, `lines` | from bytes to TOML; on which line each key stands |
| `loading` | from a file to a Config |
| `secrets` | pepper and private key |
| `overrides` | what a key has in place of its plan |
| `writing` | what `init` writes, and the reference in docs/configure.md |
"""

from dgproxy.config.findings import FILE_SIZE, ConfigError, Finding, Severity, read_file
from dgproxy.config.kinds import CLASSES
from dgproxy.config.loading import DEFAULT_PATHS, examine, examine_bytes, find_config, load, locate
from dgproxy.config.overrides import Overrides, effective, parse_overrides
from dgproxy.config.schema import (
    SETTINGS,
    Admin,
    Auth,
    Config,
    Cors,
    Drain,
    Keys,
    Limits,
    Log,
    Plan,
    Server,
    Setting,
    State,
    Timeouts,
    Tls,
    Upstream,
)
from dgproxy.config.secrets import PEPPER_SIZE, private_key_path, read_pepper, read_private_key
from dgproxy.config.values import Certificate, Listen, Quota, Url, parse_listen, parse_url
from dgproxy.config.writing import render_default, render_reference

__all__ = [
    "CLASSES",
    "DEFAULT_PATHS",
    "FILE_SIZE",
    "PEPPER_SIZE",
    "SETTINGS",
    "Admin",
    "Auth",
    "Certificate",
    "Config",
    "ConfigError",
    "Cors",
    "Drain",
    "Finding",
    "Keys",
    "Limits",
    "Listen",
    "Log",
    "Overrides",
    "Plan",
    "Quota",
    "Server",
    "Setting",
    "Severity",
    "State",
    "Timeouts",
    "Tls",
    "Upstream",
    "Url",
    "effective",
    "examine",
    "examine_bytes",
    "find_config",
    "load",
    "locate",
    "parse_listen",
    "parse_overrides",
    "parse_url",
    "private_key_path",
    "read_file",
    "read_pepper",
    "read_private_key",
    "render_default",
    "render_reference",
]
