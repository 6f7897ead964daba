"""What a plan lets a request do (bad-inputs.md P1, P2, P4, F5)."""

from typing import Final
from urllib.parse import quote

import pytest
from hypothesis import given, strategies as st

from dgproxy.access.policy import judge, parameters
from dgproxy.config import CLASSES, Plan
from dgproxy.wire.deepgram import Class
from dgproxy.wire.head import Head, judge as read
from dgproxy.wire.refusals import (
    BODY_TOO_LARGE,
    CALLBACK_NOT_ALLOWED,
    CLASS_NOT_ALLOWED,
    MODEL_NOT_ALLOWED,
    REPEATED_CALLBACK,
    Refusal,
)

ALL: Final = tuple(CLASSES)
HOOK: Final = Plan(classes=ALL, allow_callback=("hooks.example", "Other.Example"))
MODELS: Final = Plan(classes=ALL, models=("nova-3*", "aura-2-thalia-en"))


def head(query: str = "", length: int | None = None) -> Head:
    framing = b"" if length is None else b"Content-Length: %d\r\n" % length
    made = read(b"POST /v1/listen?" + query.encode() + b" HTTP/1.1\r\nHost: dg\r\n" + framing + b"\r\n")
    assert isinstance(made, Head)
    return made


@pytest.mark.parametrize("cls", Class)
def test_a_class_is_served_if_the_plan_has_it(cls: Class) -> None:
    others = tuple(name for name in ALL if name != cls)
    assert judge(Plan(classes=(cls.value,)), cls, head()) is None
    assert judge(Plan(classes=others), cls, head()) is CLASS_NOT_ALLOWED


GOOD_CALLBACKS: Final = [
    "callback=https%3A%2F%2Fhooks.example%2Fx%3Fy%3Dz",
    "callback=https://hooks.example",
    "callback=wss%3A%2F%2Fhooks.example%2F",
    "callback=HTTPS://hooks.example/",
    "callback=https://other.example/",
    "model=nova-3&callback=https://hooks.example/&callback_method=put",
    "callback_method=put",
    "mycallback=http://10.0.0.1",
]
BAD_CALLBACKS: Final = [
    "https://evil.example/",
    "http://hooks.example/",
    "ws://hooks.example/",
    "ftp://hooks.example/",
    "//hooks.example/",
    "hooks.example",
    "https:hooks.example",
    "https:/hooks.example",
    "https:///hooks.example",
    "https://user@hooks.example/",
    "https://user:pass@hooks.example/",
    "https://hooks.example@evil.example/",
    "https://evil.example#@hooks.example/",
    "https://evil.example?@hooks.example/",
    "https://hooks.example:443/",
    "https://hooks.example:8443/",
    "https://hooks.example:/",
    "https://Hooks.example/",
    "https://HOOKS.EXAMPLE/",
    "https://hooks.example./",
    "https://hooks.example.evil.example/",
    "https://xhooks.example/",
    "https://sub.hooks.example/",
    "https://xn--hooks.example/",
    "https://hooks%2eexample/",
    "https://hooks.ex\tample/",
    "https://hooks.example\\@evil.example/",
    "https://evil.example\\.hooks.example/",
    " https://hooks.example/",
    "https://hooks.example/ ",
    "https://hooks.example/\r\nX: y",
    "https://hооks.example/",  # noqa: RUF001 - Cyrillic, on purpose
    "https://hooks。example/",
    "",
    # P2
    "https://127.1/",
    "https://0x7f000001/",
    "https://2130706433/",
    "https://0177.0.0.1/",
    "https://[::1]/",
    "https://[::ffff:10.0.0.1]/",
    "https://169.254.169.254/latest/meta-data/",
    "https://localhost/",
    "https://db.internal/",
]


@pytest.mark.parametrize("query", GOOD_CALLBACKS)
def test_a_callback_to_a_listed_host_is_allowed(query: str) -> None:
    assert judge(HOOK, Class.BATCH, head(query)) is None


@pytest.mark.parametrize("url", BAD_CALLBACKS)
@pytest.mark.parametrize("plan", [HOOK, Plan(classes=ALL)], ids=["some allowed", "none allowed"])
def test_p1_a_callback_to_anything_else_is_refused(url: str, plan: Plan) -> None:
    assert judge(plan, Class.BATCH, head("callback=" + quote(url, safe=""))) is CALLBACK_NOT_ALLOWED


@pytest.mark.parametrize("url", ["https://127.0.0.1/", "https://2130706433/", "https://localhost/", "https://[::1]/"])
def test_p2_a_literal_address_is_refused_even_if_it_is_listed(url: str) -> None:
    host = url.removeprefix("https://").removesuffix("/")
    plan = Plan(classes=ALL, allow_callback=(host,))
    assert judge(plan, Class.BATCH, head("callback=" + quote(url, safe=""))) is CALLBACK_NOT_ALLOWED


