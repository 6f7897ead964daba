"""Which headers cross the proxy (bad-inputs.md H8, H9, H13, H14; spec part 5)."""

from typing import Final

import pytest
from hypothesis import given, strategies as st

from dgproxy.wire.forwarding import (
    CREDENTIALS,
    HOP_BY_HOP,
    OURS,
    client_request_id,
    downstream_headers,
    upgrade_headers,
    upstream_headers,
)
from dgproxy.wire.head import Head, judge

TRACE: Final = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def head(*lines: bytes) -> Head:
    made = judge(b"\r\n".join([b"GET /v1/models HTTP/1.1", b"Host: front.example", *lines, b"", b""]))
    assert isinstance(made, Head), made
    return made


def forwarded(*lines: bytes) -> list[tuple[bytes, bytes]]:
    """What goes on of these lines, and ours, names in lower case."""
    return [
        (name.lower(), value)
        for name, value in upstream_headers(
            head(*lines),
            host=b"dg:8080",
            peer=b"203.0.113.7",
            scheme=b"https",
            request_id=b"our-id",
            trace_id=b"a" * 32,
            span_id=b"b" * 16,
        )
    ]


OURS_ALWAYS: Final = [
    (b"host", b"dg:8080"),
    (b"x-forwarded-for", b"203.0.113.7"),
    (b"x-forwarded-proto", b"https"),
    (b"x-request-id", b"our-id"),
    (b"traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-00"),
]


def test_what_is_set_for_every_request() -> None:
    assert forwarded() == OURS_ALWAYS


def test_what_clients_say_to_the_engine_passes_in_its_order() -> None:
    lines = [
        (b"accept", b"*/*"),
        (b"content-type", b"deepgram/audio+video"),
        (b"user-agent", b"deepgram-sdk/7.17.0"),
        (b"x-fern-language", b"Python"),
        (b"x-deepgram-session-id", b"3d7c61ee"),
        (b"content-disposition", b'attachment; filename="f.wav"'),
        (b"accept", b"again"),
        (b"x-empty", b""),
    ]
    got = forwarded(*[b"%b: %b" % line for line in lines])
    assert got == [OURS_ALWAYS[0], *lines, *OURS_ALWAYS[1:]]


NEVER: Final = sorted(
    (HOP_BY_HOP - {b"transfer-encoding"})
    | CREDENTIALS
    | (OURS - {b"content-length", b"expect", b"host"})
    | {
        b"x-forwarded-for",
        b"x-forwarded-proto",
        b"x-forwarded-host",
        b"x-forwarded-anything",
        b"sec-websocket-key",
        b"sec-websocket-protocol",
        b"sec-websocket-extensions",
    }
)


@pytest.mark.parametrize("name", NEVER)
def test_h13_what_is_hop_by_hop_or_secret_or_ours_does_not_pass(name: bytes) -> None:
    sentinel = b"sentinel" if name != b"connection" else b"x-sentinel"
    got = forwarded(name.title() + b": " + sentinel)
    if name == b"x-request-id":
        assert (b"x-request-id", sentinel) in got  # unless it can be used
        got = forwarded(name + b': "' + sentinel + b'"')
    assert got == OURS_ALWAYS


@pytest.mark.parametrize("name", [name for name in NEVER if b"-" in name] + [b"content-length", b"transfer-encoding"])
def test_h13_nor_does_a_name_that_cgi_takes_for_one_of_them(name: bytes) -> None:
    assert forwarded(name.replace(b"-", b"_") + b": sentinel", name.replace(b"-", b"_", 1) + b": s") == OURS_ALWAYS
    assert (b"x_mine", b"1") in forwarded(b"X_Mine: 1")


def test_framing_is_not_ours_to_pass() -> None:
    assert forwarded(b"Content-Length: 0", b"Expect: 100-continue") == OURS_ALWAYS
    assert forwarded(b"Transfer-Encoding: chunked") == OURS_ALWAYS


