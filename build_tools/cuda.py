"""wat_kernels/_cuda.abi3.so, the CUDA backend.

WAT_SKIP_CUDA=1          build nothing
WAT_FORCE_CUDA=1         fail where it does not build
CUDA_HOME                the toolkit, instead of the one of the first nvcc in PATH or /usr/local/cuda
TORCH_CUDA_ARCH_LIST     compute capabilities to compile for, as for torch: "9.0" or "8.0;9.0;10.0+PTX", which is the default

Whether it can be built is a question of nvcc alone: a torch without CUDA serves as well, since only headers of torch's
stable ABI are read, and only by the host's compiler. For the same reason nvcc is called here and not by
torch.utils.cpp_extension, which wants the toolkit that torch was built with. The CUDA runtime is linked statically and
finds the driver when it is first used, so the library loads where there is no GPU.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension
from setuptools.modified import newer_group

from build_tools import cpu

SOURCES = Path("csrc/cuda")
DEFAULT_ARCHITECTURES = "8.0;9.0;10.0+PTX"
_LEAST = (8, 0)  # tensor-core instructions with bf16 and tf32

NVCC_FLAGS = [
    "-O3",
    "-std=c++17",
    "-Xcompiler",
    "-fPIC,-fvisibility=hidden,-Wall,-Wextra",
    "-Wno-deprecated-gpu-targets",
]


def nvcc() -> str | None:
    """The compiler: of CUDA_HOME or CUDA_PATH where one is set, else the one in PATH, else of /usr/local/cuda."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    if homes:
        return shutil.which("nvcc", path=f"{homes[0]}/bin")
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def refusal() -> str:
    """Why the extension cannot be built here, or an empty string."""
    return cpu.refusal() or ("" if nvcc() else "no nvcc found: set CUDA_HOME")


def extension() -> Extension:
    """Its kernels are compiled by `compile_kernels` and linked as extra_objects."""
    from torch.utils.cpp_extension import CppExtension

    include, library = _folders()
    return CppExtension(
        "wat_kernels._cuda",
        sorted(map(str, SOURCES.glob("*.cpp"))),
        depends=[*headers(), *kernels()],
        include_dirs=include,
        library_dirs=library,
        libraries=["cudart_static", "rt", "dl", "pthread"],
        extra_compile_args=[*cpu.HOST_FLAGS, *cpu.without_paths()],
        extra_link_args=["-Wl,--exclude-libs,ALL"],  # a statically linked runtime keeps its names to itself
        py_limited_api=True,
    )


def _folders() -> tuple[list[str], list[str]]:
    """Where nvcc finds its headers and libraries, as it says itself: it may be a script that calls another."""
    printed = run_nvcc(["--dryrun", "any.cu"])
    words = [
        word for line in re.findall(r"^#\$ (?:INCLUDES|LIBRARIES)=(.*)$", printed, re.M) for word in shlex.split(line)
    ]
    return [w[2:] for w in words if w.startswith("-I")], [w[2:] for w in words if w.startswith("-L")]


def kernels() -> list[str]:
    return sorted(map(str, SOURCES.glob("*.cu")))


def headers() -> list[str]:
    return sorted(map(str, [*Path("csrc/common").glob("*.h"), *SOURCES.glob("*.h")]))


def compile_kernels(folder: Path) -> list[str]:
    """Object files of all kernels, in `folder`; those that are newer than what they depend on stay."""
    folder.mkdir(parents=True, exist_ok=True)
    flags = [*NVCC_FLAGS, *architecture_flags()]

    def compile_one(source: str) -> str:
        target = folder / f"{Path(source).stem}.o"
        if newer_group([source, *headers(), __file__], str(target)):
            run_nvcc([*flags, "-c", source, "-o", str(target)])
        return str(target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_one, kernels()))


def run_nvcc(arguments: Sequence[str]) -> str:
    """What nvcc prints; RuntimeError with it where nvcc fails."""
    run = subprocess.run([nvcc(), *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if run.returncode:
        raise RuntimeError(f"nvcc {' '.join(arguments)} failed:\n{run.stdout}")
    return run.stdout


def architecture_flags() -> list[str]:
    """-gencode flags for TORCH_CUDA_ARCH_LIST, or for those of the default that this nvcc knows."""
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST")
    chosen = _parse(wanted or DEFAULT_ARCHITECTURES)
    if not wanted:
        known = run_nvcc(["--list-gpu-code"]).split()
        chosen = [(number, ptx) for number, ptx in chosen if f"sm_{number}" in known]
        chosen[-1] = (chosen[-1][0], True)
    # From one intermediate code, the oldest: the kernels use nothing newer, and making it takes most of the time. Of
    # entries as 9.0a, which nothing older can be compiled to, each has its own.
    plain = [number for number, _ in chosen if number.isdigit()]
    flags = []
    if plain:
        oldest = min(plain, key=int)
        codes = [f"sm_{number}" for number in plain]
        codes += [f"compute_{oldest}"] if any(ptx for number, ptx in chosen if number.isdigit()) else []
        flags += ["-gencode", f"arch=compute_{oldest},code=[{','.join(codes)}]"]
    for number, ptx in chosen:
        if not number.isdigit():
            flags += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
            flags += ["-gencode", f"arch=compute_{number},code=compute_{number}"] if ptx else []
    return flags


def _parse(text: str) -> list[tuple[str, bool]]:
    """("90", whether with PTX) for each entry of an architecture list; older ones than 8.0 are left out with a line."""
    chosen = []
    for entry in re.split(r"[;\s]+", text.strip()):
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", entry)
        if match is None:
            raise ValueError(f"TORCH_CUDA_ARCH_LIST={text!r}; accepted are entries as 9.0, 9.0a or 9.0+PTX")
        major, minor, suffix, ptx = match.groups()
        if (int(major), int(minor)) < _LEAST:
            print(f"wat-kernels: the CUDA backend is not compiled for {entry}: it needs 8.0 or newer", file=sys.stderr)
            continue
        chosen.append((f"{major}{minor}{suffix}", bool(ptx)))
    if not chosen:
        raise ValueError(f"TORCH_CUDA_ARCH_LIST={text!r} has no architecture of 8.0 or newer")
    return chosen
