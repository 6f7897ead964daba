"""The demo from top to bottom.

Rules of this file: whatever ends it (its end, an error, a signal at any moment) ends the children on the way out; what
it claims, it has seen: a transcript came, a request without a key reached nothing, no head upstream held the key.
"""

import asyncio
import base64
import contextlib
import io
import json
import os
import signal
import time
import wave
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dgproxy.config import Listen
from dgproxy.demo import children, paste, place as places
from dgproxy.demo.children import Child, answer_of
from dgproxy.demo.place import DemoError, Place
from dgproxy.demo.show import Show, counted, milliseconds, percentile, quoted, size

if TYPE_CHECKING:
    from dgproxy.demo.client import Client, Result

INTERRUPTED: Final = 130  # 128 + SIGINT, as shells have it
USAGE_WITHIN: Final = 5.0  # seconds for a request and a stream that ended to be in the status
_AGAIN: Final = 0.1  # seconds between two looks at the status


@dataclass(frozen=True, slots=True)
class Options:
    """What the demo is told."""

    directory: Path
    listen: Listen
    upstream_listen: Listen
    once: bool


@dataclass(slots=True)
class Progress:
    """How far it came."""

    run_complete: bool = False
    interrupted: bool = False


def play(options: Options) -> int:
    """The whole demo; its exit code. DemoError says what went wrong."""
    progress = Progress()
    try:
        with asyncio.Runner() as runner:
            runner.run(_until_interrupted(options, progress))
    except (asyncio.CancelledError, KeyboardInterrupt):
        pass
    except DemoError:
        if not progress.interrupted:  # else it is but what the interruption broke
            raise
    return 0 if progress.run_complete else INTERRUPTED


async def _until_interrupted(options: Options, progress: Progress) -> None:
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()

    def interrupt() -> None:
        progress.interrupted = True
        if task is not None:
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # ignored: that is nohup's wish
            loop.add_signal_handler(number, interrupt)
    show = Show()
    try:
        await _demo(options, progress, show)
    except asyncio.CancelledError:
        if progress.run_complete:
            with contextlib.suppress(OSError):  # the terminal may be what went away
                show.gap()  # the terminal's own ^C stands there
                show.last(f"Stopped. {options.directory}/ is as it was left.")
                show.gap()
                show.paste(paste.next_step())
        raise


async def _demo(options: Options, progress: Progress, show: Show) -> None:
    proxied = paste.proxy_variables()
    places.refuse_taken({"--listen": options.listen, "--upstream-listen": options.upstream_listen}, _retry)
    with places.claimed(options.directory), contextlib.ExitStack() as serving:
        upstream_host = f"{places.host_to_dial(options.upstream_listen)}:{options.upstream_listen.port}"
        place = places.prepare(options.directory.absolute(), options.listen, f"http://{upstream_host}")
        show.done("local CA and certificate", f"in {options.directory}/certs{'' if place.fresh else ', as before'}")
        _set_own_environment(place)
        standin = serving.enter_context(
            _child(place, "the stand-in", "standin", "--listen", str(options.upstream_listen))
        )
        proxy = serving.enter_context(_child(place, "the proxy", "run", "-c", str(place.config)))
        from dgproxy.demo import client as clients  # noqa: PLC0415 - the SDK takes its second while both start

        upstream = await standin.says(children.standin_url)
        show.done(f"stand-in Deepgram on http://{upstream_host}", "it tells length and loudness")
        ready = await proxy.says(children.proxy_ready)
        url = f"https://{places.host_to_dial(options.listen)}:{options.listen.port}"
        show.done(f"dgproxy on {url}", f"{counted(ready['workers'], 'worker')}, ready in {ready['start_s']:.1f} s")
        name = f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
        made = await answer_of(place.directory, "keys", "create", "--name", name, "-c", str(place.config))
        show.done(f"key dgp_{made['id']}_…", "made while it runs, shown once")
        show.gap()
        async with clients.new_http() as http:
            client = clients.Client(url, made["key"], http)
            await _run(place, client, show)
            await _show_no_key(client, show, upstream, made["key"])
        await _show_usage(place, made, show)
        progress.run_complete = True
        if options.once:
            return
        show.gap()
        lines = paste.pastes(place, url, made["key"], bool(proxied))
        show.pastes("Try it, from this directory, in another terminal:", lines)
        show.last(f"Ctrl-C stops everything and leaves {options.directory}/ for you to look at.")
        await _stay(standin, proxy)


def _retry(option: str) -> str:
    """The line that starts it again with one more option."""
    return f'make demo ARGS="{option}"' if os.environ.get("MAKELEVEL") else f"{paste.command()} demo {option}"


def _child(place: Place, name: str, *arguments: str) -> Child:
    return Child(name, arguments, place.directory, place.log("standin" if arguments[0] == "standin" else "proxy"))


