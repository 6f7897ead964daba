"""How tests speak to a proxy: the official SDKs as their users build them, and requests written header by header."""

import http.client
import json
import re
import ssl
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from deepgram import AsyncDeepgramClient, DeepgramClient
from deepgram.environment import DeepgramClientEnvironment

from tests.support.logs import SECRETS
from tests.support.upstreams import Head, Upstream, values

REQUEST_ID: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")  # spec part 5, bad-inputs.md H9
NEVER_UPSTREAM: Final = (
    "Authorization",
    "Proxy-Authorization",
    "X-Api-Key",
    "Cookie",
    "Sec-WebSocket-Protocol",
    "Sec-WebSocket-Extensions",
    "Expect",
    "TE",
    "Keep-Alive",
    "Proxy-Connection",
    "Forwarded",
    "X-Real-IP",
)


@dataclass(frozen=True)
class Answer:
    """A response: `headers` in order, names in lower case."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def values(self, name: str) -> list[str]:
        """Every value of a header."""
        return [value for key, value in self.headers if key == name.lower()]

    def value(self, name: str) -> str:
        """A header that must be there once."""
        (value,) = self.values(name)
        return value

    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


def connection(base_url: str, tls: ssl.SSLContext) -> http.client.HTTPConnection:
    """A connection that sends what it is told, byte for byte: no normalised paths, no headers of its own."""
    where = urlsplit(base_url)
    assert where.hostname is not None
    if where.scheme == "https":
        return http.client.HTTPSConnection(where.hostname, where.port, timeout=30, context=tls)
    return http.client.HTTPConnection(where.hostname, where.port, timeout=30)


def request(
    base_url: str,
    tls: ssl.SSLContext,
    method: str,
    target: str,
    headers: Iterable[tuple[str, str]] = (),
    body: bytes | None = None,
) -> Answer:
    """One request on a connection of its own: target and headers as given, with Host, and a length if it has a body."""
    wire = connection(base_url, tls)
    try:
        wire.putrequest(method, target, skip_accept_encoding=True)
        for name, value in headers:
            wire.putheader(name, value)
        if body is not None:
            wire.putheader("Content-Length", str(len(body)))
        wire.endheaders(body)
        with wire.getresponse() as response:
            found = [(name.lower(), value) for name, value in response.getheaders()]
            return Answer(response.status, found, response.read())
    finally:
        wire.close()


def environment(base_url: str) -> DeepgramClientEnvironment:
    """All four URLs of the SDK, pointed at one host (deepgram.md 1)."""
    wss = base_url.replace("http", "ws", 1)
    return DeepgramClientEnvironment(base=base_url, production=wss, agent=wss, agent_rest=base_url)


@contextmanager
def sdk(base_url: str, key: str, **options: Any) -> Iterator[DeepgramClient]:
    """The official SDK, unmodified: only its host and key are set."""
    client = DeepgramClient(api_key=key, environment=environment(base_url), **options)
    try:
        yield client
    finally:
        client._client_wrapper.httpx_client.httpx_client.close()


@asynccontextmanager
async def async_sdk(base_url: str, key: str, **options: Any) -> AsyncIterator[AsyncDeepgramClient]:
    """The official SDK's async client, unmodified."""
    client = AsyncDeepgramClient(api_key=key, environment=environment(base_url), **options)
    try:
        yield client
    finally:
        await client._client_wrapper.httpx_client.httpx_client.aclose()


def assert_forwarded(head: Head, upstream: Upstream, *, websocket: bool = False) -> None:
    """What holds for every head that the proxy sends on (spec part 5, towards the upstream)."""
    assert values(head, "Host") == [upstream.host]
    assert values(head, "X-Forwarded-For") == ["127.0.0.1"]
    (proto,) = values(head, "X-Forwarded-Proto")
    assert proto in ({"https", "wss"} if websocket else {"https"})
    (request_id,) = values(head, "X-Request-Id")
    assert REQUEST_ID.fullmatch(request_id)
    assert len(values(head, "traceparent")) == 1
    for name in NEVER_UPSTREAM:
        assert not values(head, name), name
    assert not SECRETS.found_in(repr(head).encode())


def assert_length_kept(head: Head, length: int) -> None:
    """A body of known length stays one."""
    assert values(head, "Content-Length") == [str(length)]
    assert not values(head, "Transfer-Encoding")


def assert_chunked_kept(head: Head) -> None:
    """A chunked body stays chunked."""
    assert values(head, "Transfer-Encoding") == ["chunked"]
    assert not values(head, "Content-Length")


def assert_refusal(answer: Answer, status: int, code: str) -> None:
    """A refusal of the proxy's own, in Deepgram's shape (spec part 5)."""
    assert answer.status == status
    assert answer.value("content-type").partition(";")[0] == "application/json"
    body = answer.json()
    assert set(body) == {"err_code", "err_msg", "request_id"}
    assert body["err_code"] == code
    assert body["err_msg"]
    assert answer.value("dg-error") == body["err_msg"]
    assert answer.value("dg-request-id") == body["request_id"]
    assert REQUEST_ID.fullmatch(body["request_id"])
    assert not SECRETS.found_in(answer.body + repr(answer.headers).encode())
