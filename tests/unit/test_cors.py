import re
from pathlib import Path
from typing import Final

import pytest
from hypothesis import example, given, strategies as st

from dgproxy.access.cors import Cors, permission
from dgproxy.config import examine_bytes
from dgproxy.wire.head import Head, judge
from dgproxy.wire.refusals import ORIGIN_NOT_ALLOWED

APP: Final = "https://app.example.com"
_PATH: Final = Path("/srv/dgproxy.toml")
_DATE: Final = "Wed, 25 Nov 2026 03:00:00 GMT"


def _configured(origin: str) -> tuple[str, ...]:
    config, findings = examine_bytes(f'[cors]\norigins = ["{origin}"]\n[plans.default]\n'.encode(), _PATH)
    assert config is not None, findings
    return config.cors.origins


def head(*lines: str, method: str = "POST") -> Head:
    raw = "\r\n".join([f"{method} /v1/listen HTTP/1.1", "Host: dg", *lines, "", ""]).encode()
    judged = judge(raw)
    assert isinstance(judged, Head)
    return judged


def test_without_origins_nothing_is_said_and_nothing_refused() -> None:
    cors = Cors(())
    assert cors.judge(head(f"Origin: {APP}")) is None
    assert cors.owed(head(f"Origin: {APP}")) == ()
    assert not cors.is_preflight(head(f"Origin: {APP}", "Access-Control-Request-Method: POST", method="OPTIONS"))


def test_an_origin_that_is_named_may_read_the_answer_and_caches_know_that_it_is_for_it_alone() -> None:
    cors = Cors([APP, "https://other.example"])
    assert cors.judge(head(f"Origin: {APP}")) is None
    lines = cors.owed(head(f"Origin: {APP}"))
    assert lines[0] == ("Access-Control-Allow-Origin", APP)
    assert ("Vary", "Origin") in lines
    assert not [name for name, _ in lines if name.lower() == "access-control-allow-credentials"]


@pytest.mark.parametrize("lines", [["Origin: null"], ["Origin: https://app.example.com"], []])
def test_with_a_star_every_page_may_read_and_the_answer_is_the_same_for_all(lines: list[str]) -> None:
    """Also to a request that no page sent: what a cache kept of that one may go to a page."""
    cors = Cors(["*"])
    assert cors.judge(head(*lines)) is None
    assert [value for name, value in cors.owed(head(*lines)) if name != "Access-Control-Expose-Headers"] == ["*"]


def test_a_request_without_an_origin_is_from_no_page() -> None:
    assert Cors([APP]).judge(head()) is None
    assert Cors([APP]).owed(head()) == (("Vary", "Origin"),)


@pytest.mark.parametrize(
    "lines",
    [
        ["Origin: https://evil.example"],
        ["Origin: null"],
        ["Origin:"],
        [f"Origin: {APP}", f"Origin: {APP}"],
        [f"Origin: {APP}", "Origin: https://evil.example"],
        ["Origin: https://APP.example.com"],
        [f"Origin: {APP}:443"],
        [f"Origin: {APP}.evil.example"],
        ["Origin: http://app.example.com"],
        [f"Origin: {APP}/"],
    ],
)
def test_another_origin_is_refused(lines: list[str]) -> None:
    assert Cors([APP]).judge(head(*lines)) is ORIGIN_NOT_ALLOWED
    assert Cors([APP]).owed(head(*lines)) == (("Vary", "Origin"),)


@given(origin=st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=40))
def test_no_origin_but_those_that_are_named_is_ever_allowed(origin: str) -> None:
    ours = origin.strip() == APP
    request = head(f"Origin: {origin}")
    assert Cors([APP]).judge(request) is (None if ours else ORIGIN_NOT_ALLOWED)
    assert (("Access-Control-Allow-Origin", APP) in Cors([APP]).owed(request)) == ours


@given(asked=st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E) | st.sampled_from(" ,\t"), max_size=60))
def test_a_preflights_answer_is_whole_lines_whatever_headers_are_asked_for(asked: str) -> None:
    request = head(
        f"Origin: {APP}",
        "Access-Control-Request-Method: POST",
        f"Access-Control-Request-Headers: {asked}",
        method="OPTIONS",
    )
    answer = permission(request, [b"POST"], Cors([APP]).owed(request), _DATE, close=False)
    assert re.fullmatch(rb"HTTP/1\.1 204 No Content\r\n(?:[A-Za-z-]+: [\t\x20-\x7e]+\r\n)+\r\n", answer)
    names = re.search(rb"\r\nAccess-Control-Allow-Headers: (.*)\r\n", answer)
    assert names is None or re.fullmatch(rb"[^\s,]+(?:[ \t]*,[ \t]*[^\s,]+)*", names[1])


