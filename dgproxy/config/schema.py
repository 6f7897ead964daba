"""Every setting, once: its plain type, its default, and in its Meta its kind, a line on it, whether it is enforced."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, get_type_hints

import msgspec

from dgproxy.config import kinds
from dgproxy.config.kinds import CLASSES, Kind
from dgproxy.config.values import Certificate, Listen, Quota, Url
from dgproxy.units import Allowance, MinimumRate, Rate


def _now(kind: Kind, description: str) -> msgspec.Meta:
    """The facts of a setting that this release enforces."""
    return msgspec.Meta(description=description, extra={"kind": kind, "enforced": True, "unsafe": False})


def _later(kind: Kind, description: str, *, unsafe: bool = False) -> msgspec.Meta:
    """The facts of one that is not enforced yet. `unsafe`: to ignore it where it is set would be a hole."""
    return msgspec.Meta(description=description, extra={"kind": kind, "enforced": False, "unsafe": unsafe})


class Server(msgspec.Struct, frozen=True):
    """The front door."""

    listen: Annotated[
        tuple[Listen, ...],
        _now(
            kinds.LISTENERS,
            "where clients connect: host:port, [::]:port; unix:/path and systemd:NAME are not built yet",
        ),
    ] = (Listen("tcp", "0.0.0.0", 8443),)
    workers: Annotated[int | None, _now(kinds.or_auto(kinds.integer(1, 512)), '"auto": one per CPU; or a number')] = (
        None
    )
    tls: Annotated[bool, _now(kinds.BOOLEAN, "false: a plain listener, for use behind another terminator")] = True
    trusted_proxies: Annotated[
        tuple[str, ...],
        _later(kinds.NETWORKS, "networks whose X-Forwarded-For and PROXY protocol are believed", unsafe=True),
    ] = ()
    proxy_protocol: Annotated[
        bool, _later(kinds.BOOLEAN, "true: trusted proxies send a PROXY protocol header, v1 or v2", unsafe=True)
    ] = False


class Tls(msgspec.Struct, frozen=True):
    """What the front door shows. Paths are absolute once loaded."""

    certificate: Annotated[str, _now(kinds.path(required=False), "the chain that clients get, leaf first, PEM")] = (
        "certs/server.pem"
    )
    private_key: Annotated[
        str,
        _now(
            kinds.path(required=False, schemes=("credential",)),
            'its key, PEM, mode 0600; or "credential:NAME" of systemd',
        ),
    ] = "certs/server-key.pem"
    min_version: Annotated[Literal["1.2", "1.3"], _now(kinds.choice("1.2", "1.3"), "the oldest TLS that is spoken")] = (
        "1.2"
    )
    client_ca: Annotated[
        str, _later(kinds.path(required=False), "set: clients must present a certificate of this CA", unsafe=True)
    ] = ""
    ktls: Annotated[
        Literal["off", "auto", "require"],
        _later(kinds.choice("off", "auto", "require"), "encryption in the kernel: off, auto or require"),
    ] = "off"
    extra: Annotated[
        tuple[Certificate, ...], _later(kinds.CERTIFICATES, "further {certificate, private_key}, chosen by SNI")
    ] = ()


class Upstream(msgspec.Struct, frozen=True):
    """The Deepgram containers. Times in seconds."""

    urls: Annotated[
        tuple[Url, ...], _now(kinds.URLS, "Deepgram containers; the least busy is taken; https:// allowed")
    ] = (Url("http", "127.0.0.1", 8080),)
    pools: Annotated[
        dict[str, tuple[Url, ...]],
        _later(
            kinds.by_class(kinds.URLS, '{ batch = ["http://127.0.0.1:8080"] }'), "a class's own urls, in place of these"
        ),
    ] = msgspec.field(default_factory=dict)
    connect_timeout: Annotated[float, _now(kinds.TIMEOUT, "until a connection stands")] = 5.0
    response_timeout: Annotated[
        float, _now(kinds.TIMEOUT, "until a response begins; longer than Deepgram's own 10 to 20 minutes of processing")
    ] = 1500.0
    health_interval: Annotated[float, _later(kinds.TIMEOUT, "between two polls of an upstream's status")] = 5.0


class Keys(msgspec.Struct, frozen=True):
    """What keys are stored with."""

    pepper_file: Annotated[
        str,
        _now(
            kinds.path(required=True, schemes=("env", "credential")),
            '32 random bytes, mode 0600; or "env:NAME" (64 hex digits), "credential:NAME"; lost pepper = lost keys',
        ),
    ] = "state/pepper"


class Auth(msgspec.Struct, frozen=True):
    """Failed attempts."""

    failures_per_address: Annotated[
        Rate, _later(kinds.RATE, "only 401s count; a valid key is never refused for its address")
    ] = Rate(60.0, 60.0)


class Limits(msgspec.Struct, frozen=True):
    """Bounds of the whole process group."""

    connections: Annotated[
        int, _now(kinds.integer(1, 10_000_000), "open client connections, over all workers; further ones wait")
    ] = 20_000
    connections_per_address: Annotated[
        int, _now(kinds.integer(0, 10_000_000), "of them from one address (IPv6: from one /64); 0: no limit")
    ] = 0
    buffered: Annotated[
        int,
        _now(
            kinds.at_least(kinds.SIZE, 1 << 20, '"1MiB"'),
            "bytes that wait for slow peers, over all workers; then the largest holders are ended",
        ),
    ] = 256 << 20


class State(msgspec.Struct, frozen=True):
    """What outlives a restart."""

    directory: Annotated[str, _now(kinds.path(required=True), "keys.db and usage.db; mode 0700")] = "state"


class Admin(msgspec.Struct, frozen=True):
    """The operator's side."""

    listen: Annotated[
        Listen, _later(kinds.LISTEN, "/metrics, /healthz and /readyz; loopback unless told otherwise")
    ] = Listen("tcp", "127.0.0.1", 9464)
    socket: Annotated[str, _now(kinds.path(required=True), "where commands reach the running proxy; mode 0600")] = (
        "state/admin.sock"
    )


