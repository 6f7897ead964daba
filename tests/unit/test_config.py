"""The configuration: what it means, what is wrong with it, what crosses to the workers, and what guards its secrets."""

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from dgproxy import config as schema
from dgproxy.config import (
    CLASSES,
    SETTINGS,
    Config,
    ConfigError,
    Finding,
    Listen,
    Overrides,
    Plan,
    Quota,
    Url,
    effective,
    examine,
    examine_bytes,
    find_config,
    kinds,
    load,
    loading,
    parse_listen,
    parse_overrides,
    parse_url,
    private_key_path,
    read_pepper,
    read_private_key,
    render_default,
)
from dgproxy.units import Allowance, MinimumRate, Rate
from dgproxy.wire.deepgram import Class

DEFAULT = render_default("0.0.0.0:8443", "http://127.0.0.1:8080")
SPEC = """
[server]
listen = ["0.0.0.0:8443"]
workers = "auto"
tls = true
trusted_proxies = []
proxy_protocol = false
[tls]
certificate = "certs/server.pem"
private_key = "certs/server-key.pem"
min_version = "1.2"
client_ca = ""
ktls = "off"
extra = []
[upstream]
urls = ["http://127.0.0.1:8080"]
pools = {}
connect_timeout = "5s"
response_timeout = "25m"
health_interval = "5s"
[keys]
pepper_file = "state/pepper"
[auth]
failures_per_address = "60/m"
[limits]
connections = 20000
connections_per_address = 0
buffered = "256MiB"
[state]
directory = "state"
[admin]
listen = "127.0.0.1:9464"
socket = "state/admin.sock"
[timeouts]
tls_handshake = "10s"
request_head = "10s"
upgrade = "10s"
idle_keepalive = "75s"
stream_idle = "60s"
minimum_upload_rate = "4KiB/s over 30s"
[drain]
stop = "30m"
reload = "never"
[plans.default]
rate = "20/s"
burst = 40
streams = 50
streams_by_class = {}
quota = { audio = "100h/month", requests = "100000/day" }
classes = ["batch", "stream", "flux", "speak", "read", "models"]
models = ["*"]
allow_callback = []
allow_url = []
max_body = "2GiB"
stream_max_life = "0s"
[cors]
origins = []
[log]
level = "info"
format = "json"
"""  # spec part 4, word for word


def examined(text: str | bytes) -> tuple[Config | None, list[Finding]]:
    """What is said of this text as /srv/dg/dgproxy.toml."""
    return examine_bytes(text if isinstance(text, bytes) else text.encode(), Path("/srv/dg/dgproxy.toml"))


def loaded(text: str) -> Config:
    config, findings = examined(text)
    assert config is not None, findings
    return config


def errors(text: str | bytes) -> list[str]:
    """The errors, without the place that stands before each; of a fault of syntax, with its line."""
    config, findings = examined(text)
    found = [finding for finding in findings if finding.severity == "error"]
    assert (config is None) == bool(found)
    told = []
    for finding in found:
        said = str(finding).removeprefix(f"{finding.place}: ")
        assert said.isprintable()
        told.append(said if finding.key or finding.line is None else f"line {finding.line}: {said}")
    return told


def warnings(text: str) -> list[str]:
    """The warnings but for the summary, which is the last."""
    _, findings = examined(text)
    assert not any(finding.severity == "error" for finding in findings), findings
    return [f"{finding.key}: {finding.message}" for finding in findings[:-1]]


def with_setting(key: str, value: str) -> str:
    """A configuration with this one setting, and a default plan."""
    section, _, name = key.rpartition(".")
    plan = "" if section == "plans.default" else "[plans.default]\n"
    return f"{plan}[{section}]\n{name} = {value}\n"


# --- what is written is what is meant -------------------------------------------------------------------------------


def test_every_key_of_the_spec_parses_to_its_default() -> None:
    config = loaded(SPEC)
    expected = loaded("[plans.default]\n")
    assert config == expected
    assert config.plans["default"] == Plan()


def test_init_writes_every_setting_of_the_spec_at_its_default_with_a_comment_each() -> None:
    assert tomllib.loads(DEFAULT) == tomllib.loads(SPEC)
    entries = [line for line in DEFAULT.splitlines() if line and not line.startswith(("#", "["))]
    assert all(re.fullmatch(r"[a-z_]+ = \S.* +# \S.*", line) for line in entries)
    assert len(entries) == len(SETTINGS)
    headers = [line for line in DEFAULT.splitlines() if line.startswith("[")]
    assert all(re.fullmatch(r"\[[a-z.]+\]", line) for line in headers)


