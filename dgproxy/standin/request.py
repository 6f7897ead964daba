"""A request's head exactly as it was received, and the query's parameters. Pure."""

import base64
import hashlib
from dataclasses import dataclass, field
from typing import Literal, Protocol
from urllib.parse import parse_qsl

Ended = Literal["complete", "cut"]


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


@dataclass(slots=True)
class Head:
    """What the stand-in saw of one request; tests read it to know what a proxy passed on.

    `headers` keep their order and case. For a WebSocket, `body_bytes` and `sha256` are those of its messages' payloads.
    `ended` is None while the exchange lasts; "complete" once the whole request came and the whole answer left (a
    WebSocket: once closed by a closing handshake); else "cut".
    """

    method: str
    target: str
    headers: list[tuple[str, str]]
    raw: bytes
    body_bytes: int = 0
    ended: Ended | None = None
    digest: _Digest | None = field(default_factory=hashlib.sha256)  # None: only counted (echo mode)

    @classmethod
    def parse(cls, raw: bytes) -> "Head":
        """Splits a raw head, with its empty line. Never fails: what h11 will refuse is recorded all the same."""
        first, *lines = raw.decode("latin-1").strip("\r\n").split("\n")
        method, _, rest = first.rstrip("\r").partition(" ")
        pairs = (line.rstrip("\r").partition(":") for line in lines)
        return cls(
            method=method,
            target=rest.rpartition(" ")[0],
            headers=[(name, value.strip(" \t")) for name, _, value in pairs],
            raw=raw,
        )

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    def header(self, name: str) -> str | None:
        """The first value of a header; `name` in lower case."""
        return next((value for key, value in self.headers if key.lower() == name), None)

    def take(self, data: bytes) -> None:
        """Counts and hashes a piece of the body."""
        self.body_bytes += len(data)
        if self.digest is not None:
            self.digest.update(data)

    @property
    def sha256(self) -> str | None:
        """The hash of the body as far as it came; None where it was only counted."""
        return None if self.digest is None else self.digest.hexdigest()

    def as_json(self) -> dict[str, object]:
        """The record as /standin/heads gives it."""
        return {
            "method": self.method,
            "target": self.target,
            "headers": [list(pair) for pair in self.headers],
            "raw": base64.b64encode(self.raw).decode(),
            "body_bytes": self.body_bytes,
            "sha256": self.sha256,
            "ended": self.ended,
        }


class Query:
    """The parameters of a target, in their order, repeated ones kept."""

    def __init__(self, target: str) -> None:
        self.pairs = parse_qsl(target.partition("?")[2], keep_blank_values=True)

    def get(self, name: str, default: str = "") -> str:
        """The first value of `name`."""
        return next((value for key, value in self.pairs if key == name), default)

    def all(self, name: str) -> list[str]:
        """Every value of `name`."""
        return [value for key, value in self.pairs if key == name]

    def flag(self, name: str) -> bool:
        """Whether `name` is set to true."""
        return self.get(name).lower() == "true"

    def number(self, name: str, default: int) -> int:
        """A whole number above zero. Raises ValueError with a sentence for the client."""
        value = self.get(name)
        if not value:
            return default
        # the Python SDK sends 16000.0 where its caller wrote a float
        text = value.removesuffix(".0")
        if not (text.isascii() and text.isdigit() and int(text) > 0):
            raise ValueError(f"Invalid query string: {name} must be a positive integer.")
        return int(text)
