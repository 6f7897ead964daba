"""What is compared: dgproxy, nginx and HAProxy, configured for the same job, one at a time; and nothing in between.

The job: TLS 1.3 with one ECDSA P-256 certificate, 1,000 keys of which each request needs one (as `Authorization:
Token K`), the header taken off, WebSockets and bodies passed on unbuffered, a line of access log a request, one worker.
"""

import contextlib
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.machine import pin
from bench.native import Missing
from dgproxy.admin import control
from tests.support.processes import children, free_port, wait_accepting
from tests.support.proxy import DGPROXY, dgproxy, edit

KEYS: Final = 1000
CONNECTIONS: Final = 20_000
_STREAM_IDLE: Final = 3600  # seconds: idle streams are a scenario

_NGINX: Final = """\
daemon off;
worker_processes 1;
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
  map_hash_bucket_size 256;
  map_hash_max_size 8192;
  map $http_authorization $known {{
    default 0;
{keys}
  }}
  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
  upstream deepgram {{ server 127.0.0.1:{upstream}; keepalive 64; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} {ssl};
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
  nbthread 1
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
    pids: Sequence[int]  # whose CPU and memory count
    configuration: str


class Rig:
    """Directory, certificate and keys that all of them share."""

    def __init__(self, directory: Path, upstream: int, core: int, *, tls: bool) -> None:
        self.directory = directory
        self.upstream = upstream
        self.core = core
        self.tls = tls
        self.keys: list[str] = []
        self._config = directory / "dg" / "dgproxy.toml"
        self._port = free_port()
        dgproxy("init", str(directory / "dg"), "--listen", f"127.0.0.1:{self._port}")
        edit(
            self._config,
            {
                "server.workers": "1",
                "server.tls": "true" if tls else "false",
                "admin.listen": f'"127.0.0.1:{free_port()}"',
                "upstream.urls": f'["http://127.0.0.1:{upstream}"]',
                "limits.connections": str(CONNECTIONS),
                "timeouts.stream_idle": f'"{_STREAM_IDLE}s"',
                "plans.default.streams": "100000",
                "plans.default.max_body": '"1TiB"',
                "plans.default.rate": '"1000000/s"',
                "plans.default.burst": "1000000",
            },
        )
        with self.dgproxy("pure"):
            socket = self._config.parent / "state" / "admin.sock"
            for number in range(KEYS):
                made: Any = control.call(socket, "keys.create", {"name": f"bench-{number}"}, 30.0)
                self.keys.append(made["key"])

    @property
    def key(self) -> str:
        """One of the keys; in the middle, so that no list has it first."""
        return self.keys[KEYS // 2]

    @contextlib.contextmanager
    def direct(self) -> Iterator[Server]:
        """Nothing in between: the floor. The generator must be told tls=0."""
        yield Server(self.upstream, (), "")

    @contextlib.contextmanager
    def dgproxy(self, pump: str) -> Iterator[Server]:
        """Dgproxy with one worker and one form of its pump."""
        with (self.directory / "dgproxy.log").open("wb") as log:
            command = ["env", f"DGPROXY_PUMP={pump}", *DGPROXY, "run", "-c", str(self._config)]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            _until_ready(process, self.directory / "dgproxy.log", b"proxy.ready")
            pids = [process.pid, *children(process.pid)]
            for pid in pids:
                pin(pid, self.core)
            yield Server(self._port, pids, self._config.read_text())
        finally:
            _stop(process)

    @contextlib.contextmanager
    def nginx(self) -> Iterator[Server]:
        """Nginx with a map of keys."""
        keys = "\n".join(f'    "Token {key}" 1;' for key in self.keys)
        ssl = "ssl" if self.tls else ""
        with self._other("nginx", _NGINX, keys=keys, ssl=ssl, arguments=["-c"]) as server:
            yield server

    @contextlib.contextmanager
    def haproxy(self) -> Iterator[Server]:
        """HAProxy with a file of keys."""
        (self.directory / "haproxy").mkdir(exist_ok=True)
        (self.directory / "haproxy" / "keys").write_text("".join(f"Token {key}\n" for key in self.keys))
        certs = self.directory / "dg" / "certs"
        pem = self.directory / "haproxy" / "server.pem"
        pem.write_bytes((certs / "server.pem").read_bytes() + (certs / "server-key.pem").read_bytes())
        ssl = f"ssl crt {pem} alpn http/1.1" if self.tls else ""
        with self._other("haproxy", _HAPROXY, keys="", ssl=ssl, arguments=["-db", "-f"]) as server:
            yield server

    @contextlib.contextmanager
    def _other(self, name: str, template: str, *, keys: str, ssl: str, arguments: list[str]) -> Iterator[Server]:
        directory = self.directory / name
        directory.mkdir(exist_ok=True)
        port = free_port()
        text = template.format(
            directory=directory,
            certs=self.directory / "dg" / "certs",
            port=port,
            upstream=self.upstream,
            keys=keys,
            ssl=ssl,
            idle=_STREAM_IDLE,
        )
        (directory / "config").write_text(text)
        with (directory / "output").open("wb") as output:
            process = subprocess.Popen(
                [command(name), *arguments, str(directory / "config")],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            try:
                wait_accepting(port)
            except OSError:
                raise RuntimeError(f"{name} does not start:\n{(directory / 'output').read_text()[-2000:]}") from None
            pids = [process.pid, *children(process.pid)]
            for pid in pids:
                pin(pid, self.core)
            yield Server(port, pids, re.sub(r'(?m)^ +"Token .*\n', "", text))
        finally:
            _stop(process)


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


def _until_ready(process: "subprocess.Popen[bytes]", log: Path, word: bytes) -> None:
    deadline = time.monotonic() + 20
    while word not in log.read_bytes():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"dgproxy does not start:\n{log.read_text()[-2000:]}")
        time.sleep(0.02)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(2)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)
