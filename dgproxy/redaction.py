"""Takes secrets out of text that is going to be written down. Pure; used at the log's sink on every string.

Rules of this file: this is the second line. The first is that no secret is put into a log field; but a client can put
its key anywhere (a path, a query, a User-Agent), and what stands in the log must not open a door. Text that only looks
like a secret is redacted too.
"""

import re
from typing import Final

REDACTED: Final = "[redacted]"

# Harmless parameters of Deepgram's whose values help whoever reads the log. All others are shown by name alone.
_SHOWN: Final = frozenset(
    {
        *("model", "version", "language", "encoding", "sample_rate", "channels", "multichannel", "container"),
        *("bit_rate", "interim_results", "endpointing", "utterance_end_ms", "vad_events"),
        *("smart_format", "punctuate", "diarize", "utterances", "numerals"),
    }
)
_PLAIN_VALUE = re.compile(r"[A-Za-z0-9._:-]{0,48}")
_PARAMETER_NAME = re.compile(r"[A-Za-z_]{1,32}")
_LONG_TOKEN = re.compile(r"[A-Za-z0-9_~+=-]{16,}")

# What is redacted, and what is left of it. In this order: one pattern must not take what another begins with. Each of
# them looks at a character a bounded number of times, whatever the text: strangers write what is looked at here.
_PATTERNS: Final = (
    # A JWT, of three parts or (encrypted) five, with what it is glued to.
    (re.compile(r"(?<![\w-])(?=[\w-]*eyJ)[\w-]++(?:\.[\w-]*+){1,4}", re.ASCII), REDACTED),
    (re.compile(r"[0-9a-fA-F]{40,}"), REDACTED),  # Deepgram's own keys, whatever they are glued to
    (re.compile(r"(dgp_[0-9A-Za-z]{0,10})[0-9A-Za-z]*_[0-9A-Za-z_]+"), rf"\1_{REDACTED}"),  # ours; their id is public
    (re.compile(r"(?i)((?:token|bearer|basic)(?:\s*,\s*|\s+|%20|\+|=))[^\s,\"']+"), rf"\1{REDACTED}"),
    (re.compile(r"//[^/?#\s]+@"), f"//{REDACTED}"),  # user and password in a URL
)
# Control characters, and the marks that turn the direction of text, would let a log line show what it does not say.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# Most lines hold nothing of the kind, and one look tells: each pattern above needs at least one of these.
_SUSPECT = re.compile(r"dgp_|(?i:token|bearer|basic)|eyJ|[0-9a-fA-F]{40}|//|" + _UNPRINTABLE.pattern)


def redact(text: str) -> str:
    """The text without whatever looks like a credential, and with control characters shown instead of obeyed."""
    if _SUSPECT.search(text) is None:
        return text
    for pattern, left in _PATTERNS:
        text = pattern.sub(left, text)
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def target(path: bytes, query: bytes, *, served: bool) -> str:
    """A request's target for the log: the path, and the query with its values redacted but for harmless ones.

    Of a path that is not served only its short parts are shown: a key might stand in it.
    """
    shown = path.decode("latin-1")
    if not served:
        shown = _LONG_TOKEN.sub(REDACTED, shown)[:128]
    if not query:
        return shown
    parts = []
    for part in query.decode("latin-1").split("&")[:32]:
        name, equals, value = part.partition("=")
        if _PARAMETER_NAME.fullmatch(name) is None:
            name = "*"
        if equals and not (name in _SHOWN and _PLAIN_VALUE.fullmatch(value)):
            value = "*"
        parts.append(name + equals + value)
    return f"{shown}?{'&'.join(parts)}"
