"""Debian's Chromium, headless, driven by its DevTools protocol over the WebSocket library that the tests have anyway.

A driver library (Playwright, Selenium) would be 45 MB for four calls: open a page, evaluate, listen, close.
"""

import base64
import contextlib
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from websockets.sync.client import connect

PATIENCE: Final = 60.0  # seconds
_FLAGS: Final = (
    "--headless",
    "--no-sandbox",  # the tests may run as root
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)


def found() -> str | None:
    """Where Chromium is, if it is installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Page:
    """One page of a browser."""

    def __init__(self, browser: "Chromium", session: str) -> None:
        self._browser = browser
        self._session = session

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the protocol, in this page; its result."""
        return self._browser.call(method, self._session, **params)

    def open(self, url: str) -> None:
        """Goes there, and waits until it is loaded."""
        self.call("Page.enable")
        self.call("Page.navigate", url=url)
        self._browser.wait_for("Page.loadEventFired", self._session)

    def run(self, script: str) -> Any:
        """What an expression, or the promise that it makes, comes to."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def choose(self, selector: str, file: Path) -> None:
        """Chooses a file in the input that the selector names, as a person does."""
        found = self.call("Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})")
        self.call("DOM.setFileInputFiles", files=[str(file)], objectId=found["result"]["objectId"])

    def picture(self, path: Path) -> None:
        """The page as it looks, as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


class Chromium:
    """A browser with a fresh profile, that trusts one server's key besides what it always trusts."""

    def __init__(self, directory: Path, certificate: Path) -> None:
        program = found()
        assert program is not None
        leaf = x509.load_pem_x509_certificates(certificate.read_bytes())[0]
        key = leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        trusted = base64.b64encode(hashlib.sha256(key).digest()).decode()
        self._profile = directory / "profile"
        self._log = directory / "chromium.log"
        self._numbers = itertools.count(1)
        self._events: list[dict[str, Any]] = []
        self._command = [
            program,
            *_FLAGS,
            f"--user-data-dir={self._profile}",
            f"--ignore-certificate-errors-spki-list={trusted}",
            "about:blank",
        ]

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as started:
            log = started.enter_context(self._log.open("wb"))
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
            started.callback(self._kill)
            self._socket = started.enter_context(connect(self._endpoint(), max_size=None, proxy=None))
            self._running = started.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._running.close()

    def _endpoint(self) -> str:
        """Where it listens: it writes so into its profile."""
        told = self._profile / "DevToolsActivePort"
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError, ValueError):
                port, path = told.read_text().split()
                return f"ws://127.0.0.1:{port}{path}"
            assert self._process.poll() is None, self._log.read_text(errors="replace")[-2000:]
            assert time.monotonic() < deadline, "Chromium does not start"
            time.sleep(0.05)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # its session: it has many children
        self._process.wait(10)

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """A command of the protocol, in a page's session or for the whole browser; its result."""
        number = next(self._numbers)
        page = {} if session is None else {"sessionId": session}
        self._socket.send(json.dumps({"id": number, "method": method, "params": params, **page}))
        while (message := self._receive()).get("id") != number:
            self._events.append(message)
        assert "error" not in message, message
        result: dict[str, Any] = message["result"]
        return result

    def wait_for(self, event: str, session: str) -> None:
        """Until that happened in a page."""
        while not any((one.get("method"), one.get("sessionId")) == (event, session) for one in self._events):
            self._events.append(self._receive())

    def _receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._socket.recv(PATIENCE))
        return message

    @contextlib.contextmanager
    def page(self) -> Iterator[Page]:
        """A new, empty page."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        try:
            yield Page(self, self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        finally:
            self.call("Target.closeTarget", targetId=target)
