"""What came of a row at one server, and how two such results compare. No I/O."""

import enum
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Self

from tests.differential.corpus import SECOND_TARGET
from tests.differential.upstream import Seen

# What a server must not let the client say, in any spelling that somebody behind it could take for the name.
_OURS: Final = frozenset(
    {
        "content-length",
        "transfer-encoding",
        "host",
        "authorization",
        "proxy-authorization",
        "x-api-key",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
        "x-real-ip",
        "x-request-id",
        "sec-websocket-protocol",
    }
)


class Verdict(enum.StrEnum):
    """What dgproxy is beside another server, on one row."""

    SAME = "same"
    STRICTER = "stricter"
    LAXER = "laxer"
    OTHER = "other"  # as many requests reached the upstream, but not the same ones


@dataclass(frozen=True)
class Result:
    """What came of one row at one server."""

    statuses: tuple[int, ...]  # of its answers to the client, 100 left out
    ended: bool  # whether it ended the connection in time
    first: tuple[str, ...] = ()  # what reached the upstream of the row itself: "POST /v1/listen length 5"
    second: int = 0  # how often the request behind the row reached it
    broken: tuple[str, ...] = ()  # what reached it that no strict reader takes, and why not
    begun: int = 0  # requests that reached it and were not finished
    lookalikes: tuple[str, ...] = ()  # header names that reached it and may be taken for others
    trailers: tuple[str, ...] = ()  # names of those that reached it
    leaked: bool = False  # the client's key reached it
    tunnel: int | None = None  # bytes through a WebSocket, if one opened

    @classmethod
    def of(cls, statuses: Sequence[int], seen: Sequence[Seen], *, ended: bool) -> Self:
        """From the client's and the upstream's side of it."""
        whole = [one for one in seen if one.complete]
        return cls(
            statuses=tuple(statuses),
            ended=ended,
            first=tuple(
                f"{one.method} {one.target[:100]} {one.framing} {one.body}"
                for one in whole
                if one.target != SECOND_TARGET
            ),
            second=sum(one.target == SECOND_TARGET for one in whole),
            broken=tuple(f"{one.malformed}: {one.method} {one.target[:100]}" for one in seen if one.malformed),
            begun=sum(not one.complete and not one.malformed for one in seen),
            lookalikes=tuple(
                sorted({name for one in seen for name in one.names + one.trailers if "_" in name and _looks(name)})
            ),
            trailers=tuple(sorted({name for one in seen for name in one.trailers})),
            leaked=any(one.credential for one in seen),
            tunnel=next((one.tunnel for one in seen if one.tunnel is not None), None),
        )

    @property
    def reached(self) -> int:
        """How many requests, or what may be taken for some, the upstream had to read to the end."""
        return len(self.first) + self.second + len(self.broken)

    def told(self) -> str:
        """In a few words: what the client's first status was, or what went on."""
        if self.broken:
            return "passes, malformed"
        if self.first:
            with_it = [*self.lookalikes, *(f"trailer {name}" for name in self.trailers)]
            return "passes" + (" with " + ", ".join(f"`{one}`" for one in with_it) if with_it else "")
        if self.statuses:
            refused = str(self.statuses[0])  # perhaps after the upstream saw the beginning of it
        else:
            refused = "cut in the body" if self.begun else "closed" if self.ended else "no answer"
        return refused + (", second passes" if self.second else "")

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return {**asdict(self), "told": self.told()}


def _looks(name: str) -> bool:
    return name.lower().replace("_", "-") in _OURS


def compare(ours: Result, theirs: Result) -> Verdict:
    """Whether dgproxy lets more through than another server did, or less.

    More is: a request that reached the upstream where theirs did not, one that no strict reader takes, or a header that
    may be taken for one of ours, or a trailer.
    """
    if ours.broken or ours.reached > theirs.reached or _extra(ours) - _extra(theirs):
        return Verdict.LAXER
    if ours.reached < theirs.reached or theirs.broken or _extra(theirs) - _extra(ours):
        return Verdict.STRICTER
    if sorted(_framed(ours)) != sorted(_framed(theirs)):
        return Verdict.OTHER
    return Verdict.SAME


def _extra(result: Result) -> set[str]:
    return {*result.lookalikes, *(f"trailer {name}" for name in result.trailers)}


def _framed(result: Result) -> list[str]:
    """The requests of a result; a length and chunks of as many bytes are one thing."""
    return [one.replace(" chunked ", " length ") for one in result.first]


@dataclass
class Explained:
    """The rows in which dgproxy may be laxer, each with its reason."""

    rows: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, entries: Sequence[dict[str, Any]]) -> Self:
        """From the tables of explained.toml: `ids` and one `reason` for them.

        Raises:
            ValueError: a row stands in two tables, or a table has no reason.
        """
        rows: dict[str, str] = {}
        for entry in entries:
            for row in entry["ids"]:
                if row in rows or not entry["reason"].strip():
                    raise ValueError(f"explained.toml: {row} stands twice, or without a reason")
                rows[row] = entry["reason"]
        return cls(rows)