def test_h8_what_connection_names_is_dropped_and_ours_are_set_all_the_same() -> None:
    got = forwarded(
        b"Connection: X-Mine, X-Forwarded-For, X-FORWARDED-PROTO, X-Request-Id, traceparent, Authorization",
        b"X-Mine: 1",
        b"x-mine: 2",
        b"X-Other: 3",
        b"X-Forwarded-For: 10.0.0.1",
        b"X-Request-Id: mine",
    )
    assert got == [
        OURS_ALWAYS[0],
        (b"x-other", b"3"),
        *OURS_ALWAYS[1:3],
        (b"x-request-id", b"mine"),
        OURS_ALWAYS[4],
    ]


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (b"a", True),
        (b"!#$%&'*+.^_`|~-09azAZ", True),
        (b"r" * 128, True),
        (b"r" * 129, False),
        (b"", False),
        (b"a b", False),
        (b"a,b", False),
        (b'"a"', False),
        (b"\xe9", False),
    ],
)
def test_h9_a_request_id_is_kept_if_it_is_a_token_of_128_at_most(value: bytes, *, kept: bool) -> None:
    assert client_request_id(head(b"X-Request-Id: " + value)) == (value if kept else None)
    assert (b"x-request-id", value if kept else b"our-id") in forwarded(b"X-Request-Id: " + value)


def test_h9_two_request_ids_are_none() -> None:
    assert client_request_id(head(b"X-Request-Id: a", b"X-Request-Id: b")) is None


def test_a_trace_is_continued_with_its_state() -> None:
    got = forwarded(b"traceparent: " + TRACE, b"tracestate: a=1", b"tracestate: b=2")
    assert got[-3:] == [(b"traceparent", TRACE), (b"tracestate", b"a=1"), (b"tracestate", b"b=2")]


@pytest.mark.parametrize(
    "trace",
    [
        b"",
        TRACE.upper(),
        TRACE + b"-x",
        b"01" + TRACE[2:],
        b"00-" + b"0" * 32 + TRACE[35:],
        TRACE[:36] + b"0" * 16 + b"-01",
        TRACE[:-1],
        TRACE[:-1] + b"g",
    ],
)
def test_a_trace_that_is_none_is_begun_anew_without_its_state(trace: bytes) -> None:
    assert forwarded(b"traceparent: " + trace, b"tracestate: a=1") == OURS_ALWAYS
    assert forwarded(b"traceparent: " + TRACE, b"traceparent: " + TRACE) == OURS_ALWAYS


ANSWER: Final = [
    (b"content-type", b"application/json"),
    (b"content-length", b"5"),
    (b"transfer-encoding", b"chunked"),
    (b"dg-request-id", b"r"),
    (b"x-dg-unknown", b"1"),
    (b"set-cookie", b"a=b"),
    (b"set-cookie", b"c=d"),
    (b"server", b"engine"),
]
HOPS: Final = [
    (b"connection", b"X-Secret, close"),
    (b"x-secret", b"1"),
    (b"keep-alive", b"timeout=5"),
    (b"upgrade", b"h2c"),
    (b"proxy-authenticate", b"Basic"),
    (b"trailer", b"x"),
    (b"te", b"trailers"),
]


def test_h14_an_answer_passes_without_what_is_hop_by_hop_and_with_its_framing() -> None:
    assert downstream_headers([*HOPS, *ANSWER]) == ANSWER


def test_a_101_passes_without_the_handshake_which_is_ours() -> None:
    handshake = [
        (b"upgrade", b"websocket"),
        (b"connection", b"Upgrade, X-Secret"),
        (b"x-secret", b"1"),
        (b"sec-websocket-accept", b"x"),
        (b"sec-websocket-protocol", b"token"),
        (b"sec-websocket-extensions", b"permessage-deflate"),
        (b"content-length", b"0"),
        (b"transfer-encoding", b"chunked"),
        (b"dg-request-id", b"r"),
    ]
    assert upgrade_headers(handshake) == [(b"dg-request-id", b"r")]


names = st.sampled_from([*NEVER, b"x-a", b"x-b", b"accept", b"x-forwarded-x", b"sec-websocket-x"]).filter(
    lambda name: name not in {b"connection", b"upgrade"}
)


@given(st.lists(names, max_size=8), st.lists(st.sampled_from([b"x-a", b"x-b", b"host-x", b"via"]), max_size=3))
def test_no_mixture_of_headers_lets_one_through_that_may_not(sent: list[bytes], connection: list[bytes]) -> None:
    got = forwarded(b"Connection: " + b", ".join(connection), *[name + b": sentinel\xff" for name in sent])
    passed = [name for name, value in got if value == b"sentinel\xff"]
    assert passed == [name for name in sent if name in {b"x-a", b"x-b", b"accept"} and name not in connection]
    for ours in OURS_ALWAYS:
        assert got.count(ours) == 1
