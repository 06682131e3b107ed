"""What the GPU compilers make of every Triton kernel and configuration, on a machine that needs no GPU.

    python -m benchmarks.compile_report [sm_80 sm_90 sm_100 gfx942] [--kernel conv2d_fwd ...] [--dtype bf16 ...]

One line a kernel: registers and stack of a thread (spilled registers lie on the stack), shared memory against what the
chip has, the matrix instructions found, and how many buffers the asynchronous copies of the main loops rotate through.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from wat_kernels.matrix_grid import MatrixGridTensors
from wat_kernels.ops.conv import triton as conv2d
from wat_kernels.ops.conv import triton_boxes
from wat_kernels.ops.conv.geometry import Convolution
from wat_kernels.ops.linear import triton as linear
from wat_kernels.signature import Draw
from wat_kernels.tap_table import TableTensors
from wat_kernels.triton_launch import Tuned


class Chip(NamedTuple):
    target: GPUTarget
    shared: int  # bytes that one program may have
    matrix: str  # the matrix instruction for fp16 and bf16, in PTX or in AMD's assembly


CHIPS = {
    "sm_80": Chip(GPUTarget("cuda", 80, 32), 163 * 1024, "mma.sync"),
    "sm_90": Chip(GPUTarget("cuda", 90, 32), 227 * 1024, "wgmma.mma_async"),
    "sm_100": Chip(GPUTarget("cuda", 100, 32), 227 * 1024, "tcgen05.mma"),
    "gfx942": Chip(GPUTarget("hip", "gfx942", 64), 64 * 1024, "v_mfma"),
}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "tf32": torch.float32}
_TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int64: "i64", torch.int32: "i32"}


class Case(NamedTuple):
    kernel: str
    variant: str
    dtype: str
    config: triton.Config
    tuned: Tuned
    arguments: tuple


class Report(NamedTuple):
    registers: int
    stack: int  # bytes a thread
    shared: int  # bytes a program
    matrix: str  # the matrix instruction that was found, or "none"
    boxes: bool  # whether tiles are moved by a unit of the chip
    stages: int  # buffers of the least deep pipeline among the kernel's main loops; 0 without asynchronous copies


# bytes of stack that are no spilled registers: triton 3.6 keeps 16 in one configuration for sm_100
_STACK = 16 if triton.__version__.startswith("3.6") else 0
_AMOUNTS = (0.3, 19661)  # of a noise: scale and cut
# name: (noise, input taps that a row mixes, format of the weight) for convolutions, (noise, whether there is a grid) for
# linear layers. `scattered`: a weight whose input channels are not adjacent, as a pass that is too short to copy it reads it
_LAST = torch.channels_last
CONV_VARIANTS = {
    "plain": (0, 1, _LAST),
    "dropconnect": (2, 1, _LAST),
    "multiplicative": (1, 1, _LAST),
    "bilinear": (0, 4, _LAST),
    "scattered": (0, 1, torch.contiguous_format),
}
LINEAR_VARIANTS = {"plain": (0, False), "dropconnect": (2, False), "multiplicative": (1, False), "grid": (0, True)}


def cases() -> Iterator[Case]:
    """Every kernel with every configuration that tuning may choose for it: all variants in bf16, the plain one in the other dtypes."""
    for dtype in DTYPES:
        for variant in CONV_VARIANTS if dtype == "bf16" else ["plain"]:
            for name, tuned, given in (
                *_conv2d(DTYPES[dtype], *CONV_VARIANTS[variant]),
                *(
                    _boxes(DTYPES[dtype], *CONV_VARIANTS[variant])
                    if dtype in ("bf16", "fp16") and variant != "scattered"
                    else ()
                ),
            ):
                arguments = _with_precision(tuned, given, dtype)
                suited = tuned.suited(arguments) if not tuned.boxes(tuned.configs[0]) else tuned.fitting(arguments)
                yield from (Case(name, variant, dtype, c, tuned, arguments) for c in suited)
        for variant in LINEAR_VARIANTS if dtype == "bf16" else ["plain"]:
            for name, tuned, given in _linear(DTYPES[dtype], *LINEAR_VARIANTS[variant]):
                arguments = _with_precision(tuned, given, dtype)
                yield from (Case(name, variant, dtype, c, tuned, arguments) for c in tuned.suited(arguments))


def _with_precision(tuned: Tuned, arguments: tuple, dtype: str) -> tuple:
    """The arguments with what `dtype` says of TF32, whatever torch's switches say."""
    place = tuned.kernel.arg_names.index("PRECISION")
    return (*arguments[:place], "tf32" if dtype == "tf32" else "ieee", *arguments[place + 1 :])


