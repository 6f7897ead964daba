"""HTTP answers, without I/O: a job takes a request's body as it comes and then has an answer.

Sources: deepgram.md 5-9 and 11.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from dgproxy.standin.audio import Hearing, raw_format
from dgproxy.standin.engine import VERSION, Opening, model_uuid
from dgproxy.standin.request import Head, Query
from dgproxy.standin.speech import http_voice

MAX_JSON: Final = 2 * 1024 * 1024  # "Payload size exceeds limit of 2 MB.", deepgram.md 7
REMOTE_SECONDS: Final = 10.0  # what {"url": ...} is said to last; nothing is fetched

# deepgram.md 7; a status that the docs do not show gets its number
ERRORS: Final = {
    400: ("Bad Request", "Bad Request: failed to process audio: corrupt or unsupported data"),
    401: ("INVALID_AUTH", "Invalid credentials."),
    402: (
        "ASR_PAYMENT_REQUIRED",
        "Project does not have enough credits for an ASR request and does not have an overage agreement.",
    ),
    403: ("INSUFFICIENT_PERMISSIONS", "Project does not have access to the requested model."),
    404: ("NOT_FOUND", "The requested path was not found."),
    413: ("PAYLOAD_TOO_LARGE", "Payload size exceeds limit of 2 MB."),
    422: ("ASR_UNPROCESSABLE_ENTITY", "Unable to read the entire client request."),
    429: ("TOO_MANY_REQUESTS", "Too many requests. Please try again later"),
    503: ("Service Unavailable", "Please try again later"),
}


@dataclass(frozen=True, slots=True)
class Answer:
    """A response. `length` None: chunked."""

    status: int
    content_type: str
    body: bytes | Iterable[bytes]
    length: int | None
    headers: tuple[tuple[str, str], ...] = ()


def json_answer(content: object, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    """JSON, compact as the container's (Helm's probe greps for its first bytes, deepgram.md 8)."""
    body = json.dumps(content, separators=(",", ":")).encode()
    return Answer(status, "application/json", body, len(body), headers)


def error(status: int, request_id: str, text: str = "", code: str = "") -> Answer:
    """Deepgram's legacy error shape, with `dg-error`."""
    usual_code, usual_text = ERRORS.get(status, (f"STATUS_{status}", f"The stand-in was asked for {status}."))
    text = text or usual_text
    content = {"err_code": code or usual_code, "err_msg": text, "request_id": request_id}
    return json_answer(content, status, (("dg-error", text.encode("ascii", "replace").decode()),))


_FILLER: Final = bytes(range(251)) * 1044  # 262,044 bytes: whole periods, so that every piece is the same


def filler(size: int) -> Iterator[bytes]:
    """`size` bytes, of which byte i is i mod 251."""
    whole, rest = divmod(size, len(_FILLER))
    for _ in range(whole):
        yield _FILLER
    if rest:
        yield _FILLER[:rest]


class Job:
    """A request that is being taken in."""

    kinds: tuple[str, ...] = ()
    """Under which of /v1/status's counters it goes while it lasts."""

    def __init__(self, opening: Opening, head: Head) -> None:
        self.opening = opening
        self.head = head

    @property
    def query(self) -> Query:
        """The request's parameters."""
        return self.opening.query

    def take(self, data: bytes) -> None:
        """A piece of the body."""

    def answer(self) -> Answer:
        """The answer, once the body was taken. Raises ValueError with a sentence for a bad parameter."""
        raise NotImplementedError

    def error(self, status: int, text: str = "", code: str = "") -> Answer:
        """An error for this request."""
        return error(status, self.opening.request_id, text, code)


class Fixed(Job):
    """An answer that needs no body."""

    def __init__(self, opening: Opening, head: Head, content: object) -> None:
        super().__init__(opening, head)
        self._content = content

    def answer(self) -> Answer:
        """The content as JSON."""
        return json_answer(self._content)


class Refused(Job):
    """Always the same error, once the body is read."""

    def __init__(self, opening: Opening, head: Head, refusal: Answer) -> None:
        super().__init__(opening, head)
        self._refusal = refusal

    def answer(self) -> Answer:
        """The error."""
        return self._refusal