def test_init_writes_what_it_was_given() -> None:
    config = loaded(render_default("[::1]:9000", "https://dg.internal"))
    assert config.server.listen == (Listen("tcp", "::1", 9000),)
    assert config.upstream.urls == (Url("https", "dg.internal", 443),)


def test_values_are_plain_numbers_in_seconds_and_bytes() -> None:
    config = loaded(SPEC)
    assert config.timeouts.tls_handshake == 10.0
    assert config.upstream.response_timeout == 1500.0
    assert config.timeouts.minimum_upload_rate == MinimumRate(4096, 30.0)
    assert config.auth.failures_per_address == Rate(60.0, 60.0)
    assert config.plans["default"].quota == Quota(Allowance(360_000.0, "month"), Allowance(100_000.0, "day"))
    assert config.plans["default"].max_body == 2 << 30
    assert config.server.workers is None
    assert config.drain.reload is None


def test_relative_paths_begin_at_the_file_and_absolute_ones_stay() -> None:
    text = '[plans.default]\n[tls]\ncertificate = "/etc/ssl/a.pem"\nprivate_key = "../keys/a.pem"\n'
    config = loaded(text)
    assert config.path == "/srv/dg/dgproxy.toml"
    assert config.tls.certificate == "/etc/ssl/a.pem"
    assert config.tls.private_key == "/srv/keys/a.pem"
    assert config.state.directory == "/srv/dg/state"
    assert config.keys.pepper_file == "/srv/dg/state/pepper"


def test_a_loaded_configuration_knows_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.toml").write_text(SPEC)
    config = load(Path("own.toml"))
    assert config.path == str(tmp_path / "own.toml")
    assert config.admin.socket == str(tmp_path / "state/admin.sock")


FULL = """
[server]
listen = ["[::]:8443", "127.0.0.1:8444"]
workers = 3
[tls]
extra = [{ certificate = "b.pem", private_key = "credential:b" }]
[upstream]
pools = { batch = ["http://10.0.0.1:8080"], stream = ["https://[fd00::1]:8443", "http://dg"] }
[drain]
reload = "1h"
[plans.default]
[plans.big]
streams_by_class = { flux = 10 }
quota = { bytes = "5GiB/week", characters = "7/day" }
"""


@pytest.mark.parametrize("text", [SPEC, FULL])
def test_a_configuration_crosses_to_a_worker_unchanged(text: str) -> None:
    config = loaded(text)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(config), type=Config) == config


def test_a_plan_has_the_defaults_for_what_it_leaves_out() -> None:
    big = loaded(FULL).plans["big"]
    assert big.streams_by_class == {"flux": 10}
    assert big.rate == Plan().rate
    assert big.quota == Quota(bytes=Allowance(5 << 30, "week"), characters=Allowance(7, "day"))


def test_classes_are_those_that_requests_have() -> None:
    assert set(CLASSES) == set(Class)


def test_every_setting_has_a_description_in_one_line() -> None:
    for setting in SETTINGS:
        assert setting.description.isprintable()
        assert setting.description.strip() == setting.description != ""


def test_every_default_is_what_its_text_in_a_file_means() -> None:
    for setting in SETTINGS:
        key = setting.key.replace("*", "default")
        config = loaded(with_setting(key, setting.kind.write(setting.default)))
        assert config == loaded("[plans.default]\n"), key


