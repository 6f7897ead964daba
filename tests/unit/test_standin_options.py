import dataclasses

import pytest

from dgproxy.standin.options import PARAMETERS, Options
from dgproxy.standin.request import Head, Query


def test_every_option_can_be_asked_for_by_a_request_and_only_those() -> None:
    assert {field for field, _ in PARAMETERS.values()} == {field.name for field in dataclasses.fields(Options)}


def test_the_query_wins_over_the_header_and_the_header_over_the_server() -> None:
    options = Options(results_ms=100, silence=3.0)
    headers = [("X-Standin-Results-Ms", "200"), ("x-standin-report-scale", "2.5"), ("Host", "h")]
    query = Query("/v1/listen?model=nova-3&standin_results_ms=300&standin_echo=1").pairs
    assert options.overridden(headers, query) == Options(results_ms=300, silence=3.0, report_scale=2.5, echo=True)


def test_a_request_that_asks_for_nothing_gets_the_servers_own_options() -> None:
    options = Options(delay=1.0)
    assert options.overridden([("Host", "h")], [("model", "nova-3")]) is options


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stauts", "429"),
        ("status", "101"),
        ("status", "x"),
        ("delay", "-1"),
        ("delay", "nan"),
        ("delay", "inf"),
        ("echo", "yes"),
        ("bytes", "-1"),
        ("results_ms", "0"),
    ],
)
def test_a_wrong_option_is_an_error_that_names_it(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=name):
        Options().overridden([], [(f"standin_{name}", value)])


def test_a_head_keeps_case_order_and_raw_bytes() -> None:
    raw = (
        b"POST /v1/listen?a=b%20c&a=+ HTTP/1.1\r\nHOST: h\r\nx-B:  two words \r\nX-b:\r\nAuthorization: Token K\r\n\r\n"
    )
    head = Head.parse(raw)
    assert (head.method, head.path, head.target, head.raw) == ("POST", "/v1/listen", "/v1/listen?a=b%20c&a=+", raw)
    assert head.headers == [("HOST", "h"), ("x-B", "two words"), ("X-b", ""), ("Authorization", "Token K")]
    assert head.header("x-b") == "two words"
    assert head.header("cookie") is None


@pytest.mark.parametrize("raw", [b"\r\n\r\n", b"\xff\x00\r\n\r\n", b"GET\r\nno colon\r\n\r\n", b"GET / HTTP/1.1\n\n"])
def test_any_head_can_be_recorded(raw: bytes) -> None:
    assert Head.parse(raw).as_json()["ended"] is None


def test_numbers_of_a_query_are_whole_and_above_zero() -> None:
    query = Query("/?a=16000&b=16000.0&c=0&d=-1&e=x&f=&g=2.5")
    assert (query.number("a", 1), query.number("b", 1), query.number("f", 7), query.number("z", 8)) == (
        16000,
        16000,
        7,
        8,
    )
    for name in "cdeg":
        with pytest.raises(ValueError, match=f"{name} must be a positive integer"):
            query.number(name, 1)
