"""Where a key is found, and what counts as none or as too many (bad-inputs.md C1, C4, C5, W14, W15; deepgram.md 3)."""

from typing import Final

import pytest
from hypothesis import given, strategies as st

from dgproxy.access.credentials import Credential, elsewhere, find
from dgproxy.wire.head import Head, judge
from dgproxy.wire.refusals import BAD_CREDENTIAL, BAD_HANDSHAKE, NO_CREDENTIAL, TWO_CREDENTIALS, Refusal

KEY: Final = b"dgp_0123456789_abcdefghijklmnopqrstuvwxyzABCDEF123456"
OTHER: Final = b"dgp_9876543210_abcdefghijklmnopqrstuvwxyzABCDEF123456"
JWT: Final = b"eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJ0In0.c2ln"


def authorization(value: bytes) -> tuple[bytes, bytes]:
    return (b"authorization", value)


def protocols(value: bytes) -> tuple[bytes, bytes]:
    return (b"sec-websocket-protocol", value)


API_KEY: Final = (b"x-api-key", KEY)

# Headers, and the form and subprotocol of the credential found in them.
GOOD: Final[dict[str, tuple[list[tuple[bytes, bytes]], str, str | None]]] = {
    "Token": ([authorization(b"Token " + KEY)], "authorization", None),
    "token": ([authorization(b"token " + KEY)], "authorization", None),
    "TOKEN": ([authorization(b"TOKEN " + KEY)], "authorization", None),
    "Bearer": ([authorization(b"Bearer " + KEY)], "authorization", None),
    "bearer": ([authorization(b"bEaReR " + KEY)], "authorization", None),
    "X-Api-Key": ([API_KEY], "x-api-key", None),
    "the same in two headers": ([authorization(b"Token " + KEY), API_KEY], "x-api-key", None),
    "token, K": ([protocols(b"token, " + KEY)], "subprotocol", "token"),
    "token,K": ([protocols(b"token," + KEY)], "subprotocol", "token"),
    "Bearer in the client's spelling": ([protocols(b"Bearer , " + KEY)], "subprotocol", "Bearer"),
    "JS 5": ([protocols(b"token," + KEY + b",x-deepgram-session-id,6751acc2")], "subprotocol", "token"),
    "session first": ([protocols(b"x-deepgram-session-id, token, bearer, " + KEY)], "subprotocol", "bearer"),
    "others beside": ([protocols(b"chat, token, " + KEY + b", superchat")], "subprotocol", "token"),
    "W15 the same in header and subprotocol": (
        [authorization(b"Token " + KEY), protocols(b"token, " + KEY)],
        "subprotocol",
        "token",
    ),
    "W15 in all three": (
        [protocols(b"bearer, " + KEY), API_KEY, authorization(b"Bearer " + KEY)],
        "subprotocol",
        "bearer",
    ),
    "a subprotocol that is no credential": (
        [authorization(b"Token " + KEY), protocols(b"chat, superchat")],
        "authorization",
        None,
    ),
}


@pytest.mark.parametrize(("headers", "form", "subprotocol"), GOOD.values(), ids=GOOD)
def test_a_credential_is_found_wherever_an_sdk_puts_it(
    headers: list[tuple[bytes, bytes]], form: str, subprotocol: str | None
) -> None:
    assert find(headers, websocket=True) == Credential(KEY, form, subprotocol)


def test_a_token_travels_under_any_scheme() -> None:
    for header in (b"Token ", b"bearer "):
        assert find([authorization(header + JWT)], websocket=False) == Credential(JWT, "authorization")
    assert find([protocols(b"token, " + JWT)], websocket=True) == Credential(JWT, "subprotocol", "token")


