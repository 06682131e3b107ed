"""The extensions that can be built here, and a build_ext that a failing one does not turn into a failing install."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from setuptools import Extension

from build_tools import cpu, cuda

_LIBRARIES = {"NATIVE": ("native CPU", cpu), "CUDA": ("CUDA", cuda)}


def extensions() -> list[Extension]:
    """Those that are asked for and can be built. RuntimeError where one that is forced cannot."""
    found = []
    for switch, (name, library) in _LIBRARIES.items():
        if os.environ.get(f"WAT_SKIP_{switch}") == "1":
            continue
        if reason := library.refusal():
            _give_up(switch, name, RuntimeError(reason))
            continue
        extension = library.extension()
        extension.switch = switch
        found.append(extension)
    return found


def _give_up(switch: str, name: str, error: Exception) -> None:
    if os.environ.get(f"WAT_FORCE_{switch}") == "1":
        raise error
    print(f"wat-kernels: the {name} backend is not built ({str(error).strip().splitlines()[0]})", file=sys.stderr)


def build_command() -> type:
    """torch's build_ext (ninja), with kernels compiled by nvcc."""
    from torch.utils.cpp_extension import BuildExtension

    class Build(BuildExtension):
        def build_extension(self, extension: Extension) -> None:
            try:
                if extension.switch == "CUDA":
                    extension.extra_objects = cuda.compile_kernels(Path(self.build_temp) / "cuda")
                super().build_extension(extension)
            except Exception as error:
                name, _ = _LIBRARIES[extension.switch]
                _give_up(extension.switch, name, error)
                self.extensions = [other for other in self.extensions if other is not extension]

    return Build
