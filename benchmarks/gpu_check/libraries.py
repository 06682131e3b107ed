"""The compiled libraries, built on the spot where they are missing, and the compiled Triton kernels that came along."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu_check.process import ROOT

NAMES = ("_native.abi3.so", "_cuda.abi3.so")


def missing() -> list[str]:
    return [name for name in NAMES if not (ROOT / "wat_kernels" / name).exists()]


def build_missing(folder: Path, seconds: float) -> None:
    """Builds both where one is missing. Raises CannotRun, in one line, where that fails; the log is in `folder`."""
    from benchmarks.gpu_check.command import CannotRun
    from build_tools import cuda

    if not (names := missing()):
        return
    if reason := cuda.refusal():
        raise CannotRun(f"{' and '.join(names)} not built, and cannot be here: {reason}")
    print(f"building {' and '.join(names)}", flush=True)
    log = folder / "build.log"
    environment = {**os.environ, "WAT_FORCE_NATIVE": "1", "WAT_FORCE_CUDA": "1"}
    environment.setdefault("TORCH_CUDA_ARCH_LIST", _capability())
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    with log.open("w") as file:
        try:
            run = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, timeout=seconds
            )
        except subprocess.TimeoutExpired:
            raise CannotRun(f"the libraries were not built within {seconds:.0f} s, see {log}") from None
    if run.returncode or missing():
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] or ["no output"]
        raise CannotRun(f"the libraries do not build: {lines[-1].strip()[:300]} (all of it in {log})")


def _capability() -> str:
    """Of this GPU alone: code for others would be built for nothing."""
    import torch

    return "{}.{}".format(*torch.cuda.get_device_capability(0))


def triton_cache() -> dict[str, str]:
    """The environment in which Triton finds the kernels that were compiled for this GPU elsewhere, if there are any."""
    from benchmarks.gpu_check.precompile import unpacked_cache

    found = unpacked_cache()
    return {} if found is None else {"TRITON_CACHE_DIR": str(found)}
