"""Every setting, once: its plain type, its default, and in its Meta its kind, a line on it, whether it is enforced."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, get_type_hints

import msgspec

from dgproxy.config import kinds
from dgproxy.config.kinds import CLASSES, Kind
from dgproxy.config.values import Certificate, Listen, Quota, Url
from dgproxy.units import Allowance, MinimumRate, Rate


def _now(kind: Kind, description: str, *, example: str = "", more: str = "") -> msgspec.Meta:
    """The facts of a setting that this release enforces."""
    extra = {"kind": kind, "enforced": True, "unsafe": False, "example": example, "more": more}
    return msgspec.Meta(description=description, extra=extra)


def _later(kind: Kind, description: str, *, unsafe: bool = False, example: str = "", more: str = "") -> msgspec.Meta:
    """The facts of one that is not enforced yet. `unsafe`: to ignore it where it is set would be a hole."""
    extra = {"kind": kind, "enforced": False, "unsafe": unsafe, "example": example, "more": more}
    return msgspec.Meta(description=description, extra=extra)


class Server(msgspec.Struct, frozen=True):
    """The front door: where clients connect, and how many processes serve them."""

    listen: Annotated[
        tuple[Listen, ...],
        _now(
            kinds.LISTENERS,
            "where clients connect: host:port, [::]:port; unix:/path and systemd:NAME are not built yet",
            example='["192.0.2.10:443", "[2001:db8::10]:443"]',
            more="With several addresses, all of them are served.",
        ),
    ] = (Listen("tcp", "0.0.0.0", 8443),)
    workers: Annotated[
        int | None,
        _now(
            kinds.or_auto(kinds.integer(1, 512)),
            '"auto": one per CPU; or a number',
            example="4",
            more="Workers carry the traffic, each a process of its own.",
        ),
    ] = None
    tls: Annotated[
        bool,
        _now(
            kinds.BOOLEAN,
            "false: a plain listener, for use behind another terminator",
            example="false",
            more="A plain listener sends keys in the clear: let nothing but the terminator reach it.",
        ),
    ] = True
    trusted_proxies: Annotated[
        tuple[str, ...],
        _later(
            kinds.NETWORKS,
            "networks whose X-Forwarded-For and PROXY protocol are believed",
            unsafe=True,
            example='["10.0.0.0/8", "fd00::/8"]',
        ),
    ] = ()
    proxy_protocol: Annotated[
        bool,
        _later(
            kinds.BOOLEAN, "true: trusted proxies send a PROXY protocol header, v1 or v2", unsafe=True, example="true"
        ),
    ] = False


class Tls(msgspec.Struct, frozen=True):
    """What the front door shows to clients. Paths are absolute once loaded."""

    certificate: Annotated[
        str,
        _now(
            kinds.path(required=False),
            "the chain that clients get, leaf first, PEM",
            example='"/etc/dgproxy/fullchain.pem"',
            more="`dgproxy check` tells what is wrong with it, and two weeks ahead that it expires.",
        ),
    ] = "certs/server.pem"
    private_key: Annotated[
        str,
        _now(
            kinds.path(required=False, schemes=("credential",)),
            'its key, PEM, mode 0600; or "credential:NAME" of systemd',
            example='"credential:tls-key"',
            more="Not encrypted: nobody is there to type a passphrase.",
        ),
    ] = "certs/server-key.pem"
    min_version: Annotated[
        Literal["1.2", "1.3"], _now(kinds.choice("1.2", "1.3"), "the oldest TLS that is spoken", example='"1.3"')
    ] = "1.2"
    client_ca: Annotated[
        str,
        _later(
            kinds.path(required=False),
            "set: clients must present a certificate of this CA",
            unsafe=True,
            example='"client-ca.pem"',
        ),
    ] = ""
    ktls: Annotated[
        Literal["off", "auto", "require"],
        _later(
            kinds.choice("off", "auto", "require"),
            "encryption in the kernel: off, auto or require",
            example='"auto"',
            more='`"require"` is refused by this release.',
        ),
    ] = "off"
    extra: Annotated[
        tuple[Certificate, ...],
        _later(
            kinds.CERTIFICATES,
            "further {certificate, private_key}, chosen by SNI",
            example='[{ certificate = "b.pem", private_key = "b-key.pem" }]',
        ),
    ] = ()


class Upstream(msgspec.Struct, frozen=True):
    """The Deepgram containers that requests go on to. Times in seconds."""

    urls: Annotated[
        tuple[Url, ...],
        _now(
            kinds.URLS,
            "Deepgram containers; the least busy is taken; https:// allowed",
            example='["http://10.0.0.5:8080", "http://10.0.0.6:8080"]',
            more="Scheme, host and port alone: paths pass unchanged.",
        ),
    ] = (Url("http", "127.0.0.1", 8080),)
    pools: Annotated[
        dict[str, tuple[Url, ...]],
        _later(
            kinds.by_class(kinds.URLS, '{ batch = ["http://127.0.0.1:8080"] }'),
            "a class's own urls, in place of these",
            example='{ batch = ["http://10.0.0.7:8080"] }',
        ),
    ] = msgspec.field(default_factory=dict)
    connect_timeout: Annotated[
        float,
        _now(
            kinds.TIMEOUT,
            "until a connection stands",
            example='"2s"',
            more="After it the client gets a 502 or 504, unless another container answers.",
        ),
    ] = 5.0
    response_timeout: Annotated[
        float,
        _now(
            kinds.TIMEOUT,
            "until a response begins; longer than Deepgram's own 10 to 20 minutes of processing",
            example='"1h"',
            more="After it the client gets a 504.",
        ),
    ] = 1500.0
    health_interval: Annotated[
        float, _later(kinds.TIMEOUT, "between two polls of an upstream's status", example='"10s"')
    ] = 5.0


class Keys(msgspec.Struct, frozen=True):
    """What ingress keys are stored with."""

    pepper_file: Annotated[
        str,
        _now(
            kinds.path(required=True, schemes=("env", "credential")),
            '32 random bytes, mode 0600; or "env:NAME" (64 hex digits), "credential:NAME"; lost pepper = lost keys',
            example='"env:DGPROXY_PEPPER"',
            more="Keys are stored only as digests made with it: keep a copy, in another place than `keys.db`.",
        ),
    ] = "state/pepper"


class Auth(msgspec.Struct, frozen=True):
    """How often a client may try without a valid key."""

    failures_per_address: Annotated[
        Rate, _later(kinds.RATE, "only 401s count; a valid key is never refused for its address", example='"30/m"')
    ] = Rate(60.0, 60.0)


class Limits(msgspec.Struct, frozen=True):
    """Bounds of the whole proxy, whoever its clients are."""

    connections: Annotated[
        int,
        _now(
            kinds.integer(1, 10_000_000),
            "open client connections, over all workers; further ones wait",
            example="50000",
            more="Each takes two file descriptors; `dgproxy check` warns if their limit is too low.",
        ),
    ] = 20_000
    connections_per_address: Annotated[
        int,
        _now(
            kinds.integer(0, 10_000_000),
            "of them from one address (IPv6: from one /64); 0: no limit",
            example="100",
            more="Further ones are reset.",
        ),
    ] = 0
    buffered: Annotated[
        int,
        _now(
            kinds.at_least(kinds.SIZE, 1 << 20, '"1MiB"'),
            "bytes that wait for slow peers, over all workers; then the largest holders are ended",
            example='"1GiB"',
        ),
    ] = 256 << 20


class State(msgspec.Struct, frozen=True):
    """Where that is kept which outlives a restart."""

    directory: Annotated[
        str,
        _now(
            kinds.path(required=True),
            "keys.db and what else outlives a restart; mode 0700",
            example='"/var/lib/dgproxy"',
            more="It belongs to the user that dgproxy runs as.",
        ),
    ] = "state"


class Admin(msgspec.Struct, frozen=True):
    """The operator's side: metrics, and the socket that commands use."""

    listen: Annotated[
        Listen,
        _later(
            kinds.LISTEN, "/metrics, /healthz and /readyz; loopback unless told otherwise", example='"127.0.0.1:9465"'
        ),
    ] = Listen("tcp", "127.0.0.1", 9464)
    socket: Annotated[
        str,
        _now(
            kinds.path(required=True),
            "where commands reach the running proxy; mode 0600",
            example='"/run/dgproxy/admin.sock"',
            more="At most 107 bytes long.",
        ),
    ] = "state/admin.sock"


