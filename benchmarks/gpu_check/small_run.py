"""Every kernel of the GPU backends once, on a small problem: what compute-sanitizer watches in `make gpu-check`."""

from __future__ import annotations

import torch

from benchmarks.gpu_facts import accepting
from wat_kernels import MatrixGrid, Noise, TapTable, dispatch, shadow_conv2d, shadow_linear
from wat_kernels.ops import conv2d, linear

_NOISES = (None, Noise("dropconnect", 0.3), Noise("multiplicative", 0.1))


def main() -> None:
    torch.manual_seed(0)
    # rows that move taps, mix them, and leave all of them out
    maps = torch.stack([torch.eye(9).roll(1, 1), torch.randn(9, 9) * (torch.rand(9, 9) < 0.3), torch.zeros(9, 9)])
    table, grid = TapTable(maps, [0.4, 0.4, 0.2]), MatrixGrid([[1, 0, 1 << 16, 2 << 16]], [1.0])
    calls = 0
    for dtype in (torch.float32, torch.bfloat16):
        for groups in (1, 24):
            for form in (torch.channels_last, torch.contiguous_format):
                x = _leaf(4, 24, 7, 9, dtype=dtype, form=form)
                weight, bias, gain = _leaf(24, 24 // groups, 3, 3, dtype=dtype), _leaf(24, dtype=dtype), _leaf(24, dtype=dtype)  # fmt: skip
                for noise in _NOISES:
                    for stride in (1, 2):
                        call = dispatch.Call("cuda", dtype, (3, 3), 24, 24, groups, noise.code if noise else 0)
                        for backend in accepting(conv2d.BACKENDS, call):
                            y = shadow_conv2d(x, weight, bias, gain=gain, table=table, key=calls, noise=noise, padding=1,
                                              stride=stride, groups=groups, shadows=2, backend=backend)  # fmt: skip
                            torch.autograd.grad(y.square().sum(), (x, weight, bias, gain))
                            calls += 1
        for moved in (None, grid):
            for noise in _NOISES:
                x, weight, bias, gain = _leaf(6, 72, dtype=dtype), _leaf(40, 72, dtype=dtype), _leaf(40, dtype=dtype), _leaf(dtype=dtype)  # fmt: skip
                call = dispatch.Call(
                    "cuda", dtype, in_channels=72, out_channels=40, noise=noise.code if noise else 0, rows=6
                )
                for backend in accepting(linear.BACKENDS, call):
                    y = shadow_linear(
                        x, weight, bias, gain=gain, grid=moved, key=calls, noise=noise, shadows=2, backend=backend
                    )
                    torch.autograd.grad(y.square().sum(), (x, weight, bias, gain))
                    calls += 1
    torch.cuda.synchronize()
    print(f"{calls} calls, forward and backward")


def _leaf(*shape: int, dtype: torch.dtype, form: torch.memory_format = torch.contiguous_format) -> torch.Tensor:
    return torch.randn(shape, device="cuda").to(dtype, memory_format=form).requires_grad_()


if __name__ == "__main__":
    main()