class Timeouts(msgspec.Struct, frozen=True):
    """Bounds on progress, never a total on a body or a stream. In seconds."""

    tls_handshake: Annotated[float, _now(kinds.TIMEOUT, "from accept to the end of the handshake")] = 10.0
    request_head: Annotated[float, _now(kinds.TIMEOUT, "from a head's first byte to its last")] = 10.0
    upgrade: Annotated[float, _now(kinds.TIMEOUT, "until an upstream answers a WebSocket handshake")] = 10.0
    idle_keepalive: Annotated[float, _now(kinds.TIMEOUT, "between two requests of a connection")] = 75.0
    stream_idle: Annotated[
        float, _now(kinds.TIMEOUT, "without a byte either way on a stream, or in the middle of a body")
    ] = 60.0
    minimum_upload_rate: Annotated[
        MinimumRate, _now(kinds.MINIMUM_RATE, 'a body that comes slower is given up; "0/s over 30s": no minimum')
    ] = MinimumRate(4096, 30.0)


class Drain(msgspec.Struct, frozen=True):
    """How long streams may go on. In seconds; None: as long as they like."""

    stop: Annotated[float, _now(kinds.DURATION, "how long streams may go on after SIGTERM")] = 1800.0
    reload: Annotated[float | None, _later(kinds.NEVER, 'after a reload; "never": streams survive it')] = None


class Plan(msgspec.Struct, frozen=True):
    """What a key may do. Every key has a plan, and may override any field (Overrides)."""

    rate: Annotated[Rate, _later(kinds.RATE, "requests and streams begun, over all workers")] = Rate(20.0, 1.0)
    burst: Annotated[int, _later(kinds.integer(1, 1_000_000), "requests and streams that may begin at once")] = 40
    streams: Annotated[
        int, _now(kinds.STREAMS, "in flight at once over all workers: open WebSockets and HTTP requests alike")
    ] = 50
    streams_by_class: Annotated[
        dict[str, int], _now(kinds.by_class(kinds.STREAMS, "{ flux = 10 }"), "of these, of some classes: { flux = 10 }")
    ] = msgspec.field(default_factory=dict)
    quota: Annotated[
        Quota,
        _later(Kind("table", kinds.read_quota, kinds.write_quota), "audio, requests, bytes, characters; each optional"),
    ] = Quota(audio=Allowance(360_000.0, "month"), requests=Allowance(100_000.0, "day"))
    classes: Annotated[
        tuple[str, ...],
        _now(kinds.listed(kinds.CLASS, empty=False, plural="classes"), "kinds of requests: " + ", ".join(CLASSES)),
    ] = ("batch", "stream", "flux", "speak", "read", "models")
    models: Annotated[
        tuple[str, ...],
        _now(kinds.MODELS, 'models that may be asked for; "*": every model'),
    ] = ("*",)
    allow_callback: Annotated[tuple[str, ...], _now(kinds.HOSTS, "hosts that a callback may name; empty: refused")] = ()
    allow_url: Annotated[
        tuple[str, ...], _later(kinds.HOSTS, "hosts that audio may be fetched from; empty: refused")
    ] = ()
    max_body: Annotated[int, _now(kinds.at_least(kinds.SIZE, 1, '"1B"'), "the largest body of a request")] = 2 << 30
    stream_max_life: Annotated[float, _later(kinds.DURATION, "the longest that a stream may last; 0s: no limit")] = 0.0


class Cors(msgspec.Struct, frozen=True):
    """Browsers."""

    origins: Annotated[
        tuple[str, ...],
        _now(kinds.ORIGINS, 'pages that may call: "https://app.example.com", or "*"; empty: none may read an answer'),
    ] = ()


class Log(msgspec.Struct, frozen=True):
    """Log lines, on stderr."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"],
        _now(kinds.LEVELS, "what is logged, from this level on: debug, info, warning or error"),
    ] = "info"
    format: Annotated[
        Literal["json", "console"], _now(kinds.choice("json", "console"), "json: an object a line; console: for people")
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
    description: str  # one line
    enforced: bool
    unsafe: bool

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
    elsewhere = [setting.key.replace("*", "default") for setting in SETTINGS if setting.name == name]
    return kinds.unknown(name, section, siblings, elsewhere, what)