class Timeouts(msgspec.Struct, frozen=True):
    """Bounds on progress, never a total on a body or a stream. In seconds."""

    tls_handshake: Annotated[
        float,
        _now(
            kinds.TIMEOUT,
            "from accept to the end of the handshake",
            example='"5s"',
            more="After it the connection is closed.",
        ),
    ] = 10.0
    request_head: Annotated[
        float,
        _now(
            kinds.TIMEOUT,
            "from a head's first byte to its last",
            example='"5s"',
            more="After it the client gets a 408.",
        ),
    ] = 10.0
    upgrade: Annotated[
        float,
        _now(
            kinds.TIMEOUT,
            "until an upstream answers a WebSocket handshake",
            example='"20s"',
            more="After it the client gets a 504.",
        ),
    ] = 10.0
    idle_keepalive: Annotated[
        float,
        _now(
            kinds.TIMEOUT,
            "between two requests of a connection",
            example='"60s"',
            more="After it the connection is closed.",
        ),
    ] = 75.0
    stream_idle: Annotated[
        float,
        _now(
            kinds.TIMEOUT,
            "without a byte either way on a stream, or in the middle of a body",
            example='"5m"',
            more="A stream is then closed with 1001, an upload gets a 408, a reader that takes nothing is reset.",
        ),
    ] = 60.0
    minimum_upload_rate: Annotated[
        MinimumRate,
        _now(
            kinds.MINIMUM_RATE,
            'a body that comes slower is given up; "0/s over 30s": no minimum',
            example='"1KiB/s over 60s"',
            more="Only the time in which the upload was waited for counts.",
        ),
    ] = MinimumRate(4096, 30.0)


