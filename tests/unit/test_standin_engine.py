import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from dgproxy.standin.audio import Format, wav
from dgproxy.standin.engine import DATA_0000, NET_0001, Close, FluxSession, ListenSession, Opening, Outgoing, Session
from dgproxy.standin.options import Options
from dgproxy.standin.request import Query
from dgproxy.standin.speech import AgentSession, FluxSpeakSession, SpeakSession

REQUEST_ID = "3d7c61ee-0000-4000-8000-000000000000"
RAW = "encoding=linear16&sample_rate=8000"
SECOND = bytes(16000)


class Told:
    """A session with its clock at hand; what it says comes back as dicts, bytes and Close."""

    def __init__(self, kind: Callable[[Opening], Session], query: str = "", options: Options | None = None) -> None:
        self.now = 100.0
        opening = Opening(REQUEST_ID, Query(f"/?{query}"), options or Options(), "2026-01-01T00:00:00.000Z")
        self.session: Session = kind(opening)
        self.opened = [self._read(each) for each in self.session.open(self.now)]

    def audio(self, data: bytes) -> list[Any]:
        return [self._read(each) for each in self.session.audio(data, self.now)]

    def end_of_audio(self) -> list[Any]:
        return [self._read(each) for each in self.session.end_of_audio(self.now)]

    def text(self, **fields: object) -> list[Any]:
        return [self._read(each) for each in self.session.text(json.dumps(fields), self.now)]

    def raw(self, text: str) -> list[Any]:
        return [self._read(each) for each in self.session.text(text, self.now)]

    def expired(self) -> bool:
        return self.session.deadline is not None and self.now >= self.session.deadline

    @staticmethod
    def _read(each: Outgoing) -> Any:
        return json.loads(each) if isinstance(each, str) else each


def spans(results: list[Any]) -> list[tuple[float, float, bool]]:
    return [(each["start"], each["duration"], each["is_final"]) for each in results]


def test_results_come_for_each_second_and_interim_ones_only_if_asked_for() -> None:
    assert spans(Told(ListenSession, RAW).audio(SECOND * 2)) == [(0.0, 1.0, True), (1.0, 1.0, True)]
    assert spans(Told(ListenSession, f"{RAW}&interim_results=true").audio(SECOND * 2)) == [
        (0.0, 0.5, False),
        (0.0, 1.0, True),
        (1.0, 0.5, False),
        (1.0, 1.0, True),
    ]


def test_results_have_the_fields_of_the_wire() -> None:
    (results,) = Told(ListenSession, f"{RAW}&model=nova-2").audio(SECOND)
    assert results["type"] == "Results"
    assert results["channel_index"] == [0, 1]
    assert results["from_finalize"] is False
    assert results["channel"]["alternatives"] == [
        {"transcript": "1.0 s of audio, loudness -96 dB", "confidence": 1.0, "words": []}
    ]
    assert results["metadata"]["request_id"] == REQUEST_ID
    assert results["metadata"]["model_info"]["arch"] == "nova-2"


def test_finalize_gives_what_is_left_and_the_next_second_begins_there() -> None:
    told = Told(ListenSession, RAW)
    assert told.audio(SECOND[:4000]) == []
    (finalized,) = told.text(type="Finalize")
    assert (finalized["start"], finalized["duration"], finalized["from_finalize"]) == (0.0, 0.25, True)
    assert spans(told.audio(SECOND)) == [(0.25, 1.0, True)]
    (nothing_left,) = told.text(type="Finalize")
    assert (nothing_left["duration"], nothing_left["from_finalize"]) == (0.0, True)
    assert nothing_left["channel"]["alternatives"][0]["transcript"] == ""


@pytest.mark.parametrize("by", ["CloseStream", "empty message"])
def test_the_end_is_results_metadata_and_1000(by: str) -> None:
    told = Told(ListenSession, RAW)
    told.audio(SECOND + SECOND[:8000])
    results, metadata, close = told.text(type="CloseStream") if by == "CloseStream" else told.end_of_audio()
    assert (results["start"], results["duration"]) == (1.0, 0.5)
    assert metadata == {
        "type": "Metadata",
        "transaction_key": "deprecated",
        "request_id": REQUEST_ID,
        "sha256": hashlib.sha256(SECOND + SECOND[:8000]).hexdigest(),
        "created": "2026-01-01T00:00:00.000Z",
        "duration": 1.5,
        "channels": 1,
    }
    assert close == Close(1000)


