"""Audio as the stand-in hears and speaks it: seconds and loudness of bytes, WAV heads, tones. Pure, constant memory.

Raw linear16, mulaw and alaw (declared by `encoding`) and PCM WAV are understood. Anything else (mp3, opus, ...) is not
decoded: its seconds are an estimate, its bytes at 64 kbit/s, and its transcript says so.
"""

import enum
import math
import struct
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from operator import mul
from typing import Final

ASSUMED_BYTES_PER_SECOND: Final = 8000  # 64 kbit/s, for what is not decoded
LOUDNESS_FLOOR: Final = -96.0  # dBFS; the least that 16 bits can hold, and what silence is called
WIDTHS: Final = {"linear16": 2, "linear32": 4, "mulaw": 1, "alaw": 1}  # bytes a sample of the raw encodings
TELEPHONE_RATE: Final = 8000  # Hz, G.711
DEFAULT_RATE: Final = 16000  # Hz; Deepgram wants sample_rate with a raw encoding, we are lenient where it is missing

# Loudness is taken from every 17th sample: cheap enough for uploads of many GiB, the same however the bytes were cut,
# and prime, so that no usual tone at a usual rate is always met in the same phase.
_STRIDE: Final = 17
_FULL_SCALE: Final = 32768.0
_MAX_WAV_HEAD: Final = 64 * 1024  # a data chunk must begin within this, or it is no WAV to us
_STREAMED: Final = 0x7FFF_F000  # a data chunk of this size and up (or of 0) means "until the end": ffmpeg, sox


@dataclass(frozen=True, slots=True)
class Format:
    """How raw samples are laid out."""

    encoding: str
    width: int  # bytes a sample
    rate: int  # Hz
    channels: int

    @property
    def block(self) -> int:
        """Bytes of one sample of all channels."""
        return self.width * self.channels

    @property
    def bytes_per_second(self) -> int:
        """Bytes of one second."""
        return self.block * self.rate


def raw_format(encoding: str, rate: int | None, channels: int) -> Format | None:
    """The format that a request's parameters declare; None where they declare none that is decoded here."""
    width = WIDTHS.get(encoding)
    if width is None:
        return None
    return Format(encoding, width, rate or (DEFAULT_RATE if width > 1 else TELEPHONE_RATE), channels)


class Prefix(enum.Enum):
    """What the first bytes of a body are, other than a WAV head."""

    INCOMPLETE = "more bytes are needed"
    NOT_WAV = "no WAV"


@dataclass(frozen=True, slots=True)
class Wav:
    """A WAV head: its format, where the samples begin, and how many bytes of them it promises (None: until the end)."""

    format: Format
    offset: int
    size: int | None


def wav_head(data: bytes | bytearray) -> Wav | Prefix:
    """Reads a RIFF/WAVE head from the first bytes of a body."""
    if not b"RIFF".startswith(data[:4]) or (len(data) >= 12 and data[8:12] != b"WAVE"):  # noqa: PLR2004 - RIFF, size, WAVE
        return Prefix.NOT_WAV
    found: Format | None = None
    at = 12
    while len(data) >= at + 8:
        name, size = bytes(data[at : at + 4]), int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8
        if name == b"data":
            if found is None:
                return Prefix.NOT_WAV
            return Wav(found, at, None if size == 0 or size >= _STREAMED else size)
        if name == b"fmt ":
            if len(data) < at + size:
                break
            found = _wav_format(bytes(data[at : at + size]))
            if found is None:
                return Prefix.NOT_WAV
        at += size + (size & 1)  # chunks are padded to an even size
    return Prefix.INCOMPLETE if len(data) < _MAX_WAV_HEAD else Prefix.NOT_WAV


_EXTENSIBLE: Final = 0xFFFE  # WAVE_FORMAT_EXTENSIBLE: the true tag begins the sub-format's GUID
_TAGS: Final = {
    (1, 8): "pcm8",
    (1, 16): "linear16",
    (1, 24): "pcm24",
    (1, 32): "linear32",
    (3, 32): "float32",
    (6, 8): "alaw",
    (7, 8): "mulaw",
}  # (format tag, bits a sample); Microsoft's mmreg.h