@pytest.mark.parametrize(
    ("lines", "method"),
    [
        ([f"Origin: {APP}"], "OPTIONS"),
        (["Access-Control-Request-Method: POST"], "OPTIONS"),
        ([f"Origin: {APP}", "Access-Control-Request-Method: POST"], "POST"),
        ([f"Origin: {APP}", "Access-Control-Request-Method: POST", "Access-Control-Request-Method: GET"], "OPTIONS"),
    ],
)
def test_what_is_no_preflight(lines: list[str], method: str) -> None:
    assert not Cors([APP]).is_preflight(head(*lines, method=method))


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("https://App.Example.com", "https://app.example.com"),
        ("https://app.example.com:443", "https://app.example.com"),
        ("http://app.example.com:80", "http://app.example.com"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("https://[::1]:8443", "https://[::1]:8443"),
        ("https://[0:0::1]", "https://[::1]"),
        ("capacitor://localhost", "capacitor://localhost"),
        ("*", "*"),
    ],
)
def test_an_origin_is_kept_as_browsers_write_it(written: str, meant: str) -> None:
    assert _configured(written) == (meant,)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("app.example.com", "is no origin; write it like"),
        ("https://", "is no origin; write it like"),
        ("file:///srv/page.html", "is no origin; write it like"),
        ("https://[fe80::1%eth0]", "is no origin; write it like"),
        ("null", "is what every sandboxed frame and local file calls itself"),
        ("https://app.example.com/", 'goes on after its host, which no origin does; write "https://app.example.com"'),
        ("https://app.example.com/page?a", 'which no origin does; write "https://app.example.com"'),
        ("https://app.example.com#top", 'which no origin does; write "https://app.example.com"'),
        ("wss://app.example.com", 'has the origin of its page, like "https://app.example.com"'),
        ("https://b\u00fccher.example", "write the name in Punycode (xn--...)"),
        ("https://\u212aey.example", "write the name in Punycode (xn--...)"),
        ("https://*.example.com", "neither an IP address nor a host name"),
        ("https://user@app.example.com", "holds a user or password, which no origin does"),
    ],
)
def test_what_is_no_origin_is_told(written: str, said: str) -> None:
    text = f'[cors]\norigins = ["{written}"]\n[plans.default]\n'
    config, findings = examine_bytes(text.encode(), _PATH)
    assert config is None
    assert [finding for finding in findings if said in finding.message and finding.key == "cors.origins[0]"]


_WRITTEN: Final = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0x2FFF, exclude_characters='"\\'), max_size=20
)
_ALMOST: Final = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["https://", "HTTP://", "capacitor://", "wss://", ""]),
    st.from_regex(r"[a-zA-Z0-9._\[\]:-]{1,20}", fullmatch=True),
    st.sampled_from(["", ":443", ":80", ":8443", ":0", ":"]),
    st.sampled_from(["", "", "/", "?a", "\u212a"]),
)


@given(origin=_ALMOST | _WRITTEN)
@example(origin="https://[::FFFF:1.2.3.4]:443")
def test_what_is_kept_of_an_origin_is_one_that_is_allowed(origin: str) -> None:
    config, _ = examine_bytes(f'[cors]\norigins = ["{origin}"]\n[plans.default]\n'.encode(), _PATH)
    if config is None:
        return
    (kept,) = config.cors.origins
    assert re.fullmatch(r"\*|[a-z][a-z0-9+.-]*://[a-z0-9._:\[\]-]+", kept)
    assert not kept.startswith(("ws:", "wss:"))
    assert not re.fullmatch(r"https:.*:443|http:.*:80", kept)
    assert _configured(kept) == (kept,)
    assert Cors([kept]).judge(head(f"Origin: {kept}")) is None


@given(before=_WRITTEN, between=_WRITTEN, behind=_WRITTEN)
@example(before="https://user:", between="", behind="app.example.com")
def test_a_password_in_an_origin_is_never_said(before: str, between: str, behind: str) -> None:
    text = f'[cors]\norigins = ["{before}Tr0ub4dor{between}@{behind}"]\n[plans.default]\n'
    config, findings = examine_bytes(text.encode(), _PATH)
    assert config is None
    assert "Tr0ub4dor" not in repr(findings)
