"""The credential of a head: found without ever raising, a part of what was sent, and never a part of a refusal."""

from typing import Final

from dgproxy.access.credentials import SCHEMES, Credential, find
from dgproxy.wire import refusals
from dgproxy.wire.refusals import Refusal
from tests.fuzz.harness import Harness

_TABLE: Final = [refusal for refusal in vars(refusals).values() if isinstance(refusal, Refusal)]
_TOKEN: Final = frozenset(b"!#$%&'*+.^_`|~-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_OFFERS: Final = b"sec-websocket-protocol"
_PLACES: Final = frozenset({b"authorization", b"x-api-key", _OFFERS})


def check(data: bytes) -> None:
    """The whole property. The input is a list of `name:value` lines; the first byte says whether it is a WebSocket."""
    websocket = data[:1] == b"w"
    headers = []
    for line in data[1:].split(b"\n"):
        name, _, value = line.partition(b":")
        headers.append((name.lower(), value.strip(b" \t")))
    found = find(headers, websocket=websocket)
    if isinstance(found, Refusal):
        assert any(found is refusal for refusal in _TABLE)  # a row of the table: nothing in it is from the input
        assert found.status in {400, 401}
        return
    assert isinstance(found, Credential)
    assert found.value
    assert set(found.value) <= _TOKEN
    assert "value" not in repr(found)
    sent = [(name, value) for name, value in headers if name in _PLACES and (websocket or name != _OFFERS)]
    assert len({name for name, _ in sent}) == len(sent), "one of two was taken"
    assert sent
    for name, value in sent:
        assert found.value in value or name == _OFFERS, "two that differ"  # among the offers may be none
    assert (found.form == "subprotocol") == (found.subprotocol is not None)
    if found.subprotocol is not None:
        assert websocket
        assert found.subprotocol.lower() in SCHEMES


HARNESS: Final = Harness(
    check,
    seeds=(
        b"-Authorization: Token dgp_0123456789_abc",
        b"-authorization: bearer dgp_0123456789_abc\nX-Api-Key: dgp_0123456789_abc",
        b"-X-Api-Key: dgp_0123456789_abc",
        b"wSec-WebSocket-Protocol: token, dgp_0123456789_abc",
        b"wSec-WebSocket-Protocol: bearer, a, X-Deepgram-Session-Id, token",
        b"wAuthorization: Token a\nSec-WebSocket-Protocol: Token, a",
        b"-Authorization: Token a\nAuthorization: Token a",
        b"-Authorization: Basic YTpi",
        b"wSec-WebSocket-Protocol: token, \xc3\xa9",
    ),
    words=(
        b"\n", b": ", b", ", b" ", b"\t", b"Authorization: ", b"X-Api-Key: ", b"Sec-WebSocket-Protocol: ", b"token",
        b"bearer", b"x-deepgram-session-id", b"\xff",
    ),
)  # fmt: skip
