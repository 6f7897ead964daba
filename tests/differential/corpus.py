"""Every request that is sent: tests/bad_inputs F, H and W, the rest of bad-inputs.md F and H, and research.

In a row, KEY stands for a good key. Behind what each row sends comes SECOND, a request that is good in itself: who
takes it for one, where it stands in a body or behind a head that can't be trusted, is open to smuggling.

Sources of the rows S: RFC 9112 11.2; Linhart et al., HTTP Request Smuggling (2005); Kettle, HTTP Desync Attacks (2019),
Browser-Powered Desync Attacks (2022: CL.0), HTTP/1.1 Must Die (2025: 0.CL, Expect); Jabiyev et al., T-Reqs (2021);
"TE.0" (Bugcrowd, 2024); Weikop, Funky Chunks (2025: line ends and extensions of chunks).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tests.bad_inputs import test_f_framing as f, test_h_headers as h, test_w_handshake as w
from tests.support import raw
from tests.support.raw import SECOND

SECOND_TARGET: Final = "/v1/models?second"


@dataclass(frozen=True)
class Rule:
    """What a group of rows is about; `source` are sections of RFCs."""

    text: str
    source: str


@dataclass(frozen=True)
class Row:
    """One thing to send. `id` begins with its rule's key."""

    id: str
    sent: bytes

    @property
    def rule(self) -> str:
        """The key of its rule."""
        return self.id.partition(" ")[0]


RULES: Final[dict[str, Rule]] = {
    "F1": Rule("`Content-Length` with `Transfer-Encoding`", "9112 6.1"),
    "F2": Rule("`Content-Length` twice, or a list", "9112 6.3"),
    "F3": Rule("`Content-Length` that is not digits alone", "9110 8.6"),
    "F4": Rule("`Content-Length` of 19 digits or more", "9110 8.6"),
    "F5": Rule("announced length over the plan's `max_body`", "9110 15.5.14"),
    "F6": Rule("`Transfer-Encoding` in HTTP/1.0", "9112 6.1"),
    "F7": Rule("`Transfer-Encoding` other than `chunked`, or twice", "9112 6.1"),
    "F8": Rule("`Transfer-Encoding: ChUnKeD`", "9112 7"),
    "F9": Rule("VT, FF, NBSP, NUL beside `chunked` or in the name", "9110 5.5"),
    "F10": Rule("space or tab between name and colon", "9112 5.1"),
    "F11": Rule("folded header lines", "9112 5.2"),
    "F12": Rule("LF alone as line end in the head", "9112 2.2"),
    "F13": Rule("CR alone in the head", "9112 2.2"),
    "F14": Rule("control bytes in name, value or target", "9110 5.5, 5.6.2"),
    "F15": Rule("header line without colon, or with a name that is no token", "9112 5"),
    "F16": Rule("chunk size that is not 1 to 16 hex digits", "9112 7.1"),
    "F17": Rule("chunk longer or shorter than its size, or with another end than CRLF", "9112 7.1"),
    "F18": Rule("chunk extensions", "9112 7.1.1"),
    "F19": Rule("trailers", "9110 6.5"),
    "F20": Rule("a request behind `Content-Length: 0`", "9112 9.3.2"),
    "F22": Rule("a request behind a WebSocket handshake that is not valid", "6455 4.2.1"),
    "F23": Rule("GET or HEAD with a body", "9110 9.3.1"),
    "F24": Rule("request line with other white space, case or parts", "9112 3"),
    "F25": Rule("empty lines before the request line", "9112 2.2"),
    "F26": Rule("versions other than HTTP/1.0 and HTTP/1.1", "9112 2.3"),
    "F31": Rule("`Expect: 100-continue`", "9110 10.1.1"),
    "F32": Rule("another `Expect`", "9110 10.1.1"),
    "H1": Rule("`Host` missing, twice, or not a host", "9112 3.2"),
    "H2": Rule("target in absolute, authority or asterisk form; CONNECT; TRACE", "9112 3.2"),
    "H3": Rule("paths in another spelling than a served one", "3986 6"),
    "H4": Rule("a fragment in the target", "9112 3.2"),
    "H5": Rule("query of 30 KB", "9110 4.1"),
    "H6": Rule("bytes over 0x7e in the target", "3986 2"),
    "H6b": Rule("escapes in the query, well-formed or not", "3986 2.1"),
    "H7": Rule("head over 32 KiB or over 100 headers", "9112 5"),
    "H8": Rule("`Connection` that names framing headers", "9110 7.6.1"),
    "H9": Rule("`X-Forwarded-*`, `Forwarded`, `X-Real-IP` from the client", "7239"),
    "H12": Rule("`Upgrade` to something else, or to a list", "9110 7.8"),
    "H13": Rule("`Cookie`, `Proxy-Authorization`, `TE`, `Keep-Alive`, `Proxy-Connection`", "9110 7.6.1"),
    "W1": Rule("WebSocket handshake: method, version, key or body not as they must be", "6455 4.2.1"),
    "W2": Rule("WebSocket handshake without `Connection: Upgrade`, or on a path without WebSocket", "6455 4.2.1"),
    "S1": Rule("CL.TE and TE.CL by a hidden `Transfer-Encoding`", "9112 11.2"),
    "S2": Rule("CL.0 and 0.CL by a hidden `Content-Length`", "9112 11.2"),
    "S3": Rule("TE.0: a chunked body where none is expected", "9112 6.3"),
    "S4": Rule("request lines that lenient parsers split or join", "9112 3"),
    "S5": Rule("HTTP/1.0 with headers of 1.1", "9112 C.2"),
    "S6": Rule("`Host` hidden, masked or at odds with the target", "9112 3.2"),
    "S7": Rule("`_` for `-` in a name that frames, routes or vouches", "3875 4.1.18"),
    "S8": Rule("headers without value", "9110 5.5"),
    "S9": Rule("`Expect` that one side may overlook", "9110 10.1.1"),
    "S10": Rule("chunk lines that end in LF, CR or something else", "9112 7.1"),
    "S11": Rule("trailers that frame or vouch", "9110 6.5.1"),
    "S12": Rule("bytes between the end of a body and the next request", "9112 9.3"),
    "S13": Rule("`Host` with a scheme, as Deepgram's Go SDK may send it", "9110 7.2"),
    "S14": Rule("white space around a value; leading zeros", "9110 5.5"),
    "S15": Rule("a good request (both servers must pass it)", ""),
}


