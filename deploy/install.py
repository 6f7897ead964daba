"""Makes the virtual environment: `python3 deploy/install.py [demo|dev|fuzz]`. `make` runs it; it does without make too.

Rules of this file: every Python since 3.6 parses it, so that an old one can be told so; what goes wrong is told in a
line or two, with what to do, and all that pip said is in the environment's install.log.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

OLDEST = (3, 11)
ROOT = Path(__file__).absolute().parent.parent


def stop(what: str) -> NoReturn:
    """Ends it with what is wrong and what to do."""
    sys.exit(f"dgproxy: {what}")


def again(python: str) -> str:
    """The line that does the same with another Python."""
    if os.environ.get("MAKELEVEL"):
        return f"make PYTHON={python} {os.environ.get('DGPROXY_GOALS', '')}".rstrip()
    return " ".join([python, *sys.argv])


def newer() -> str:
    """A command that is new enough a Python, "" if none is found."""
    for name in ("python3.13", "python3.12", "python3.11", "python3.14"):
        if shutil.which(name) and not subprocess.call([name, "-c", "import venv, ensurepip"], **QUIET):
            return name
    return ""


QUIET: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}

if not sys.platform.startswith("linux"):
    stop(f"runs on Linux, and this is {sys.platform}. Try it in a Linux container or virtual machine.")
if sys.version_info < OLDEST:
    found = newer()
    stop(
        f"needs Python 3.11 or newer, and {sys.executable} is {sys.version.split()[0]}. "
        + (f"Try: {again(found)}" if found else f"Install one, then: {again('python3.11')}")
    )

# --- from here on a Python that is new enough ----------------------------------------------------------------------

import argparse  # noqa: E402 - an old one may lack what these need
import re  # noqa: E402
import select  # noqa: E402
import signal  # noqa: E402
import time  # noqa: E402
from typing import Final  # noqa: E402

SETS: Final = {"demo": ("demo",), "dev": ("dev", "demo"), "fuzz": ("fuzz",)}  # what each leaves a stamp of, for make
PIP: Final = (
    *("-I", "-m", "pip", "install"),  # -I: no PYTHONPATH, no packages of the user's own
    *("--disable-pip-version-check", "--no-input", "--progress-bar", "off", "--no-color"),
)
# Where to look, by which proxy and whose certificates to believe is the user's; where to put it is not.
NOT_HERE: Final = ("TARGET", "PREFIX", "ROOT", "PYTHON", "NO_BINARY", "DRY_RUN", "QUIET", "VERBOSE", "REQUIRE_HASHES")
SCARCE: Final = 1_000_000  # bytes
TICK: Final = 0.5  # seconds between two drawings of the line that moves

NO_ANSWER: Final = (
    r"NewConnectionError|ConnectTimeout|ReadTimeout|Temporary failure in name|Name or service not known|"
    r"Connection (refused|reset|broken)|Network is unreachable"
)
# pip's words, and ours. The first that is found counts.
FAULTS: Final = {
    r"No space left on device": "the disk is full: 150 MB are needed here, and some in {tmp} meanwhile.",
    r"Disk quota exceeded": "the disk quota is used up: 150 MB are needed here, and some in {tmp} meanwhile.",
    r"Read-only file system|Permission denied": "what has to be written cannot be: {line}",
    r"CERTIFICATE_VERIFY_FAILED|SSLError": """\
the package index's certificate is not trusted. Behind a proxy that opens TLS, name its CA: \
export PIP_CERT=/path/to/ca.pem""",
    r"ProxyError|Cannot connect to proxy|SOCKS": """\
the proxy that the environment names does not let pip through; see HTTPS_PROXY and ALL_PROXY.""",
    NO_ANSWER: """\
the package index cannot be reached. Once there is a network, the same command goes on from here; with a proxy or a \
mirror: export HTTPS_PROXY=http://HOST:PORT or PIP_INDEX_URL=https://HOST/simple""",
    r"DO NOT MATCH THE HASHES": "a package is not the one whose hash the lock holds, and was not installed.",
    r"No matching distribution found for (?P<what>[^\s;]+)": """\
{what} was not found: it has no wheel for Python {python} on this machine (3.11 to 3.13 have all of them), or the \
package index lacks it or gave no answer.""",
}


