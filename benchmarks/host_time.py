"""What a call of a layer costs the host before the GPU has anything to do.

    python -m benchmarks.host_time [--calls 2000]

On a GPU: nn.Conv2d and nn.Linear against the shadow layers through Triton, on tensors so small that the host is what
takes time. Without one, everything is the same but the driver, in whose place stub_driver.c answers at once (a C compiler
is needed); the tensors are on the CPU then, so that what torch itself does is cheaper: there is no second launch for a
key, and the plain layers, which compute on one pixel, are no more than a hint.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

_ROUNDS = 15
_PROGRAMS = 2 * 132  # of a reduction that is cut, as triton_launch.programs_wanted has it for an H100 or H200


class HostTime(NamedTuple):
    """Microseconds of the host for one warm call, the median of some rounds. where: "cuda", or "stub" for a driver that does nothing."""

    what: str
    microseconds: float
    where: str


def measure(calls: int) -> Iterator[HostTime]:
    """calls: how many of each are timed. Without a GPU, Triton's driver is a stub in this process from then on.

    Raises RuntimeError where the stub cannot be built.
    """
    where, device = ("cuda", "cuda") if torch.cuda.is_available() else ("stub", "cpu")
    if where == "stub":
        stub_driver()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for what, call in _calls(device):
            yield HostTime(what, 1e6 * _seconds(call, calls, device), where)
    finally:
        torch.set_num_threads(threads)


@cache
def stub_driver() -> None:
    """Once a process: makes Triton compile for an H100, load into nothing and launch nothing, and lets its kernels be given CPU tensors.

    Launches are planned for its multiprocessors, too: whether a weight gradient is cut decides which scratch its kernel is
    given, and so what is compiled.
    """
    import triton

    folder = Path(tempfile.mkdtemp())
    source = Path(__file__).with_name("stub_driver.c")
    library = folder / "libcuda.so.1"
    command = ["cc", "-O2", "-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-o", str(library), str(source)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(f"the stub of the CUDA driver cannot be built: {error}") from error
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    os.environ["TRITON_LIBCUDA_PATH"] = str(folder)

    from triton.backends.nvidia.driver import CudaDriver

    from wat_kernels.ops import conv, linear
    from wat_kernels.ops.conv import triton as conv_backend
    from wat_kernels.ops.linear import triton as linear_backend
    from wat_kernels.torch_library import implement_shadow_op

    class Driver(CudaDriver):
        def __init__(self):
            super().__init__()
            self.get_current_device = lambda: 0
            self.get_current_stream = lambda device: 0
            self.get_device_capability = lambda device: (9, 0)

    triton.runtime.driver.set_active(Driver())
    for name, op, backend in (("shadow_conv", conv, conv_backend), ("shadow_linear", linear, linear_backend)):
        implement_shadow_op(name, "triton", backend.forward, backend.backward, "CPU")
        backend.refusal = lambda call: ""  # of tensors on the CPU
        backend.programs_wanted = lambda device: _PROGRAMS
        assert op.BACKENDS["triton"] is backend


def _calls(device: str) -> Iterator[tuple[str, Callable[[], object]]]:
    """(what, call) of an empty launch, where there is something to launch on, and of each layer, plain and ours."""
    import watnn
    from watnn.transforms import WAT, DropConnect

    from wat_kernels import triton_launch

    if device == "cuda":
        nothing = torch.empty(1, device=device)
        yield "an empty launch", nothing.zero_
    conv, linear = nn.Conv2d(64, 64, 3, padding=1), nn.Linear(64, 64)
    ours = [
        watnn.WATConv2d.from_module(conv, WAT(), backend="triton"),
        watnn.WATLinear.from_module(linear, DropConnect(0.3), backend="triton"),
    ]
    images = torch.randn(1, 64, 4, 4).to(device, torch.bfloat16, memory_format=torch.channels_last)
    rows = torch.randn(4, 64).to(device, torch.bfloat16)
    inputs = [images, rows]
    layers = [layer.to(device, torch.bfloat16) for layer in ours]
    layers[0].to(memory_format=torch.channels_last)
    plain = [conv.to(device, torch.bfloat16), linear.to(device, torch.bfloat16)]
    plain_inputs = inputs
    if device == "cpu":  # what they compute must not count
        plain, plain_inputs = (
            [nn.Conv2d(1, 1, 3, padding=1), nn.Linear(1, 1)],
            [torch.randn(1, 1, 1, 1), torch.randn(1, 1)],
        )
    with triton_launch.choosing(lambda kernel, suited: suited[0]):  # nothing is measured, here or there
        for one, x in zip([*plain, *layers], [*plain_inputs, *inputs], strict=True):
            yield from _passes(one, x)


def _passes(layer: nn.Module, x: Tensor) -> Iterator[tuple[str, Callable[[], object]]]:
    dy, leaves = torch.ones_like(layer(x)), list(layer.parameters())

    def without_gradients() -> object:
        with torch.no_grad():
            return layer(x)

    name = type(layer).__name__ if type(layer).__module__.startswith("watnn") else f"nn.{type(layer).__name__}"
    yield f"{name} without gradients", without_gradients
    yield f"{name} forward", lambda: layer(x)
    yield f"{name} forward and backward", lambda: torch.autograd.grad(layer(x), leaves, dy)


def _seconds(call: Callable[[], object], calls: int, device: str) -> float:
    """The median over rounds of the mean over calls. The GPU's queue is empty before a round, and no round fills it."""
    each = max(1, min(calls // _ROUNDS, 200))
    for _ in range(min(calls, 50)):
        call()
    found = []
    for _ in range(_ROUNDS):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(each):
            call()
        found.append((time.perf_counter() - start) / each)
    return statistics.median(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=2000, help="of each layer and pass (default %(default)s)")
    try:
        for found in measure(parser.parse_args().calls):
            print(f"{found.what:45}{found.microseconds:8.1f} us  {found.where}", flush=True)
    except RuntimeError as error:
        print(f"host_time: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
