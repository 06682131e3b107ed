"""wat_kernels/_native.abi3.so, the C++ CPU backend.

WAT_SKIP_NATIVE=1   build nothing
WAT_FORCE_NATIVE=1  fail where it does not build
WAT_SANITIZE=a,b    compile with -fsanitize=a,b and debug information (`make sanitize`)
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from setuptools import Extension

# shared with the host code of the CUDA library; the stable ABI of torch 2.10, the limited API of Python 3.10
HOST_FLAGS = [
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
]


def without_paths() -> list[str]:
    """Flags that keep the folders of this machine out of the libraries, where torch's headers write their own names."""
    from torch.utils.cpp_extension import include_paths

    return [f"-ffile-prefix-map={folder}=torch" for folder in include_paths()] + [f"-ffile-prefix-map={Path.cwd()}=."]


def refusal() -> str:
    """Why a C++ extension cannot be built here, or an empty string."""
    try:
        import torch  # noqa: F401
    except ImportError:
        return "torch is not importable here"
    if shutil.which(os.environ.get("CXX", "c++").split()[0]) is None:
        return "no C++ compiler found"
    return ""


def extension() -> Extension:
    from torch.utils.cpp_extension import CppExtension

    flags, link = [*HOST_FLAGS, *without_paths()], []
    if sanitize := os.environ.get("WAT_SANITIZE"):
        flags += [f"-fsanitize={sanitize}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1"]
        link += [f"-fsanitize={sanitize}"]
    return CppExtension(
        "wat_kernels._native",
        sorted(map(str, Path("csrc/cpu").glob("*.cpp"))),
        depends=sorted(map(str, [*Path("csrc/common").glob("*.h"), *Path("csrc/cpu").glob("*.h")])),
        extra_compile_args=flags,
        extra_link_args=link,
        py_limited_api=True,
    )