class Drain(msgspec.Struct, frozen=True):
    """How long what is in flight may go on when the proxy ends. In seconds; None: as long as it likes."""

    stop: Annotated[
        float,
        _now(
            kinds.DURATION,
            "how long streams may go on after SIGTERM",
            example='"5m"',
            more="After it, or at a second SIGTERM, they are closed with 1012.",
        ),
    ] = 1800.0
    reload: Annotated[
        float | None, _later(kinds.NEVER, 'after a reload; "never": streams survive it', example='"1h"')
    ] = None


class Plan(msgspec.Struct, frozen=True):
    """What a key may do. Every key has a plan, and may override any field (Overrides)."""

    rate: Annotated[
        Rate,
        _now(
            kinds.RATE,
            "requests and streams begun, over all workers",
            example='"100/s"',
            more="What is more is answered with 429 and when to come back.",
        ),
    ] = Rate(20.0, 1.0)
    burst: Annotated[
        int,
        _now(
            kinds.integer(1, 1_000_000),
            "requests and streams that may begin at once",
            example="100",
            more="They are then made up for at `rate`.",
        ),
    ] = 40
    streams: Annotated[
        int,
        _now(
            kinds.STREAMS,
            "in flight at once over all workers: open WebSockets and HTTP requests alike",
            example="200",
            more="One more is answered with 429.",
        ),
    ] = 50
    streams_by_class: Annotated[
        dict[str, int],
        _now(
            kinds.by_class(kinds.STREAMS, "{ flux = 10 }"),
            "of these, of some classes: { flux = 10 }",
            example="{ flux = 10, agent = 5 }",
            more="A class that is not named is bounded by `streams` alone.",
        ),
    ] = msgspec.field(default_factory=dict)
    quota: Annotated[
        Quota,
        _later(
            Kind("table", kinds.read_quota, kinds.write_quota),
            "audio, requests, bytes, characters; each optional",
            example='{ audio = "500h/month", characters = "2000000/week" }',
            more="`audio` is a duration, `bytes` a size, both ways; `{}`: no quota.",
        ),
    ] = Quota(audio=Allowance(360_000.0, "month"), requests=Allowance(100_000.0, "day"))
    classes: Annotated[
        tuple[str, ...],
        _now(
            kinds.listed(kinds.CLASS, empty=False, plural="classes"),
            "kinds of requests: " + ", ".join(CLASSES),
            example='["batch", "stream"]',
            more="Others are answered with 403.",
        ),
    ] = ("batch", "stream", "flux", "speak", "read", "models")
    models: Annotated[
        tuple[str, ...],
        _now(
            kinds.MODELS,
            'models that may be asked for; "*": every model',
            example='["nova-3", "flux-general-en"]',
            more='A name may hold a `*`, as `nova-3*`; a request that names no model passes only with `"*"`.',
        ),
    ] = ("*",)
    allow_callback: Annotated[
        tuple[str, ...],
        _now(
            kinds.HOSTS,
            "hosts that a callback may name; empty: refused",
            example='["hooks.example.com"]',
            more="A name is matched whole, and the callback must be https, without a port.",
        ),
    ] = ()
    allow_url: Annotated[
        tuple[str, ...],
        _later(kinds.HOSTS, "hosts that audio may be fetched from; empty: refused", example='["media.example.com"]'),
    ] = ()
    max_body: Annotated[
        int,
        _now(
            kinds.at_least(kinds.SIZE, 1, '"1B"'),
            "the largest body of a request",
            example='"500MiB"',
            more="A larger one is answered with 413.",
        ),
    ] = 2 << 30
    stream_max_life: Annotated[
        float, _later(kinds.DURATION, "the longest that a stream may last; 0s: no limit", example='"2h"')
    ] = 0.0


