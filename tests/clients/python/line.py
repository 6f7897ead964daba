"""The other end of tests/clients/driver.py: reads what to do, a line each, and says what was seen."""

import asyncio
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import websockets

FRAME: Final = 3200  # bytes: 100 ms of linear16 at 16 kHz

_OUT: Final = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # whatever an SDK prints


@dataclass(frozen=True)
class Task:
    """What a program is told: where the proxy is, the key, and audio."""

    base: str
    key: str | None
    wav: str = ""
    pcm: str = ""

    @property
    def file(self) -> bytes:
        """The WAV file."""
        return Path(self.wav).read_bytes()

    @property
    def frames(self) -> list[bytes]:
        """The bare samples, as a microphone gives them."""
        samples = Path(self.pcm).read_bytes()
        return [samples[at : at + FRAME] for at in range(0, len(samples), FRAME)]


Work = Callable[[Task], Any]  # a dict of what was seen, or a coroutine that gives it


def say(**message: Any) -> None:
    """One line to whoever drives us."""
    print(json.dumps(message), file=_OUT, flush=True)


def serve(
    sync: Mapping[str, Work], asynchronous: Mapping[str, Work], failure: Callable[[Exception], dict[str, Any] | None]
) -> None:
    """Does what it is told until the input ends. `failure` tells the SDK's own exceptions."""
    for line in sys.stdin:
        told = json.loads(line)
        work = (asynchronous if told.pop("async", False) else sync)[told.pop("do")]
        try:
            seen = work(Task(**told))
            say(ok=True, saw=asyncio.run(seen) if inspect.iscoroutine(seen) else seen)
        except Exception as error:  # noqa: BLE001  (whatever an SDK raises is what its user sees)
            found = failure(error) or _websocket(error) or {"message": str(error)}
            say(ok=False, **{"error": _name(error), "status": None, "code": None, "message": None, **found})


def _name(error: Exception) -> str:
    package = type(error).__module__.partition(".")[0]
    return type(error).__name__ if package in {"builtins", "deepgram"} else f"{package}.{type(error).__name__}"


def _websocket(error: Exception) -> dict[str, Any] | None:
    if isinstance(error, websockets.InvalidStatus):
        body = json.loads(error.response.body or b"{}")
        return {
            "status": error.response.status_code,
            "code": body.get("err_code"),
            "message": body.get("err_msg"),
            "request_id": error.response.headers.get("dg-request-id"),
        }
    if isinstance(error, websockets.ConnectionClosed) and error.rcvd is not None:
        return {"code": error.rcvd.code, "message": error.rcvd.reason}
    return None