BAD: Final[dict[str, tuple[list[tuple[bytes, bytes]], Refusal]]] = {
    "C1 none": ([(b"host", b"dg")], NO_CREDENTIAL),
    "C1 empty": ([authorization(b"")], NO_CREDENTIAL),
    "C1 empty X-Api-Key": ([(b"x-api-key", b"")], NO_CREDENTIAL),
    "C1 scheme without value": ([authorization(b"Token")], BAD_CREDENTIAL),
    "C1 scheme and a space": ([authorization(b"Token ")], BAD_CREDENTIAL),
    "C1 key alone": ([authorization(KEY)], BAD_CREDENTIAL),
    "C1 Basic": ([authorization(b"Basic dGVzdHM6" + KEY)], BAD_CREDENTIAL),
    "C1 unknown scheme": ([authorization(b"ApiKey " + KEY)], BAD_CREDENTIAL),
    "C1 three words": ([authorization(b"Token " + KEY + b" " + KEY)], BAD_CREDENTIAL),
    "C1 two spaces": ([authorization(b"Token  " + KEY)], BAD_CREDENTIAL),
    "C1 a tab": ([authorization(b"Token\t" + KEY)], BAD_CREDENTIAL),
    "C1 quotes": ([authorization(b'Token "' + KEY + b'"')], BAD_CREDENTIAL),
    "C1 trailing comma": ([authorization(b"Token " + KEY + b",")], BAD_CREDENTIAL),
    "C1 a list": ([authorization(b"Token " + KEY + b", Bearer " + KEY)], BAD_CREDENTIAL),
    "C1 longer scheme": ([authorization(b"XToken " + KEY)], BAD_CREDENTIAL),
    "C1 a line end": ([authorization(b"Token " + KEY + b"\n")], BAD_CREDENTIAL),
    "C1 non-ASCII": ([authorization(b"Token " + KEY + b"\xe9")], BAD_CREDENTIAL),
    "C1 scheme in X-Api-Key": ([(b"x-api-key", b"Token " + KEY)], BAD_CREDENTIAL),
    "C4 two Authorization": ([authorization(b"Token " + KEY), authorization(b"Token " + OTHER)], TWO_CREDENTIALS),
    "C4 the same twice": ([authorization(b"Token " + KEY), authorization(b"Token " + KEY)], TWO_CREDENTIALS),
    "C4 one of them empty": ([authorization(b"Token " + KEY), authorization(b"")], TWO_CREDENTIALS),
    "C4 X-Api-Key twice": ([API_KEY, API_KEY], TWO_CREDENTIALS),
    "C4 two that differ": ([authorization(b"Token " + OTHER), API_KEY], TWO_CREDENTIALS),
    "C5 Proxy-Authorization": ([(b"proxy-authorization", b"Token " + KEY)], NO_CREDENTIAL),
    "C5 cookie": ([(b"cookie", b"token=" + KEY)], NO_CREDENTIAL),
    "W14 token alone": ([protocols(b"token")], BAD_CREDENTIAL),
    "W14 token,": ([protocols(b"token,")], BAD_CREDENTIAL),
    "W14 nothing between": ([protocols(b"token,," + KEY)], BAD_CREDENTIAL),
    "W14 the key first": ([protocols(KEY + b", token")], BAD_CREDENTIAL),
    "W14 the key alone": ([protocols(KEY)], NO_CREDENTIAL),
    "W14 unknown scheme": ([protocols(b"basic, " + KEY)], NO_CREDENTIAL),
    "W14 two pairs": ([protocols(b"token, " + KEY + b", bearer, " + OTHER)], TWO_CREDENTIALS),
    "W14 the same pair twice": ([protocols(b"token, " + KEY + b", token, " + KEY)], BAD_HANDSHAKE),
    "W14 the key twice": ([protocols(b"token, " + KEY + b", " + KEY)], BAD_HANDSHAKE),
    "W14 100 entries": ([protocols(b"token, " + KEY + b"".join(b", p%d" % n for n in range(98)))], BAD_HANDSHAKE),
    "W14 two headers": ([protocols(b"token"), protocols(KEY)], TWO_CREDENTIALS),
    "W14 a quoted key": ([protocols(b'token, "' + KEY + b'"')], BAD_CREDENTIAL),
    "W14 the key is a session id": ([protocols(b"x-deepgram-session-id, token, " + KEY)], NO_CREDENTIAL),
    "W15 another in the header": ([authorization(b"Token " + OTHER), protocols(b"token, " + KEY)], TWO_CREDENTIALS),
    "W15 a bad one in the header": ([authorization(b"Basic x"), protocols(b"token, " + KEY)], BAD_CREDENTIAL),
}