# --- addresses and URLs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "listen"),
    [
        ("0.0.0.0:8443", Listen("tcp", "0.0.0.0", 8443)),
        ("[::]:443", Listen("tcp", "::", 443)),
        ("[0:0::1]:443", Listen("tcp", "::1", 443)),
        ("Front.Example:65535", Listen("tcp", "front.example", 65535)),
        ("unix:/run/dgproxy/front.sock", Listen("unix", path="/run/dgproxy/front.sock")),
        ("systemd:front", Listen("systemd", name="front")),
    ],
)
def test_a_listener_is_an_address_a_socket_or_a_name(text: str, listen: Listen) -> None:
    assert parse_listen(text) == listen
    assert parse_listen(str(listen)) == listen


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            ":",
            "8443",
            ":8443",
            "host",
            "host:",
            "host:0",
            "host:65536",
            "host:08",
            "host:+1",
            "host:8443 ",
            "::1:1",
        ),
        *("[::1]", "[::1]8443", "[::1", "[127.0.0.1]:1", "300.0.0.1:1", "1.2.3:1", "a..b:1", "-a:1", "a b:1", "*:8443"),
        *("unix:", "unix:relative", "unix:/" + "x" * 107, "unix:/a\0b", "systemd:", "systemd:a b", "x" * 254 + ":1"),
    ],
)
def test_what_is_no_listener_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"write|is neither an IP|a port is 1 to 65535|choose a shorter") as told:
        parse_listen(text)
    assert str(told.value).isprintable()


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://127.0.0.1:8080", Url("http", "127.0.0.1", 8080)),
        ("http://dg", Url("http", "dg", 80)),
        ("HTTPS://DG.internal/", Url("https", "dg.internal", 443)),
        ("https://[fd00::1]:9000", Url("https", "fd00::1", 9000)),
    ],
)
def test_an_upstream_is_a_scheme_a_host_and_a_port(text: str, url: Url) -> None:
    assert parse_url(text) == url
    assert parse_url(str(url)) == url


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("127.0.0.1:8080", "no URL"),
        ("ftp://h", "scheme"),
        ("wss://h", "HTTP address"),
        ("http://", "names no host"),
        ("http://h/v1", "path, query or fragment"),
        ("http://h?a", "path, query or fragment"),
        ("http://h#a", "path, query or fragment"),
        ("http://h:99999", "port"),
        ("http://h\n:80", "neither"),
        ("http:///x", "path"),
    ],
)
def test_what_is_no_upstream_is_refused(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        parse_url(text)


def test_a_password_in_an_url_is_refused_and_not_repeated() -> None:
    (told,) = errors(with_setting("upstream.urls", '"http://user:hunter2@dg:8080"'))
    assert told.startswith("upstream.urls: found the text")
    assert "hunter2" not in told
    for url in ("http://user:hunter2@dg:8080", "user:hunter2@dg", "http://hunter2@dg"):
        (told,) = errors(with_setting("upstream.urls", f'["{url}"]'))
        assert told.startswith("upstream.urls[0]: holds a user or password")
        assert "hunter2" not in told


# --- what is wrong is told, all at once -------------------------------------------------------------------------------

WRONG = [  # bad-inputs.md O1: a setting, its value, and how what is said begins, after the setting's key
    ("server.lisen", '["0.0.0.0:8443"]', ": unknown key; did you mean server.listen?"),
    ("server.certificate", '"a.pem"', ": unknown key here; did you mean tls.certificate?"),
    ("server.zzz", "1", ": unknown key; known here are listen, workers, tls, trusted_proxies"),
    ("server.rate", '"1/s"', ": unknown key here; did you mean plans.default.rate?"),
    ("server.listen", '"0.0.0.0:8443"', ': found the text "0.0.0.0:8443" where a list of addresses'),
    ("server.listen", "[]", ": is empty; write at least one"),
    ("server.listen", "[8443]", "[0]: found the number 8443 where text belongs; write it in quotes"),
    ("server.listen", '["a:1", "A:1"]', '[1]: the text "A:1" stands here a second time'),
    ("server.listen", '["unix:/run/a.sock"]', '[0]: "unix:/run/a.sock" is not supported yet'),
    ("server.listen", '["systemd:a"]', '[0]: "systemd:a" is not supported yet'),
    ("server.workers", "0", ": found the number 0; it must be from 1 to 512"),
    ("server.workers", "-1", ": found the number -1; it must be from 1"),
    ("server.workers", '"2"', ': "2" is no number; write "auto", or a number without quotes'),
    ("server.workers", "2.0", ": found the number 2.0 where a whole number"),
    ("server.workers", "true", ": found true, which is true or false, where a whole number"),
    ("server.tls", '"true"', ': found the text "true"; write true or false, without quotes'),
    ("server.tls", "1", ": found the number 1; write true or false"),
    ("server.trusted_proxies", '["10.0.0.1/8"]', '[0]: "10.0.0.1/8" has bits set beyond its prefix; write "10.0.'),
    ("server.trusted_proxies", '["ten"]', '[0]: "ten" is no network'),
    ("server.trusted_proxies", '["10.0.0.0/8"]', ": is not supported yet by this release"),
    ("server.proxy_protocol", "true", ": is not supported yet by this release"),
    ("tls.client_ca", '"ca.pem"', ": is not supported yet by this release"),
    ("tls.ktls", '"require"', ': "require" is not supported yet'),
    ("tls.ktls", '"on"', ': found the text "on"; write one of "off", "auto", "require"'),
    ("tls.min_version", '"1.1"', ': found the text "1.1"; write one of "1.2", "1.3"'),
    ("tls.min_version", "1.2", ': found the number 1.2; write one of "1.2", "1.3"'),
    ("tls.certificate", '""', ": is empty, but tls.private_key is set"),
    ("tls.private_key", '""', ": is empty, but tls.certificate is set"),
    ("tls.private_key", '"env:KEY"', ': "env:KEY" is no source of this; write a path or "credential:NAME"'),
    ("tls.certificate", '"credential:a"', ': "credential:a" is no source of this; write a path'),
    ("tls.extra", '[{certificate = "a"}]', "[0]: found a table where a certificate and its key belong"),
    ("upstream.urls", "[]", ": is empty"),
    ("upstream.urls", '["ftp://x"]', '[0]: "ftp://x" has the scheme "ftp"'),
    ("upstream.urls", '["http://x", "http://X:80/"]', "[1]: "),
    ("upstream.pools", '{bach = ["http://x"]}', '.bach: found the text "bach"; write one of "batch", "stream"'),
    ("upstream.pools", "{batch = []}", ".batch: is empty"),
    ("upstream.pools", "[]", ": found a list where a table by class belongs"),
    ("upstream.connect_timeout", "5", ': found the number 5 where text belongs; write it in quotes, like "10s"'),
    ("upstream.connect_timeout", '"5 seconds"', ': "5 seconds" is no duration; write'),
    ("tls.certificate", '"~/a.pem"', ': "~/a.pem" begins with what only a shell expands; write the whole path'),
    ("tls.certificate", '"${HOME}/a.pem"', ': "${HOME}/a.pem" begins with what only a shell expands'),
    ("upstream.urls", '"http://dg"', ': found the text "http://dg" where a list of URLs belongs; write it in'),
    ("upstream.connect_timeout", '"0s"', ': "0s" is too little; the least is 1ms'),
    ("upstream.connect_timeout", '"never"', ': "never" is no duration'),
    ("drain.reload", '"always"', ': "always" is no duration; write a whole number and ms, s, m, h or d, like "10s", '),
    ("keys.pepper_file", '""', ": is empty; write a path"),
    ("keys.pepper_file", '"env:1A"', ': "env:1A" has no valid name'),
    ("keys.pepper_file", '"credential:../x"', ': "credential:../x" has no valid name'),
    ("keys.pepper_file", '"a\\u0000b"', ': "a\\u0000b" holds a NUL'),
    ("auth.failures_per_address", '"60 per minute"', ': "60 per minute" is no rate; write "20/s", "1200/min"'),
    ("limits.connections", "0", ": found the number 0; it must be from 1"),
    ("limits.connections", "99999999999999999999", ": found a huge number; it must be from 1"),
    ("limits.connections", "nan", ": found a huge number where a whole number"),
    ("limits.connections_per_address", "-1", ": found the number -1; it must be from 0"),
    ("limits.buffered", '"256MB"', ': "256MB" is no size; write a whole number and KiB'),
    ("limits.buffered", '"0"', ': "0" is too little; the least is "1MiB"'),
    ("admin.listen", '"unix:/run/a.sock"', ': "unix:/run/a.sock" is not supported yet'),
    ("admin.socket", '"' + "x" * 110 + '"', ': "/srv/dg/xxx'),
    ("timeouts.minimum_upload_rate", '"4KiB/s"', ': "4KiB/s" is no minimum rate'),
    ("timeouts.upgrade", "1979-05-27", ": found a date or time where text belongs"),
    ("plans.default.rate", '"20 per second"', ': "20 per second" is no rate; write "20/s", "1200/min"'),
    ("plans.default.streams", "0", ": found the number 0; it must be from 1"),
    ("plans.default.streams_by_class", "{fluks = 1}", '.fluks: found the text "fluks"; write one of'),
    ("plans.default.streams_by_class", "{flux = 0}", ".flux: found the number 0"),
    ("plans.default.quota", '"100h"', ': found the text "100h" where a table belongs'),
    ("plans.default.quota", '{adio = "1h/day"}', ".adio: unknown key; did you mean plans.default.quota.audio?"),
    ("plans.default.quota", '{audio = "1h"}', '.audio: "1h" is no quota of audio; write an amount and /day'),
    ("plans.default.classes", '["batch", "Flux"]', '[1]: found the text "Flux"; write one of'),
    ("plans.default.classes", "[]", ": is empty"),
    ("plans.default.models", '["nova 3"]', '[0]: "nova 3" is no model'),
    ("plans.default.allow_callback", '["https://a.example"]', '[0]: "https://a.example" is no host name'),
    ("plans.default.allow_callback", '["*.a.example"]', '[0]: "*.a.example" is no host name'),
    ("plans.default.allow_url", '["10.0.0.1"]', '[0]: "10.0.0.1" is no host name'),
    ("plans.default.max_body", '"0"', ': "0" is too little; the least is "1B"'),
    ("cors.origins", '["app.example.com"]', '[0]: "app.example.com" is no origin'),
    ("log.level", '"warn"', ': found the text "warn"; write one of "debug", "info", "warning", "error"; '),
    ("log.format", '"text"', ': found the text "text"; write one of "json", "console"'),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "told"), WRONG, ids=[f"O1-{key}-{value[:20]}" for key, value, _ in WRONG])
