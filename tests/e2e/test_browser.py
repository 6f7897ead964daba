"""A real browser: a page of another origin, with Deepgram's own SDK for browsers, speaks through the proxy."""

import base64
import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.clients.test_javascript import MODULES
from tests.clients.test_snippets import both, paste
from tests.conftest import second_only
from tests.support.chromium import Chromium, Page, found
from tests.support.clients import assert_length_kept
from tests.support.logs import SECRETS, mentions
from tests.support.proxy import Proxy
from tests.support.upstreams import Upstream, values

pytestmark = [
    second_only,
    pytest.mark.skipif(found() is None, reason="no Chromium (apt install chromium)"),
]

SDK: Final = MODULES / "deepgram-5" / "dist" / "browser" / "index.global.js"
WRONG: Final = SECRETS.add("dgp_2222222222_22222222222222222222222222222222222222")
_PAGE: Final = '<!doctype html><title>a page</title><script src="deepgram.js"></script><pre id="heard"></pre>'
# What a page's author writes with the SDK; `audio` is linear16, 16 kHz, in base64.
_SCRIPT: Final = """
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const client = (key, base) => new Deepgram.DeepgramClient({ apiKey: key, baseUrl: base });
async function post(key, base, audio) {
  try {
    const heard = await client(key, base).listen.v1.media.transcribeFile(new Blob([bytes(audio)]), { model: "nova-3" });
    return { transcript: heard.results.channels[0].alternatives[0].transcript };
  } catch (error) {
    return { status: error.statusCode ?? null, body: error.body ?? null, message: String(error.message) };
  }
}
async function stream(key, base, audio) {
  const pcm = bytes(audio);
  const live = await client(key, base).listen.v1.connect(
    { model: "nova-3", encoding: "linear16", sample_rate: 16000, reconnectAttempts: 0 });
  const heard = [];
  return await new Promise(async (resolve) => {
    live.on("message", (message) => {
      heard.push(message.type);
      if (message.type === "Results") {
        document.getElementById("heard").textContent += message.channel.alternatives[0].transcript + "\\n";
      }
    });
    const text = () => document.getElementById("heard").textContent;
    live.on("close", (event) => resolve({ heard, code: event.code, text: text() }));
    live.on("error", () => resolve({ heard, error: true }));
    live.connect();
    await live.waitForOpen();
    for (let at = 0; at < pcm.length; at += 3200) live.sendMedia(pcm.slice(at, at + 3200));
    live.sendCloseStream({ type: "CloseStream" });
  });
}
async function headers(url, key, credentials) {
  try {
    const got = await fetch(url, { headers: { authorization: "Token " + key }, credentials });
    return Object.fromEntries(got.headers);
  } catch (error) {
    return null;
  }
}
async function raw(url, protocols) {
  return await new Promise((resolve) => {
    const socket = new WebSocket(url, protocols);
    socket.onopen = () => { resolve({ opened: true, protocol: socket.protocol }); socket.close(); };
    socket.onclose = (event) => resolve({ opened: false, code: event.code });
  });
}
"""

_UNTIL_SAID: Final = """
new Promise((resolve) => {{
  const heard = document.getElementById("heard");
  const look = () => heard.textContent.includes(`{}`) && resolve(heard.textContent);
  new MutationObserver(look).observe(heard, {{ childList: true, characterData: true, subtree: true }});
  look();
}})
"""