def _wav_format(chunk: bytes) -> Format | None:
    if len(chunk) < 16:  # noqa: PLR2004 - the shortest fmt chunk
        return None
    tag, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", chunk)
    if tag == _EXTENSIBLE and len(chunk) >= 26:  # noqa: PLR2004 - the GUID begins at byte 24
        (tag,) = struct.unpack_from("<H", chunk, 24)
    encoding = _TAGS.get((tag, bits))
    if encoding is None or not channels or not rate:
        return None
    return Format(encoding, bits // 8, rate, channels)


def wav(fmt: Format, size: int) -> bytes:
    """The head of a WAV file with `size` bytes of linear16, mulaw or alaw samples."""
    tag = {"linear16": 1, "alaw": 6, "mulaw": 7}[fmt.encoding]
    described = struct.pack("<HHIIHH", tag, fmt.channels, fmt.rate, fmt.bytes_per_second, fmt.block, fmt.width * 8)
    return b"RIFF%bWAVEfmt %b%bdata%b" % (
        struct.pack("<I", 4 + 8 + len(described) + 8 + size),
        struct.pack("<I", len(described)),
        described,
        struct.pack("<I", size),
    )


def _mulaw_value(code: int) -> int:
    """A mu-law code as a 16-bit sample (ITU-T G.711)."""
    code = ~code & 0xFF
    value = (((code & 0x0F) << 3) + 0x84 << ((code & 0x70) >> 4)) - 0x84
    return -value if code & 0x80 else value


def _alaw_value(code: int) -> int:
    """An A-law code as a 16-bit sample (ITU-T G.711)."""
    code ^= 0x55
    exponent, mantissa = (code & 0x70) >> 4, (code & 0x0F) << 4
    value = mantissa + 8 if exponent == 0 else mantissa + 0x108 << exponent - 1
    return value if code & 0x80 else -value


LAWS: Final = {
    "mulaw": tuple(_mulaw_value(code) for code in range(256)),
    "alaw": tuple(_alaw_value(code) for code in range(256)),
}
_LAW_SQUARES: Final = {name: tuple(value * value for value in table) for name, table in LAWS.items()}


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of audio: where it begins and how long it is (s, bytes), how loud it is (dBFS; None: not measured)."""

    start: float
    seconds: float
    size: int
    loudness: float | None
    decoded: bool

    def describe(self) -> str:
        """The transcript: what was heard, and no word more."""
        if not self.decoded:
            return f"about {self.seconds:.1f} s of audio ({self.size} bytes, not decoded, taken as 64 kbit/s)"
        if self.loudness is None:
            return f"{self.seconds:.1f} s of audio, loudness not measured"
        return f"{self.seconds:.1f} s of audio, loudness {self.loudness:.0f} dB"


class Hearing:
    """Hears audio bytes as they come, in pieces of any size.

    `declared` is what the request says of raw audio; a WAV head in the bytes themselves goes first.
    """

    def __init__(self, declared: Format | None) -> None:
        self.format = declared
        self.heard = 0  # bytes of samples
        self._prefix: bytearray | None = bytearray()  # None once it is known what this is
        self._promised: int | None = None  # bytes of samples, by the WAV head
        self._carry = b""  # half of a sample
        self._index = 0  # samples so far, for the stride
        self._window_at = 0
        self._squares = 0
        self._counted = 0

    @property
    def known(self) -> bool:
        """Whether the format is settled (it is not while a WAV head may still be incomplete)."""
        return self._prefix is None

    @property
    def bytes_per_second(self) -> int:
        """Bytes of one second; an assumption where the format is not decoded."""
        return self.format.bytes_per_second if self.format else ASSUMED_BYTES_PER_SECOND

    @property
    def channels(self) -> int:
        """Channels of the audio."""
        return self.format.channels if self.format else 1

    @property
    def fresh(self) -> int:
        """Bytes of samples in the present window."""
        return self.heard - self._window_at

    def seconds(self, size: int) -> float:
        """The length of `size` bytes of samples."""
        return size / self.bytes_per_second

    def step(self, milliseconds: int) -> int:
        """Bytes of that much audio, in whole samples, never 0."""
        block = self.format.block if self.format else 1
        return max(1, self.bytes_per_second * milliseconds // 1000 // block) * block

    def feed(self, data: bytes) -> None:
        """Hears the next bytes."""
        if self._prefix is None:
            self._hear(data)
            return
        self._prefix += data
        found = wav_head(self._prefix)
        if found is not Prefix.INCOMPLETE:
            self._settle(found)

    def finish(self) -> None:
        """No more bytes will come: what could have become a WAV head is audio after all."""
        if self._prefix is not None:
            self._settle(Prefix.NOT_WAV)

    def window(self) -> Window:
        """What was heard since the last window was taken."""
        size = self.fresh
        loudness = decibels(self._squares / self._counted) if self._counted else None
        return Window(self.seconds(self._window_at), self.seconds(size), size, loudness, self.format is not None)

    def take(self) -> Window:
        """The window since the last one; the next begins here."""
        window = self.window()
        self._window_at = self.heard
        self._squares = self._counted = 0
        return window

    def _settle(self, found: Wav | Prefix) -> None:
        data = bytes(self._prefix or b"")
        self._prefix = None
        if isinstance(found, Wav):
            self.format, self._promised = found.format, found.size
            data = data[found.offset :]
        self._hear(data)

    def _hear(self, data: bytes) -> None:
        if self._promised is not None:
            data = data[: max(0, self._promised - self.heard)]  # chunks behind the samples are no audio
        self.heard += len(data)
        match self.format:
            case Format(encoding="linear16"):
                data = self._carry + data if self._carry else data
                whole = len(data) & ~1
                self._carry = bytes(data[whole:])
                samples = array("h", data[:whole] if self._carry else data)
                if sys.byteorder == "big":
                    samples.byteswap()
                picked = samples[-self._index % _STRIDE :: _STRIDE]
                self._squares += sum(map(mul, picked, picked))
                self._counted += len(picked)
                self._index += len(samples)
            case Format(encoding="mulaw" | "alaw" as law):
                codes = data[-self._index % _STRIDE :: _STRIDE]
                self._squares += sum(map(_LAW_SQUARES[law].__getitem__, codes))
                self._counted += len(codes)
                self._index += len(data)
            case _:
                pass


def decibels(mean_square: float) -> float:
    """Loudness of 16-bit samples in dBFS: 0 is full scale, so a full sine is -3."""
    if mean_square <= 0:
        return LOUDNESS_FLOOR
    return max(LOUDNESS_FLOOR, 10 * math.log10(mean_square / _FULL_SCALE**2))


_PITCH: Final = 440  # Hz
_AMPLITUDE: Final = 8000  # about -15 dBFS
_PIECE_MS: Final = 200  # milliseconds of speech a piece


@lru_cache(maxsize=32)
def _period(encoding: str, rate: int) -> bytes:
    length = max(2, rate // _PITCH)
    wave = [round(_AMPLITUDE * math.sin(2 * math.pi * i / length)) for i in range(length)]
    if encoding == "linear16":
        return struct.pack(f"<{length}h", *wave)
    table = LAWS[encoding]
    return bytes(min((abs(value - sample), code) for code, value in enumerate(table))[1] for sample in wave)


def tone(fmt: Format, size: int) -> Iterator[bytes]:
    """`size` bytes of a 440 Hz tone in linear16, mulaw or alaw (one channel), in pieces of 200 ms."""
    period = _period(fmt.encoding, fmt.rate)
    step = fmt.rate * _PIECE_MS // 1000 * fmt.width or fmt.width
    loop = period * (step // len(period) + 2)
    for at in range(0, size, step):
        begin = at % len(period)
        yield loop[begin : begin + min(step, size - at)]


# MPEG-1 layer III, 64 kbit/s, 48 kHz, one channel: 192 bytes, 24 ms. All-zero side information is silence.
_MP3_FRAME: Final = b"\xff\xfb\x54\xc0" + bytes(188)
_MP3_FRAME_SECONDS: Final = 0.024


def silent_mp3(seconds: float) -> Iterator[bytes]:
    """Valid MP3 frames, silent: the stand-in has no encoder."""
    frames = max(1, math.ceil(seconds / _MP3_FRAME_SECONDS))
    for at in range(0, frames, 8):
        yield _MP3_FRAME * min(8, frames - at)