def test_a_wrong_setting_is_told_with_its_key_what_is_allowed_and_a_remedy(key: str, value: str, told: str) -> None:
    (error,) = errors(with_setting(key, value))
    assert error.startswith(f"{key}{told}")


WHOLE = [  # bad-inputs.md O1: a whole file
    ("empty", b"", "plans.default: is missing; every key has a plan, so add a section [plans.default]"),
    ("no-toml", b"server:\n  listen: x\n", "line 1: column 7: Expected '=' after a key"),
    ("no-quotes", b"[log]\nlevel = info\n", 'line 2: ... text needs quotes, like level = "info"'),
    ("duplicate-key", b"[log]\nlevel='info'\nlevel='info'\n", "line 3: level ... key or section may stand only once"),
    ("value-as-section", b"server = 1\n[server]\n", "line 2: a key or section stands here a second time"),
    ("typographic", "[log]\nlevel = \u201cinfo\u201d\n".encode(), "line 2: column 9: \u201c is a typographic"),
    ("typographic-list", "[server]\nlisten = [\u2018a\u2019]\n".encode(), "line 2: column 11: \u2018 is"),
    ("True", b"[server]\r\ntls = True\r\n", "line 2: column 7: write true or false, in small letters"),
    ("yes", b"[server]\ntls = yes # sure\n", "line 2: column 7: write true or false, in small letters"),
    ("CR", b"[server]\rtls = true\r", "line 1: has lines that end with CR alone"),
    ("list-without-quotes", b"[server]\nlisten = [0.0.0.0:8443]\n", "line 2: ... quotes around a text in it"),
    ("duplicate-section", b"[log]\n[plans.default]\n[log]\n", "line 3: [log] ... on line 1; put its keys together"),
    ("no-quote", b'[log]\nlevel = "info\n', "line 2: ... the quote that ends the text is missing"),
    ("no-bracket", b"[log\n", "line 1: ... a section is written [name]"),
    ("no-end", b"[server]\nlisten = [\n'a',\n\n", "line 2: is unfinished where the file ends"),
    ("reopened", b"plans.default.burst = 1\n[plans.default]\n", "line 2: [plans.default] ... its keys together"),
    ("no-comma", b"[server]\nlisten = ['a'\n'b']\n", "line 3: ... quotes around a text in it"),
    ("unfinished", b"[log]\nlevel = \n", "line 2: column 9: Invalid value"),
    ("latin-1", b"[log]\n# caf\xe9\n", "line 2: byte 0xe9 is not UTF-8; save the file as UTF-8"),
    ("utf-16", "[log]".encode("utf-16"), "line 1: is UTF-16, not UTF-8; save it as UTF-8"),
    ("bom", b"\xef\xbb\xbf[log]\n", "line 1: begins with a byte order mark"),
    ("binary", b"\0" * 100, "line 1: column 1: Invalid statement"),
    ("deep", b"a = " + b"[" * 100_000, "is nested too deeply"),
    ("digits", b"a = " + b"9" * 5_000, "holds a value that is no TOML"),
    ("section-as-value", b"server = 1\n[plans.default]\n", "server: found the number 1 where a section"),
    ("section-as-list", b"[[server]]\n[plans.default]\n", "server: found a list where a section belongs"),
    ("plans-as-value", b"plans = 1\n", "plans: found the number 1 where plans belong; write [plans.default]"),
    ("plan-as-value", b"plans.default = 1\n", "plans.default: found the number 1 ... and its keys below"),
    ("stray-setting", b"[plans.default]\n[plans]\nrate = '1/s'\n", "plans.rate: ... put it below [plans.default]"),
    ("plan-name", b'[plans.default]\n[plans."a b"]\n', 'plans."a b": is no name of a plan'),
    ("top-level", b"workers = 2\n[plans.default]\n", "workers: unknown key here; did you mean server.workers?"),
    ("below-a-table", b"[plans.default.quota]\nstreams = 1\n", "plans.default.quota.streams: ... default.streams?"),
    ("plan-misspelt", b"[plans.defualt]\n", "plans.default: is missing; ... did you mean it by plans.defualt?"),
    ("terminal", b'[plans.default]\n"\\u001b[31m" = 1\n', 'plans.default."\\u001b[31m": unknown key'),
]  # fmt: skip


