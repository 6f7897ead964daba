"""What is compared: dgproxy, nginx and HAProxy, configured for the same job, one at a time; and nothing in between.

The job: TLS 1.3 with one ECDSA P-256 certificate, 1,000 keys of which each request needs one (as `Authorization:
Token K`), the header taken off, WebSockets and bodies passed on unbuffered, a line of access log a request, one worker.
Some scenarios want other numbers of keys or of workers, and nothing else different.
"""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.machine import cores, pin
from bench.native import Missing
from dgproxy.access.keys import Pepper, Record, State, mint
from dgproxy.config import Overrides
from dgproxy.net import pump
from dgproxy.store.keys import FILE_NAME, KeyStore
from tests.support.processes import children, free_port, kill, wait_gone
from tests.support.proxy import DGPROXY, dgproxy, edit

KEYS: Final = 1000
NAMES: Final = {"native": "dgproxy, native pump", "pure": "dgproxy, pure Python"}
CONNECTIONS: Final = 20_000
_STREAM_IDLE: Final = 3600  # seconds: idle streams are a scenario

_NGINX: Final = """\
daemon off;
worker_processes {workers};
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;
worker_rlimit_nofile 18000;
events {{ worker_connections 16000; }}
http {{
  access_log {directory}/access.log;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  client_max_body_size 0;
  keepalive_timeout 75s;
  keepalive_requests 1000000000;
  map_hash_bucket_size {bucket};
  map_hash_max_size {buckets};
  map $http_authorization $known {{
    default 0;
    include {directory}/keys;
  }}
  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
  upstream deepgram {{ server 127.0.0.1:{upstream}; keepalive 64; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} {ssl}{reuseport};
    ssl_certificate {certs}/server.pem;
    ssl_certificate_key {certs}/server-key.pem;
    ssl_protocols TLSv1.2 TLSv1.3;
    location / {{
      if ($known = 0) {{ return 401; }}
      proxy_pass http://deepgram;
      proxy_http_version 1.1;
      proxy_buffering off;
      proxy_request_buffering off;
      proxy_read_timeout {idle}s;
      proxy_send_timeout {idle}s;
      proxy_set_header Host $host;
      proxy_set_header Authorization "";
      proxy_set_header X-Forwarded-For $remote_addr;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $connection_upgrade;
    }}
  }}
}}
"""
_HAPROXY: Final = """\
global
  maxconn 8000
  nbthread {workers}
  log stdout format raw local0
defaults
  mode http
  log global
  option httplog
  option forwardfor
  timeout connect 5s
  timeout http-request 10s
  timeout http-keep-alive 75s
  timeout client {idle}s
  timeout server {idle}s
  timeout tunnel {idle}s
frontend clients
  bind 127.0.0.1:{port} {ssl}
  acl known req.hdr(authorization) -f {directory}/keys
  http-request deny deny_status 401 unless known
  http-request del-header authorization
  default_backend deepgram
backend deepgram
  http-reuse always
  server one 127.0.0.1:{upstream}
"""


@dataclass(frozen=True)
class Server:
    """Something that runs before the upstream, or the upstream itself."""

    port: int
    pids: Sequence[int]  # whose CPU and memory count; the first is the parent of the others
    configuration: str
    started: float = 0.0  # seconds that it took until it accepted


