"""Fuzzes: `python -m tests.fuzz [HARNESS ...] [--seconds N]`, each for as long; `--replay FILE` runs one input.

Needs atheris (`make fuzz` installs it: CPython 3.11 to 3.13 on Linux x86-64). Exit status 1 if one failed, with the
input that made it fail.
"""

import argparse
import importlib
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final, NoReturn

from tests.fuzz.harness import KEPT, inputs, load, names

REPOSITORY: Final = Path(__file__).parents[2]
FOUND: Final = REPOSITORY / "build" / "fuzz"  # inputs that failed, by harness
SLOW: Final = 5  # seconds for one input
GRACE: Final = 60  # seconds beyond the fuzzing itself
MEMORY: Final = 2048  # MiB
WATCHED: Final = ("dgproxy.wire", "dgproxy.access")


def _escape(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


def fuzz(name: str, seconds: int) -> bool:
    """Fuzzes one harness in a process of its own; whether it held."""
    with tempfile.TemporaryDirectory(prefix=f"fuzz-{name}-") as directory:
        corpus, found = Path(directory) / "corpus", FOUND / name
        corpus.mkdir()
        found.mkdir(parents=True, exist_ok=True)
        before = set(found.iterdir())
        for number, (_, data) in enumerate(inputs(name)):
            (corpus / str(number)).write_bytes(data)
        words = Path(directory) / "words"
        words.write_text("".join(f'"{_escape(word)}"\n' for word in load(name).words))
        command = [sys.executable, "-m", "tests.fuzz", "--inside", name, str(corpus)]
        command += [f"-max_total_time={seconds}", f"-max_len={load(name).longest}", f"-dict={words}"]
        command += [f"-timeout={SLOW}", f"-rss_limit_mb={MEMORY}", f"-artifact_prefix={found}/", "-print_final_stats=1"]
        log = FOUND / f"{name}.log"
        with log.open("wb") as output:
            try:
                code = subprocess.run(
                    command,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=REPOSITORY,
                    timeout=seconds + GRACE,
                    check=False,
                ).returncode
            except subprocess.TimeoutExpired:
                code = -1
        said = log.read_text(errors="replace")
        runs = said.rpartition("stat::number_of_executed_units:")[2].split()[:1]
        new = sorted(set(found.iterdir()) - before)
    if code == 0:
        _say(f"{name}: held for {runs[0] if runs else '?'} inputs in {seconds} s")
        return True
    _say(f"{name}: FAILED (exit {code}); the end of {log.relative_to(REPOSITORY)}:")
    _say("\n".join(said.splitlines()[-40:]))
    for path in new:
        _say(f"\nThe input: {path.read_bytes()!r}")
        _say(f"Again:     python -m tests.fuzz {name} --replay {path.relative_to(REPOSITORY)}")
        _say(f"To keep:   cp {path.relative_to(REPOSITORY)} {(KEPT / name).relative_to(REPOSITORY)}/WHAT-IT-SHOWS")
    return False


def _inside(name: str, arguments: list[str]) -> NoReturn:
    """The fuzzing process: libFuzzer ends it."""
    atheris: Any = importlib.import_module("atheris")
    # h11 and llhttp are the judges, not the judged: their branches would only slow it.
    with atheris.instrument_imports(include=list(WATCHED)):
        harness = load(name)
    atheris.Setup([f"tests.fuzz.{name}", *arguments], harness.check, internal_libfuzzer=True)
    atheris.Fuzz()
    raise AssertionError("libFuzzer came back")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    """The exit status."""
    if sys.argv[1:2] == ["--inside"]:
        _inside(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("harnesses", nargs="*", metavar="HARNESS", help=f"of {', '.join(names())}; default: all")
    parser.add_argument("--seconds", type=int, default=60, help="for each (default: %(default)s)")
    parser.add_argument("--replay", type=Path, metavar="FILE")
    options = parser.parse_args()
    if unknown := set(options.harnesses) - set(names()):
        parser.error(f"no harness {', '.join(sorted(unknown))}; there are {', '.join(names())}")
    chosen = options.harnesses or names()
    if options.replay is not None:
        if len(chosen) != 1:
            parser.error("--replay needs one harness")
        load(chosen[0]).check(options.replay.read_bytes())
        _say(f"{chosen[0]}: held for {options.replay}")
        return 0
    if importlib.util.find_spec("atheris") is None:
        _say("atheris is not installed; `make fuzz` does it (CPython 3.11 to 3.13 on Linux x86-64)")
        return 2
    held = [fuzz(name, options.seconds) for name in chosen]  # all of them, even after one that failed
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