def test_a_wav_in_the_stream_says_what_it_is() -> None:
    told = Told(ListenSession)
    data = wav(Format("linear16", 2, 8000, 2), 48000) + bytes(48000)
    results = [each for at in range(0, len(data), 999) for each in told.audio(data[at : at + 999])]
    assert spans(results) == [(0.0, 1.0, True)]
    *_, metadata, _ = told.text(type="CloseStream")
    assert (metadata["duration"], metadata["channels"]) == (1.5, 2)


def test_each_channel_has_results_of_its_own_if_asked_for() -> None:
    told = Told(ListenSession, f"{RAW}&channels=2&multichannel=true")
    assert [each["channel_index"] for each in told.audio(SECOND * 2)] == [[0, 2], [1, 2]]


def test_reports_are_scaled_and_transcripts_are_not() -> None:
    told = Told(ListenSession, RAW, Options(report_scale=3.0, results_ms=500))
    first, second = told.audio(SECOND)
    assert (first["duration"], second["start"]) == (1.5, 1.5)
    assert second["channel"]["alternatives"][0]["transcript"].startswith("0.5 s of audio")
    assert told.text(type="CloseStream")[1]["duration"] == 3.0


def test_silence_is_counted_from_the_last_audio_or_text() -> None:
    told = Told(ListenSession, RAW)
    told.audio(SECOND)
    for _ in range(5):
        told.now += 9.0
        assert not told.expired()
        told.text(type="KeepAlive")
    told.now += 10.0
    assert told.expired()
    assert list(told.session.expire()) == [Close(1011, NET_0001)]


def test_keepalive_without_any_audio_keeps_nothing_open() -> None:
    told = Told(ListenSession, RAW)
    told.now += 9.0
    assert told.text(type="KeepAlive") == []
    told.now += 1.0
    assert told.expired()


@pytest.mark.parametrize("reason", [NET_0001, DATA_0000])
def test_close_reasons_fit_a_control_frame(reason: str) -> None:
    assert len(reason.encode()) <= 123


@pytest.mark.parametrize("text", ["junk", "{", "[]", "{}", '{"type":7}', '{"type":"Nonsense"}', '"CloseStream"'])
def test_junk_closes_with_data_0000(text: str) -> None:
    assert Told(ListenSession, RAW).raw(text) == [Close(1008, DATA_0000)]


def test_configure_succeeds() -> None:
    told = Told(ListenSession, RAW)
    assert told.text(type="Configure", features={"numerals": True}) == [
        {"type": "ConfigureSuccess", "request_id": REQUEST_ID}
    ]
    assert told.text(type="Configure", keyterms=["a"])[0]["keyterms"] == ["a"]


def test_flux_counts_every_message_and_tells_a_turn_in_four() -> None:
    told = Told(FluxSession, RAW)
    assert told.opened == [{"type": "Connected", "sequence_id": 0, "request_id": REQUEST_ID}]
    turn = told.audio(SECOND)
    assert [each["event"] for each in turn] == ["StartOfTurn", "Update", "Update", "EndOfTurn"]
    assert [each["audio_window_end"] for each in turn] == [0.25, 0.5, 0.75, 1.0]
    assert {each["audio_window_start"] for each in turn} == {0.0}
    assert turn[-1]["trigger"] == "model"
    begun = told.audio(SECOND[:6000])
    assert [(each["event"], each["turn_index"]) for each in begun] == [("StartOfTurn", 1)]
    *last, close = told.text(type="CloseStream")
    assert [(each["event"], each["audio_window_end"], each["trigger"]) for each in last] == [
        ("EndOfTurn", 1.375, "timeout")
    ]
    assert close == Close(1000)
    assert [each["sequence_id"] for each in (*told.opened, *turn, *begun, *last)] == list(range(7))


