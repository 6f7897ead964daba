"""The lines to paste into a shell, in the directory where the demo was started: each whole by itself, for any shell."""

import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dgproxy.demo.place import Place

PROXY_VARIABLES: Final = tuple(
    variable for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY") for variable in (name, name.lower())
)
_NO_PROXY: Final = "NO_PROXY='*' no_proxy='*' "

_HANDSHAKE: Final = " ".join(  # of a WebSocket: RFC 6455 4.1
    f"-H '{header}'"
    for header in (
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    )
)


@dataclass(frozen=True, slots=True)
class Paste:
    """A line or lines to paste, each by itself, and what they do."""

    title: str
    lines: tuple[str, ...]


def pastes(place: Place, url: str, key: str, proxied: bool) -> list[Paste]:  # noqa: FBT001 - one of its facts
    """What to try while it runs. `proxied`: the user's shell has a proxy, which would lead these requests astray."""
    ca, audio = _word(place.ca), _word(place.audio)
    config = f"-c {_word(place.config)}"
    bypass = " --noproxy '*'" if proxied else ""
    curl = f"curl{bypass} --cacert {ca}"
    post = f"-H 'Content-Type: audio/wav' --data-binary {_word(place.audio, '@')} {url}/v1/listen"
    direct = _NO_PROXY if proxied else ""
    sdk = f"{_word(place.live)} {url} {audio}"
    python = f"{direct}SSL_CERT_FILE={ca} DEEPGRAM_API_KEY={{}} {_python()} {sdk}"
    dgproxy = command()
    create = f"{dgproxy} keys create --name one-$(date +%s) --streams 1 --json {config}"
    limited = f"$({create} | grep -o 'dgp_[^\"]*')"
    return [
        Paste("A file over HTTPS; put your own in its place:", (f"{curl} -H 'Authorization: Token {key}' {post}",)),
        Paste("A live stream with the official Python SDK, until Ctrl-C:", (python.format(key),)),
        Paste(
            "Without a key, a file and a stream are both refused:",
            (
                f"{curl} -i {post}",
                f"{curl} -i --http1.1 {_HANDSHAKE} {url}/v1/listen",
            ),
        ),
        Paste(
            "A key for one stream at a time, and two streams with it: one gets 429:",
            (f"{python.format(limited)} 2",),
        ),
        Paste(
            "A file with the official JavaScript SDK, on Node 18 or newer:",
            (
                f"npm install --silent --prefix {_word(place.directory)} @deepgram/sdk@5",
                f"{direct}NODE_EXTRA_CA_CERTS={ca} DEEPGRAM_API_KEY={key} node {_word(place.script)} {url} {audio}",
            ),
        ),
        Paste(
            "Its keys, what it does, what is in flight, and whether its configuration is sound:",
            tuple(f"{dgproxy} {words} {config}" for words in ("keys list", "status", "streams list", "check")),
        ),
        Paste(
            "Revoke the key: what it has in flight ends within a second, a live stream too:",
            (f"{dgproxy} keys revoke {key.split('_')[1]} {config}",),
        ),
    ]


def next_step() -> Paste:
    """What comes after the demo."""
    return Paste(
        "Next, for your own container on http://127.0.0.1:8080 (elsewhere: --upstream URL):",
        (f"{command()} init ~/dgproxy",),
    )


def proxy_variables() -> tuple[str, ...]:
    """Those that are set."""
    return tuple(name for name in PROXY_VARIABLES if os.environ.get(name))


def command() -> str:
    """`dgproxy` as this shell can call it: by name only where that is this very one."""
    own = Path(sys.executable).with_name("dgproxy")
    if not _starts_this_python(own):
        return f"{_python()} -m dgproxy"
    return "dgproxy" if _found("dgproxy") == own else _word(own)


def _starts_this_python(script: Path) -> bool:
    """Whether it is there, and its first lines name this Python: in an environment that was moved they do not."""
    try:
        return os.fsencode(sys.executable) in script.read_bytes()[:4096]
    except OSError:
        return False


def _python() -> str:
    own = Path(sys.executable)
    return "python" if _found("python") == own.with_name("python") else _word(own)


def _found(name: str) -> Path | None:
    path = shutil.which(name)
    return Path(path).absolute() if path else None


def _word(path: Path, before: str = "") -> str:
    """A path as a shell's word: from here where it is below, else absolute."""
    path = path.absolute()
    here = Path.cwd()
    return shlex.quote(f"{before}{path.relative_to(here) if path.is_relative_to(here) else path}")
