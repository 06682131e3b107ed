"""Builds wat_kernels/_native.abi3.so, the C++ CPU backend, next to the pure-Python packages of pyproject.toml.

WAT_SKIP_NATIVE=1        build nothing
WAT_SANITIZE=a,b         compile with -fsanitize=a,b and debug information (`make sanitize`)
Without a C++ compiler the install succeeds, says so in one line, and everything runs on the other backends.
"""

import os
import shutil
import sys
from pathlib import Path

from setuptools import find_packages, setup

_CPU = Path("csrc/cpu")


def _native_extension():
    """The extension, or None with one line on stderr when it cannot be built here."""
    if os.environ.get("WAT_SKIP_NATIVE") == "1":
        return None
    try:
        from torch.utils.cpp_extension import CppExtension
    except ImportError:
        print("wat-kernels: torch is not importable here, the native CPU backend is not built", file=sys.stderr)
        return None
    if shutil.which(os.environ.get("CXX", "c++").split()[0]) is None:
        print("wat-kernels: no C++ compiler found, the native CPU backend is not built", file=sys.stderr)
        return None
    flags = [
        "-O3",
        "-g0",
        "-std=c++17",
        "-fvisibility=hidden",
        "-fno-math-errno",
        "-Wall",
        "-Wextra",
        "-Wno-unused-parameter",
        "-Wno-unknown-pragmas",
        "-DPy_LIMITED_API=0x030A0000",
        "-DTORCH_TARGET_VERSION=0x020a000000000000",
    ]  # the stable ABI of torch 2.10
    link = []
    if sanitize := os.environ.get("WAT_SANITIZE"):
        flags += [f"-fsanitize={sanitize}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1"]
        link += [f"-fsanitize={sanitize}"]
    return CppExtension(
        "wat_kernels._native",
        sorted(str(path) for path in _CPU.glob("*.cpp")),
        depends=sorted(str(path) for path in Path("csrc").glob("*/*.h")),
        extra_compile_args=flags,
        extra_link_args=link,
        py_limited_api=True,
    )


def _build_command():
    """torch's build_ext (ninja), which a failing compile does not turn into a failing install."""
    from torch.utils.cpp_extension import BuildExtension

    class Build(BuildExtension):
        def run(self):
            try:
                super().run()
            except Exception as error:
                if os.environ.get("WAT_FORCE_NATIVE") == "1":
                    raise
                print(
                    f"wat-kernels: the native CPU backend was not built ({str(error).splitlines()[0]})", file=sys.stderr
                )

    return Build


extension = _native_extension()
setup(
    packages=find_packages(".", include=["wat_kernels", "wat_kernels.*"]) + find_packages("python"),
    package_dir={"watnn": "python/watnn"},
    ext_modules=[extension] if extension else [],
    cmdclass={"build_ext": _build_command()} if extension else {},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if extension else {},
)
