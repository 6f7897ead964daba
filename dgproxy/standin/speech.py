"""Speak and agent conversations, and the voice that they and the HTTP answers share. Pure; rules as in `engine`.

The voice is a tone (silence as MP3), 60 ms for each character, so that its length tells how much was said.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from dgproxy.standin.audio import LAWS, WIDTHS, Format, silent_mp3, tone, wav
from dgproxy.standin.engine import VERSION, Close, Heard, Opening, Outgoing, Session, message, model_uuid, parsed
from dgproxy.standin.request import Query

SECONDS_PER_CHARACTER: Final = 0.06
MESSAGE_0000: Final = "MESSAGE-0000: Deepgram takes text messages here, not binary ones."  # 1003, deepgram.md 5
DATA_0001: Final = "DATA-0001: Deepgram could not decode the message."  # 1008, deepgram.md 5
_SPEECH_RATE: Final = 24000  # Hz, linear16; G.711 is 8 kHz


@dataclass(frozen=True, slots=True)
class Voice:
    """How text sounds: `format` None is MP3; `boxed` puts a WAV head before the samples."""

    format: Format | None
    boxed: bool

    @property
    def content_type(self) -> str:
        """The answer's content type."""
        match self.format, self.boxed:
            case None, _:
                return "audio/mpeg"
            case _, True:
                return "audio/wav"
            case Format(encoding="linear16", rate=rate), _:
                return f"audio/l16;rate={rate};channels=1"
            case Format(encoding="mulaw"), _:
                return "audio/basic"
            case _:
                return "audio/x-alaw-basic"

    def milliseconds(self, text: str) -> int:
        """How long the text sounds."""
        return round(len(text) * SECONDS_PER_CHARACTER * 1000)

    def say(self, text: str) -> Iterator[bytes]:
        """The text's audio, in pieces."""
        if self.format is None:
            yield from silent_mp3(self.milliseconds(text) / 1000)
            return
        size = self.format.rate * self.milliseconds(text) // 1000 * self.format.width
        if self.boxed:
            yield wav(self.format, size)
        yield from tone(self.format, size)


def http_voice(query: Query) -> Voice:
    """The voice of a POST: MP3 unless asked otherwise; samples are in a WAV unless `container=none`."""
    encoding = query.get("encoding") or "mp3"
    if encoding == "mp3":
        return Voice(None, boxed=False)
    return Voice(_samples(encoding, query), boxed=query.get("container") != "none")


def stream_voice(query: Query) -> Voice:
    """The voice of a WebSocket: bare samples, linear16 unless asked otherwise. ValueError for what it cannot speak."""
    return Voice(_samples(query.get("encoding") or "linear16", query), boxed=False)


def _samples(encoding: str, query: Query) -> Format:
    if encoding != "linear16" and encoding not in LAWS:
        raise ValueError(f"Invalid query string: the stand-in does not speak encoding={encoding}.")
    width = WIDTHS[encoding]
    return Format(encoding, width, query.number("sample_rate", _SPEECH_RATE if width > 1 else 8000), 1)


class SpeakSession(Session):
    """WS /v1/speak."""

    def __init__(self, opening: Opening) -> None:
        self.opening = opening
        self._voice = stream_voice(opening.query)
        self._texts: list[str] = []
        self._sequence = 0

    def open(self, now: float) -> Iterator[Outgoing]:
        """Says `Metadata`."""
        del now
        model = self.opening.model("aura-2-thalia-en")
        yield message(
            "Metadata",
            request_id=self.opening.request_id,
            model_name=model,
            model_version=VERSION,
            model_uuid=model_uuid(model),
        )

    def audio(self, data: bytes, now: float) -> Iterator[Outgoing]:
        """Binary has no meaning here."""
        del data, now
        yield Close(1003, MESSAGE_0000)

    def text(self, text: str, now: float) -> Iterator[Outgoing]:
        """A control message."""
        del now
        found = parsed(text)
        match found:
            case {"type": "Speak", "text": str(spoken)}:
                self._texts.append(spoken)
            case {"type": "Flush"}:
                yield from self._spoken()
                yield self._numbered("Flushed")
            case {"type": "Clear"}:
                self._texts.clear()
                yield self._numbered("Cleared")
            case {"type": "Close"}:
                yield from self._spoken()
                yield Close(1000)
            case _:
                yield Close(1008, DATA_0001)

    def _spoken(self) -> Iterator[bytes]:
        text = "".join(self._texts)
        self._texts.clear()
        yield from self._voice.say(text)

    def _numbered(self, kind: str) -> str:
        sequence, self._sequence = self._sequence, self._sequence + 1
        return message(kind, sequence_id=sequence)


