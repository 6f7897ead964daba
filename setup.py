"""What is compiled: the relay's inner loop, and who is told of its fds; without a compiler dgproxy does without.

All else: pyproject.toml.
"""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            f"dgproxy.net.{name}",
            [f"dgproxy/net/{name}.c"],
            extra_compile_args=["-O2", "-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra"],
            optional=True,
        )
        for name in ("_pump", "_poll")
    ]
)
