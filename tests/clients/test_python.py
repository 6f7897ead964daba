"""Deepgram's Python SDKs 3, 4 and 7, unmodified, each in its own environment: what they saw, and what reached Deepgram.

SDK 7 is looked at more closely, in this process, by tests/e2e/test_sdk.py.
"""

import contextlib
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from dgproxy.wire.refusals import BAD_CREDENTIAL, KEY_REVOKED, NO_CREDENTIAL, Refusal
from tests.clients.driver import Driver
from tests.clients.matrix import FEATURES, PYTHON, Cell, Sdk, cells, seen
from tests.conftest import second_only
from tests.support.clients import REQUEST_ID, assert_chunked_kept, assert_forwarded, assert_length_kept
from tests.support.logs import SECRETS
from tests.support.proxy import Proxy
from tests.support.upstreams import Head, Upstream, values

HERE: Final = Path(__file__).parent
FRAME: Final = 3200
KEYS: Final = {
    "wrong-key": SECRETS.add("dgp_0000000000_00000000000000000000000000000000000000"),
    "wrong-key-stream": SECRETS.add("dgp_0000000000_00000000000000000000000000000000000000"),
    "no-key": "",
    "jwt-key": SECRETS.add("eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJub2JvZHkifQ.bm8tc2lnbmF0dXJlLWF0LWFsbA"),
    "proxy-key": "proxy",
}
CLOSE_STREAM: Final = {"type": "CloseStream"}

PLAIN_FILE: Final = (
    "`RuntimeError`: an async client does not take a plain file. httpx raises it before there is a request, so that"
    " Deepgram itself sees none either. Pass bytes or an async generator."
)


class Client:
    """An SDK's program, and what all that it is told has in common."""

    def __init__(self, driver: Driver, sdk: Sdk, proxy: Proxy, audio: dict[str, str]) -> None:
        self.driver = driver
        self._common: dict[str, Any] = {
            "base": proxy.base_url,
            "key": proxy.key,
            "async": sdk.id.endswith("-async"),
            **audio,
        }

    def does(self, feature: str, **other: str | None) -> dict[str, Any]:
        """One feature: through the proxy and with its key, unless another `base` or `key` is given."""
        return self.driver.do(feature, **{**self._common, **other})


def interpreter(major: str) -> Path:
    """The Python of a major's environment."""
    if major == "7":
        return Path(sys.executable)
    found = Path(sys.prefix) / "clients" / f"python-{major}" / "bin" / "python"
    assert found.exists(), f"there is no {found}: `make dev` makes it"
    return found


def major_of(sdk: Sdk) -> str:
    """7 of python-7-async."""
    return sdk.id.split("-")[1]


@pytest.fixture(scope="session")
def client(
    proxy: Proxy, pcm: bytes, wav: bytes, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Sdk], Client]]:
    """An SDK's program, which is started once a session: importing an SDK takes most of a test's time."""
    directory = tmp_path_factory.mktemp("python-clients")
    audio = {"wav": str(directory / "tone.wav"), "pcm": str(directory / "tone.pcm")}
    Path(audio["wav"]).write_bytes(wav)
    Path(audio["pcm"]).write_bytes(pcm)
    running: dict[str, Driver] = {}
    stack = contextlib.ExitStack()

    def start(sdk: Sdk) -> Client:
        major = major_of(sdk)
        if major not in running:
            program = HERE / "python" / ("v7.py" if major == "7" else "v3_v4.py")
            command = [str(interpreter(major)), str(program)]
            trusting = {"SSL_CERT_FILE": str(proxy.ca)}  # the one thing that a private CA asks of an SDK's user
            driver = Driver(command, directory, trusting, directory / f"python-{major}.log")
            running[major] = stack.enter_context(driver)
        return Client(running[major], sdk, proxy, audio)

    with stack, pytest.MonkeyPatch.context() as environment:
        for name in ("DEEPGRAM_API_KEY", "DEEPGRAM_ACCESS_TOKEN", "SSL_CERT_DIR"):  # a developer's own
            environment.delenv(name, raising=False)
        yield start


