"""`python -m tests.sanitize`: the native pump and poll, built with AddressSanitizer and UBSan, under all their tests.

Exit status is not 0 if a test fails or a sanitizer speaks. Needs gcc with its sanitizers, and Python's headers.
"""

import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
MODULES: Final = ("_pump", "_poll")
SANITIZERS: Final = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer")
TESTS: Final = ("test_pump.py", "test_poll.py", "test_relay.py", "test_relay_frames.py", "test_relay_machine.py")
EXAMPLES: Final = "20000"  # of test_pump's conversations: the fuzzing
# Puts the sanitized builds in the others' place, in every process that is started.
SITE: Final = """
import importlib.machinery, importlib.util, sys
for name, path in {paths!r}.items():
    loader = importlib.machinery.ExtensionFileLoader("dgproxy.net." + name, path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("dgproxy.net." + name, loader))
    loader.exec_module(module)
    sys.modules["dgproxy.net." + name] = module
"""


def _library(name: str) -> str:
    found = subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def main() -> int:
    """Builds, then runs the tests with it."""
    with tempfile.TemporaryDirectory() as directory:
        built = {name: str(Path(directory) / f"{name}.so") for name in MODULES}
        include = sysconfig.get_paths()["include"]
        flags = [
            "-g",
            "-O1",
            "-std=c11",
            "-D_GNU_SOURCE",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-shared",
            "-fPIC",
            *SANITIZERS,
        ]
        for name, path in built.items():
            source = str(ROOT / "dgproxy" / "net" / f"{name}.c")
            subprocess.run(["gcc", *flags, f"-I{include}", source, "-o", path], check=True)
        (Path(directory) / "sitecustomize.py").write_text(SITE.format(paths=built))
        environment = {
            **os.environ,
            "LD_PRELOAD": f"{_library('libasan.so')} {_library('libubsan.so')}",
            "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",  # CPython leaks on purpose
            "PYTHONMALLOC": "malloc",  # so that each object is its own allocation
            "PYTHONPATH": directory,
            "DGPROXY_PUMP": "native",
            "DGPROXY_EXAMPLES": os.environ.get("DGPROXY_EXAMPLES", EXAMPLES),
        }
        tests = [str(ROOT / "tests" / "wire" / name) for name in TESTS]
        command = [sys.executable, "-m", "pytest", "-q", "--timeout=3000", *tests]
        return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