class Rig:
    """Directory, certificate and keys that all of them share."""

    def __init__(self, directory: Path, upstream: int, core: int, *, tls: bool, keys: int = KEYS) -> None:
        self.directory = directory
        self.upstream = upstream
        self.core = core
        self.tls = tls
        self.state = directory / "dg" / "state"
        self._within = 20 + keys / 10_000  # seconds to start in
        self._config = directory / "dg" / "dgproxy.toml"
        self._port = free_port()
        self._others: dict[int, Rig] = {}
        dgproxy("init", str(directory / "dg"), "--listen", f"127.0.0.1:{self._port}")
        edit(
            self._config,
            {
                "server.tls": "true" if tls else "false",
                "admin.listen": f'"127.0.0.1:{free_port()}"',
                "upstream.urls": f'["http://127.0.0.1:{upstream}"]',
                "auth.failures_per_address": '"100000000/m"',
                "limits.connections": str(CONNECTIONS),
                "timeouts.stream_idle": f'"{_STREAM_IDLE}s"',
                "plans.default.streams": "100000",
                "plans.default.max_body": '"1TiB"',
                "plans.default.rate": '"1000000/s"',
                "plans.default.burst": "1000000",
            },
        )
        self.keys = make_keys(self.state, keys)

    def holding(self, keys: int) -> "Rig":
        """The same with another number of keys, made once."""
        if keys == len(self.keys):
            return self
        if keys not in self._others:
            directory = self.directory / f"keys-{keys}"
            self._others[keys] = Rig(directory, self.upstream, self.core, tls=self.tls, keys=keys)
        return self._others[keys]

    @property
    def key(self) -> str:
        """One of the keys; in the middle, so that no list has it first."""
        return self.keys[len(self.keys) // 2]

    @contextlib.contextmanager
    def direct(self) -> Iterator[Server]:
        """Nothing in between: the floor. The generator must be told tls=0."""
        yield Server(self.upstream, (), "")

    @contextlib.contextmanager
    def dgproxy(self, pump: str, workers: int = 1) -> Iterator[Server]:
        """Dgproxy with one form of its pump."""
        edit(self._config, {"server.workers": str(workers)})
        log = self.directory / "dgproxy.log"
        command = ["env", f"DGPROXY_PUMP={pump}", *DGPROXY, "run", "-c", str(self._config)]
        with self._running(command, log, lambda _: b"proxy.ready" in log.read_bytes(), workers) as (pids, took):
            yield Server(self._port, pids, self._config.read_text(), took)

    @contextlib.contextmanager
    def nginx(self, workers: int = 1) -> Iterator[Server]:
        """Nginx with a map of keys; with more workers than one, each has its own listening socket, as ours have."""
        many = len(self.keys) > KEYS
        with self._other(
            "nginx",
            _NGINX,
            workers,
            ssl="ssl" if self.tls else "",
            reuseport=" reuseport" if workers > 1 else "",
            bucket=1024 if many else 256,
            buckets=2 * len(self.keys) if many else 8192,
        ) as server:
            yield server

    @contextlib.contextmanager
    def haproxy(self, workers: int = 1, *, reloads: bool = False) -> Iterator[Server]:
        """HAProxy with a file of keys; a worker is a thread of it. `reloads`: with a master, which can begin anew."""
        (self.directory / "haproxy").mkdir(exist_ok=True)
        certs = self.directory / "dg" / "certs"
        pem = self.directory / "haproxy" / "server.pem"
        pem.write_bytes((certs / "server.pem").read_bytes() + (certs / "server-key.pem").read_bytes())
        ssl = f"ssl crt {pem} alpn http/1.1" if self.tls else ""
        with self._other("haproxy", _HAPROXY, workers, master=reloads, ssl=ssl) as server:
            yield server

    def list_keys(self, name: str, keys: Sequence[str]) -> None:
        """Writes the keys as nginx or HAProxy reads them, whole at any moment."""
        line = '"Token {}" 1;\n' if name == "nginx" else "Token {}\n"
        fresh = self.directory / name / "keys.new"
        fresh.write_text("".join(line.format(key) for key in keys))
        fresh.replace(self.directory / name / "keys")

    @contextlib.contextmanager
    def _other(
        self, name: str, template: str, workers: int, *, master: bool = False, **words: str | int
    ) -> Iterator[Server]:
        directory = self.directory / name
        directory.mkdir(exist_ok=True)
        self.list_keys(name, self.keys)
        port = free_port()
        text = template.format(
            directory=directory,
            certs=self.directory / "dg" / "certs",
            port=port,
            upstream=self.upstream,
            workers=workers,
            idle=_STREAM_IDLE,
            **words,
        )
        (directory / "config").write_text(text)
        flags = {"nginx": ["-c"], "haproxy": [*(["-W"] if master else []), "-db", "-f"]}[name]
        start = [command(name), *flags, str(directory / "config")]
        forks = workers if name == "nginx" else 1 if master else 0

        def ready(pid: int) -> bool:
            return _accepts(port) and len(children(pid)) >= forks

        with self._running(start, directory / "output", ready, workers) as (pids, took):
            yield Server(port, pids, text, took)

    @contextlib.contextmanager
    def _running(
        self, command: Sequence[str], log: Path, ready: Callable[[int], bool], workers: int
    ) -> Iterator[tuple[list[int], float]]:
        """Starts a server and waits for it, bound to its cores; its process ids, and the seconds it took.

        Raises:
            Unstarted: it ended, or was not ready in time.
        """
        began = time.monotonic()
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            while not ready(process.pid):
                if process.poll() is not None or time.monotonic() > began + self._within:
                    raise Unstarted(f"not ready within {self._within:.0f} s:\n{log.read_text()[-2000:]}")
                time.sleep(0.01)
            took = time.monotonic() - began
            pids = [process.pid, *sorted(children(process.pid))]
            for pid in pids:
                pin(pid, *cores(workers))
            yield pids, took
        finally:
            family = children(process.pid)
            _stop(process)
            kill(wait_gone(family, 5))


class Unstarted(RuntimeError):  # noqa: N818 - what is
    """A server that does not start, and what it said."""


def make_keys(state: Path, count: int) -> list[str]:
    """Puts so many new keys into a store that nobody has open; their texts."""
    pepper = Pepper((state / "pepper").read_bytes())
    now = int(time.time())
    made = []
    with KeyStore.open(state / FILE_NAME, pepper) as store, store.bulk("import", os.getuid(), now) as bulk:
        for number in range(count):
            minted = mint(os.urandom)
            made.append(minted.key)
            bulk.insert(
                Record(
                    id=minted.id,
                    digest=pepper.digest(minted.key.encode()),
                    name=f"bench-{number}",
                    pepper_id=pepper.id,
                    plan="default",
                    overrides=Overrides(),
                    state=State.ACTIVE,
                    created=now,
                    not_before=0,
                    expires=None,
                    foreign=False,
                )
            )
    return made


def fastest() -> str:
    """The form of the pump that dgproxy takes where nobody forces one."""
    return "pure" if pump.why_not_native() else "native"


def command(name: str) -> str:
    """Where nginx or HAProxy is.

    Raises:
        Missing: nowhere.
    """
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise Missing(f"{name} is not installed: apt install nginx-light haproxy")
    return found


def version(name: str) -> str:
    """What a server says that it is: `1.22.1`."""
    said = subprocess.run([command(name), "-v"], capture_output=True, text=True, timeout=10, check=True)
    match = re.search(r"[0-9]+\.[0-9]+\.[0-9]+", said.stdout + said.stderr)
    return match[0] if match else "?"


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(2)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)
