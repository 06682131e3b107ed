"""The CPU in place of a GPU: Triton interprets or compiles without effect, CUDA kernels are emulated thread by thread."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

_MULTIPROCESSORS = 4  # of the emulated device


_CACHE = "WAT_EMULATOR_CACHE"  # in the environment of the stages: the folder with the emulated kernels
_EMULATED = ("depthwise", "linear")


def environment(kind: str, folder: Path) -> dict[str, str]:
    """What a rehearsed stage's process gets.

    kind:   `Stage.rehearsal`
    folder: where `build` put the emulated kernels
    """
    found = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", _CACHE: str(folder)}
    return {**found, "TRITON_INTERPRET": "1"} if kind == "interpreter" else found


def build(folder: Path) -> None:
    """Compiles the CUDA kernels for the CPU, once for all stages. Raises RuntimeError where that fails."""
    from tests.cuda import emulation

    if shutil.which(emulation.COMPILER[0]) is None:
        raise RuntimeError("a rehearsal emulates the CUDA kernels with a C++ compiler, and none was found")
    for name in _EMULATED:
        emulation.build(name, folder, torch_library=True)


def prepare(kind: str) -> None:
    """Makes the backends `triton` and `cuda` accept tensors on the CPU, in this process. kind: `Stage.rehearsal`."""
    torch.manual_seed(0)
    if kind == "stub":
        from benchmarks.host_time import stub_driver

        stub_driver()
    else:
        _emulate(Path(os.environ[_CACHE]))


def _emulate(folder: Path) -> None:
    from tests.cuda import emulation
    from wat_kernels.ops.conv import cuda as depthwise
    from wat_kernels.ops.linear import cuda as linear
    from wat_kernels.torch_library import implement_shadow_op

    accepts: Callable = lambda call: "" if call.device == "cpu" else f"x is on {call.device}; this is a rehearsal"  # noqa: E731
    for name, op, backend in zip(_EMULATED, ("shadow_conv", "shadow_linear"), (depthwise, linear), strict=True):
        emulation.load(folder / f"{name}.so", torch_library=True)
        backend.stream_of = lambda tensor: 0
        backend.multiprocessors = lambda device: _MULTIPROCESSORS
        backend.refusal = accepts
        implement_shadow_op(op, "cuda", backend.forward, backend.backward, "CPU")
