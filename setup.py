"""The compiled form of the relay's inner loop; without a compiler dgproxy does without. All else: pyproject.toml."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "dgproxy.net._pump",
            ["dgproxy/net/_pump.c"],
            extra_compile_args=["-O2", "-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra"],
            optional=True,
        )
    ]
)
