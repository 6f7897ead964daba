"""Listen conversations, without I/O and without a clock: audio and messages in, messages and a close out.

Rules of this file: time comes in as an argument (seconds of any monotonic clock); what goes out is yielded in order,
text as `str`, binary as `bytes`, nothing follows a `Close`; the driver exhausts each iterator before it calls again,
and calls `expire` once `deadline` has come. Sources: deepgram.md 5 and 9.
"""

import hashlib
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from dgproxy.standin.audio import Hearing, Window, raw_format
from dgproxy.standin.options import Options
from dgproxy.standin.request import Query

VERSION: Final = "stand-in"
NET_0001: Final = (  # the seen text, with the code that the docs name; a close reason holds 123 bytes (RFC 6455 5.5)
    "NET-0001: Deepgram did not receive audio data or a text message within the timeout window. See https://dpgr.am/net0001"
)
DATA_0000: Final = "DATA-0000: Deepgram could not decode the message or the audio. See https://dpgr.am/data0000"
TURN_UPDATES: Final = 4  # TurnInfo messages a turn: the stand-in hears no speech, so a turn is a length of audio


@dataclass(frozen=True, slots=True)
class Close:
    """The stand-in ends the conversation."""

    code: int
    reason: str = ""


Outgoing = str | bytes | Close


@dataclass(frozen=True, slots=True)
class Opening:
    """What a conversation begins with: everything known from its handshake."""

    request_id: str
    query: Query
    options: Options
    created: str  # ISO 8601, UTC

    def model(self, default: str) -> str:
        """The model asked for."""
        return self.query.get("model") or default


def model_uuid(model: str) -> str:
    """The UUID of a model: the same for the same name."""
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{model}.model.standin.invalid"))


def message(kind: str, **fields: object) -> str:
    """A text message as the wire has it."""
    return json.dumps({"type": kind, **fields}, separators=(",", ":"))