def _post(*lines: bytes, first: bytes = b"POST /v1/listen HTTP/1.1", body: bytes = b"audio") -> bytes:
    return raw.post(*lines, first=first) + body


def _get(*lines: bytes, target: bytes = b"/v1/models") -> bytes:
    return _post(*lines, first=b"GET " + target + b" HTTP/1.1", body=b"")


def _bare(*lines: bytes, first: bytes = b"GET /v1/models HTTP/1.1") -> bytes:
    """A head with a good key and nothing else that these lines don't say."""
    return b"\r\n".join([first, *lines, b"Authorization: Token KEY", b"", b""])


def _chunks(body: bytes, *lines: bytes) -> bytes:
    return _post(b"Transfer-Encoding: chunked", *lines, body=body)


_LAST: Final = b"0\r\n\r\n"
_GOOD: Final = b"5\r\naudio\r\n" + _LAST
_FOUR: Final = b"Content-Length: 4"

CATALOGUE: Final[dict[str, bytes]] = {
    "F8": _post(b"Transfer-Encoding: ChUnKeD", body=_GOOD),
    **{
        f"F16 {size!r}": _chunks(size + b"\r\naudio\r\n" + _LAST)
        for size in (
            b"0x5", b"+5", b"-5", b" 5", b"5 ", b"5\t", b"0_5", b"", b"g", b"5g", b'"5"', b"5,5", b"\xb2",
            b"00000000000000005", b"10000000000000005", b"100000000000000005", b"8000000000000005", b"ffffffffffffffff",
        )
    },
    "F16 16 digits": _chunks(b"0000000000000005\r\naudio\r\n" + _LAST),
    "F17 longer": _chunks(b"5\r\naudioX\r\n" + _LAST),
    "F17 shorter": _chunks(b"6\r\naudio\r\n" + _LAST),
    "F17 no end": _chunks(b"5\r\naudio" + _LAST),
    "F17 LF for the end": _chunks(b"5\r\naudio\n" + _LAST),
    "F17 CR CR LF": _chunks(b"5\r\naudio\r\r\n" + _LAST),
    "F18 short": _chunks(b"5;a=b\r\naudio\r\n" + _LAST),
    "F18 quoted": _chunks(b'5;a="b c"\r\naudio\r\n' + _LAST),
    "F18 space before": _chunks(b"5 ;a=b\r\naudio\r\n" + _LAST),
    "F18 of 10 KB": _chunks(b"5;" + b"a" * 10_240 + b"\r\naudio\r\n" + _LAST),
    "F18 of 70 KB": _chunks(b"5;" + b"a" * 71_680 + b"\r\naudio\r\n" + _LAST),
    "F18 with LF": _chunks(b"5;a\nb\r\naudio\r\n" + _LAST),
    "F18 with CR": _chunks(b"5;a\rb\r\naudio\r\n" + _LAST),
    "F18 with NUL": _chunks(b"5;a\0b\r\naudio\r\n" + _LAST),
    "F18 with CRLF in quotes": _chunks(b'5;a="\r\nb"\r\naudio\r\n' + _LAST),
    "F19 plain": _chunks(b"5\r\naudio\r\n0\r\nX-Sum: 1\r\n\r\n"),
    "F19 of 10 KB": _chunks(b"5\r\naudio\r\n0\r\nX: " + b"a" * 10_240 + b"\r\n\r\n"),
    "F19 of 70 KB": _chunks(b"5\r\naudio\r\n0\r\nX: " + b"a" * 71_680 + b"\r\n\r\n"),
    "F19 no colon": _chunks(b"5\r\naudio\r\n0\r\nX-Sum\r\n\r\n"),
    "F19 space before the colon": _chunks(b"5\r\naudio\r\n0\r\nX-Sum : 1\r\n\r\n"),
    "F19 folded": _chunks(b"5\r\naudio\r\n0\r\nX-Sum: 1\r\n 2\r\n\r\n"),
    "F19 LF": _chunks(b"5\r\naudio\r\n0\r\nX-Sum: 1\n\r\n"),
    "F19 NUL": _chunks(b"5\r\naudio\r\n0\r\nX-Sum: \0\r\n\r\n"),
    "F20": _post(b"Content-Length: 0", body=b""),
    "F23 GET, a length": _get(b"Content-Length: 5") + b"audio",
    "F23 GET, chunked": _get(b"Transfer-Encoding: chunked") + _GOOD,
    "F23 HEAD, a length": _post(b"Content-Length: 5", first=b"HEAD /v1/models HTTP/1.1"),
    "F25 one empty line": b"\r\n" + _get(),
    "F31": _post(b"Content-Length: 5", b"Expect: 100-continue"),
    "F31 in another case": _post(b"Content-Length: 5", b"Expect: 100-Continue"),
    "H5": _get(target=b"/v1/models?" + b"&".join(b"keyterm=term%%20%03d" % n + b"x" * 280 for n in range(100))),
    "H6b": _get(target=b"/v1/models?a=%00&b=%0d%0aX:%20y&c=%&d=%zz&e=%C3%A9&e=%c3%28&f=a+b%2Bc&&=&g"),
    "H8 ours": _get(b"Connection: X-Forwarded-For, Authorization, X-Request-Id"),
    "H9": _get(b"X-Forwarded-For: 10.0.0.1", b"X-Forwarded-Host: evil.example", b"X-Real-IP: 10.0.0.1"),
    "H12 h2c": _get(
        b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings", b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"
    ),
    "H12 TLS": _get(b"Upgrade: TLS/1.0", b"Connection: Upgrade"),
    "H13": _get(b"Cookie: a=b", b"TE: trailers", b"Keep-Alive: timeout=5", b"Proxy-Connection: keep-alive"),
}  # fmt: skip