class Cors(msgspec.Struct, frozen=True):
    """Pages in browsers."""

    origins: Annotated[
        tuple[str, ...],
        _now(
            kinds.ORIGINS,
            'pages that may call: "https://app.example.com", or "*"; empty: none may read an answer',
            example='["https://app.example.com"]',
        ),
    ] = ()


class Log(msgspec.Struct, frozen=True):
    """Log lines, which go to stderr."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"],
        _now(kinds.LEVELS, "what is logged, from this level on: debug, info, warning or error", example='"debug"'),
    ] = "info"
    format: Annotated[
        Literal["json", "console"],
        _now(kinds.choice("json", "console"), "json: an object a line; console: for people", example='"console"'),
    ] = "json"


class Config(msgspec.Struct, frozen=True):
    """A whole configuration. `path` is its file, absolute, as are all paths in it once loaded."""

    path: str = ""
    server: Server = Server()
    tls: Tls = Tls()
    upstream: Upstream = Upstream()
    keys: Keys = Keys()
    auth: Auth = Auth()
    limits: Limits = Limits()
    state: State = State()
    admin: Admin = Admin()
    timeouts: Timeouts = Timeouts()
    drain: Drain = Drain()
    plans: dict[str, Plan] = msgspec.field(default_factory=lambda: {"default": Plan()})
    cors: Cors = Cors()
    log: Log = Log()


@dataclass(frozen=True, slots=True)
class Setting:
    """A row of the table of settings, for whoever reads, checks, writes or documents them."""

    section: str  # "server"; "plans.*" for what stands in each plan
    name: str
    kind: Kind
    default: Any
    description: str  # one line, also of the file that `init` writes
    enforced: bool
    unsafe: bool
    example: str  # TOML of another value than the default; "" if the kind says it all
    more: str  # what docs/configure.md says besides, in whole sentences

    @property
    def key(self) -> str:
        """Its dotted name."""
        return f"{self.section}.{self.name}"


def _settings(section: str, default: msgspec.Struct) -> tuple[Setting, ...]:
    hints = get_type_hints(type(default), include_extras=True)
    rows = []
    for name in default.__struct_fields__:
        (meta,) = hints[name].__metadata__
        rows.append(Setting(section, name, default=getattr(default, name), description=meta.description, **meta.extra))
    return tuple(rows)


DEFAULTS: Final = Config()
PLAN: Final = _settings("plans.*", Plan())
SECTIONS: Final[dict[str, tuple[Setting, ...]]] = {
    name: PLAN if name == "plans" else _settings(name, getattr(DEFAULTS, name))
    for name in Config.__struct_fields__
    if name != "path"
}
SETTINGS: Final[tuple[Setting, ...]] = tuple(setting for section in SECTIONS.values() for setting in section)


def unknown(name: str, section: str, siblings: Sequence[str], what: str = "key") -> str:
    """What to say of a key that does not exist there: the nearest one, or where one of its name belongs."""
    return kinds.unknown(name, section, siblings, places(name), what)


def places(name: str) -> list[str]:
    """The keys of all settings of this name."""
    return [setting.key.replace("*", "default") for setting in SETTINGS if setting.name == name]