class TextJob(Job):
    """A small JSON body, `{"text": ...}` or `{"url": ...}`."""

    def __init__(self, opening: Opening, head: Head) -> None:
        super().__init__(opening, head)
        self._body = bytearray()

    def take(self, data: bytes) -> None:
        """Keeps the body up to the limit."""
        if len(self._body) <= MAX_JSON:
            self._body += data

    def content(self) -> dict[str, Any] | Answer:
        """The body's object, or the error that it is."""
        if len(self._body) > MAX_JSON:
            return self.error(413)
        try:
            found = json.loads(self._body)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            return self.error(400, "Invalid JSON submitted.", "PAYLOAD_ERROR")
        if [isinstance(found.get(name), str) for name in ("text", "url")].count(True) != 1:
            return self.error(400, "Exactly one of text and url must be given.", "PAYLOAD_ERROR")
        return found

    def told(self, content: dict[str, Any]) -> str:
        """The text; for a url, its name: the stand-in fetches nothing."""
        return content["text"] if isinstance(content.get("text"), str) else _remote(content["url"])


class ReadJob(TextJob):
    """POST /v1/read."""

    def answer(self) -> Answer:
        """`results` says how much text there was, if a summary was asked for."""
        content = self.content()
        if isinstance(content, Answer):
            return content
        if self.query.get("callback"):
            return json_answer({"request_id": self.opening.request_id})
        metadata: dict[str, object] = {
            "request_id": self.opening.request_id,
            "created": self.opening.created,
            "language": self.query.get("language") or "en",
        }
        results: dict[str, object] = {}
        if self.query.get("summarize") not in ("", "false"):
            summary = f"{len(self.told(content))} characters of text"
            metadata["summary_info"] = {
                "model_uuid": model_uuid("summarize"),
                "input_tokens": len(self.told(content).split()),
                "output_tokens": len(summary.split()),
            }
            results["summary"] = {"text": summary}
        return json_answer({"metadata": metadata, "results": results})


class SpeakJob(TextJob):
    """POST /v1/speak and /v2/speak: chunked audio, for old SDKs read `transfer-encoding` of it (deepgram.md 6)."""

    def __init__(self, opening: Opening, head: Head, model: str) -> None:
        super().__init__(opening, head)
        self._model = model

    def answer(self) -> Answer:
        """The text as a tone."""
        content = self.content()
        if isinstance(content, Answer):
            return content
        voice = http_voice(self.query)
        text = self.told(content)
        model = self.opening.model(self._model)
        headers = (("dg-model-name", model), ("dg-model-uuid", model_uuid(model)), ("dg-char-count", str(len(text))))
        if self.query.get("callback"):
            return json_answer({"request_id": self.opening.request_id}, headers=headers)
        return Answer(200, voice.content_type, voice.say(text), None, headers)


class ListenJob(Job):
    """POST /v1/listen with audio, of any size: what is kept of it is what `Hearing` keeps."""

    kinds = ("batch",)

    def __init__(self, opening: Opening, head: Head) -> None:
        super().__init__(opening, head)
        query = opening.query
        declared = raw_format(
            query.get("encoding"), query.number("sample_rate", 0) or None, query.number("channels", 1)
        )
        self._hearing = Hearing(declared)

    def take(self, data: bytes) -> None:
        """Hears it."""
        self._hearing.feed(data)

    def answer(self) -> Answer:
        """What was heard."""
        hearing = self._hearing
        hearing.finish()
        if not hearing.heard:
            return self.error(400)
        window = hearing.window()
        return transcript(self.opening, self.head, window.describe(), window.seconds, hearing.channels)