class _Site(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the site serves."""
    directory = tmp_path_factory.mktemp("site")
    (directory / "index.html").write_text(_PAGE)
    (directory / "deepgram.js").write_bytes(SDK.read_bytes())
    return directory


@pytest.fixture(scope="module")
def site(pages: Path) -> Iterator[int]:
    """A web site on this machine: its port. By its two names it is two origins."""
    handler = functools.partial(_Site, directory=str(pages))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def guarded(
    site: int, upstream_process: Upstream, tmp_path_factory: pytest.TempPathFactory, leaks: list[str]
) -> Iterator[Proxy]:
    """A proxy that one of the site's two origins may call."""
    settings = {"cors.origins": f'["http://localhost:{site}"]', "log.level": '"debug"'}
    proxy = Proxy(tmp_path_factory.mktemp("browser-proxy"), upstream_process.url, settings)
    try:
        with proxy:
            yield proxy
    finally:
        leaks += proxy.leaks()


@pytest.fixture(scope="module")
def browser(guarded: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium(tmp_path_factory.mktemp("chromium"), guarded.directory / "certs" / "server.pem") as chromium:
        yield chromium


def opened(page: Page, host: str, site: int) -> Page:
    page.open(f"http://{host}:{site}/")
    page.run(_SCRIPT)
    return page


def call(page: Page, function: str, *arguments: Any) -> Any:
    quoted = ", ".join(f"'{argument}'" for argument in arguments)
    return page.run(f"{function}({quoted})")


def test_a_page_streams_with_deepgrams_sdk_by_the_subprotocol(
    browser: Chromium, guarded: Proxy, upstream: Upstream, site: int, pcm: bytes
) -> None:
    with browser.page() as page:
        opened(page, "localhost", site)
        said = call(page, "stream", guarded.key, guarded.base_url, base64.b64encode(pcm).decode())
    assert said["code"] == 1000
    assert said["heard"][-1] == "Metadata"
    assert said["heard"].count("Results") >= 1
    assert said["text"].strip()
    head = upstream.only()
    assert head["target"].startswith("/v1/listen?")
    assert not values(head, "Authorization")
    assert not values(head, "Sec-WebSocket-Protocol")
    assert values(head, "Origin") == [f"http://localhost:{site}"]
    assert guarded.stderr.wait_for(mentions(event="stream.open", subprotocol="token"))


def test_the_page_of_the_documents_runs_as_pasted(
    browser: Chromium, guarded: Proxy, upstream: Upstream, site: int, pages: Path, wav: bytes, tmp_path: Path
) -> None:
    (pages / "pasted.html").write_text(paste("browser.html", guarded, wav, tmp_path))
    with browser.page() as page:
        page.open(f"http://localhost:{site}/pasted.html")
        page.choose("#file", tmp_path / "audio.wav")
        said = page.run(_UNTIL_SAID.format(f"\nheard {len(wav)} bytes"))
        posted, streamed = both(upstream, wav)
    assert said.splitlines()[0] == f"second upstream heard {len(wav)} bytes"
    assert_length_kept(posted, len(wav))
    assert (posted["method"], streamed["method"], streamed["close_code"]) == ("POST", "GET", 1000)


def test_a_page_posts_after_a_preflight_that_has_no_key(
    browser: Chromium, guarded: Proxy, upstream: Upstream, site: int, wav: bytes
) -> None:
    with browser.page() as page:
        opened(page, "localhost", site)
        said = call(page, "post", guarded.key, guarded.base_url, base64.b64encode(wav).decode())
    assert said["transcript"]
    assert upstream.only()["body_bytes"] == len(wav)
    assert guarded.stderr.wait_for(mentions(event="request.preflight", path="/v1/listen?model=nova-3"))


def test_a_page_can_read_why_its_key_is_refused(
    browser: Chromium, guarded: Proxy, upstream: Upstream, site: int, wav: bytes
) -> None:
    with browser.page() as page:
        opened(page, "localhost", site)
        said = call(page, "post", WRONG, guarded.base_url, base64.b64encode(wav).decode())
    assert said["status"] == 401
    assert said["body"]["err_code"] == "INVALID_AUTH"
    assert not upstream.heads()


def test_a_page_reads_the_headers_of_an_answer_but_not_as_the_browsers_own_user(
    browser: Chromium, guarded: Proxy, upstream: Upstream, site: int
) -> None:
    url = f"{guarded.base_url}/v1/models"
    with browser.page() as page:
        opened(page, "localhost", site)
        read = call(page, "headers", url, guarded.key, "omit")
        refused = call(page, "headers", url, WRONG, "omit")
        as_user = call(page, "headers", url, guarded.key, "include")
    assert {"dg-request-id", "content-type", "date"} <= set(read)
    assert {"dg-request-id", "dg-error"} <= set(refused)
    assert as_user is None, "Access-Control-Allow-Credentials is never said"
    assert len(upstream.heads()) == 1


def test_a_page_of_another_origin_gets_nothing(
    browser: Chromium, guarded: Proxy, upstream: Upstream, site: int, wav: bytes
) -> None:
    wss = f"{guarded.wss_url}/v1/listen?model=nova-3"
    with browser.page() as page:
        opened(page, "127.0.0.1", site)
        posted = call(page, "post", guarded.key, guarded.base_url, base64.b64encode(wav).decode())
        connected = page.run(f"raw('{wss}', ['token', '{guarded.key}'])")
    assert posted["status"] is None, "a browser tells a page nothing of an answer that is not for it"
    assert connected == {"opened": False, "code": 1006}
    assert not upstream.heads()
    with browser.page() as page:
        opened(page, "localhost", site)
        assert page.run(f"raw('{wss}', ['token', '{guarded.key}'])") == {"opened": True, "protocol": "token"}
