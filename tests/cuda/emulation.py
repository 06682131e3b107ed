"""Builds a tests/cuda/emulate_<name>.cpp: kernels of csrc/cuda compiled for the CPU, see emulator.h."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).parents[2]
COMPILER = os.environ.get("CXX", "c++").split()
FLAGS = ["-std=c++17", "-O1", "-g0", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function"]


def needs_compiler() -> None:
    """Skips a test where there is no C++ compiler."""
    if shutil.which(COMPILER[0]) is None:
        pytest.skip("no C++ compiler found")


@cache
def library(name: str, torch_library: bool = False) -> ctypes.CDLL:
    """The library of emulate_<name>.cpp, built once a process into a folder of its own.

    torch_library: it registers ops, so it is compiled against torch's stable ABI and loaded by torch
    """
    needs_compiler()
    folder = Path(tempfile.mkdtemp(prefix="wat-emulate-"))
    try:
        return load(build(name, folder, torch_library), torch_library)
    finally:
        shutil.rmtree(folder)  # what is loaded stays


def build(name: str, folder: Path, torch_library: bool = False) -> Path:
    """Compiles emulate_<name>.cpp into `folder`."""
    target = folder / f"{name}.so"
    command = [*COMPILER, *FLAGS, str(ROOT / f"tests/cuda/emulate_{name}.cpp"), "-o", str(target)]
    if torch_library:
        command += ["-DTORCH_TARGET_VERSION=0x020a000000000000"]
        command += [flag for folder in cpp_extension.include_paths() for flag in ("-isystem", folder)]
        command += [
            flag for folder in cpp_extension.library_paths() for flag in (f"-L{folder}", f"-Wl,-rpath,{folder}")
        ]
        command += ["-ltorch_cpu", "-lc10"]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert run.returncode == 0, run.stdout
    return target


def load(path: Path, torch_library: bool = False) -> ctypes.CDLL:
    """The functions of a built library; its ops are registered where it is a `torch_library`."""
    if torch_library:
        torch.ops.load_library(str(path))
    return ctypes.CDLL(str(path))