@pytest.mark.parametrize(("headers", "refusal"), BAD.values(), ids=BAD)
def test_what_is_no_credential_or_more_than_one_is_refused(
    headers: list[tuple[bytes, bytes]], refusal: Refusal
) -> None:
    assert find(headers, websocket=True) is refusal


def test_a_subprotocol_is_no_credential_without_a_websocket() -> None:
    assert find([protocols(b"token, " + KEY)], websocket=False) is NO_CREDENTIAL
    both = [authorization(b"Token " + KEY), protocols(b"token, " + OTHER)]
    assert find(both, websocket=False) == Credential(KEY, "authorization")


def test_no_repr_shows_a_credential() -> None:
    for headers, _, _ in GOOD.values():
        assert KEY.decode() not in repr(find(headers, websocket=True))


offers = st.lists(
    st.sampled_from([b"token", b"bearer", KEY, OTHER, b"", b"x-deepgram-session-id", b"chat"]), max_size=6
)


@given(offers)
def test_what_the_101_selects_was_offered_and_is_never_the_key(items: list[bytes]) -> None:
    found = find([protocols(b", ".join(items))], websocket=True)
    if isinstance(found, Credential):
        assert found.subprotocol in {"token", "bearer"}
        assert found.subprotocol.encode() in items
        at = items.index(found.value)
        assert items[at - 1] == found.subprotocol.encode()


headers_of_any_kind = st.lists(
    st.tuples(st.sampled_from([b"authorization", b"x-api-key", b"sec-websocket-protocol"]), st.binary(max_size=30)),
    max_size=4,
)


@given(headers_of_any_kind, st.booleans())
def test_no_headers_make_it_raise_and_every_refusal_is_of_400_or_401(
    headers: list[tuple[bytes, bytes]],
    websocket: bool,  # noqa: FBT001
) -> None:
    found = find(headers, websocket=websocket)
    if isinstance(found, Refusal):
        assert found.status in {400, 401}
    else:
        assert found.value


# --- a good one, in a second place -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "line"),
    [
        (b"/v1/models?key=" + KEY, b"X-A: b"),
        (b"/v1/models/" + KEY, b"X-A: b"),
        (b"/v1/models", b"X-A: " + KEY),
        (b"/v1/models", b"X-Request-Id: a-" + KEY),
        (b"/v1/models", b"User-Agent: me/" + KEY),
    ],
)
def test_a_credential_that_also_stands_where_it_would_go_upstream_is_seen(target: bytes, line: bytes) -> None:
    head = judge(
        b"GET " + target + b" HTTP/1.1\r\nHost: dg\r\n" + line + b"\r\nAuthorization: Token " + KEY + b"\r\n\r\n"
    )
    assert isinstance(head, Head)
    assert elsewhere(head, Credential(KEY, "authorization"))


def test_a_credential_in_two_places_of_its_own_is_in_no_other() -> None:
    lines = b"Authorization: Bearer " + KEY + b"\r\nX-Api-Key: " + KEY + b"\r\nCookie: k=" + KEY
    head = judge(b"GET /v1/models HTTP/1.1\r\nHost: dg\r\n" + lines + b"\r\n\r\n")
    assert isinstance(head, Head)
    assert not elsewhere(head, Credential(KEY, "authorization"))