def parsed(text: str) -> dict[str, Any]:
    """A client's text message; {} for what is no JSON object with a `type`."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("type"), str) else {}


class Session:
    """A conversation."""

    deadline: float | None = None

    def open(self, now: float) -> Iterator[Outgoing]:
        """The 101 is out."""
        raise NotImplementedError

    def audio(self, data: bytes, now: float) -> Iterator[Outgoing]:
        """A piece of a binary message, never empty."""
        raise NotImplementedError

    def end_of_audio(self, now: float) -> Iterator[Outgoing]:
        """A binary message of no bytes; without meaning unless a kind of conversation gives it one."""
        del now
        yield from ()

    def text(self, text: str, now: float) -> Iterator[Outgoing]:
        """A whole text message."""
        raise NotImplementedError

    def expire(self) -> Iterator[Outgoing]:
        """The deadline has come."""
        yield Close(1011, NET_0001)


class Heard(Session):
    """What the sessions that take audio have in common: hearing, hashing, the silence timer.

    The first audio must come within `silence` of the opening, then audio or a text message at least that often. Text
    alone, with never any audio, keeps nothing open.
    """

    def __init__(self, opening: Opening) -> None:
        query = opening.query
        self.opening = opening
        self.declared_channels = query.number("channels", 1)
        declared = raw_format(query.get("encoding"), query.number("sample_rate", 0) or None, self.declared_channels)
        self.hearing = Hearing(declared)
        self._sha256 = hashlib.sha256()
        self._any_audio = False

    def open(self, now: float) -> Iterator[Outgoing]:
        """Starts the timer."""
        self.deadline = now + self.opening.options.silence
        yield from ()

    def note_audio(self, data: bytes, now: float) -> None:
        """Audio came."""
        self._any_audio = True
        self.deadline = now + self.opening.options.silence
        self._sha256.update(data)

    def note_text(self, now: float) -> None:
        """A text message came."""
        if self._any_audio:
            self.deadline = now + self.opening.options.silence

    def scaled(self, seconds: float) -> float:
        """A duration as it is reported."""
        return round(seconds * self.opening.options.report_scale, 6)

    def pieces(self, data: bytes, step_ms: int) -> Iterator[int]:
        """Hears `data`; stops each time that another `step_ms` of the window are full, with how many are."""
        hearing, at = self.hearing, 0
        while at < len(data):
            # until the format is known, small pieces, so that no step is jumped over by much
            step = hearing.step(step_ms)
            size = step - hearing.fresh % step if hearing.known else 64
            before = hearing.fresh // step
            hearing.feed(data[at : at + size])
            at += size
            full = hearing.fresh // hearing.step(step_ms)
            if hearing.known and full > before:
                yield full


class ListenSession(Heard):
    """WS /v1/listen and /v1/listen/stream."""

    def __init__(self, opening: Opening) -> None:
        super().__init__(opening)
        query = opening.query
        self._interim = query.flag("interim_results")
        self._multichannel = query.flag("multichannel")
        self._model = opening.model("nova-3")
        self._step_ms = max(1, opening.options.results_ms // 2)

    def audio(self, data: bytes, now: float) -> Iterator[Outgoing]:
        """Final `Results` for each `results_ms` of audio, interim ones at the halves if asked for."""
        self.note_audio(data, now)
        for halves in self.pieces(data, self._step_ms):
            if halves > 1:
                yield from self._final(from_finalize=False)
            elif self._interim:
                yield from self._results_of(self.hearing.window(), is_final=False, from_finalize=False)

    def end_of_audio(self, now: float) -> Iterator[Outgoing]:
        """The legacy end of a stream."""
        del now
        yield from self._last_words()

    def text(self, text: str, now: float) -> Iterator[Outgoing]:
        """A control message."""
        self.note_text(now)
        found = parsed(text)
        match found.get("type"):
            case "KeepAlive":
                pass
            case "Finalize":
                yield from self._final(from_finalize=True)
            case "CloseStream":
                yield from self._last_words()
            case "Configure":
                keyterms = found.get("keyterms")
                replaced = {} if keyterms is None else {"keyterms": keyterms}
                yield message("ConfigureSuccess", request_id=self.opening.request_id, **replaced)
            case _:
                yield Close(1008, DATA_0000)

    def _last_words(self) -> Iterator[Outgoing]:
        self.hearing.finish()
        yield from self._final(from_finalize=False)
        yield message(
            "Metadata",
            transaction_key="deprecated",
            request_id=self.opening.request_id,
            sha256=self._sha256.hexdigest(),
            created=self.opening.created,
            duration=self.scaled(self.hearing.seconds(self.hearing.heard)),
            channels=self._channels,
        )
        yield Close(1000)

    @property
    def _channels(self) -> int:
        return self.hearing.channels if self.hearing.format else self.declared_channels

    def _final(self, *, from_finalize: bool) -> Iterator[Outgoing]:
        yield from self._results_of(self.hearing.take(), is_final=True, from_finalize=from_finalize)

    def _results_of(self, window: Window, *, is_final: bool, from_finalize: bool) -> Iterator[Outgoing]:
        channels = self._channels if self._multichannel else 1
        for channel in range(channels):
            whose = f" (channel {channel + 1} of {channels}, measured together)" if channels > 1 else ""
            transcript = window.describe() + whose if window.size else ""
            yield message(
                "Results",
                channel_index=[channel, channels],
                duration=self.scaled(window.seconds),
                start=self.scaled(window.start),
                is_final=is_final,
                speech_final=False,
                channel={
                    "alternatives": [
                        {"transcript": transcript, "confidence": 1.0 if window.size else 0.0, "words": []},
                    ],
                },
                metadata={
                    "request_id": self.opening.request_id,
                    "model_info": {"name": self._model, "version": VERSION, "arch": self._model},
                    "model_uuid": model_uuid(self._model),
                },
                from_finalize=from_finalize,
            )


class FluxSession(Heard):
    """WS /v2/listen: all messages count in `sequence_id`; a turn is one `results_ms` of audio, told in four of them."""

    def __init__(self, opening: Opening) -> None:
        super().__init__(opening)
        self._sequence = 0
        self._turn = 0
        self._started = False
        self._step_ms = max(1, opening.options.results_ms // TURN_UPDATES)

    def open(self, now: float) -> Iterator[Outgoing]:
        """Says `Connected`, sequence 0."""
        yield from super().open(now)
        yield self._message("Connected", request_id=self.opening.request_id)

    def audio(self, data: bytes, now: float) -> Iterator[Outgoing]:
        """`TurnInfo` for each quarter of a turn."""
        self.note_audio(data, now)
        for quarters in self.pieces(data, self._step_ms):
            if quarters >= TURN_UPDATES:
                yield from self._end_turn("model")
            else:
                event = "Update" if self._started else "StartOfTurn"
                self._started = True
                yield self._turn_info(event, self.hearing.window(), {})

    def end_of_audio(self, now: float) -> Iterator[Outgoing]:
        """Taken as `CloseStream`, though Flux is not known to have the legacy end of a stream."""
        del now
        yield from self._last_turn()

    def text(self, text: str, now: float) -> Iterator[Outgoing]:
        """A control message; KeepAlive is none of them (deepgram.md 5)."""
        self.note_text(now)
        found = parsed(text)
        match found.get("type"):
            case "CloseStream":
                yield from self._last_turn()
            case "ForceEndTurn":
                yield from self._end_turn("manual")
            case "Configure":
                yield self._message(
                    "ConfigureSuccess",
                    request_id=self.opening.request_id,
                    thresholds=found.get("thresholds") or {},
                    keyterms=found.get("keyterms") or [],
                )
            case _:
                yield self._message("Error", code="DATA-0000", description=DATA_0000)
                yield Close(1008, DATA_0000)

    def _last_turn(self) -> Iterator[Outgoing]:
        self.hearing.finish()
        yield from self._end_turn("timeout")
        yield Close(1000)

    def _end_turn(self, trigger: str) -> Iterator[Outgoing]:
        if not self.hearing.fresh:
            return
        window = self.hearing.take()
        if not self._started:
            yield self._turn_info("StartOfTurn", window, {})
        yield self._turn_info("EndOfTurn", window, {"trigger": trigger})
        self._turn += 1
        self._started = False

    def _turn_info(self, event: str, window: Window, more: dict[str, object]) -> str:
        return self._message(
            "TurnInfo",
            request_id=self.opening.request_id,
            event=event,
            turn_index=self._turn,
            audio_window_start=self.scaled(window.start),
            audio_window_end=self.scaled(window.start + window.seconds),
            transcript=window.describe() if window.size else "",
            words=[],
            end_of_turn_confidence=1.0 if event == "EndOfTurn" else 0.0,
            **more,
        )

    def _message(self, kind: str, **fields: object) -> str:
        sequence, self._sequence = self._sequence, self._sequence + 1
        return message(kind, sequence_id=sequence, **fields)
