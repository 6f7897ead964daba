"""The compatibility matrix: which clients, which features, and what was seen of each.

Rules of this file: a cell of the table is what a test saw, never what somebody believes; a feature that an SDK does not
have is said here, with the reason, and is the only cell that no test fills.

How a test fills a cell: it is parametrised by `cells(PYTHON)` or the like, and at its end calls

    seen(sdk.id, feature.id, "green", "`ApiError`, 401")

with what it saw; "red" needs a note that gives the reason and what Deepgram itself would do. A note is Markdown, and
the same in each run: no times, ports, ids, paths. What all tests of a run saw is compared by test_table.py, which runs
last, with seen.json; `make clients` writes that file and docs/clients.md, which document.py renders from it.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, NamedTuple

Group = Literal["http", "stream", "refused"]
Verdict = Literal["green", "red"]

COMMITTED: Final = Path(__file__).with_name("seen.json")


@dataclass(frozen=True, slots=True)
class Sdk:
    """A client as its users install it. `version` is the one that is locked; it is asserted against what runs."""

    id: str  # "python-7"; names the row
    title: str  # "Python 7"
    version: str
    lacks: dict[str, str] = field(default_factory=dict)  # feature id -> why this SDK has no such thing


@dataclass(frozen=True, slots=True)
class Feature:
    """Something that users do with an SDK; a column of its group's table, where it is called `short`."""

    id: str
    group: Group
    short: str
    title: str


class Cell(NamedTuple):
    """One SDK's one feature."""

    sdk: Sdk
    feature: Feature

    @property
    def id(self) -> str:
        """The test's name."""
        return f"{self.sdk.id}-{self.feature.id}"


class Seen(NamedTuple):
    """What a test saw of a cell."""

    verdict: Verdict
    note: str


Results = Mapping[tuple[str, str], Seen]  # (sdk id, feature id) -> what was seen

FEATURES: Final = (
    Feature("http-bytes", "http", "bytes", "POST /v1/listen of bytes: they arrive whole, with their Content-Length"),
    Feature("http-file", "http", "file", "POST /v1/listen of an open file, or a path"),
    Feature("http-stream", "http", "generator", "POST /v1/listen of a generator or stream: it stays chunked"),
    Feature("http-url", "http", "URL", 'POST /v1/listen of {"url": ...}, to a host that the plan allows'),
    Feature("speak", "http", "speak", "POST /v1/speak: audio, chunked, with its dg- headers"),
    Feature("read", "http", "read", "POST /v1/read"),
    Feature("models", "http", "models", "GET /v1/models"),
    Feature("stream", "stream", "listen", "WSS /v1/listen: audio, Results, CloseStream, Metadata, close 1000"),
    Feature("stream-keepalive", "stream", "KeepAlive", "KeepAlive arrives, and the stream goes on"),
    Feature("stream-finalize", "stream", "Finalize", "Finalize arrives, and its Results come back"),
    Feature("stream-configure", "stream", "Configure", "Configure arrives, and ConfigureSuccess comes back"),
    Feature("flux", "stream", "flux", "WSS /v2/listen: Connected, TurnInfo with no gap in sequence_id, close 1000"),
    Feature("speak-stream", "stream", "speak", "WSS /v1/speak: Speak, Flush, audio, Flushed, Close"),
    Feature("wrong-key", "refused", "wrong key", "a wrong key over HTTP: 401 INVALID_AUTH"),
    Feature("wrong-key-stream", "refused", "wrong key, stream", "a wrong key on a stream: the handshake gets 401"),
    Feature("no-key", "refused", "no key", "no key at all: 401"),
    Feature("jwt-key", "refused", "JWT-shaped key", "a key shaped like a JWT, which is none of ours: 401"),
    Feature("proxy-key", "refused", "key `proxy`", "the literal key `proxy` (JavaScript's proxy mode): 401"),
    Feature("revoked-stream", "refused", "revoked in mid-stream", "a key revoked in mid-stream: close 1008"),
)


_NEEDS_KEY: Final = {"no-key": "The client is not made without a key, and sends no request with an empty one."}
_NO_FLUX: Final = {"flux": "Older than `/v2/listen`."}