def test_flux_ends_a_turn_when_told_to() -> None:
    told = Told(FluxSession, RAW)
    assert told.text(type="ForceEndTurn") == []  # there is none
    told.audio(SECOND[:2000])
    assert [each["event"] for each in told.text(type="ForceEndTurn")] == ["StartOfTurn", "EndOfTurn"]
    assert told.end_of_audio() == [Close(1000)]


def test_flux_does_not_know_keepalive() -> None:
    error, close = Told(FluxSession, RAW).text(type="KeepAlive")
    assert (error["type"], error["sequence_id"]) == ("Error", 1)
    assert close == Close(1008, DATA_0000)


def test_speak_sounds_at_the_flush_and_numbers_its_answers() -> None:
    told = Told(SpeakSession, "encoding=linear16&sample_rate=8000&model=aura-2-zeus-en")
    assert (told.opened[0]["type"], told.opened[0]["model_name"]) == ("Metadata", "aura-2-zeus-en")
    assert told.text(type="Speak", text="hello") == []
    assert told.text(type="Speak", text="world") == []
    *audio, flushed = told.text(type="Flush")
    assert sum(len(each) for each in audio) == 10 * 0.06 * 16000
    assert flushed == {"type": "Flushed", "sequence_id": 0}
    told.text(type="Speak", text="never heard")
    assert told.text(type="Clear") == [{"type": "Cleared", "sequence_id": 1}]
    assert told.text(type="Close") == [Close(1000)]


def test_speak_takes_no_binary_and_no_junk() -> None:
    assert Told(SpeakSession).audio(b"x")[0].code == 1003
    assert Told(SpeakSession).text(type="Speak")[0].code == 1008
    with pytest.raises(ValueError, match="encoding=opus"):
        Told(SpeakSession, "encoding=opus")


def test_flux_speak_tells_what_each_turn_and_the_session_cost() -> None:
    told = Told(FluxSpeakSession, "encoding=mulaw")
    assert told.opened[0]["type"] == "Connected"
    (started,) = told.text(type="Speak", text="hello")
    *audio, metadata, flushed = told.text(type="Flush")
    assert sum(len(each) for each in audio) == 5 * 0.06 * 8000
    assert metadata["billable_character_count"] == 5
    assert metadata["audio_duration_ms"] == 300
    assert started["speech_id"] == metadata["speech_id"] == flushed["speech_id"]
    assert told.text(type="Flush")[0]["code"] == "NO_ACTIVE_SPEECH"
    told.text(type="Speak", text="interrupted")
    assert told.text(type="Interrupt")[0]["metadata"]["billable_character_count"] == 0
    told.text(type="Speak", text="bye")
    *_, session, close = told.text(type="Close")
    assert (session["total_billable_character_count"], session["total_audio_duration_ms"]) == (8, 480)
    assert close == Close(1000)


def test_an_agent_wants_settings_then_answers() -> None:
    told = Told(AgentSession, RAW)
    assert told.opened == [{"type": "Welcome", "request_id": REQUEST_ID}]
    assert told.audio(SECOND)[0]["code"] == "SETTINGS_REQUIRED"
    assert told.text(type="Settings", agent={}) == [{"type": "SettingsApplied"}]
    assert [each["type"] for each in told.audio(SECOND)] == ["UserStartedSpeaking", "ConversationText"]
    user, assistant, started, *audio, done = told.text(type="InjectUserMessage", content="hi")
    assert (user["role"], user["content"], assistant["role"]) == ("user", "hi", "assistant")
    assert (started["type"], done["type"]) == ("AgentStartedSpeaking", "AgentAudioDone")
    assert all(isinstance(each, bytes) for each in audio)
    assert told.text(type="UpdatePrompt", prompt="p") == [{"type": "PromptUpdated"}]
    assert told.text(type="Nonsense")[0]["type"] == "Error"
    told.now += 9.0
    told.text(type="KeepAlive")
    told.now += 9.0
    assert not told.expired()