class Line:
    """What is being done, on one line that moves where a terminal can, then that it was done."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._began = time.monotonic()
        self._moves = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._shown = ""

    def show(self, detail: str) -> None:
        """How far it is."""
        text = f"  … {self._what}"
        if self._moves:
            text += f": {detail}, {time.monotonic() - self._began:.0f} s"
            text = text[: shutil.get_terminal_size().columns - 1]
            if text != self._shown:
                print(f"\r\x1b[2K{text}", end="", flush=True)
        elif not self._shown:
            print(text, flush=True)
        self._shown = text

    def clear(self) -> None:
        """Out of the way of what is said next."""
        if self._moves:
            print("\r\x1b[2K", end="", flush=True)

    def done(self, what: str) -> None:
        """It was, and how long it took."""
        self.clear()
        tick = "\x1b[1;32m✓\x1b[0m" if self._moves and not os.environ.get("NO_COLOR") else "✓"
        print(f"  {tick} {what} ({time.monotonic() - self._began:.0f} s)", flush=True)


def main() -> None:
    """Parses, installs, leaves the stamps."""
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr] # a check mark is not worth a crash
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("set", nargs="?", choices=SETS, default="demo")
    parser.add_argument("--venv", type=Path, default=Path(".venv"), help="where; default .venv")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    line = Line(f"installing into {options.venv}")
    try:
        _install(options.set, options.venv, line)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        line.clear()
        print(f"  Stopped. {options.venv}/ is incomplete; the same command goes on from there.")
        sys.exit(130)
    except OSError as error:
        line.clear()
        stop(f"cannot install into {options.venv}: {error.strerror or error} ({error.filename or ROOT})")


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _install(name: str, venv: Path, line: Line) -> None:
    line.show("a virtual environment")
    python = _environment(venv)
    lock = ROOT / "deploy" / "lock" / f"{name}.txt"
    wanted = len(re.findall(r"(?m)^[\w.-]+==", lock.read_text()))
    with (venv / "install.log").open("w") as log:
        _pip(python, ["--only-binary", ":all:", "--require-hashes", "-r", str(lock)], log, line, wanted)
        if name != "fuzz":
            _pip(python, ["--no-deps", "--no-build-isolation", "-e", str(ROOT)], log, line, 0)
    for stamp in SETS[name]:
        (venv / f".{stamp}").touch()
    line.done(f"installed into {venv}")


def _environment(venv: Path) -> Path:
    """The Python of a virtual environment that works: the one that is there, or a new one."""
    python = venv / "bin" / "python"
    clone = venv / ".clone"  # the path that its programs name: in a clone that was moved none of them starts
    works = f"import sys, pip; sys.exit(sys.version_info < {OLDEST})"
    stays = clone.exists() and clone.read_text() == str(ROOT)
    if stays and python.exists() and not subprocess.call([python, "-I", "-c", works], **QUIET):
        return python
    if venv.exists() and not (venv / "pyvenv.cfg").exists() and any(venv.iterdir()):
        stop(f"{venv} is there and is no virtual environment; nothing in it was touched.")
    try:
        import ensurepip  # noqa: F401, PLC0415 - Debian has it apart from Python
    except ImportError:
        version = ".".join(map(str, sys.version_info[:2]))
        stop(f"{sys.executable} has no venv or pip. On Debian and Ubuntu: apt install python{version}-venv")
    made = subprocess.run(
        [sys.executable, "-I", "-m", "venv", "--clear", str(venv)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if made.returncode:
        _fail(made.stdout.decode(errors="replace"), f"{sys.executable} -m venv {venv} failed", venv)
    clone.write_text(str(ROOT))
    return python


def _pip(python: Path, arguments: list[str], log: Any, line: Line, wanted: int) -> None:
    """Runs pip to its end; what it says goes to the log, and how far it is to the line."""
    env = {name: value for name, value in os.environ.items() if name not in {f"PIP_{each}" for each in NOT_HERE}}
    env = {"PIP_RETRIES": "2", **env, "PIP_USER": "0", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [python, *PIP, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=env,
    )
    said = b""
    out: Any = process.stdout
    try:
        while True:
            if select.select([out], [], [], TICK)[0]:
                some = os.read(out.fileno(), 65536)
                if not some:
                    break
                said += some
                log.write(some.decode(errors="replace"))
                log.flush()
            line.show(_progress(said.decode(errors="replace"), wanted))
        process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
        out.close()
    if process.returncode:
        line.clear()
        _fail(said.decode(errors="replace"), f"pip failed; all that it said is in {log.name}", python.parent)


def _progress(said: str, wanted: int) -> str:
    """How far pip is, by its own words."""
    if not wanted:
        return "dgproxy itself"
    wanted -= len(re.findall(r"(?m)^Ignoring ", said))
    got = len(set(re.findall(r"(?m)^[A-Z].*\(line (\d+)\)\)$", said)))
    if "\nInstalling collected packages" in said:
        return f"unpacking {wanted} packages"
    retries = "; no answer, trying again" if said.rpartition("\nWARNING: Retrying")[2].count("\n") == 1 else ""
    return f"{got} of {wanted} packages{retries}"


def _fail(said: str, otherwise: str, place: Path) -> NoReturn:
    """The first fault that pip's words tell of, in ours; else its last error."""
    if shutil.disk_usage(place if place.exists() else ".").free < SCARCE:
        said += "No space left on device"  # not all that failed of it say so
    for pattern, words in FAULTS.items():
        match = re.search(pattern, said)
        if match is None:
            continue
        line = said[said.rfind("\n", 0, match.start()) + 1 :].partition("\n")[0].strip()
        what = match.groupdict().get("what", "")
        python = ".".join(map(str, sys.version_info[:2]))
        tmp = os.environ.get("TMPDIR", "/tmp")  # noqa: S108 - where pip unpacks
        stop(words.format(what=what, line=line, python=python, tmp=tmp))
    errors = re.findall(r"(?m)^ERROR: (.*)", said) or said.strip().splitlines()
    stop(": ".join([otherwise, *errors[-1:]]))


if __name__ == "__main__":
    main()