class FluxSpeakSession(Session):
    """WS /v2/speak. A turn goes from its first `Speak` to its `Flush`; its audio is all made at the flush."""

    def __init__(self, opening: Opening) -> None:
        self.opening = opening
        self._voice = stream_voice(opening.query)
        self._texts: list[str] = []
        self._turn = 0
        self._milliseconds = 0
        self._characters = 0

    def open(self, now: float) -> Iterator[Outgoing]:
        """Says `Connected`."""
        del now
        model = self.opening.model("flux-alexis-en")
        yield message(
            "Connected",
            request_id=self.opening.request_id,
            model_name=model,
            model_version=VERSION,
            model_uuids=[model_uuid(model)],
        )

    def audio(self, data: bytes, now: float) -> Iterator[Outgoing]:
        """Binary has no meaning here."""
        del data, now
        yield message("Error", code="MESSAGE-0000", description=MESSAGE_0000)
        yield Close(1003, MESSAGE_0000)

    def text(self, text: str, now: float) -> Iterator[Outgoing]:
        """A control message."""
        del now
        found = parsed(text)
        match found:
            case {"type": "Speak", "text": str(spoken)}:
                if not self._texts:
                    self._turn += 1
                    yield message("SpeechStarted", speech_id=self._speech_id)
                self._texts.append(spoken)
            case {"type": "Flush" | "Interrupt" as kind} if not self._texts:
                # all audio of a turn leaves at its flush, so an interrupt always finds none to stop
                yield message("Warning", code="NO_ACTIVE_SPEECH", description=f"{kind} came with no active turn.")
            case {"type": "Flush"}:
                yield from self._spoken()
                yield message("Flushed", speech_id=self._speech_id)
            case {"type": "Interrupt"}:
                self._texts.clear()
                yield message("SpeechInterrupted", audio_played_ms=self._milliseconds, metadata=self._metadata("", 0))
            case {"type": "Configure"}:
                applied = {key: found[key] for key in ("speed",) if key in found}
                yield message("ConfigureSuccess", applied=applied)
            case {"type": "Close"}:
                if self._texts:
                    yield from self._spoken()
                yield message(
                    "SessionMetadata",
                    total_audio_duration_ms=self._milliseconds,
                    total_input_character_count=self._characters,
                    total_billable_character_count=self._characters,
                )
                yield Close(1000)
            case _:
                yield message("Error", code="DATA-0000", description=DATA_0001)
                yield Close(1008, DATA_0001)

    @property
    def _speech_id(self) -> str:
        # dg_sp_ and 12 hex digits (SDK, speak_v2speech_started.py)
        return f"dg_sp_{self.opening.request_id.replace('-', '')[:8]}{self._turn & 0xFFFF:04x}"

    def _spoken(self) -> Iterator[Outgoing]:
        text = "".join(self._texts)
        self._texts.clear()
        yield from self._voice.say(text)
        milliseconds = self._voice.milliseconds(text)
        self._milliseconds += milliseconds
        self._characters += len(text)
        yield message("SpeechMetadata", **self._metadata(text, milliseconds))

    def _metadata(self, text: str, milliseconds: int) -> dict[str, object]:
        return {
            "speech_id": self._speech_id,
            "audio_duration_ms": milliseconds,
            "input_character_count": len(text),
            "billable_character_count": len(text),
            "controls_applied": {"pronunciations_applied": 0, "breaks_applied": 0, "pronunciation_warnings": 0},
        }


class AgentSession(Heard):
    """WS /v1/agent/converse: enough of it to tell that both directions arrive.

    After `Settings`, each `results_ms` of audio comes back as a `ConversationText`; an injected message is answered
    with two of them, a tone, and `AgentAudioDone`.
    """

    _UPDATED: Final = {
        "UpdatePrompt": "PromptUpdated",
        "UpdateSpeak": "SpeakUpdated",
        "UpdateThink": "ThinkUpdated",
        "UpdateListen": "ListenUpdated",
    }

    def __init__(self, opening: Opening) -> None:
        super().__init__(opening)
        self._settled = False
        self._voice = Voice(Format("linear16", 2, _SPEECH_RATE, 1), boxed=False)

    def open(self, now: float) -> Iterator[Outgoing]:
        """Says `Welcome`."""
        yield from super().open(now)
        yield message("Welcome", request_id=self.opening.request_id)

    def audio(self, data: bytes, now: float) -> Iterator[Outgoing]:
        """The user's voice."""
        self.note_audio(data, now)
        if not self._settled:
            yield message("Error", code="SETTINGS_REQUIRED", description="Settings must come before audio.")
            return
        for _ in self.pieces(data, self.opening.options.results_ms):
            yield message("UserStartedSpeaking")
            yield _said("user", self.hearing.take().describe())

    def text(self, text: str, now: float) -> Iterator[Outgoing]:
        """A control message. Every one keeps the stream open (docs: KeepAlive every 8 s when idle)."""
        self.deadline = now + self.opening.options.silence
        found = parsed(text)
        match found:
            case {"type": "Settings"}:
                self._settled = True
                yield message("SettingsApplied")
            case {"type": "KeepAlive" | "FunctionCallResponse"}:
                pass
            case {"type": str(kind)} if kind in self._UPDATED:
                yield message(self._UPDATED[kind])
            case {"type": "InjectUserMessage", "content": str(content)}:
                yield _said("user", content)
                yield from self._reply(f"{len(content)} characters of text")
            case {"type": "InjectAgentMessage", "message": str(content)}:
                yield from self._reply(content)
            case _:
                yield message("Error", code="UNPARSABLE_CLIENT_MESSAGE", description="The message has no known type.")

    def _reply(self, content: str) -> Iterator[Outgoing]:
        yield _said("assistant", content)
        yield message("AgentStartedSpeaking", total_latency=0.0, tts_latency=0.0, ttt_latency=0.0)
        yield from self._voice.say(content)
        yield message("AgentAudioDone")


def _said(role: str, content: str) -> str:
    return message("ConversationText", role=role, content=content)