RESEARCH: Final[dict[str, bytes]] = {
    **{
        f"S1 {name}": _post(_FOUR, *lines, body=b"1\r\nZ\r\n" + _LAST)
        for name, lines in {
            "folded": [b"Transfer-Encoding:\r\n chunked"],
            "folded by tab": [b"Transfer-Encoding: \r\n\tchunked"],
            "folded into another": [b"X: y\r\n Transfer-Encoding: chunked"],
            "xchunked": [b"Transfer-Encoding: xchunked"],
            "VT": [b"Transfer-Encoding: \x0bchunked"],
            "FF": [b"Transfer-Encoding:\x0cchunked"],
            "0xff": [b"Transfer-Encoding: \xffchunked"],
            "NUL": [b"Transfer-Encoding: chunked\0x"],
            "space": [b"Transfer-Encoding : chunked"],
            "LF colon": [b"Transfer-Encoding\n: chunked"],
            "leading space": [b" Transfer-Encoding: chunked"],
            "semicolon": [b"Transfer-Encoding;: chunked"],
            "behind LF": [b"X: y\nTransfer-Encoding: chunked"],
            "behind CR": [b"X: y\rTransfer-Encoding: chunked"],
            "two, one odd": [b"Transfer-Encoding: chunked", b"Transfer-Encoding: x"],
            "two, the other odd": [b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked"],
            "a list with an empty item": [b"Transfer-Encoding: , chunked"],
            "cow": [b"Transfer-Encoding: chunked, cow"],
            "quoted": [b"Transfer-Encoding: 'chunked'"],
            "named away": [b"Transfer-Encoding: chunked", b"Connection: Transfer-Encoding"],
            "TE before": [b"TE: chunked"],
            "long s": [b"Tran\xc5\xbffer-Encoding: chunked"],
        }.items()
    },
    **{
        f"S2 {name}": first + b"audio"
        for name, first in {
            "a list": _post(b"Content-Length: 5, 5", body=b""),
            "a list that differs": _post(b"Content-Length: 5, 0", body=b""),
            "VT in the name": _post(b"Content-Length\x0b: 5", body=b""),
            "VT behind": _post(b"Content-Length: 5\x0b", body=b""),
            "FF before": _post(b"Content-Length:\x0c5", body=b""),
            "NBSP before the name": _post(b"\xa0Content-Length: 5", body=b""),
            "semicolon": _post(b"Content-Length: 5;", body=b""),
            "hidden twin": _post(b"Content-Length: 5", b"Content-Length : 0", body=b""),
            "folded": _post(b"Content-Length:\r\n 5", body=b""),
            "folded digits": _post(b"Content-Length: 0\r\n 5", body=b""),
            "behind LF": _post(b"X: y\nContent-Length: 5", body=b""),
            "exponent": _post(b"Content-Length: 5e0", body=b""),
            "NUL": _post(b"Content-Length: 5\x00", body=b""),
            "minus nought": _post(b"Content-Length: -0", body=b""),
            "named away": _post(b"Content-Length: 5", b"Connection: Content-Length", body=b""),
        }.items()
    },
    **{
        f"S3 {method.decode()}": _post(
            b"Transfer-Encoding: chunked", first=method + b" /v1/models HTTP/1.1", body=_GOOD
        )
        for method in (b"GET", b"HEAD", b"OPTIONS", b"DELETE")
    },
    "S3 a request in a chunk": _chunks(b"%x\r\n" % (len(SECOND) - 3) + SECOND.replace(b"KEY", b"") + b"\r\n" + _LAST),
    **{
        f"S4 {line!r}": _bare(b"Host: dg", first=line)
        for line in (
            b"GET\t/v1/models\tHTTP/1.1",
            b"GET\x0b/v1/models HTTP/1.1",
            b"GET /v1/models\x0cHTTP/1.1",
            b"GET /v1/models\xa0HTTP/1.1",
            b"GET /v1/models HTTP/1.1 HTTP/1.1",
            b"GET /v1/models x HTTP/1.1",
            b"GET /v1/models HTTP/ 1.1",
            b"GET /v1/models HTTP/1.1.1",
            b"GET /v1/models HTTP/01.1",
            b"GET /v1/models HTTP/1.10",
            b"GET /v1/models HTTP/1.",
            b"GET /v1/models HTTP/11",
            b"GET /v1/models HTTPS/1.1",
            b"GET /v1/models\r\tHTTP/1.1",
            b"GET /v1/models?a\rb HTTP/1.1",
            b"G@T /v1/models HTTP/1.1",
            b"GET: /v1/models HTTP/1.1",
            b"Get /v1/models HTTP/1.1",
            b"GET v1/models HTTP/1.1",
            b"GET ?/v1/models HTTP/1.1",
            b'GET /v1/models?"<>`{}|\\^ HTTP/1.1',
        )
    },
    "S4 HTTP/0.9": b"GET /v1/models\r\n",
    "S4 HTTP/0.9, LF": b"GET /v1/models\n",
    "S5 chunked, a length": _post(
        _FOUR, b"Transfer-Encoding: chunked", first=b"POST /v1/listen HTTP/1.0", body=b"1\r\nZ\r\n" + _LAST
    ),
    "S5 chunked, kept alive": _post(
        b"Transfer-Encoding: chunked", b"Connection: keep-alive", first=b"POST /v1/listen HTTP/1.0", body=_GOOD
    ),
    "S5 without Host": _bare(first=b"GET /v1/models HTTP/1.0"),
    "S5 kept alive": _bare(b"Host: dg", b"Connection: keep-alive", first=b"GET /v1/models HTTP/1.0"),
    "S5 Expect": _post(b"Content-Length: 5", b"Expect: 100-continue", first=b"POST /v1/listen HTTP/1.0"),
    "S5 Upgrade": _bare(*raw.WS, b"Host: dg", first=b"GET /v1/listen HTTP/1.0"),
    "S5 a length": _post(b"Content-Length: 5", first=b"POST /v1/listen HTTP/1.0"),
    **{
        f"S6 {name}": _bare(*lines, first=b"GET " + target + b" HTTP/1.1")
        for name, target, lines in (
            ("the same twice", b"/v1/models", [b"Host: dg", b"Host: dg"]),
            ("two", b"/v1/models", [b"Host: dg", b"Host: evil.example"]),
            ("masked by a space", b"/v1/models", [b"Host: dg", b" Host: evil.example"]),
            ("masked, alone", b"/v1/models", [b"X: y", b" Host: dg"]),
            ("space before the colon", b"/v1/models", [b"Host : dg"]),
            ("one more, space before the colon", b"/v1/models", [b"Host: dg", b"Host : evil.example"]),
            ("tab before the colon", b"/v1/models", [b"Host: dg", b"Host\t: evil.example"]),
            ("at odds with the target", b"http://evil.example/v1/models", [b"Host: dg"]),
            ("target with userinfo", b"http://a@evil.example/v1/models", [b"Host: dg"]),
            ("target without host", b"http:///v1/models", [b"Host: dg"]),
            ("another scheme", b"ftp://dg/v1/models", [b"Host: dg"]),
            ("fragment", b"/v1/models", [b"Host: dg#x"]),
            ("two ports", b"/v1/models", [b"Host: dg:80:80"]),
            ("a port of letters", b"/v1/models", [b"Host: dg:x"]),
            ("a port of ten digits", b"/v1/models", [b"Host: dg:9999999999"]),
            ("a space inside", b"/v1/models", [b"Host: dg evil.example"]),
            ("a backslash", b"/v1/models", [b"Host: dg\\evil.example"]),
            ("non-ASCII", b"/v1/models", [b"Host: d\xc3\xa9"]),
            ("half a literal", b"/v1/models", [b"Host: [::1"]),
            ("an escape", b"/v1/models", [b"Host: dg%2f"]),
            ("a quote", b"/v1/models", [b"Host: d'g"]),
            ("a semicolon", b"/v1/models", [b"Host: dg;x"]),
            ("an underscore", b"/v1/models", [b"Host: d_g"]),
            ("a trailing dot", b"/v1/models", [b"Host: dg."]),
            ("dots alone", b"/v1/models", [b"Host: .."]),
            ("a port without digits", b"/v1/models", [b"Host: dg:"]),
            ("port 0", b"/v1/models", [b"Host: dg:0"]),
            ("port 99999", b"/v1/models", [b"Host: dg:99999"]),
        )
    },
    **{
        f"S7 {line.partition(b':')[0].decode()}": _post(b"Content-Length: 5", line)
        for line in (
            b"Content_Length: 50",
            b"Transfer_Encoding: chunked",
            b"X_Forwarded_For: 10.0.0.1",
            b"X_Real_IP: 10.0.0.1",
            b"X_Request_Id: a",
            b"X_Api_Key: a",
            b"Proxy_Authorization: Basic dGVzdHM6dGVzdHM=",
            b"Sec_WebSocket_Protocol: a",
        )
    },
    "S8 any": _get(b"X-Empty:"),
    "S8 Transfer-Encoding": _post(b"Transfer-Encoding:", b"Content-Length: 5"),
    "S8 Content-Length": _post(b"Content-Length:"),
    "S8 Connection": _get(b"Connection:"),
    "S8 Upgrade": _get(b"Upgrade:"),
    "S8 Expect": _post(b"Expect:", b"Content-Length: 5"),
    "S9 word before": _post(b"Content-Length: 5", b"Expect: y 100-continue"),
    "S9 list": _post(b"Content-Length: 5", b"Expect: 100-continue, y"),
    "S9 twice": _post(b"Content-Length: 5", b"Expect: 100-continue", b"Expect: 100-continue"),
    "S9 folded": _post(b"Content-Length: 5", b"Expect:\r\n 100-continue"),
    "S9 GET": _get(b"Expect: 100-continue"),
    "S9 GET, a length": _get(b"Expect: 100-continue", b"Content-Length: 5") + b"audio",
    "S10 LF behind the size": _chunks(b"5\naudio\r\n" + _LAST),
    "S10 CR behind the size": _chunks(b"5\raudio\r\n" + _LAST),
    "S10 CR X behind the size": _chunks(b"5\rXaudio\r\n" + _LAST),
    "S10 LF behind an extension": _chunks(b"5;\naudio\r\n" + _LAST),
    "S10 CR behind the data": _chunks(b"5\r\naudio\r" + _LAST),
    "S10 XX behind the data": _chunks(b"5\r\naudioXX" + _LAST),
    "S10 LF LF behind the data": _chunks(b"5\r\naudio\n\n" + _LAST),
    "S10 LF behind 0": _chunks(b"5\r\naudio\r\n0\n\r\n"),
    "S10 LF for the last line": _chunks(b"5\r\naudio\r\n0\r\n\n"),
    "S10 XX for the last line": _chunks(b"5\r\naudio\r\n0\r\nXX"),
    "S10 CR CR LF for the last line": _chunks(b"5\r\naudio\r\n0\r\n\r\r\n"),
    "S10 00": _chunks(b"5\r\naudio\r\n000\r\n\r\n"),
    "S10 empty line between": _chunks(b"5\r\naudio\r\n\r\n" + _LAST),
    "S10 0x0": _chunks(b"5\r\naudio\r\n0x0\r\n\r\n"),
    "S11 Content-Length": _chunks(b"5\r\naudio\r\n0\r\nContent-Length: 50\r\n\r\n"),
    "S11 Transfer-Encoding": _chunks(b"5\r\naudio\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "S11 Host": _chunks(b"5\r\naudio\r\n0\r\nHost: evil.example\r\n\r\n"),
    "S11 Authorization": _chunks(b"5\r\naudio\r\n0\r\nAuthorization: Token x\r\n\r\n"),
    "S11 X-Forwarded-For": _chunks(b"5\r\naudio\r\n0\r\nX-Forwarded-For: 10.0.0.1\r\n\r\n"),
    "S11 announced": _chunks(b"5\r\naudio\r\n0\r\nX-Sum: 1\r\n\r\n", b"Trailer: X-Sum"),
    "S12 one byte": _post(b"Content-Length: 5", body=b"audioX"),
    "S12 CRLF": _post(b"Content-Length: 5", body=b"audio\r\n"),
    "S12 CRLF CRLF": _post(b"Content-Length: 5", body=b"audio\r\n\r\n"),
    "S12 LF": _post(b"Content-Length: 5", body=b"audio\n"),
    "S12 NUL": _post(b"Content-Length: 5", body=b"audio\0"),
    "S12 a space": _post(b"Content-Length: 5", body=b"audio "),
    **{
        f"S13 {host.decode()}": _bare(b"Host: " + host)
        for host in (b"https://dg", b"wss://dg", b"http://dg:443", b"https://dg/", b"https://a@dg", b"ftp://dg")
    },
    "S14 leading zeros": _post(b"Content-Length: 005"),
    "S14 space behind a length": _post(b"Content-Length: 5 "),
    "S14 tabs around a length": _post(b"Content-Length:\t5\t"),
    "S14 no space": _post(b"Content-Length:5"),
    "S14 space behind chunked": _post(b"Transfer-Encoding: chunked ", body=_GOOD),
    "S14 tabs around chunked": _post(b"Transfer-Encoding:\tchunked\t", body=_GOOD),
    "S15 GET": _get(),
    "S15 a length": _post(b"Content-Length: 5"),
    "S15 chunked": _chunks(_GOOD),
    "S15 WebSocket": _bare(b"Host: dg", *raw.WS, first=b"GET /v1/listen HTTP/1.1"),
}


def rows() -> Iterator[Row]:
    """All of them. What stands behind a row's own bytes is in it."""
    for name, (sent, _) in {**f.CLOSED, **h.CLOSED, **w.CLOSED, **h.OPEN}.items():
        yield Row(name, sent + SECOND)
    for name, sent in {**CATALOGUE, **RESEARCH}.items():
        yield Row(name, sent + SECOND)
