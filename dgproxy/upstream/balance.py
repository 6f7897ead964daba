"""Which upstream gets the next request. Pure: it sees what is in flight and decides; `upstream.pool` connects."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from dgproxy.config import Url


@dataclass(slots=True, eq=False)
class Target:
    """One container, as this worker knows it."""

    url: Url
    in_flight: int = 0
    name: str = field(init=False)
    host: bytes = field(init=False)  # the Host header

    def __post_init__(self) -> None:
        self.name = str(self.url)
        authority = self.name.partition("://")[2]
        default: Final = {"http": ":80", "https": ":443"}[self.url.scheme]
        self.host = authority.removesuffix(default).encode()


def order(targets: Sequence[Target]) -> list[Target]:
    """The targets in the order in which to try them: least in flight first, the configured order among equals."""
    return sorted(targets, key=lambda target: target.in_flight)
