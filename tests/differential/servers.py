"""nginx, HAProxy and dgproxy, each as a plain loopback listener before an upstream of its own."""

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.support import processes
from tests.support.proxy import Proxy

NAMES: Final = ("nginx", "haproxy")
NEEDED: Final = "apt install nginx-light haproxy"
# Every server gets the same bounds where it has them: waits of a second, heads of 32 KiB, bodies of 2 GiB.
_NGINX: Final = """\
daemon off;
master_process off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  client_max_body_size 2g;
  large_client_header_buffers 4 32k;
  client_header_timeout 1s;
  client_body_timeout 1s;
  keepalive_timeout 1s;
  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://127.0.0.1:{upstream};
      proxy_http_version 1.1;
      proxy_buffering off;
      proxy_request_buffering off;
      proxy_read_timeout 2s;
      proxy_send_timeout 2s;
      proxy_set_header Host $host;
      proxy_set_header X-Forwarded-For $remote_addr;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $connection_upgrade;
    }}
  }}
}}
"""
_HAPROXY: Final = """\
global
  maxconn 256
  tune.bufsize 49152
defaults
  mode http
  option forwardfor
  timeout connect 2s
  timeout http-request 1s
  timeout http-keep-alive 1s
  timeout client 2s
  timeout server 2s
  timeout tunnel 2s
frontend clients
  bind 127.0.0.1:{port}
  default_backend deepgram
backend deepgram
  server one 127.0.0.1:{upstream}
"""
_DGPROXY: Final = {
    "server.tls": "false",
    "server.workers": "1",
    "timeouts.request_head": '"1s"',
    "timeouts.idle_keepalive": '"1s"',
    "timeouts.stream_idle": '"2s"',
}


def missing() -> list[str]:
    """Which of the servers to compare with are not installed."""
    return [name for name in NAMES if _find(name) is None]


def _find(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


def _command(name: str) -> str:
    found = _find(name)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed: {NEEDED}")
    return found


def version(name: str) -> str:
    """What a server says that it is: `1.22.1`."""
    said = subprocess.run([_command(name), "-v"], capture_output=True, text=True, timeout=10, check=True)
    match = re.search(r"[0-9]+\.[0-9]+\.[0-9]+", said.stdout + said.stderr)
    if match is None:
        raise ValueError(f"{name} -v says no version: {said.stdout}{said.stderr}")
    return match[0]


@contextmanager
def other(name: str, directory: Path, upstream: int) -> Iterator[int]:
    """Runs nginx or HAProxy before an upstream's port; its own port."""
    port = processes.free_port()
    directory.mkdir()
    config = directory / "config"
    template = {"nginx": _NGINX, "haproxy": _HAPROXY}[name]
    config.write_text(template.format(directory=directory, port=port, upstream=upstream))
    arguments = {"nginx": ["-p", str(directory), "-c", str(config)], "haproxy": ["-db", "-f", str(config)]}[name]
    with (directory / "output").open("wb") as output:
        process = subprocess.Popen(
            [_command(name), *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                processes.wait_accepting(port, 0.1)
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{name} does not start:\n{(directory / 'output').read_text()}") from None
        yield port
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)


def ours(directory: Path, upstream: int) -> Proxy:
    """dgproxy before an upstream's port, to be used as a context manager."""
    directory.mkdir()
    return Proxy(directory, f"http://127.0.0.1:{upstream}", _DGPROXY)