@pytest.mark.parametrize(("text", "told"), [row[1:] for row in WHOLE], ids=[f"O1-{row[0]}" for row in WHOLE])
def test_a_file_that_is_no_configuration_is_told_with_the_line_where_it_breaks(text: bytes, told: str) -> None:
    (error,) = errors(text)
    start, _, end = told.partition(" ... ")
    assert error.startswith(start)
    assert error.endswith(end)


def test_a_key_that_stands_twice_is_told_with_its_first_line_in_its_own_table() -> None:
    (told,) = errors(b"[a]\nb=1\n[c]\nb=1\nd={b=1}\nb=1\n")
    assert told == "line 6: b stands here a second time, first on line 4; a key or section may stand only once"


def test_a_section_that_does_not_exist_is_told_with_the_nearest() -> None:
    assert errors("[plans.default]\n[sever]\n") == ["sever: unknown section; did you mean server?"]
    assert errors("[plans.default]\n[LOG]\n") == ["LOG: unknown section; did you mean log?"]


def test_two_listeners_on_one_address_are_an_error() -> None:
    (told,) = errors(with_setting("server.listen", '["127.0.0.1:9464"]'))
    assert told.startswith('admin.listen: "127.0.0.1:9464" is in server.listen too')


def test_all_that_is_wrong_is_told_at_once() -> None:
    text = '[server]\nlisen = []\nworkers = 0\nlisten = ["a", "b:1", "c"]\n[plans.big]\nrate = 1\nburst = 0\n[x]\n'
    keys = [line.split(": ")[0] for line in errors(text)]
    of_server = ["server.lisen", "server.listen[0]", "server.listen[2]", "server.workers"]
    assert sorted(keys) == sorted([*of_server, "plans.big.rate", "plans.big.burst", "plans.default", "x"])


