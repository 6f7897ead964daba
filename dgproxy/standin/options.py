"""What a test can ask of the stand-in: for the whole server (the constructor) or for one request.

One table, `PARAMETERS`, names each option as requests spell it: `standin_NAME=VALUE` in the query, or a header
`x-standin-NAME: VALUE` (with `-` for `_`). The query passes through a proxy byte for byte, so it is the one to prefer,
and it wins over the header. An unknown name or a wrong value is an error, so that no test passes because of a typo.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

QUERY_PREFIX: Final = "standin_"
HEADER_PREFIX: Final = "x-standin-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How the stand-in behaves. The defaults are a container in good health."""

    status: int | None = None
    """Answer with this status and Deepgram's error body; on an upgrade: refuse it."""
    delay: float = 0.0
    """Seconds between the request and the head of its answer (the 101 included)."""
    hangup: bool = False
    """Close instead of answering."""
    reset_after: int | None = None
    """RST after that many bytes behind the answer's head (of its body, or of frames behind a 101; not in echo mode)."""
    early: bool = False
    """Answer before the body is read; the body is then read and thrown away."""
    wrong_accept: bool = False
    """A 101 whose Sec-WebSocket-Accept belongs to another key."""
    silence: float = 10.0
    """Seconds without audio or a text message after which a stream is closed (NET-0001)."""
    results_ms: int = 1000
    """Milliseconds of audio for each final `Results`; interim ones come at halves, Flux's `TurnInfo` at quarters."""
    report_scale: float = 1.0
    """Reported durations are the true ones times this: it shows whether a meter took reports or counted bytes."""
    echo: bool = False
    """A WebSocket sends every message back as it came, frame by frame."""
    size: int | None = None
    """Answer 200 with that many bytes: byte i is i mod 251. In requests: `standin_bytes`."""
    chunked: bool = False
    """Chunked answers instead of Content-Length."""
    system_health: str = "Healthy"
    """What /v1/status says: Initializing, Ready, Healthy, Degraded or Critical (deepgram.md 8)."""
    engine_connection: str = "Connected"
    """What /v1/status/engine says."""

    def overridden(self, headers: Iterable[tuple[str, str]], query: Iterable[tuple[str, str]]) -> "Options":
        """These options as one request wants them. Raises ValueError with a sentence for whoever wrote the test."""
        wanted = [
            (name[len(HEADER_PREFIX) :].lower().replace("-", "_"), value)
            for name, value in headers
            if name.lower().startswith(HEADER_PREFIX)
        ]
        wanted += [(name[len(QUERY_PREFIX) :], value) for name, value in query if name.startswith(QUERY_PREFIX)]
        if not wanted:
            return self
        changes: dict[str, Any] = {}
        for name, value in wanted:
            if name not in PARAMETERS:
                raise ValueError(f"the stand-in has no option {name!r}; it has {', '.join(PARAMETERS)}")
            field, convert = PARAMETERS[name]
            try:
                changes[field] = convert(value)
            except ValueError:
                raise ValueError(f"the stand-in's option {name!r} cannot be {value!r}") from None
        return replace(self, **changes)


def _status(value: str) -> int:
    status = int(value)
    if not 200 <= status <= 599:  # noqa: PLR2004 - final statuses, RFC 9110 15
        raise ValueError(value)
    return status


def _count(value: str) -> int:
    count = int(value)
    if count < 0:
        raise ValueError(value)
    return count


def _positive(value: str) -> int:
    count = int(value)
    if count < 1:
        raise ValueError(value)
    return count


def _amount(value: str) -> float:
    amount = float(value)
    if not (amount >= 0 and math.isfinite(amount)):
        raise ValueError(value)
    return amount


def _flag(value: str) -> bool:
    match value.lower():
        case "1" | "true":
            return True
        case "0" | "false":
            return False
        case _:
            raise ValueError(value)


PARAMETERS: Final[dict[str, tuple[str, Callable[[str], object]]]] = {
    "status": ("status", _status),
    "delay": ("delay", _amount),
    "hangup": ("hangup", _flag),
    "reset_after": ("reset_after", _count),
    "early": ("early", _flag),
    "wrong_accept": ("wrong_accept", _flag),
    "silence": ("silence", _amount),
    "results_ms": ("results_ms", _positive),
    "report_scale": ("report_scale", _amount),
    "echo": ("echo", _flag),
    "bytes": ("size", _count),
    "chunked": ("chunked", _flag),
    "system_health": ("system_health", str),
    "engine_connection": ("engine_connection", str),
}