def parametrised(*features: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A test of these features with every SDK that has them, before the stand-in that remembers what was said."""
    each = pytest.mark.parametrize("cell", [pytest.param(cell, id=cell.id) for cell in cells(PYTHON, *features)])
    return lambda test: each(second_only(test))


def saw(answer: dict[str, Any]) -> dict[str, Any]:
    assert answer["ok"], str(answer)  # a string is shown whole
    found: dict[str, Any] = answer["saw"]
    return found


@second_only
@pytest.mark.parametrize("sdk", PYTHON, ids=lambda sdk: sdk.id)
def test_the_environment_holds_the_version_that_the_table_names(client: Callable[[Sdk], Client], sdk: Sdk) -> None:
    found = client(sdk).driver.do("version", base="", key="")
    assert saw(found)["version"].removeprefix("v") == sdk.version


# --- HTTP ------------------------------------------------------------------------------------------------------------


def digest(body: bytes) -> tuple[int, str]:
    return len(body), hashlib.sha256(body).hexdigest()


def assert_posted(head: Head, upstream: Upstream, target: str, body: bytes) -> None:
    assert (head["method"], head["target"]) == ("POST", target)
    assert (head["body_bytes"], head["sha256"]) == digest(body)
    assert_forwarded(head, upstream)


@parametrised("http-bytes")
def test_bytes(client: Callable[[Sdk], Client], upstream: Upstream, wav: bytes, cell: Cell) -> None:
    heard = saw(client(cell.sdk).does("http-bytes"))
    assert heard["sha256"] == digest(wav)[1]
    assert heard["transcript"]
    head = upstream.only()
    assert_posted(head, upstream, "/v1/listen?model=nova-3&smart_format=true", wav)
    assert_length_kept(head, len(wav))
    seen(cell.sdk.id, cell.feature.id, "green")


@parametrised("http-file")
def test_a_file(client: Callable[[Sdk], Client], upstream: Upstream, wav: bytes, cell: Cell) -> None:
    answer = client(cell.sdk).does("http-file")
    if cell.sdk.id.endswith("-async"):
        assert (answer["ok"], answer["error"]) == (False, "RuntimeError")
        assert client(cell.sdk).does("http-file", base=upstream.url) == answer  # without dgproxy
        assert upstream.heads() == []
        seen(cell.sdk.id, cell.feature.id, "red", PLAIN_FILE)
        return
    assert saw(answer)["sha256"] == digest(wav)[1]
    head = upstream.only()
    assert_posted(head, upstream, "/v1/listen?model=nova-3", wav)
    assert_length_kept(head, len(wav))
    seen(cell.sdk.id, cell.feature.id, "green")


@parametrised("http-stream")
def test_a_generator(client: Callable[[Sdk], Client], upstream: Upstream, pcm: bytes, cell: Cell) -> None:
    assert saw(client(cell.sdk).does("http-stream"))["sha256"] == digest(pcm)[1]
    head = upstream.only()
    assert_posted(head, upstream, "/v1/listen?model=nova-3", pcm)
    assert_chunked_kept(head)
    seen(cell.sdk.id, cell.feature.id, "green")


@parametrised("http-url")
def test_a_url(client: Callable[[Sdk], Client], upstream: Upstream, cell: Cell) -> None:
    heard = saw(client(cell.sdk).does("http-url"))
    assert heard["transcript"].endswith("https://audio.example/a.wav")
    head = upstream.only()
    body = b'{"url":"https://audio.example/a.wav"}'
    assert_posted(head, upstream, "/v1/listen?model=nova-3", body)
    assert values(head, "Content-Type") == ["application/json"]
    seen(cell.sdk.id, cell.feature.id, "green")


@parametrised("speak")
def test_speak(client: Callable[[Sdk], Client], upstream: Upstream, cell: Cell) -> None:
    spoken = saw(client(cell.sdk).does("speak"))
    assert spoken["bytes"] == 256 * len("hello")
    if major_of(cell.sdk) != "7":
        assert spoken["chunked"]  # which these cannot do without (deepgram.md 6)
    assert_posted(upstream.only(), upstream, "/v1/speak?model=aura-2-thalia-en", b'{"text":"hello"}')
    seen(cell.sdk.id, cell.feature.id, "green")


@parametrised("read")
def test_read(client: Callable[[Sdk], Client], upstream: Upstream, cell: Cell) -> None:
    assert saw(client(cell.sdk).does("read"))["summary"] == "second upstream read 5"
    assert_posted(upstream.only(), upstream, "/v1/read?summarize=true&language=en", b'{"text":"hello"}')
    seen(cell.sdk.id, cell.feature.id, "green")


@parametrised("models")
def test_models(client: Callable[[Sdk], Client], upstream: Upstream, cell: Cell) -> None:
    assert saw(client(cell.sdk).does("models"))["names"] == ["second-general"]
    head = upstream.only()
    assert (head["method"], head["target"]) == ("GET", "/v1/models")
    assert_forwarded(head, upstream)
    if major_of(cell.sdk) == "7":
        assert head["body_bytes"] == 0
    else:  # these send their options as the body of a GET
        assert_length_kept(head, head["body_bytes"])
        assert head["body_bytes"] > 0
    seen(cell.sdk.id, cell.feature.id, "green")


# --- streams ---------------------------------------------------------------------------------------------------------


def streamed(upstream: Upstream, sdk: Sdk, path: str, model: str, texts: list[dict[str, Any]]) -> Head:
    """The one stream that reached the upstream: as the SDK wrote it, to its end."""
    (head,) = upstream.wait_for(lambda heads: len(heads) == 1 and heads[0]["complete"])
    query = f"model={model}&encoding=linear16&sample_rate=16000"
    if sdk.id.startswith("python-7") and path != "/v2/listen":  # where it sorts them
        query = f"encoding=linear16&model={model}&sample_rate=16000"
    assert (head["method"], head["target"]) == ("GET", f"{path}?{query}")
    assert_forwarded(head, upstream, websocket=True)
    assert [json.loads(text) for text in head["texts"]] == texts
    assert head["close_code"] == 1000
    return head


@parametrised("stream")
def test_a_stream(client: Callable[[Sdk], Client], upstream: Upstream, pcm: bytes, cell: Cell) -> None:
    told = saw(client(cell.sdk).does("stream"))
    assert set(told["kinds"][:-1]) == {"Results"}
    assert told["kinds"][-1] == "Metadata"
    assert told["duration"] == 3.0
    head = streamed(upstream, cell.sdk, "/v1/listen", "nova-3", [CLOSE_STREAM])
    assert (head["body_bytes"], head["sha256"]) == digest(pcm)
    seen(cell.sdk.id, cell.feature.id, "green")


@parametrised("stream-keepalive")
def test_keepalive(client: Callable[[Sdk], Client], upstream: Upstream, pcm: bytes, cell: Cell) -> None:
    assert saw(client(cell.sdk).does("stream-keepalive"))["kinds"][-1] == "Metadata"
    count = len(pcm) // FRAME
    texts: list[dict[str, Any]] = [*[{"type": "KeepAlive"}] * count, CLOSE_STREAM]
    head = streamed(upstream, cell.sdk, "/v1/listen", "nova-3", texts)
    assert [kind for kind, _ in head["messages"]] == [*["text", "binary"] * count, "text"]
    assert head["sha256"] == digest(pcm)[1]
    seen(cell.sdk.id, cell.feature.id, "green")


@parametrised("stream-finalize")
def test_finalize(client: Callable[[Sdk], Client], upstream: Upstream, cell: Cell) -> None:
    told = saw(client(cell.sdk).does("stream-finalize"))
    assert told["finalized"]
    assert told["kinds"] == ["Results", "Results", "Metadata"]
    streamed(upstream, cell.sdk, "/v1/listen", "nova-3", [{"type": "Finalize"}, CLOSE_STREAM])
    seen(cell.sdk.id, cell.feature.id, "green")


@parametrised("stream-configure")
def test_configure(client: Callable[[Sdk], Client], upstream: Upstream, cell: Cell) -> None:
    told = saw(client(cell.sdk).does("stream-configure"))
    assert told["kinds"] == ["ConfigureSuccess", "Results", "Metadata"]
    assert told["keyterms"] == ["dgproxy"]
    configure = {"type": "Configure", "keyterms": ["dgproxy"]}
    streamed(upstream, cell.sdk, "/v1/listen", "nova-3", [configure, CLOSE_STREAM])
    older = "No call of its own: `send()` the JSON. `ConfigureSuccess` comes as an `Unhandled` event."
    seen(cell.sdk.id, cell.feature.id, "green", "" if major_of(cell.sdk) == "7" else older)


@parametrised("flux")
def test_flux(client: Callable[[Sdk], Client], upstream: Upstream, cell: Cell) -> None:
    told = saw(client(cell.sdk).does("flux"))
    assert told["kinds"][0] == "Connected"
    assert set(told["kinds"][1:]) == {"TurnInfo"}
    assert told["sequence"] == list(range(len(told["kinds"])))
    streamed(upstream, cell.sdk, "/v2/listen", "flux-general-en", [CLOSE_STREAM])
    seen(cell.sdk.id, cell.feature.id, "green")


@parametrised("speak-stream")
def test_speech(client: Callable[[Sdk], Client], upstream: Upstream, cell: Cell) -> None:
    told = saw(client(cell.sdk).does("speak-stream"))
    assert told["kinds"] == ["Metadata", "binary", "Flushed"]
    assert told["bytes"] == 256 * len("hello")
    texts = [{"type": "Speak", "text": "hello"}, {"type": "Flush"}, {"type": "Close"}]
    streamed(upstream, cell.sdk, "/v1/speak", "aura-2-thalia-en", texts)
    seen(cell.sdk.id, cell.feature.id, "green")


# --- refusals --------------------------------------------------------------------------------------------------------


def assert_refused(answer: dict[str, Any], refusal: Refusal) -> None:
    """The SDK's user is told dgproxy's refusal, which has Deepgram's shape."""
    assert not answer["ok"]
    assert (answer["status"], answer["code"], answer["message"]) == (refusal.status, refusal.code, refusal.message)
    assert REQUEST_ID.fullmatch(answer["request_id"])


@parametrised("wrong-key", "no-key", "jwt-key", "proxy-key")
def test_a_key_that_is_none(client: Callable[[Sdk], Client], upstream: Upstream, cell: Cell) -> None:
    answer = client(cell.sdk).does(cell.feature.id, key=KEYS[cell.feature.id])
    assert_refused(answer, BAD_CREDENTIAL if KEYS[cell.feature.id] else NO_CREDENTIAL)
    assert answer["error"] == ("ApiError" if major_of(cell.sdk) == "7" else "DeepgramApiError")
    assert upstream.heads() == []
    seen(cell.sdk.id, cell.feature.id, "green", f"`{answer['error']}` with status 401 and the JSON body.")


@second_only
@pytest.mark.parametrize("sdk", [sdk for sdk in PYTHON if "no-key" in sdk.lacks], ids=lambda sdk: sdk.id)
def test_sdk_7_asks_for_a_key_itself(client: Callable[[Sdk], Client], upstream: Upstream, sdk: Sdk) -> None:
    for key, error in ((None, "ApiError"), ("", "httpx.LocalProtocolError")):
        answer = client(sdk).does("http-bytes", key=key)
        assert (answer["ok"], answer["error"], answer["status"]) == (False, error, None)
    assert upstream.heads() == []


@parametrised("wrong-key-stream")
def test_a_wrong_key_on_a_stream(client: Callable[[Sdk], Client], upstream: Upstream, cell: Cell) -> None:
    answer = client(cell.sdk).does(cell.feature.id, key=KEYS[cell.feature.id])
    if cell.sdk.id == "python-7-async":  # the SDK drops the body, as it does with Deepgram's
        assert (answer["ok"], answer["error"], answer["status"]) == (False, "ApiError", 401)
        note = "`ApiError` with status 401 and a text of the SDK's own; the JSON body is lost, as Deepgram's is."
    else:
        assert_refused(answer, BAD_CREDENTIAL)
        assert answer["error"] == "websockets.InvalidStatus"
        note = "`websockets.InvalidStatus`, whose `response` has status 401 and the JSON body."
        if major_of(cell.sdk) != "7":
            note = f"`start()` is `False`. With the option `termination_exception_connect` it raises {note}"
    assert upstream.heads() == []
    seen(cell.sdk.id, cell.feature.id, "green", note)


@parametrised("revoked-stream")
def test_a_key_revoked_in_mid_stream(
    client: Callable[[Sdk], Client], proxy: Proxy, upstream: Upstream, cell: Cell
) -> None:
    key = proxy.new_key(name=cell.id)
    assert client(cell.sdk).does(cell.feature.id, key=key.key) == {"event": "open"}
    upstream.wait_for(lambda heads: len(heads) == 1 and heads[0]["body_bytes"] == FRAME)
    proxy.ask("keys", "revoke", key.id)
    answer = client(cell.sdk).driver.hear()
    assert (answer["ok"], answer["code"], answer["message"]) == (False, 1008, KEY_REVOKED.message)
    if major_of(cell.sdk) == "7":
        assert answer["error"] == "websockets.ConnectionClosedError"
        note = "`websockets.ConnectionClosedError`: 1008 and the reason."
    else:
        assert answer["error"] == "Error event, ConnectionClosed"
        note = "An `Error` event of type `ConnectionClosed`, with 1008 and the reason in its message, then `Close`."
    seen(cell.sdk.id, cell.feature.id, "green", note)


# --- the other stand-in ----------------------------------------------------------------------------------------------

GREEN: Final = [
    feature.id
    for feature in FEATURES
    if feature.group != "refused" and feature.id not in {"flux", "http-file"}  # in all of the older ones
]


@pytest.mark.parametrize("upstream_process", ["standin"], indirect=True)
@pytest.mark.parametrize("sdk", [sdk for sdk in PYTHON if major_of(sdk) != "7"], ids=lambda sdk: sdk.id)
def test_the_older_sdks_also_take_what_dgproxys_stand_in_says(
    client: Callable[[Sdk], Client], upstream: Upstream, sdk: Sdk
) -> None:
    """What the demo's users try; tests/e2e/test_sdk.py does so with SDK 7."""
    for feature in GREEN:
        found = saw(client(sdk).does(feature))
        assert any(found.values()), feature
    heads = upstream.heads()
    assert len(heads) == len(GREEN)
    for head in heads:
        assert_forwarded(head, upstream, websocket=head["method"] == "GET" and head["target"] != "/v1/models")