def test_a_certificate_needs_tls_or_neither_is_asked_for() -> None:
    assert not errors('[plans.default]\n[server]\ntls = false\n[tls]\ncertificate = ""\nprivate_key = ""\n')
    (told,) = errors('[plans.default]\n[tls]\ncertificate = ""\nprivate_key = ""\n')
    assert told.startswith("tls.certificate: is empty, but server.tls is true")


def test_client_certificates_on_a_plain_listener_are_an_error() -> None:
    told = errors('[plans.default]\n[server]\ntls = false\n[tls]\nclient_ca = "ca.pem"\n')
    assert any(line.startswith("tls.client_ca: is set, but with server.tls = false") for line in told)


def test_a_limit_that_limits_nothing_is_worth_a_warning() -> None:
    text = '[plans.default]\nstreams = 5\nclasses = ["flux"]\nstreams_by_class = { flux = 6, speak = 1 }\n'
    assert warnings(text) == [
        "plans.default.streams_by_class.flux: has no effect: 6 are more than this plan's streams, 5",
        "plans.default.streams_by_class.speak: has no effect: speak is not among this plan's classes",
    ]


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "big.toml").write_bytes(b"#" * ((1 << 20) + 1))
    os.mkfifo(tmp_path / "pipe.toml")
    cases = {
        "missing.toml": "no such file; `dgproxy init DIR` makes one",
        "big.toml/below": "cannot be read: Not a directory",
        "big.toml": "is larger than 1MiB; is it the right file?",
        "pipe.toml": "is no regular file; name a file",  # and nobody waits for a writer
        "": "is a directory; name a file",
    }
    for name, told in cases.items():
        path = tmp_path / name
        config, findings = examine(path)
        assert config is None
        assert [str(finding) for finding in findings] == [f"{path}: {told}"]
        with pytest.raises(ConfigError) as failed:
            load(path)
        assert failed.value.findings == findings
        assert str(failed.value) == f"{path}: {told}"


def test_a_path_that_no_worker_could_be_told_is_refused() -> None:
    config, (finding,) = examine_bytes(SPEC.encode(), Path("/srv/\udcff/dgproxy.toml"))
    assert config is None
    assert str(finding) == "/srv/?/dgproxy.toml: this path is not UTF-8; move the file to one that is"


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(data: bytes) -> None:
    config, findings = examined(data)
    assert config is None
    assert findings


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(["auto", "never"])
)
NAMES = st.sampled_from(["default", "certificate", "private_key", "audio", *CLASSES]) | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS.filter(lambda value: value is not None),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=500)
@given(st.sampled_from(SETTINGS), VALUES)
def test_whatever_stands_at_a_setting_is_a_value_or_a_finding(setting: schema.Setting, value: Any) -> None:
    document: dict[str, Any] = {"plans": {"default": {}}}
    if setting.section == "plans.*":
        document["plans"]["default"][setting.name] = value
    else:
        document[setting.section] = {setting.name: value}
    here = kinds.Here("f", "/srv", "", [])
    config = loading._read_document(document, here)
    loading._combinations(config, here)
    loading._not_enforced(config, here)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(config), type=Config) == config
    assert all(str(finding).isprintable() for finding in here.findings)


