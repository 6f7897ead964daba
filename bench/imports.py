"""`python -m bench.imports`: what an import of very many keys costs, and how long it holds up the supervisor's loop.

A proxy with two workers runs; `dgproxy keys import` brings N keys, twice (the second time all are known), and `keys
export` takes them out. Meanwhile `status` is asked again and again on the control socket, each time when the answer
before has come: it is answered by the loop that answers the workers and touches nothing else, so an answer that takes
long says how long a worker's question would have waited. The same is done before, while nothing happens.
"""

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from bench.machine import facts
from tests.support.proxy import DGPROXY, Proxy

ASK: Final = b'{"v":1,"command":"status"}\n'
PAUSE: Final = 0.0005  # seconds between an answer and the next question


class Watch:
    """Asks `status` in a thread of its own until it is ended, and keeps how long each answer took."""

    def __init__(self, path: Path) -> None:
        self.took: list[float] = []
        self._over = threading.Event()
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.connect(str(path))
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(PAUSE):
            asked = time.monotonic()
            self._sock.sendall(ASK)
            answer = b""
            while not answer.endswith(b"\n"):
                answer += self._sock.recv(65536)
            self.took.append(time.monotonic() - asked)

    def end(self) -> dict[str, float]:
        self._over.set()
        self._thread.join()
        self._sock.close()
        took = sorted(self.took)
        return {
            "asked": len(took),
            "median_ms": round(took[len(took) // 2] * 1000, 2),
            "p999_ms": round(took[int(len(took) * 0.999)] * 1000, 2),
            "longest_ms": round(took[-1] * 1000, 2),
        }


def watched(proxy: Proxy, work: Callable[[], object]) -> dict[str, Any]:
    watch = Watch(proxy.directory / "state" / "admin.sock")
    begun = time.monotonic()
    work()
    return {"seconds": round(time.monotonic() - begun, 2), **watch.end()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: dict[str, Any] = {"machine": facts(), "keys": options.keys}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        file = directory / "keys.csv"
        rows = (f"client {number},k{number:039d},,TRUE\r\n" for number in range(options.keys))
        file.write_text("name,key,description,enabled\r\n" + "".join(rows))
        file.chmod(0o600)
        proxy = Proxy(directory, "http://127.0.0.1:9")

        def run(*args: str) -> Callable[[], object]:
            command = [*DGPROXY, "keys", *args, "-c", str(proxy.config)]
            return lambda: subprocess.run(command, check=True, capture_output=True)

        with proxy:
            found["nothing"] = watched(proxy, lambda: time.sleep(5))
            found["dry run"] = watched(proxy, run("import", str(file), "--dry-run"))
            found["import"] = watched(proxy, run("import", str(file)))
            found["again"] = watched(proxy, run("import", str(file)))
            found["export"] = watched(proxy, run("export", str(directory / "out.csv")))
    for what, figures in found.items():
        print(f"{what:10} {figures}")
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
