"""The catalogue of bad inputs by id, and which rows of the tests answer to which id.

A row belongs to an id by its name: a test is called `test_f5_...` (or `test_c6_c10_...`), a row of a table `F5 ...`,
whether the table is a dict whose keys are the ids of `parametrize`, or a list of `pytest.param(..., id=...)`. Nothing
else is to be registered. A test of another kind of name says `@pytest.mark.bad_input("F5")`.
"""

import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Final

import pytest

# What is sent or done, in a few words. The right outcome of each stands with its rows.
CATALOGUE: Final[dict[str, str]] = {
    "F1": "Content-Length with Transfer-Encoding",
    "F2": "two lengths, or a list",
    "F3": "a length that is no plain number",
    "F4": "a length that overflows",
    "F5": "a length over the plan's max_body",
    "F6": "chunked in HTTP/1.0",
    "F7": "a coding that is not chunked alone",
    "F8": "chunked in odd letter case",
    "F9": "odd white space around a coding",
    "F10": "white space before the colon",
    "F11": "obs-fold",
    "F12": "bare LF",
    "F13": "bare CR",
    "F14": "control bytes",
    "F15": "a header line that is none",
    "F16": "a chunk's size that is none",
    "F17": "chunk data of another length",
    "F18": "chunk extensions",
    "F19": "trailers",
    "F20": "a request behind Content-Length: 0",
    "F21": "pipelining",
    "F22": "a request behind a refused upgrade",
    "F23": "GET with a body",
    "F24": "a request line that is none",
    "F25": "empty lines before a request",
    "F26": "other versions, HTTP/2's preface",
    "F27": "an upstream's answer that is ambiguous",
    "F28": "an upstream's answer before the body was read",
    "F29": "more from an upstream than its length",
    "F30": "a body from an upstream where none may be",
    "F31": "Expect: 100-continue with a bad key",
    "F32": "another Expect",
    "H1": "Host",
    "H2": "other forms of target, CONNECT, TRACE",
    "H3": "paths that are almost served",
    "H4": "a fragment",
    "H5": "a query of 30 KB",
    "H6": "raw bytes and escapes in a query",
    "H7": "a head too large",
    "H8": "Connection names what is ours, or framing",
    "H9": "a client's X-Forwarded-* and X-Request-Id",
    "H10": "X-Forwarded-For from a trusted proxy",
    "H11": "the PROXY protocol",
    "H12": "Upgrade to another protocol",
    "H13": "hop-by-hop headers of a request",
    "H14": "hop-by-hop headers of an answer",
    "H15": "line ends and escapes on their way into the log",
    "W1": "a handshake that lacks something",
    "W2": "Upgrade without Connection, or elsewhere",
    "W3": "frames before the 101",
    "W4": "an upstream's answer that is no 101",
    "W5": "permessage-deflate",
    "W6": "frames that break RFC 6455 5",
    "W7": "fragments out of order",
    "W8": "floods of pings",
    "W9": "a frame of 2^62 bytes",
    "W10": "frames in pieces, and many in one",
    "W11": "odd close frames",
    "W12": "a client that goes away",
    "W13": "an upstream that resets",
    "W14": "odd subprotocols",
    "W15": "a subprotocol's credential and a header's",
    "W16": "empty and odd messages",
    "W17": "Origin, and what a browser asks before it sends",
    "R1": "slow heads and bodies",
    "R2": "a client that does not read",
    "R3": "5,000 silent connections",
    "R4": "no descriptor left",
    "R5": "500 stalled uploads",
    "R6": "100,000 requests on a connection; churn",
    "R7": "one key floods",
    "R8": "SIGSTOP",
    "R9": "a full backlog",
    "U1": "an upstream that can't be reached",
    "U2": "an upstream that says nothing",
    "U3": "a kept connection that is closed as we write",
    "U4": "an answer that breaks off",
    "U5": "an upstream that drips or floods",
    "U6": "429 and 503 from an upstream",
    "U7": "an upstream that restarts",
    "U8": "odd status",
    "U9": "an HTTPS upstream with a bad certificate",
    "T4": "FIN without close_notify, in a body and in a stream",
    "T5": "close_notify, then silence; a client that never reads ours",
    "C1": "no credential, or none that can be read",
    "C2": "a key that is almost right",
    "C3": "a key of 40,000 bytes",
    "C4": "two credentials",
    "C5": "a key where none belongs",
    "C6": "a key that may not, or no more",
    "C7": "10,000 wrong keys from an address",
    "C8": "timing",
    "C9": "a key in a malformed head",
    "C10": "a key revoked on a kept connection",
    "C11": "Deepgram's own licence key",
}

# Every id of these groups has its rows. Of T (TLS) only what concerns the ends of bodies and streams is in here.
COMPLETE: Final = "FHWRUCT"

# Not built yet: why, and what keeps the risk away until then (what a test can say of that is in test_catalogue.py).
NOT_YET: Final[dict[str, str]] = {
    "H10": "not built yet; a configuration with server.trusted_proxies is refused at start, so no header is believed",
    "H11": "not built yet; a configuration with server.proxy_protocol is refused at start",
    "U8": "not built yet: this release does not look at an upstream's status, so no odd one can mislead it",
    "C7": "not built yet; a secret has 190 bits and a guess costs one digest, whatever is sent; until then the "
    "configuration's check says that auth.failures_per_address is not enforced",
}

# Rows that live where what they look at lives: the module that has them.
ELSEWHERE: Final[dict[str, str]] = {
    **dict.fromkeys(("F16", "F17", "F18", "F19"), "tests.wire.test_chunked"),
    "W16": "tests.e2e.test_clients",
}

# Rows that are run scaled down, so that the gate stays short, and what of the source's size they show all the same.
SCALED: Final[dict[str, str]] = {
    "R3": "300 connections of 5,000, at a limit of 50: six times as many as there is room for",
    "R6": "2,500 requests of 100,000 on a connection, 2,000 connections of 60,000: a leak of 4 KB each shows",
    "R7": "no latency of the others, until rates are enforced: that all of theirs are served while a key floods",
    "C8": "no timing of 1,000,000 samples, which noise decides on a shared machine: the work of a check is counted",
}


def ids_of(module: ModuleType) -> Iterator[str]:
    """The ids that a module's tests answer to, each as often as it is named."""
    for name, function in vars(module).items():
        if not name.startswith("test_"):
            continue
        words = re.match(r"test((?:_[a-z]\d+)*)_", name)
        yield from (word.upper() for word in (words[1] if words else "").split("_") if word)
        for mark in getattr(function, "pytestmark", ()):
            yield from _ids_of_mark(mark)


def _ids_of_mark(mark: pytest.Mark) -> Iterator[str]:
    if mark.name == "bad_input":
        yield from mark.args
    if mark.name != "parametrize":
        return
    ids, rows = mark.kwargs.get("ids"), mark.args[1]
    names: list[Any] = [] if ids is None or callable(ids) else list(ids)
    if isinstance(rows, list | tuple):  # an iterator is pytest's to use up
        names += [getattr(row, "id", None) for row in rows]
    for name in names:
        if isinstance(name, str) and (named := re.match(r"[A-Z]\d+\b", name)):
            yield named[0]