# --- what is not enforced yet is told ---------------------------------------------------------------------------------

LATER = {
    "upstream.pools": '{ batch = ["http://x"] }',
    "upstream.health_interval": '"6s"',
    "auth.failures_per_address": '"61/m"',
    "admin.listen": '"127.0.0.1:9465"',
    "drain.reload": '"1h"',
    "tls.ktls": '"auto"',
    "tls.extra": '[{ certificate = "a", private_key = "b" }]',
    "plans.default.quota": "{}",
    "plans.default.allow_url": '["a.example"]',
    "plans.default.stream_max_life": '"1h"',
}


@pytest.mark.parametrize(("key", "value"), LATER.items())
def test_a_setting_that_does_nothing_yet_is_told_where_it_is_set(key: str, value: str) -> None:
    assert warnings(with_setting(key, value)) == [f"{key}: parsed, but not enforced yet by this release"]


def test_every_setting_is_enforced_or_refused_or_told() -> None:
    refused = {"server.trusted_proxies", "server.proxy_protocol", "tls.client_ca"}
    later = {key.replace(".default.", ".*.") for key in LATER} | refused
    assert {setting.key for setting in SETTINGS if not setting.enforced} == later
    assert {setting.key for setting in SETTINGS if setting.unsafe} == refused


def test_defaults_that_do_nothing_yet_are_told_in_one_line() -> None:
    config, (summary,) = examined(SPEC)
    assert config is not None
    assert (summary.severity, summary.key) == ("warning", "")
    assert "plans.*.quota, allow_url" in summary.message
    _, findings = examined(with_setting("plans.default.quota", "{}"))
    assert "plans.*.allow_url" in findings[-1].message


# --- where it is ------------------------------------------------------------------------------------------------------


def test_the_option_comes_before_the_environment_before_the_usual_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DGPROXY_CONFIG", raising=False)
    monkeypatch.setattr(loading, "DEFAULT_PATHS", ("dgproxy.toml", str(tmp_path / "etc.toml")))
    with pytest.raises(
        ConfigError, match=r"tried \$DGPROXY_CONFIG \(not set\), dgproxy.toml, .*etc.toml; name one with -c"
    ):
        find_config(None)
    Path("etc.toml").touch()
    assert find_config(None) == tmp_path / "etc.toml"
    Path("dgproxy.toml").touch()
    assert find_config(None) == Path("dgproxy.toml")
    monkeypatch.setenv("DGPROXY_CONFIG", "/named.toml")
    assert find_config(None) == Path("/named.toml")
    assert find_config("own.toml") == Path("own.toml")


# --- secrets: bad-inputs.md O9 ----------------------------------------------------------------------------------------

PEPPER = bytes(range(0xC0, 0xE0))


def with_pepper(source: str) -> Config:
    return loaded(with_setting("keys.pepper_file", f'"{source}"'))


def told_of(config: Config) -> str:
    with pytest.raises(ConfigError) as failed:
        read_pepper(config)
    (finding,) = failed.value.findings
    assert (finding.file, finding.key) == ("/srv/dg/dgproxy.toml", "keys.pepper_file")
    assert PEPPER.hex() not in str(failed.value)
    return finding.message


def test_a_pepper_comes_from_a_file_that_is_closed_to_others(tmp_path: Path) -> None:
    path = tmp_path / "pepper"
    path.write_bytes(PEPPER)
    for mode in (0o600, 0o400):
        path.chmod(mode)
        assert read_pepper(with_pepper(str(path))) == PEPPER
    for mode in (0o644, 0o640, 0o620, 0o604, 0o601):
        path.chmod(mode)
        assert f"has mode {mode:04o}, so that others than its owner can use it; chmod 600" in told_of(
            with_pepper(str(path))
        )


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_pepper_of_the_wrong_size_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "pepper"
    path.write_bytes((PEPPER * 3)[:size])
    path.chmod(0o600)
    assert re.search(r"holds \d+ bytes, and a pepper has 32; restore the one", told_of(with_pepper(str(path))))


def test_a_missing_pepper_is_told_with_what_hangs_on_it(tmp_path: Path) -> None:
    told = told_of(with_pepper(str(tmp_path / "pepper")))
    assert told.endswith("no such file; restore the one that the keys were made with: without it they are lost")


