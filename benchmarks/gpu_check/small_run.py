"""Every CUDA kernel and one fixed configuration of each Triton kernel once, on small problems: what compute-sanitizer watches.

Nothing is tuned: measuring configurations under the sanitizer would take minutes and tell nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch

from benchmarks.gpu_check.passes import accepting
from wat_kernels import MatrixGrid, Noise, TapTable, dispatch, shadow_conv2d, shadow_linear, triton_launch
from wat_kernels.ops import conv, linear

_NOISES = (None, Noise("dropconnect", 0.3), Noise("multiplicative", 0.1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, a few calls")
    rehearsal = parser.parse_args().rehearse
    if rehearsal:
        from benchmarks.gpu_check.rehearsal import prepare

        prepare("interpreter")
    device = "cpu" if rehearsal else "cuda"
    torch.manual_seed(0)
    made = 0
    with triton_launch.choosing(lambda kernel, suited: suited[-1]):  # the smallest tiles: the most programs
        for _ in calls(device):
            made += 1
            if rehearsal and made == 6:
                break
    if not rehearsal:
        torch.cuda.synchronize()
    print(f"{made} calls, forward and backward")


def calls(device: str) -> Iterator[None]:
    """Makes one call, forward and backward, for each step of the iteration."""
    # rows that move taps, mix them, and leave all of them out
    # the same ones always: how many taps a row mixes is compiled into the kernels, and precompile must meet those
    fixed = torch.Generator().manual_seed(0)
    mixed = torch.randn(9, 9, generator=fixed) * (torch.rand(9, 9, generator=fixed) < 0.3)
    maps = torch.stack([torch.eye(9).roll(1, 1), mixed, torch.zeros(9, 9)])
    table, grid = TapTable(maps, [0.4, 0.4, 0.2]), MatrixGrid([[1, 0, 1 << 16, 2 << 16]], [1.0])
    key = 0

    def leaf(*shape: int, dtype: torch.dtype, form: torch.memory_format = torch.contiguous_format) -> torch.Tensor:
        return torch.randn(shape, device=device).to(dtype, memory_format=form).requires_grad_()

    for moved in (None, grid):
        for noise in _NOISES:
            for dtype in (torch.float32, torch.bfloat16):
                x, weight, bias, gain = leaf(6, 72, dtype=dtype), leaf(40, 72, dtype=dtype), leaf(40, dtype=dtype), leaf(dtype=dtype)  # fmt: skip
                call = dispatch.Call(
                    device, dtype, in_channels=72, out_channels=40, noise=noise.code if noise else 0, rows=6
                )
                for backend in accepting(linear.BACKENDS, call):
                    y = shadow_linear(
                        x, weight, bias, gain=gain, grid=moved, key=key, noise=noise, shadows=2, backend=backend
                    )
                    torch.autograd.grad(y.square().sum(), (x, weight, bias, gain))
                    key += 1
                    yield
    for groups in (24, 1):
        for noise in _NOISES:
            for dtype in (torch.float32, torch.bfloat16):
                for form in (torch.channels_last, torch.contiguous_format):
                    for stride in (1, 2):
                        x = leaf(4, 24, 7, 9, dtype=dtype, form=form)
                        weight, bias, gain = leaf(24, 24 // groups, 3, 3, dtype=dtype), leaf(24, dtype=dtype), leaf(24, dtype=dtype)  # fmt: skip
                        call = dispatch.Call(device, dtype, (3, 3), 24, 24, groups, noise.code if noise else 0)
                        for backend in accepting(conv.BACKENDS, call):
                            if backend == "triton" and groups > 1:
                                continue  # made for dense convolutions; it would take most of the time
                            y = shadow_conv2d(x, weight, bias, gain=gain, table=table, key=key, noise=noise, padding=1,
                                              stride=stride, groups=groups, shadows=2, backend=backend)  # fmt: skip
                            torch.autograd.grad(y.square().sum(), (x, weight, bias, gain))
                            key += 1
                            yield


if __name__ == "__main__":
    main()