def _meta(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    tensor = torch.empty(shape, dtype=dtype, device="meta")
    return tensor.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else tensor


class _Layer(NamedTuple):
    """A 3x3 convolution with a gain for each channel."""

    x: torch.Tensor
    weight: torch.Tensor
    y: torch.Tensor
    vector: torch.Tensor  # bias and gain
    scratch: torch.Tensor
    arrived: torch.Tensor
    draw: Draw
    layout: Convolution

    @classmethod
    def of(cls, dtype: torch.dtype, noise: int, width: int, form: torch.memory_format) -> _Layer:
        """form: of the weight"""
        key, thresholds = _meta(dtype=torch.int64), _meta(9, dtype=torch.int64)
        taps = _meta(9, 1 + 9 + 2 * 9 * width, dtype=torch.int32)
        return cls(
            _meta(128, 128, 56, 56, dtype=dtype), _meta(256, 128, 3, 3, dtype=dtype).contiguous(memory_format=form),
            _meta(128, 256, 56, 56, dtype=dtype), _meta(256, dtype=dtype), _meta(1, dtype=torch.float32),
            _meta(1, dtype=torch.int32), Draw(key, TableTensors(thresholds, taps, taps), noise=noise),
            Convolution((1, 1), (1, 1, 1, 1), (1, 1), 1),
        )  # fmt: skip

    @property
    def drawn(self) -> tuple:
        return (self.draw.key, *self.draw.table[:2], *_AMOUNTS)


def _conv2d(
    dtype: torch.dtype, noise: int, width: int, form: torch.memory_format
) -> Iterator[tuple[str, Tuned, tuple]]:
    """The three passes with computed addresses."""
    layer, size = _Layer.of(dtype, noise, width, form), dtype.itemsize
    x, weight, y, vector, rest = layer.x, layer.weight, layer.y, layer.vector, layer[-2:]
    one: tuple = (x, weight, vector, vector, y)
    yield "conv2d_fwd", conv2d.FORWARD[size], (*one, *layer.drawn, *conv2d.forward_numbers(*one, *rest))
    one = (y, weight, vector, x)
    yield "conv2d_bwd_data", conv2d.BWD_DATA[size], (*one, *layer.drawn, *conv2d.bwd_data_numbers(*one, *rest))
    one = (y, x, weight, vector, weight, layer.scratch)
    numbers = conv2d.bwd_weight_numbers(*one, *rest, 264)
    yield "conv2d_bwd_weight", conv2d.BWD_WEIGHT[size], (*one, layer.scratch, layer.arrived, *layer.drawn, *numbers)


def _boxes(dtype: torch.dtype, noise: int, width: int, form: torch.memory_format) -> Iterator[tuple[str, Tuned, tuple]]:
    """The three passes that move boxes of pixels."""
    layer = _Layer.of(dtype, noise, width, form)
    x, weight, y, vector, rest = layer.x, layer.weight, layer.y, layer.vector, layer[-2:]
    numbers = conv2d.box_numbers(x, weight, vector, vector, y, *rest, False)
    yield "conv2d_fwd_box", triton_boxes.GATHER, (x, weight, vector, vector, y, *layer.drawn, *numbers)
    numbers = conv2d.box_numbers(x, weight, None, vector[:1], x, *rest, True)
    yield "conv2d_bwd_data_box", triton_boxes.BACKWARD_GATHER, (y, weight, None, vector[:1], x, *layer.drawn, *numbers)
    one = (y, x, weight, vector, weight, layer.scratch)
    numbers = conv2d.box_weight_numbers(*one, *rest, 264)
    yield "conv2d_bwd_weight_box", triton_boxes.WEIGHT, (*one, layer.scratch, layer.arrived, *layer.drawn, *numbers)


def _linear(dtype: torch.dtype, noise: int, moved: bool) -> Iterator[tuple[str, Tuned, tuple]]:
    x, weight, y = _meta(8192, 1024, dtype=dtype), _meta(4096, 1024, dtype=dtype), _meta(8192, 4096, dtype=dtype)
    key, bias = _meta(dtype=torch.int64), _meta(4096, dtype=dtype)
    grid = (_meta(4, dtype=torch.int64), _meta(4, 4, dtype=torch.int64)) if moved else (None, None)
    scratch, arrived = _meta(1, dtype=torch.float32), _meta(1, dtype=torch.int32)
    size, drawn = dtype.itemsize, (key, *grid, *_AMOUNTS)
    draw = Draw(key, MatrixGridTensors(*grid) if moved else None, noise=noise)
    one = (x, weight, bias, bias, y)
    yield "linear_fwd", linear.FORWARD[size], (*one, *drawn, *linear.forward_numbers(*one, draw))
    one = (y, weight, bias, x)
    yield "linear_bwd_data", linear.BWD_DATA[size], (*one, *drawn, *linear.bwd_data_numbers(*one, draw))
    one = (y, x, weight, bias, weight, scratch)
    numbers = linear.bwd_weight_numbers(*one, draw, 264)
    yield "linear_bwd_weight", linear.BWD_WEIGHT[size], (*one, scratch, arrived, *drawn, *numbers)


def compile_case(case: Case, chip: Chip) -> Report:
    """Compiles as a launch on this chip would: with the specialisations that the arguments allow."""
    kernel = case.tuned.kernel
    values = {**dict(zip(kernel.arg_names, case.arguments, strict=False)), **case.config.kwargs}
    signature, constants, attributes = {}, {}, {}
    boxes = case.tuned.boxes(case.config)
    for place, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        specialized = not parameter.do_not_specialize
        divisible = isinstance(value, torch.Tensor) or (specialized and isinstance(value, int) and value % 16 == 0)
        if place in boxes:
            signature[parameter.name] = f"tensordesc<{_TYPES[value.dtype]}{boxes[place]}>"
            continue
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = "*" + _TYPES[value.dtype]
        elif parameter.is_constexpr or value is None or (specialized and isinstance(value, int) and value == 1):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
            continue
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32" if abs(value) < 2**31 else "i64"
        if divisible:
            attributes[(place,)] = [["tt.divisibility", 16]]
    amd = chip.target.backend == "hip"
    options = {"num_warps": case.config.num_warps, "num_stages": min(case.config.num_stages, 2) if amd else case.config.num_stages}  # fmt: skip
    compiled = triton.compile(ASTSource(kernel, signature, constants, attributes), target=chip.target, options=options)
    assembly = compiled.asm["amdgcn" if amd else "ptx"]
    registers, stack = _amd_resources(assembly) if amd else nvidia_resources(compiled.asm["cubin"])
    buffers = [
        int(n) for n in re.findall(r"memdesc<(\d+)x\d+x\d+x[bf]\w+,.*mutable>", compiled.asm["ttgir"]) if int(n) < 16
    ]
    asynchronous = "async_copy_global_to_local" in compiled.asm["ttgir"]
    matrix = next((m for m in (chip.matrix, "mma.sync", "v_mfma") if m in assembly), "none")
    moved = "async_tma_copy_global_to_local" in compiled.asm["ttgir"]
    return Report(
        registers, stack, compiled.metadata.shared, matrix, moved, min(buffers, default=0) if asynchronous else 0
    )


def nvidia_resources(cubin: bytes) -> tuple[int, int]:
    """(registers, bytes of stack) of a thread."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    usage = re.search(r"Function \w+_kernel:\s*REG:(\d+) STACK:(\d+).*LOCAL:(\d+)", text)
    return int(usage[1]), int(usage[2]) + int(usage[3])


def _amd_resources(assembly: str) -> tuple[int, int]:
    registers = re.search(r"\.vgpr_count:\s+(\d+)", assembly)
    stack = re.search(r"\.private_segment_fixed_size:\s+(\d+)", assembly)
    return int(registers[1]), int(stack[1])


def takes(case: Case, chip: Chip) -> bool:
    """Whether tuning may choose this kernel on this chip."""
    target = chip.target
    return not case.tuned.boxes(case.config) or (target.backend == "cuda" and target.arch >= 90)


def problems(case: Case, chip: Chip, report: Report) -> list[str]:
    """What is wrong with a compiled kernel; empty when nothing is."""
    found = []
    if report.stack > _STACK:
        found.append(f"{report.stack} bytes of stack")
    if case.tuned.boxes(case.config) and not report.boxes:
        found.append("no box is moved by its unit")
    if report.shared > chip.shared:
        found.append(f"{report.shared} bytes of shared memory, the chip has {chip.shared}")
    if case.dtype in ("bf16", "fp16") and report.matrix != chip.matrix:
        found.append(f"matrix instruction {report.matrix}, the chip has {chip.matrix}")
    if (
        case.variant not in ("grid", "scattered")  # not aligned or not adjacent, as an asynchronous copy must be
        and chip.target.backend == "cuda"
        and case.kernel.endswith("_fwd")
        and case.dtype in ("bf16", "fp16")
        and report.stages < 3
    ):
        found.append(f"{report.stages} pipeline stages")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chips", nargs="*", default=[], help="of " + ", ".join(CHIPS) + "; all by default")
    parser.add_argument("--kernel", nargs="*", help="only these kernels")
    parser.add_argument("--dtype", nargs="*", help="only these dtypes")
    parser.add_argument("--variant", nargs="*", help="only these variants")
    wanted = parser.parse_args()
    os.environ.setdefault("TRITON_CACHE_DIR", tempfile.mkdtemp())
    print(f"{'chip':7}{'kernel':22}{'variant':15}{'dtype':6}{'tile':18}{'warps':>6}{'stages':>7}{'regs':>6}{'stack':>6}{'shared':>8}  matrix, remarks")  # fmt: skip
    bad = 0
    for name in wanted.chips or CHIPS:
        for case in cases():
            if not takes(case, CHIPS[name]):
                continue
            kept = ((wanted.kernel, case.kernel), (wanted.dtype, case.dtype), (wanted.variant, case.variant))
            if any(names and value not in names for names, value in kept):
                continue
            chip = CHIPS[name]
            report = compile_case(case, chip)
            remarks = problems(case, chip, report)
            bad += bool(remarks)
            tile = "x".join(str(size) for part, size in case.config.kwargs.items() if part != "GROUP_M")
            print(f"{name:7}{case.kernel:22}{case.variant:15}{case.dtype:6}{tile:18}{case.config.num_warps:6}{report.stages:7}{report.registers:6}{report.stack:6}{report.shared:8}  {'; '.join([report.matrix, *remarks])}", flush=True)  # fmt: skip
    print(f"{bad} kernels with a remark")


if __name__ == "__main__":
    main()