def test_a_pepper_comes_from_the_environment_in_hex(monkeypatch: pytest.MonkeyPatch) -> None:
    config = with_pepper("env:DGPROXY_PEPPER")
    monkeypatch.delenv("DGPROXY_PEPPER", raising=False)
    assert "is not set in the environment" in told_of(config)
    for wrong in (PEPPER.hex()[1:], PEPPER.hex() + "\n", PEPPER.hex()[:-1] + "g"):
        monkeypatch.setenv("DGPROXY_PEPPER", wrong)
        told = told_of(config)
        assert "64 hex digits" in told
        assert wrong.strip()[:8] not in told
    monkeypatch.setenv("DGPROXY_PEPPER", PEPPER.hex().upper())
    assert read_pepper(config) == PEPPER


def test_secrets_come_from_systemds_credentials_whatever_their_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = loaded('[plans.default]\n[keys]\npepper_file = "credential:p"\n[tls]\nprivate_key = "credential:k"\n')
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert "needs $CREDENTIALS_DIRECTORY" in told_of(config)
    with pytest.raises(ConfigError, match=r"tls.private_key: .*needs \$CREDENTIALS_DIRECTORY"):
        private_key_path(config)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "p").write_bytes(PEPPER)
    (tmp_path / "k").write_bytes(b"PEM")
    (tmp_path / "p").chmod(0o440)
    (tmp_path / "k").chmod(0o444)
    assert read_pepper(config) == PEPPER
    assert read_private_key(config) == b"PEM"
    assert private_key_path(config) == str(tmp_path / "k")


def test_a_private_key_is_closed_to_others(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(b"PEM")
    path.chmod(0o640)
    config = loaded(with_setting("tls.private_key", f'"{path}"'))
    with pytest.raises(ConfigError, match=r"tls.private_key: .*has mode 0640"):
        read_private_key(config)
    path.chmod(0o600)
    assert read_private_key(config) == b"PEM"
    assert private_key_path(config) == str(path)


# --- what a key overrides ---------------------------------------------------------------------------------------------


def test_options_named_as_a_plans_fields_override_them() -> None:
    own = parse_overrides(
        {
            "streams": "5",
            "rate": "10/s",
            "burst": "20",
            "quota-audio": "10h/month",
            "quota_requests": None,
            "classes": "batch, stream",
            "models": "nova-3,nova-2*",
            "max_body": "1MiB",
            "stream-max-life": "2h",
            "streams-by-class": "flux=1,stream=2",
            "allow-callback": "a.example",
        }
    )
    assert own == Overrides(
        streams=5,
        rate=Rate(10.0, 1.0),
        burst=20,
        quota=Quota(audio=Allowance(36_000.0, "month")),
        classes=("batch", "stream"),
        models=("nova-3", "nova-2*"),
        max_body=1 << 20,
        stream_max_life=7200.0,
        streams_by_class={"flux": 1, "stream": 2},
        allow_callback=("a.example",),
    )
    assert parse_overrides({}) == Overrides()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"streams": "many"}, 'streams: "many" is no whole number'),
        ({"streams": "0"}, "streams: found the number 0; it must be from 1"),
        ({"rate": "10 per s"}, 'rate: "10 per s" is no rate; write "20/s"'),
        ({"classes": "batch,bulk"}, r'classes\[1\]: found the text "bulk"; write one of "batch"'),
        ({"classes": ","}, "classes: is empty"),
        ({"quota-audio": "10/month"}, 'quota-audio: "10/month" is no quota of audio'),
        ({"streams-by-class": "flux"}, 'streams-by-class: "flux" is no pair'),
        ({"max-body": "1MB"}, 'max-body: "1MB" is no size'),
        ({"steams": "1"}, "steams: unknown key; did you mean streams"),
        ({"streams": "x", "burst": "y"}, "streams: .*; burst: "),
    ],
)
def test_an_override_that_is_none_is_refused(options: dict[str, str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        parse_overrides(options)


def test_every_field_of_a_plan_can_be_overridden() -> None:
    assert Overrides.__struct_fields__ == Plan.__struct_fields__


def test_a_key_has_its_plan_but_for_what_it_overrides() -> None:
    plan = Plan(streams=7, quota=Quota(audio=Allowance(1.0, "day"), requests=Allowance(2.0, "day")))
    assert effective(plan, Overrides()) == plan
    own = effective(plan, Overrides(streams=3, quota=Quota(audio=Allowance(9.0, "week")), stream_max_life=0.0))
    assert own.streams == 3
    assert own.quota == Quota(audio=Allowance(9.0, "week"), requests=Allowance(2.0, "day"))
    assert own.rate == plan.rate


def test_overrides_are_stored_without_what_they_leave_to_the_plan() -> None:
    own = Overrides(streams=5, quota=Quota(audio=Allowance(1.0, "day")))
    assert set(msgspec.json.decode(msgspec.json.encode(own))) == {"streams", "quota"}
    assert msgspec.json.decode(msgspec.json.encode(own), type=Overrides) == own
