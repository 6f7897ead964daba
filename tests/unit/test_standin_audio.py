import math
import struct
import wave
from io import BytesIO

import pytest
from hypothesis import given, strategies as st

from dgproxy.standin.audio import (
    ASSUMED_BYTES_PER_SECOND,
    LAWS,
    LOUDNESS_FLOOR,
    Format,
    Hearing,
    Prefix,
    Wav,
    raw_format,
    silent_mp3,
    tone,
    wav,
    wav_head,
)


def sine(seconds: float, *, rate: int = 16000, peak: int = 32767, pitch: float = 1000.0) -> bytes:
    count = round(seconds * rate)
    return struct.pack(f"<{count}h", *(round(peak * math.sin(2 * math.pi * pitch * i / rate)) for i in range(count)))


def test_a_full_sine_is_minus_three_decibels_and_silence_is_the_floor() -> None:
    loud = Hearing(raw_format("linear16", 16000, 1))
    loud.feed(sine(1.0))
    loud.finish()
    assert loud.window().describe() == "1.0 s of audio, loudness -3 dB"

    silent = Hearing(raw_format("linear16", 16000, 1))
    silent.feed(bytes(32000))
    silent.finish()
    assert silent.window().loudness == LOUDNESS_FLOOR


@given(cuts=st.lists(st.integers(0, 8000), max_size=12))
def test_what_is_heard_does_not_depend_on_how_the_bytes_were_cut(cuts: list[int]) -> None:
    data = wav(Format("linear16", 2, 8000, 1), 7990) + sine(0.499375, rate=8000, peak=5000, pitch=333)
    whole, pieces = Hearing(None), Hearing(None)
    whole.feed(data)
    for begin, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(data)], strict=True):
        pieces.feed(data[begin:end])
    for hearing in (whole, pieces):
        hearing.finish()
    assert whole.window() == pieces.window()
    assert whole.heard == 7990


def test_a_wav_of_the_standard_library_is_understood() -> None:
    file = BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(2)
        writer.setsampwidth(2)
        writer.setframerate(8000)
        writer.writeframes(sine(1.5, rate=16000))  # 24,000 samples: 1.5 s of two channels
    hearing = Hearing(None)
    hearing.feed(file.getvalue())
    assert hearing.format == Format("linear16", 2, 8000, 2)
    assert hearing.window().seconds == 1.5


def test_our_own_wav_is_read_by_the_standard_library() -> None:
    fmt = Format("linear16", 2, 24000, 1)
    with wave.open(BytesIO(wav(fmt, 4800) + b"".join(tone(fmt, 4800))), "rb") as reader:
        assert (reader.getframerate(), reader.getnchannels(), reader.getnframes()) == (24000, 1, 2400)


def test_chunks_before_and_behind_the_samples_are_no_audio() -> None:
    plain = wav(Format("mulaw", 1, 8000, 1), 8000)
    data = plain[:12] + b"LIST" + struct.pack("<I", 3) + b"abc\0" + plain[12:] + bytes(8000) + b"LIST" + bytes(100)
    hearing = Hearing(None)
    hearing.feed(data)
    assert (hearing.heard, hearing.window().seconds) == (8000, 1.0)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
def test_a_streamed_wav_lasts_until_the_end(size: int) -> None:
    data = bytearray(wav(Format("linear16", 2, 8000, 1), 0))
    data[-4:] = struct.pack("<I", size)
    found = wav_head(data)
    assert isinstance(found, Wav)
    assert found.size is None


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", Prefix.INCOMPLETE),
        (b"RIF", Prefix.INCOMPLETE),
        (b"ID3\x04", Prefix.NOT_WAV),
        (b"RIFF\0\0\0\0AVI LIST", Prefix.NOT_WAV),
        (wav(Format("linear16", 2, 8000, 1), 10)[:-1], Prefix.INCOMPLETE),
        (b"RIFF\0\0\0\0WAVEdata\x04\0\0\0", Prefix.NOT_WAV),  # samples before their format
        (wav(Format("linear16", 2, 0, 1), 10), Prefix.NOT_WAV),  # a rate of 0
        (b"RIFF\0\0\0\0WAVEjunk\xff\xff\0\0" + bytes(70_000), Prefix.NOT_WAV),
    ],
    ids=["empty", "begun", "mp3", "avi", "cut", "no format", "rate 0", "endless"],
)
def test_what_is_no_wav_head_is_told_from_one_that_is_incomplete(data: bytes, found: Prefix) -> None:
    assert wav_head(data) is found


def test_what_is_not_decoded_is_estimated_and_says_so() -> None:
    hearing = Hearing(raw_format("opus", 48000, 1))
    hearing.feed(b"OggS" + bytes(2 * ASSUMED_BYTES_PER_SECOND - 4))
    assert hearing.window().describe() == "about 2.0 s of audio (16000 bytes, not decoded, taken as 64 kbit/s)"


def test_the_laws_are_those_of_g711() -> None:
    # G.711, tables 1 and 2: the extremes and the values about zero, scaled to 16 bits
    assert (LAWS["mulaw"][0x00], LAWS["mulaw"][0x80], LAWS["mulaw"][0xFF]) == (-32124, 32124, 0)
    assert (LAWS["alaw"][0xAA], LAWS["alaw"][0x2A], LAWS["alaw"][0xD5]) == (32256, -32256, 8)


@pytest.mark.parametrize(("encoding", "rate"), [("linear16", 24000), ("mulaw", 8000), ("alaw", 8000)])
def test_a_tone_has_the_asked_length_and_is_heard_as_loud_as_it_is(encoding: str, rate: int) -> None:
    fmt = raw_format(encoding, rate, 1)
    assert fmt is not None
    data = b"".join(tone(fmt, fmt.bytes_per_second * 3))
    hearing = Hearing(fmt)
    hearing.feed(data)
    hearing.finish()
    assert hearing.window().describe() == "3.0 s of audio, loudness -15 dB"


def test_mp3_frames_are_whole_and_of_the_asked_length() -> None:
    data = b"".join(silent_mp3(0.25))
    assert len(data) == 11 * 192
    assert all(data[at : at + 4] == b"\xff\xfb\x54\xc0" for at in range(0, len(data), 192))
