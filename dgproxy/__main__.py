"""Where `dgproxy` and `python -m dgproxy` begin: also in a clone that nothing was installed for, or in an old Python.

Rule of this file: every Python since 3.6 parses it, so that an old one can be told so.
"""

import signal
import sys
from pathlib import Path


def _here() -> str:
    """What to type where this stands, for the same to work."""
    clone = Path(__file__).absolute().parent.parent
    words = " ".join(sys.argv[1:])
    if (clone / ".venv" / "bin" / "dgproxy").exists():
        return f".venv/bin/dgproxy {words}".rstrip()
    if (clone / "deploy" / "install.py").exists():
        return f"make demo, or without make: python3 deploy/install.py && .venv/bin/dgproxy {words or 'demo'}"
    return "pip install 'dgproxy[demo]'"


if not sys.platform.startswith("linux"):
    sys.exit(f"dgproxy: runs on Linux, and this is {sys.platform}. Try it in a Linux container or virtual machine.")
if sys.version_info < (3, 11):  # noqa: UP036 - who comes here may well be older
    sys.exit(
        f"dgproxy: needs Python 3.11 or newer, and {sys.executable} is {sys.version.split()[0]}. "
        f"Try another, like: python3.11 -m dgproxy {' '.join(sys.argv[1:])}".rstrip()
    )
interrupt = signal.getsignal(signal.SIGINT)
if interrupt is signal.default_int_handler:  # and not ignored, which is the wish of who started us
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing runs yet that a Ctrl-C would have to end in order
try:
    from dgproxy.cli import start as main
except ModuleNotFoundError as error:
    if not error.name or error.name.split(".")[0] == "dgproxy":
        raise
    sys.exit(f"dgproxy: {error.name} is not installed for {sys.executable}. Try: {_here()}")
except (ImportError, OSError, MemoryError) as error:
    sys.exit(f"dgproxy: cannot be loaded by {sys.executable}: {error}")
signal.signal(signal.SIGINT, interrupt)
if __name__ == "__main__":
    main()