PYTHON: Final = (
    Sdk("python-7", "Python 7", "7.17.0", _NEEDS_KEY),
    Sdk("python-7-async", "Python 7, async", "7.17.0", _NEEDS_KEY),
    Sdk("python-4", "Python 4", "4.8.1", _NO_FLUX),
    Sdk("python-4-async", "Python 4, async", "4.8.1", _NO_FLUX),
    Sdk("python-3", "Python 3", "3.11.0", _NO_FLUX),
    Sdk("python-3-async", "Python 3, async", "3.11.0", _NO_FLUX),
)
_MADE_WITH_KEY: Final = {"no-key": "The client is not made without a key."}
JAVASCRIPT: Final = (
    Sdk("javascript-5", "JavaScript 5, Node", "5.13.0"),
    Sdk("javascript-5-subprotocol", "JavaScript 5, as in a browser", "5.13.0"),
    Sdk("javascript-4", "JavaScript 4, Node < 22", "4.11.3", {**_NO_FLUX, **_MADE_WITH_KEY}),
    Sdk("javascript-4-websocket", "JavaScript 4, native `WebSocket`", "4.11.3", {**_NO_FLUX, **_MADE_WITH_KEY}),
    Sdk("javascript-3", "JavaScript 3, Node < 22", "3.13.0", {**_NO_FLUX, **_MADE_WITH_KEY}),
)

_ASKED_OF_REPLAYS: Final = {"http-file", "stream", "wrong-key", "wrong-key-stream", "no-key"}
_NOT_REPLAYED: Final = {feature.id: "Not replayed." for feature in FEATURES if feature.id not in _ASKED_OF_REPLAYS}
REPLAYED: Final = (  # not run: test_replays.py sends what they would
    Sdk("go-3", "Go 3, replayed", "3.5.0", _NOT_REPLAYED),
    Sdk("dotnet-7", ".NET 7, replayed", "7.0.0", _NOT_REPLAYED),
    Sdk("rust-0.9", "Rust 0.9, replayed", "0.9.2", _NOT_REPLAYED),
    Sdk("java-0.3", "Java 0.3, replayed", "0.3.0", {**_NOT_REPLAYED, **_MADE_WITH_KEY}),
)
SDKS: Final = (*PYTHON, *JAVASCRIPT, *REPLAYED)

_RESULTS: Final[dict[tuple[str, str], Seen]] = {}


def cells(sdks: Iterable[Sdk], *features: str) -> Iterator[Cell]:
    """Every cell of these SDKs that a test must fill; of these features only, if any are named."""
    for sdk in sdks:
        for feature in FEATURES:
            if feature.id not in sdk.lacks and (not features or feature.id in features):
                yield Cell(sdk, feature)


def seen(sdk_id: str, feature_id: str, verdict: Verdict, note: str = "") -> None:
    """A test's finding."""
    assert verdict == "green" or note, "red needs its reason"
    assert (sdk_id, feature_id) in {(cell.sdk.id, cell.feature.id) for cell in cells(SDKS)}, "no such cell"
    assert (sdk_id, feature_id) not in _RESULTS, "another test fills this cell"
    _RESULTS[sdk_id, feature_id] = Seen(verdict, note)


def results() -> Results:
    """All that this run saw so far."""
    return dict(_RESULTS)


def committed() -> Results:
    """What was seen when docs/clients.md was made."""
    return {(sdk, feature): Seen(verdict, note) for sdk, feature, verdict, note in json.loads(COMMITTED.read_text())}


def merged(old: Results, new: Results) -> Results:
    """`old` with what `new` saw, in the matrix's order, without cells that the matrix no longer has."""
    both = {**old, **new}
    order = [(cell.sdk.id, cell.feature.id) for cell in cells(SDKS)]
    return {key: both[key] for key in order if key in both}


def written(results: Results) -> str:
    """The text of seen.json: a line a cell."""
    rows = [json.dumps([*key, *found], ensure_ascii=False) for key, found in results.items()]
    return "[\n" + ",\n".join(rows) + "\n]\n"
