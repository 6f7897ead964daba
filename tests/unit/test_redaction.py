"""No credential gets through the log's sink, wherever it stands; and a line stays one line, whatever stands in it."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

from dgproxy import events
from dgproxy.access.keys import mint
from dgproxy.logs import Log
from dgproxy.redaction import redact, target
from dgproxy.wire.head import Head, judge
from dgproxy.worker.meter import Meter

BASE64URL: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


class Pipe:
    """A log that writes into a pipe, and the lines that come out of it."""

    def __init__(self, form: str, level: str = "debug") -> None:
        out, self._in = os.pipe()
        self._file = os.fdopen(out, "rb")
        self.log = Log(level, form, self._in, process="worker 0")

    def line(self, event: events.Event, **fields: Any) -> bytes:
        """The line that an event is written as."""
        (line,) = self.lines({event: fields})
        return line

    def lines(self, told: Mapping[events.Event, Mapping[str, Any]]) -> list[bytes]:
        """The lines that these events are written as; all at once, since the log gathers for a while."""
        for event, fields in told.items():
            self.log(event, **fields)
        return [self._file.readline() for _ in told]

    def close(self) -> bytes:
        """What is still in it."""
        self.log.close()
        os.close(self._in)
        with self._file:
            return self._file.read()


@contextmanager
def pipe(form: str, level: str = "debug") -> Iterator[Pipe]:
    made = Pipe(form, level)
    try:
        yield made
    finally:
        assert made.close() == b""


@pytest.fixture(scope="module", params=["json", "console"])
def written(request: pytest.FixtureRequest) -> Iterator[Pipe]:
    with pipe(request.param) as made:
        yield made


# --- credentials -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Secret:
    """A credential, and the parts of it that must not come out."""

    text: str
    parts: tuple[str, ...]


@dataclass
class Holder:
    """Something that only shows what it holds when it is written down."""

    said: str
    more: list[str] = field(default_factory=list)


def _ours(seed: bytes) -> Secret:
    counter = iter(range(10**6))

    def random_bytes(count: int) -> bytes:
        return bytes(seed[next(counter) % len(seed)] ^ next(counter) % 251 for _ in range(count))

    key = mint(random_bytes).key
    return Secret(key, (key.rpartition("_")[2],))


minted = st.binary(min_size=8, max_size=32).map(_ours)
part = st.text(BASE64URL, min_size=16, max_size=60).map(lambda text: f"zQ{text}")  # unlike the name of any field
jwts = st.lists(part, min_size=2, max_size=4).flatmap(
    lambda parts: part.map(lambda first: Secret(".".join([f"eyJ{first}", *parts]), (first, *parts)))
)
licences = st.text("0123456789abcdefABCDEF", min_size=40, max_size=40).map(lambda text: Secret(text, (text,)))
bearers = st.tuples(st.sampled_from(["Token ", "bearer ", "BASIC ", "token, ", "bearer,", "Token%20"]), part).map(
    lambda pair: Secret(pair[0] + pair[1], (pair[1],))
)
passwords = st.text(BASE64URL + "@:", min_size=9, max_size=20).map(
    lambda text: Secret(f"https://user:Q{text}Q@callback.example/", (f"Q{text}Q",))
)
secrets = st.one_of(minted, jwts, licences)  # known wherever they stand
named = st.one_of(bearers, passwords)  # known by what stands before them
around = st.one_of(
    st.just(""),
    st.text(max_size=12),
    st.sampled_from(
        ["key_", "x", "_", "=", "token=", "Authorization: ", "{'k': '", '"', "\\", "dgp_", "eyJ", "a.", "//"]
    ),
)


def nested(leaf: str) -> st.SearchStrategy[Any]:
    """Any shape that a field may have, with the leaf somewhere in it."""
    plain = st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.text(max_size=8))
    return st.recursive(
        st.sampled_from(
            [
                leaf,
                leaf.encode(),
                bytearray(leaf.encode()),
                Holder(leaf),
                ValueError(leaf),
                Path("/") / leaf.strip("\0"),
            ]
        ),
        lambda inner: st.one_of(
            st.tuples(inner, plain).map(list),
            st.tuples(plain, inner),
            inner.map(lambda value: {"k": value}),
            st.just({leaf: 1, "also": [leaf]}),
            st.just({leaf}),
        ),
        max_leaves=3,
    )


lines = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@lines
@given(st.data())
def test_no_credential_comes_out_of_any_field_of_any_event(written: Pipe, data: st.DataObject) -> None:
    secret = data.draw(secrets)
    leaf = data.draw(around) + secret.text + data.draw(around)
    event = data.draw(st.sampled_from(events.EVENTS))
    name = data.draw(st.sampled_from(event.fields))
    line = written.line(event, **{name: data.draw(nested(leaf))})
    assert line.count(b"\n") == 1
    assert event.name.encode() in line
    for piece in secret.parts:
        assert piece not in line.decode()


@lines
@given(secrets)
def test_nor_out_of_all_fields_at_once(written: Pipe, secret: Secret) -> None:
    text = f"GET /{secret.text}?{secret.text} {secret.text}"
    for line in written.lines({event: dict.fromkeys(event.fields, text) for event in events.EVENTS}):
        for piece in secret.parts:
            assert piece not in line.decode()


@lines
@given(
    named,
    st.sampled_from(["", " ", "x", "Authorization: ", "{'", '"', "(", "=", "\n"]),
    st.sampled_from(["", '"', " x", ","]),
)
def test_nor_what_follows_a_scheme_or_stands_before_a_host(secret: Secret, before: str, after: str) -> None:
    with pipe("json") as written:
        line = written.line(events.REQUEST_REFUSED, user_agent=before + secret.text + after)
    assert not any(piece in line.decode() for piece in secret.parts)


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("dgp_0123456789_" + "s" * 38, "dgp_0123456789_[redacted]"),  # its id is public and finds the key
        ("dgp_0123456789_short", "dgp_0123456789_[redacted]"),  # cut off somewhere
        ("key=dgp_abc_def&x=1", "key=dgp_abc_[redacted]&x=1"),
        ("Authorization: Token abc", "Authorization: Token [redacted]"),
        ("token, abc, x", "token, [redacted], x"),
        ("access_token=abc&x", "access_token=[redacted]"),
        ("a" * 40, "[redacted]"),
        ("api_key_" + "0" * 40, "api_key_[redacted]"),
        ("jwt=eyJhbGciOiJub25lIn0.e30.", "jwt=[redacted]"),
        ("https://dg.example/v1/listen", "https://dg.example/v1/listen"),
        ("wss://u:p@ss@host/x", "wss://[redacted]host/x"),
        ("eyJhbGciOiJub25lIn0.e30.", "[redacted]"),
        ("eyJhbGciOiJkaXIifQ.a.b.cc.dd", "[redacted]"),
    ],
)
def test_what_is_left_of_a_credential_helps_and_opens_nothing(text: str, redacted: str) -> None:
    assert redact(text) == redacted


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nova-3",
        "7f3a9c0d-5e1b-4264-a7f3-c09d5e1b8264",
        "deepgram-sdk/7.17.0",
        "/v1/listen?model=nova-3",
        "127.0.0.1:443",
        "Ungültig",
        "the dgproxy key",
        "4bf92f3577b34da6a3ce929d0e0e4736",
    ],
)
def test_honest_text_is_left_alone(text: str) -> None:
    assert redact(text) == text


@given(st.text())
@example("\ud800")
def test_redaction_is_done_once_and_for_all(text: str) -> None:
    once = redact(text)
    assert redact(once) == once


LONG: Final = {
    "JWTs without a dot": "eyJ" * 130_000,
    "slashes": "//" * 200_000,
    "URLs without a user": "//a" * 130_000,
    "a scheme without end": "dgp_ " + "z" * 400_000,
    "a scheme of dots": "dgp_ " + "z." * 200_000 + "//",
    "keys without a secret": "dgp_" * 100_000,
    "a key without end": "dgp_" + "z" * 400_000,
    "39 digits": ("f" * 39 + "-") * 10_000,
    "spaces after a scheme": "token" + " " * 400_000,
    "commas after a scheme": "token , " * 50_000,
    "dots": "eyJ" + "." * 400_000,
    "nothing to hide": "zz-" * 130_000 + "eyJ",
}


@pytest.mark.timeout(10)  # each takes milliseconds; with a pattern of quadratic cost, minutes
@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_no_text_takes_longer_than_its_length(text: str) -> None:
    assert redact(text)


# --- lines -----------------------------------------------------------------------------------------------------------

HOSTILE: Final = '\r\n{"event":"forged"}\n\x1b[31mred\x1b[0m\x00\x7f\x85\u2028\u202e\u2066\ud800'
anything = st.one_of(st.text(), st.text(st.characters(max_codepoint=0x2070)), st.just(HOSTILE))


@lines
@given(st.sampled_from(events.EVENTS), st.dictionaries(st.sampled_from("abc"), anything), anything)
@example(events.REQUEST_CLOSE, {HOSTILE: HOSTILE}, HOSTILE)
def test_a_line_stays_one_json_object_with_what_was_said(event: events.Event, inner: dict[str, str], text: str) -> None:
    with pipe("json") as written:
        name = event.fields[0]
        line = written.line(event, **{name: [inner, text, text.encode("utf-8", "surrogatepass")]})
    parsed = json.loads(line)
    assert isinstance(parsed, dict)
    assert list(parsed)[:4] == ["time", "level", "event", "process"]
    assert parsed["event"] == event.name
    assert parsed[name][0] == {redact(key): redact(value) for key, value in inner.items()}
    assert parsed[name][1] == redact(text)
    assert len(line.decode().splitlines()) == 1


@given(anything)
@lines
def test_console_shows_escapes_and_obeys_none(text: str) -> None:
    with pipe("console") as written:
        line = written.line(events.REQUEST_CLOSE, user_agent=text, path=text.encode("utf-8", "surrogatepass"))
    shown = line.decode().removesuffix("\n")
    assert len(shown.splitlines()) == 1
    assert not re.search("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", shown)


def test_console_shows_what_an_escape_was() -> None:
    with pipe("console") as written:
        line = written.line(events.REQUEST_CLOSE, user_agent="\x1b[2J\r\n")
    assert b"user_agent=\\u001b[2J\\u000d\\u000a" in line
    assert re.match(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z info    request\.close +process=\"worker 0\" ", line)


def test_a_field_that_the_event_does_not_list_is_dropped_and_none_left_out() -> None:
    with pipe("json") as written:
        line = written.line(events.KEYS_CHANGED, generation=1, key_id=None, secret="digest", change="create")
    parsed = json.loads(line)
    del parsed["time"]
    assert parsed == {
        "level": "info",
        "event": "keys.changed",
        "process": "worker 0",
        "generation": 1,
        "change": "create",
    }


def test_numbers_and_truths_stay_what_they_are() -> None:
    with pipe("json") as written:
        line = written.line(events.REQUEST_CLOSE, status=200, wall_s=0.25, bytes_in=0, end=True)
    parsed = json.loads(line)
    assert (parsed["status"], parsed["wall_s"], parsed["bytes_in"], parsed["end"]) == (200, 0.25, 0, True)


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_what_is_below_the_level_is_not_written(level: str) -> None:
    ranks = {"debug": events.DEBUG, "info": events.INFO, "warning": events.WARNING, "error": events.ERROR}
    made = Pipe("json", level)
    for event in events.EVENTS:
        made.log(event)
        assert made.log.wants(event) is (event.level >= ranks[level])
    names = [json.loads(line)["event"] for line in made.close().splitlines()]
    assert names == [event.name for event in events.EVENTS if event.level >= ranks[level]]


def test_every_event_has_a_name_of_its_own_and_no_field_twice() -> None:
    assert len({event.name for event in events.EVENTS}) == len(events.EVENTS) > 10
    for event in events.EVENTS:
        assert len(set(event.fields)) == len(event.fields)
        assert not {"event", "level", "process", "time"} & set(event.fields)


# --- targets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "query", "served", "shown"),
    [
        (b"/v1/listen", b"", True, "/v1/listen"),
        (b"/v1/listen", b"model=nova-3&encoding=linear16", True, "/v1/listen?model=nova-3&encoding=linear16"),
        (b"/v1/listen", b"keyterm=secret+plan&token=abc", True, "/v1/listen?keyterm=*&token=*"),
        (b"/v1/listen", b"callback=https%3A%2F%2Fu%3Ap%40h", True, "/v1/listen?callback=*"),
        (b"/v1/listen", b"model=a%20b&punctuate", True, "/v1/listen?model=*&punctuate"),
        (b"/v1/listen", b"model=" + b"x" * 49, True, "/v1/listen?model=*"),
        (b"/v1/listen", b"dgp_0123=1&=2&&\xff=3", True, "/v1/listen?*=*&*=*&*&*=*"),
        (b"/v1/models/abcdefghijklmnopqrstuvwx", b"", True, "/v1/models/abcdefghijklmnopqrstuvwx"),
        (b"/abcdefghijklmnopqrstuvwx/y", b"", False, "/[redacted]/y"),
        (b"/" + b"a/" * 200, b"", False, "/" + "a/" * 63 + "a"),
        (b"/v1/listen", b"&".join([b"a=1"] * 40), True, "/v1/listen?" + "&".join(["a=*"] * 32)),
    ],
)
def test_a_target_shows_what_helps_and_hides_what_may_be_secret(
    path: bytes, query: bytes, shown: str, *, served: bool
) -> None:
    assert target(path, query, served=served) == shown


@given(secrets, st.booleans())
def test_no_credential_in_a_target_reaches_the_line(secret: Secret, served: bool) -> None:  # noqa: FBT001
    text = secret.text.replace(" ", "%20").encode()
    for path, query in (
        (b"/v1/" + text, b""),
        (b"/v1/listen", b"model=" + text),
        (b"/v1/listen", text + b"=1&" + text),
    ):
        shown = redact(target(path, query, served=served))
        assert not any(piece in shown for piece in secret.parts)


@given(licences, st.integers(60, 127))
def test_a_credential_at_the_edge_of_what_is_shown_is_not_shown_in_part(secret: Secret, at: int) -> None:
    raw = b"GET / HTTP/1.1\r\nHost: dg\r\nUser-Agent: " + b"." * at + secret.text.encode() + b"\r\n\r\n"
    head = judge(raw)
    assert isinstance(head, Head)
    with pipe("json") as written:
        line = written.line(events.REQUEST_REFUSED, **Meter("id", "127.0.0.1:1", head).fields())
    assert secret.text[:8] not in json.loads(line)["user_agent"]
