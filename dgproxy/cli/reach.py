"""What `check` sees of the network from here: addresses that cannot be listened on, containers that do not answer.

All of it is a warning: a container may come up later, and a port be free by then.
"""

import errno
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from dgproxy.admin import control
from dgproxy.config import Config, Finding, Listen, Url
from dgproxy.net.listen import open_listeners

WITHIN: Final = 2.0  # seconds for all containers together, names and connections
MOST: Final = 64  # containers that are tried
_ASK: Final = 1.0  # seconds for a running proxy to show that it is there
_REMEDIES: Final = {
    errno.EADDRINUSE: "another process listens there; end it, or choose another port",
    errno.EACCES: "a port below 1024 needs a right: AmbientCapabilities=CAP_NET_BIND_SERVICE of systemd",
    errno.EADDRNOTAVAIL: "this machine has no such address",
}


def listeners(config: Config) -> Iterator[Finding]:
    """Each address that `run` could not listen on now. A proxy that runs with this configuration holds them itself."""
    if _is_running(config):
        return
    for index, listen in enumerate(config.server.listen):
        problem = _bound(listen)
        if problem:
            yield Finding("warning", config.path, f"server.listen[{index}]", f"cannot listen on {listen}: {problem}")


def _is_running(config: Config) -> bool:
    try:
        control.call(Path(config.admin.socket), "status", {}, _ASK)
    except control.NotRunning:
        return False
    except (control.ControlError, control.ControlTimeout, OSError):
        return True  # or one cannot tell, and says nothing
    return True


def _bound(listen: Listen) -> str:
    """Why this address cannot be listened on; "" if it can."""
    try:
        open_listeners(listen.host, listen.port, 0)
    except OSError as error:
        return _REMEDIES.get(error.errno or 0, error.strerror or str(error))
    return ""


def upstreams(config: Config) -> Iterator[Finding]:
    """Each container that takes no connection now."""
    patience = min(WITHIN, config.upstream.connect_timeout)
    found: dict[int, str] = {}

    def try_one(index: int, url: Url) -> None:
        found[index] = _connected(url, patience)

    threads = [  # daemons: a resolver that hangs holds up nobody
        threading.Thread(target=try_one, args=(index, url), daemon=True)
        for index, url in enumerate(config.upstream.urls[:MOST])
    ]
    deadline = time.monotonic() + patience
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    for index, url in enumerate(config.upstream.urls[:MOST]):
        problem = found.get(index, _silent(patience))
        if problem:
            yield Finding("warning", config.path, f"upstream.urls[{index}]", f"{url} cannot be reached now: {problem}")


def _connected(url: Url, patience: float) -> str:
    """Why no connection came about; "" if one did."""
    try:
        socket.create_connection((url.host, url.port), patience).close()
    except TimeoutError:
        return _silent(patience)
    except socket.gaierror as error:
        return f"{error.strerror}; is the name right?"
    except ConnectionRefusedError as error:
        return f"{error.strerror}; is the container up?"
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _silent(patience: float) -> str:
    return f"no answer within {patience:g} s; is a firewall between?"