NAMES: Final = [
    "callback",
    "Callback",
    "CALLBACK",
    "c%61llback",
    "%63%61%6c%6c%62%61%63%6b",
    "callback%20",
    "+callback",
]


@pytest.mark.parametrize("name", NAMES)
def test_p1_a_callback_is_seen_however_its_name_is_written(name: str) -> None:
    for query in (f"{name}=https://evil.example/", f"a=b&{name}=https://evil.example/", f"a=b;{name}=x", f"&&{name}"):
        assert judge(HOOK, Class.BATCH, head(query)) is CALLBACK_NOT_ALLOWED


@pytest.mark.parametrize("name", NAMES)
def test_p1_two_callbacks_are_refused_even_if_both_are_good(name: str) -> None:
    good = "https://hooks.example/"
    for between in "&;":
        assert judge(HOOK, Class.BATCH, head(f"callback={good}{between}{name}={good}")) is REPEATED_CALLBACK


MODEL_QUERIES: Final[dict[str, bool]] = {
    "model=nova-3": True,
    "model=nova-3-medical": True,
    "model=aura-2-thalia-en": True,
    "model=nova-3&model=nova-3-general": True,
    "model=nova%2D3": True,
    "MODEL=nova-3": True,
    "model=nova-2": False,
    "model=": False,
    "model": False,
    "": False,
    "language=en": False,
    "model=Nova-3": False,
    "model=+nova-3": False,
    "model=%20nova-3": False,
    "model=aura-2-thalia-en+": False,
    "model=aura%2B2-thalia-en": False,
    "model=nova-3&model=whisper": False,
    "model=whisper&model=nova-3": False,
    "model=nova-3&Model=whisper": False,
    "model=nova-3;model=whisper": False,
    "model=nova-3&m%6fdel=whisper": False,
    "model=nova-3&model=": False,
}


@pytest.mark.parametrize(("query", "allowed"), MODEL_QUERIES.items(), ids=MODEL_QUERIES)
def test_p4_every_model_that_is_asked_for_must_be_one_of_the_plans(query: str, *, allowed: bool) -> None:
    for cls in (Class.BATCH, Class.STREAM, Class.FLUX, Class.SPEAK, Class.AGENT):
        assert judge(MODELS, cls, head(query)) is (None if allowed else MODEL_NOT_ALLOWED)


def test_what_has_no_model_needs_none_and_a_plan_with_every_model_asks_for_none() -> None:
    for cls in (Class.READ, Class.MODELS):
        assert judge(MODELS, cls, head("model=whisper")) is None
    for query in MODEL_QUERIES:
        assert judge(Plan(classes=ALL), Class.BATCH, head(query)) is None


@pytest.mark.parametrize(("length", "refusal"), [(None, None), (0, None), (100, None), (101, BODY_TOO_LARGE)])
def test_f5_a_body_is_judged_by_the_length_that_is_announced(length: int | None, refusal: Refusal | None) -> None:
    assert judge(Plan(max_body=100), Class.BATCH, head(length=length)) is refusal


def test_what_is_not_allowed_is_told_before_what_is_too_large() -> None:
    plan = Plan(classes=("read",), max_body=1)
    assert judge(plan, Class.BATCH, head("callback=x", length=2)) is CLASS_NOT_ALLOWED
    plan = Plan(models=("nova",), max_body=1)
    assert judge(plan, Class.BATCH, head("callback=x", length=2)) is CALLBACK_NOT_ALLOWED
    assert judge(plan, Class.BATCH, head("", length=2)) is MODEL_NOT_ALLOWED


pairs = st.lists(st.tuples(st.text("abcCALLBACKmodel%&;=+ é", min_size=1, max_size=8), st.text(max_size=8)), max_size=5)


@given(pairs)
def test_parameters_are_read_as_whoever_encoded_them_meant_them(query: list[tuple[str, str]]) -> None:
    encoded = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in query)
    expected = [(name.strip().lower(), value) for name, value in query] or [("", "")]
    assert list(parameters(encoded.encode())) == expected


@given(st.text("callbackCALLBACK%3d=&;+ 0aA/:.", max_size=60))
def test_no_query_makes_it_raise_and_whatever_says_callback_is_judged(query: str) -> None:
    raw = query.replace(" ", "")
    verdict = judge(HOOK, Class.BATCH, head(raw))
    assert verdict in (None, CALLBACK_NOT_ALLOWED, REPEATED_CALLBACK)
    if "callback=" in raw.lower().replace(";", "&").split("&"):
        assert verdict is not None