def _set_own_environment(place: Place) -> None:
    """For this process and its children: this CA, and no proxy on the way to this machine itself."""
    for variable in paste.PROXY_VARIABLES:
        os.environ.pop(variable, None)
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"
    os.environ["SSL_CERT_FILE"] = str(place.ca)


async def _stay(*serving: Child) -> None:
    """Until a signal; DemoError if a child ends before that."""
    waits = [asyncio.ensure_future(child.ended.wait()) for child in serving]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    raise next(child for child in serving if child.ended.is_set()).obituary()


# --- the run ----------------------------------------------------------------------------------------------------


async def _run(place: Place, client: "Client", show: Show) -> None:
    """The file over HTTPS, then the same audio over WSS."""
    from dgproxy.demo.client import CHUNK, CHUNK_SECONDS, PACE  # noqa: PLC0415 - see _demo

    wav = place.audio.read_bytes()
    with wave.open(io.BytesIO(wav)) as file:
        pcm = file.readframes(file.getnframes())
    posted = await client.post(wav)
    if not posted.transcript:
        raise DemoError(f"the answer over HTTPS ({posted.status}) has no transcript")
    show.row(
        "HTTPS",
        f"{place.audio.name}: {posted.status} in {milliseconds(posted.seconds)} with TLS  ",
        quoted(posted.transcript),
    )
    chunks = -(-len(pcm) // CHUNK)
    show.row(
        "WSS",
        f"{place.audio.name} in {chunks} chunks of {CHUNK_SECONDS * 1000:.0f} ms, {PACE} times as fast as speech:",
    )
    results: list[Result] = []

    def on_result(result: "Result") -> None:
        results.append(result)
        if result.final:
            show.row(
                "", f"{result.start:4.1f} s  ", quoted(result.transcript), (f"  {milliseconds(result.latency)}", "dim")
            )

    with show.bar(chunks) as on_tick:
        await client.stream(pcm, on_tick, on_result)
    if not any(result.final and result.transcript for result in results):
        raise DemoError("the stream over WSS had no transcript")
    latencies = [result.latency for result in results]
    show.row(
        "",
        f"first result {milliseconds(latencies[0])}, p50 {milliseconds(percentile(latencies, 0.5))}, "
        f"p99 {milliseconds(percentile(latencies, 0.99))}",
        ("  after its last chunk was sent", "dim"),
    )


async def _show_no_key(client: "Client", show: Show, upstream: str, key: str) -> None:
    """A request without a key is refused and goes nowhere; of the key, nothing went further than the proxy."""
    from dgproxy.demo.client import heads  # noqa: PLC0415 - see _demo

    before = await heads(client.http, upstream)
    status, code = await client.post_without_key(b"RIFF")
    after = await heads(client.http, upstream)
    if (status, code) != (401, "INVALID_AUTH"):
        raise DemoError(f"a request without a key was answered {status} {code}, and not 401 INVALID_AUTH")
    if len(after) != len(before):
        raise DemoError(f"a request without a key reached the stand-in: {json.dumps(after[len(before) :])}")
    if len(before) != 2:  # noqa: PLR2004 - one over HTTPS, one over WSS
        raise DemoError(f"{len(before)} requests reached the stand-in, and 2 were sent with the key")
    secret = key.rpartition("_")[2]
    if secret in json.dumps(after) or any(_holds(head, secret) for head in after):
        raise DemoError("the key reached the stand-in")
    show.row("no key", f"{status} {code}; nothing of it reached the stand-in")
    show.row("", "nor did the key of the other two: it ends at the proxy")


def _holds(head: Mapping[str, Any], secret: str) -> bool:
    """Whether the head's bytes, as they were received, hold it."""
    return secret.encode() in base64.b64decode(head["raw"])


async def _show_usage(place: Place, made: Mapping[str, Any], show: Show) -> None:
    """What the key used, once the request and the stream are both in."""
    deadline = time.monotonic() + USAGE_WITHIN
    while True:
        status = await answer_of(place.directory, "status", "-c", str(place.config))
        used = status["usage"].get(made["id"], {"requests": 0, "streams": 0, "bytes_in": 0, "bytes_out": 0})
        if used["requests"] and used["streams"]:
            break
        if time.monotonic() >= deadline:
            raise DemoError(
                f"{USAGE_WITHIN:.0f} s after its end, `dgproxy status` shows {counted(used['requests'], 'request')} "
                f"and {counted(used['streams'], 'stream')} of the key, and one of each was made"
            )
        await asyncio.sleep(_AGAIN)
    show.row(
        "usage",
        f"{made['name']}: {counted(used['requests'], 'request')}, {counted(used['streams'], 'stream')}, "
        f"{size(used['bytes_in'])} in, {size(used['bytes_out'])} out",
    )