class RemoteJob(TextJob):
    """POST /v1/listen with `{"url": ...}`. Nothing is fetched."""

    kinds = ("batch",)

    def answer(self) -> Answer:
        """As if the url held ten seconds of audio."""
        content = self.content()
        if isinstance(content, Answer):
            return content
        if not isinstance(content.get("url"), str):
            return self.error(400, "A url must be given.", "PAYLOAD_ERROR")
        text = f"audio of {_remote(content['url'])}, not fetched, taken as {REMOTE_SECONDS:.1f} s"
        return transcript(self.opening, self.head, text, REMOTE_SECONDS, 1)


def _remote(url: str) -> str:
    try:
        return urlsplit(url).hostname or "an unnamed host"
    except ValueError:
        return "an unnamed host"


def transcript(opening: Opening, head: Head, text: str, seconds: float, channels: int) -> Answer:
    """The answer of pre-recorded audio; with `callback`, only its request id."""
    if opening.query.get("callback"):
        return json_answer({"request_id": opening.request_id})
    model = opening.model("base")
    metadata: dict[str, object] = {
        "transaction_key": "deprecated",
        "request_id": opening.request_id,
        "sha256": head.sha256,
        "created": opening.created,
        "duration": round(seconds * opening.options.report_scale, 6),
        "channels": channels,
        "models": [model_uuid(model)],
        "model_info": {model_uuid(model): {"name": model, "version": VERSION, "arch": model}},
    }
    if tags := opening.query.all("tag"):
        metadata["tags"] = tags
    shown = channels if opening.query.flag("multichannel") else 1
    heard = [
        text if shown == 1 else f"{text} (channel {channel + 1} of {shown}, measured together)"
        for channel in range(shown)
    ]
    results = {
        "channels": [{"alternatives": [{"transcript": each, "confidence": 1.0, "words": []}]} for each in heard],
    }
    return json_answer({"metadata": metadata, "results": results})


_STT: Final = ("nova-3", "nova-2", "flux-general-en")
_TTS: Final = ("aura-2-thalia-en", "flux-alexis-en")


def _model(name: str, **more: object) -> dict[str, object]:
    return {
        "name": name,
        "canonical_name": name,
        "architecture": name,
        "languages": ["en"],
        "version": VERSION,
        "uuid": model_uuid(name),
        **more,
    }


MODELS: Final = {
    "stt": [_model(name, batch=not name.startswith("flux"), streaming=True, formatted_output=True) for name in _STT],
    "tts": [_model(name, metadata={"accent": "none", "tags": ["tone"]}) for name in _TTS],
}
THINK_MODELS: Final = {"models": [{"id": "stand-in", "name": "Stand-in", "provider": "aws_bedrock"}]}


def job_for(opening: Opening, head: Head, active: Counter[str]) -> Job:
    """The job of an HTTP request. Raises ValueError with a sentence for a bad parameter."""
    options = opening.options
    match "GET" if head.method == "HEAD" else head.method, head.path:
        case "POST", "/v1/listen":
            media_type = (head.header("content-type") or "").partition(";")[0].strip().lower()
            return RemoteJob(opening, head) if media_type == "application/json" else ListenJob(opening, head)
        case "POST", "/v1/read":
            return ReadJob(opening, head)
        case "POST", "/v1/speak":
            return SpeakJob(opening, head, "aura-2-thalia-en")
        case "POST", "/v2/speak":
            return SpeakJob(opening, head, "flux-alexis-en")
        case "GET", "/v1/models":
            return Fixed(opening, head, MODELS)
        case "GET", "/v1/agent/settings/think/models":
            return Fixed(opening, head, THINK_MODELS)
        case "GET", "/v1/status":
            return Fixed(
                opening,
                head,
                {
                    "system_health": options.system_health,
                    "active_batch_requests": active["batch"],
                    "active_stream_requests": active["stream"],
                    "active_listen_v2_stream_requests": active["flux"],
                },
            )
        case "GET", "/v1/status/engine":
            return Fixed(opening, head, {"engine_connection_status": options.engine_connection})
        case "GET", path if path.startswith("/v1/models/"):
            for model in (*MODELS["stt"], *MODELS["tts"]):
                if model["uuid"] == path.removeprefix("/v1/models/"):
                    return Fixed(opening, head, model)
    return Refused(opening, head, error(404, opening.request_id))
