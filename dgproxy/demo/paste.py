"""The lines to paste into a shell, in the directory where the demo was started."""

import json
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


@dataclass(frozen=True, slots=True)
class Paste:
    """Lines to paste, and what they do."""

    title: str
    text: str


def pastes(place: Place, url: str, key: str, proxied: tuple[str, ...]) -> list[Paste]:
    """What to try. `proxied`: the proxy variables that the user's shell has; they would lead these requests astray."""
    ca, config = _word(_relative(place.ca)), _word(_relative(place.config))
    audio = str(_relative(place.audio))
    data = _word(f"@{audio}")
    bypass = " --noproxy '*'" if proxied else ""
    without = f"env {' '.join(f'-u {name}' for name in proxied)} " if proxied else ""
    curl = f"curl{bypass} --cacert {ca}"
    post = f"-H 'Content-Type: audio/wav' --data-binary {data} {url}/v1/listen"
    live = url.replace("https", "wss", 1)
    dgproxy = _dgproxy()
    return [
        Paste("A file over HTTPS, with curl:", f"{curl} -H 'Authorization: Token {key}' {post}"),
        Paste("A key that is none:", f"{curl} -i -H 'Authorization: Token not-a-key' {post}"),
        Paste(
            "A stream over WSS, with the official Python SDK:",
            f"""\
{without}SSL_CERT_FILE={ca} {_python()} - <<'EOF'
from deepgram import DeepgramClient, DeepgramClientEnvironment
proxy = DeepgramClientEnvironment(base="{url}", production="{live}", agent="{live}", agent_rest="{url}")
client = DeepgramClient(api_key="{key}", environment=proxy)
with client.listen.v1.connect(model="nova-3") as live:
    live.send_media(open({audio!r}, "rb").read())
    live.send_close_stream()
    for message in live:
        if message.type == "Results":
            print(message.channel.alternatives[0].transcript)
EOF""",
        ),
        Paste(
            "A file over HTTPS, with the official JavaScript SDK (npm install @deepgram/sdk@5):",
            f"""\
{without}NODE_EXTRA_CA_CERTS={ca} node --input-type=module - <<'EOF'
import {{ readFileSync }} from "node:fs";
import {{ DeepgramClient }} from "@deepgram/sdk";
const client = new DeepgramClient({{ apiKey: "{key}", baseUrl: "{url}" }});
const audio = readFileSync({json.dumps(audio)});
const heard = await client.listen.v1.media.transcribeFile(audio, {{ model: "nova-3" }});
console.log(heard.results.channels[0].alternatives[0].transcript);
EOF""",
        ),
        Paste("The keys, and what the proxy does:", f"{dgproxy} keys list -c {config}\n{dgproxy} status -c {config}"),
    ]


def proxy_variables() -> tuple[str, ...]:
    """Those that are set."""
    return tuple(name for name in PROXY_VARIABLES if os.environ.get(name))


def _dgproxy() -> str:
    """The command as this shell can call it: by name only where that is this very one."""
    own = Path(sys.executable).with_name("dgproxy")
    if not own.exists():
        return f"{_python()} -m dgproxy"
    return "dgproxy" if _found("dgproxy") == own else _word(_relative(own))


def _python() -> str:
    own = Path(sys.executable)
    return "python" if _found("python") == own.with_name("python") else _word(_relative(own))


def _found(command: str) -> Path | None:
    path = shutil.which(command)
    return Path(path).absolute() if path else None


def _relative(path: Path) -> Path:
    """From here where it is below, else absolute."""
    path = path.absolute()
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _word(text: Path | str) -> str:
    return shlex.quote(str(text))
