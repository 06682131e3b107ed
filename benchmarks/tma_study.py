"""A study, not a backend: implicit GEMM whose tiles of x are boxes that the tensor memory accelerator moves by a tap.

python -m benchmarks.tma_study [--out FILE]      # on a GPU of compute capability 9.0, about a minute with compiling

x (N, H, W, C) is a 4-d descriptor with boxes of (images, rows, columns, channels); what lies outside comes as zeros, so that
padding needs no mask and a tap no address. The weight (O, 9, I) is a 2-d one. What is measured is bf16, 3x3, padding 1, the
nine taps and six of them, against torch's own convolution. `wat_kernels/ops/conv/README.md` says what came out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

BATCH, BLOCK_K = 128, 64
SHAPES = {  # (channels, image) -> boxes of images, rows, columns
    (64, 32): [(1, 8, 16), (1, 4, 32), (1, 16, 16)],
    (128, 28): [(1, 4, 32), (1, 8, 16)],
    (256, 14): [(4, 2, 16), (1, 8, 16)],
    (512, 7): [(16, 1, 8), (2, 8, 8)],
}
TAPS = {9: tuple(range(9)), 6: (0, 1, 3, 4, 6, 7)}


@triton.jit
def forward_kernel(
    x, weight, y, taps, trips, TILES_H, TILES_W, TILES_N, C, BLOCKS,
    BI: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """One box of pixels times BN output channels. x, weight, y: descriptors; taps: int64, four bits each.

    x is the right operand. As the left one it goes through registers, since Triton 3.6 sees no load behind the reshape,
    and results were wrong by up to 4 % at 128 channels and more.
    """
    tile = tl.program_id(0)
    tile_n = tile % TILES_N
    box = tile // TILES_N
    column = box % TILES_W * BW
    row = box // TILES_W % TILES_H * BH
    image = box // (TILES_W * TILES_H) * BI
    packed = tl.load(taps)
    count = tl.load(trips)
    total = tl.zeros((BN, BI * BH * BW), tl.float32)
    for step in range(count * BLOCKS):
        block = step // count
        trip = step - block * count
        tap = ((packed >> (trip * 4).to(tl.int64)) & 15).to(tl.int32)
        left = weight.load([tile_n * BN, tap * C + block * BK])
        right = x.load([image, row + tap // 3 - 1, column + tap % 3 - 1, block * BK]).reshape(BI * BH * BW, BK)
        total = tl.dot(left, right.T, total)
    y.store([image, row, column, tile_n * BN], total.T.to(y.dtype).reshape(BI, BH, BW, BN))


@triton.jit
def weight_kernel(
    x, dy, parts, taps, TILES_H, TILES_W, TILES_O, TILES_C, C, O, BOXES, SPLITS, COUNT,
    BI: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, BO: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """A part of one (BO, BC) tile of one active tap's gradient: parts (SPLITS, 9, O, C) fp32, to be added up."""
    packed = tl.load(taps)
    program = tl.program_id(0)
    tile_c = program % TILES_C
    tile_o = program // TILES_C % TILES_O
    trip = program // (TILES_C * TILES_O) % COUNT
    split = program // (TILES_C * TILES_O * COUNT)
    tap = ((packed >> (trip * 4).to(tl.int64)) & 15).to(tl.int32)
    total = tl.zeros((BO, BC), tl.float32)
    for box in range(split * BOXES // SPLITS, (split + 1) * BOXES // SPLITS):
        column = box % TILES_W * BW
        row = box // TILES_W % TILES_H * BH
        image = box // (TILES_W * TILES_H) * BI
        left = dy.load([image, row, column, tile_o * BO]).reshape(BI * BH * BW, BO)
        right = x.load([image, row + tap // 3 - 1, column + tap % 3 - 1, tile_c * BC]).reshape(BI * BH * BW, BC)
        total = tl.dot(left.T, right, total)
    out = tile_o * BO + tl.arange(0, BO)
    channel = tile_c * BC + tl.arange(0, BC)
    tl.store(parts + (split * 9 + tap) * O * C + out[:, None] * C + channel[None, :], total)


class Layer(NamedTuple):
    """x, dy (N, H, W, C), weight (O, 9, C), and the taps that are computed."""

    x: Tensor
    dy: Tensor
    weight: Tensor
    taps: tuple[int, ...]

    @classmethod
    def of(cls, channels: int, image: int, batch: int, taps: int, device: str, dtype: torch.dtype) -> Layer:
        x, dy = (torch.randn(batch, image, image, channels, device=device).to(dtype) for _ in range(2))
        return cls(x, dy, torch.randn(channels, 9, channels, device=device).to(dtype), TAPS[taps])

    def row(self) -> tuple[Tensor, Tensor]:
        """The taps, packed, and their number, as kernels read them."""
        packed = sum(tap << 4 * place for place, tap in enumerate(self.taps))
        count = torch.tensor([len(self.taps)], dtype=torch.int32, device=self.x.device)
        return torch.tensor([packed], device=self.x.device), count

    def masked(self) -> Tensor:
        """The weight of a convolution (O, I, 3, 3), zero at the other taps."""
        found = torch.zeros_like(self.weight)
        found[:, self.taps] = self.weight[:, self.taps]
        return found.unflatten(1, (3, 3)).permute(0, 3, 1, 2)


class Choice(NamedTuple):
    """A box of pixels, the tile of channels, warps and stages; for a weight gradient (BO, BC) and the number of parts."""

    box: tuple[int, int, int]
    tile: tuple[int, ...]
    warps: int
    stages: int
    splits: int = 1


def forward(layer: Layer, choice: Choice, y: Tensor) -> None:
    """y (N, H, W, O) is written."""
    (images, rows, columns), (width,) = choice.box, choice.tile
    n, h, w, c = layer.x.shape
    tiles = -(-h // rows), -(-w // columns), len(layer.weight) // width
    block = min(BLOCK_K, c)
    described = (
        TensorDescriptor.from_tensor(layer.x, [*choice.box, block]),
        TensorDescriptor.from_tensor(layer.weight.flatten(1), [width, block]),
        TensorDescriptor.from_tensor(y, [*choice.box, width]),
    )
    forward_kernel[(-(-n // images) * tiles[0] * tiles[1] * tiles[2],)](
        *described, *layer.row(), *tiles, c, c // block, *choice.box, width, block,
        num_warps=choice.warps, num_stages=choice.stages,
    )  # fmt: skip


def weight_gradient(layer: Layer, choice: Choice, parts: Tensor) -> None:
    """parts (splits, 9, O, C) fp32 are written at the active taps."""
    (images, rows, columns), (height, width) = choice.box, choice.tile
    n, h, w, c = layer.x.shape
    out = layer.dy.shape[3]
    tiles = -(-h // rows), -(-w // columns), out // height, c // width
    described = (
        TensorDescriptor.from_tensor(layer.x, [*choice.box, width]),
        TensorDescriptor.from_tensor(layer.dy, [*choice.box, height]),
    )
    count = len(layer.taps)
    weight_kernel[(tiles[2] * tiles[3] * count * choice.splits,)](
        *described, parts, layer.row()[0], *tiles, c, out, -(-n // images) * tiles[0] * tiles[1], choice.splits, count,
        *choice.box, height, width, num_warps=choice.warps, num_stages=choice.stages,
    )  # fmt: skip


def choices(channels: int, box: tuple[int, int, int], taps: int, multiprocessors: int) -> Iterator[tuple[str, Choice]]:
    """(pass, choice) to be measured."""
    for stages in (3, 4):
        for warps in (4, 8):
            yield "forward", Choice(box, (min(channels, 128),), warps, stages)
        tiles = [(64, 64)] if channels == 64 else [(128, 128), (128, 64)]
        for height, width in tiles:
            warps = 8 if height * width == 128 * 128 else 4
            programs = channels // height * (channels // width) * taps
            splits = max(1, (8 // warps) * multiprocessors // programs)
            yield "weight gradient", Choice(box, (height, width), warps, stages, splits)


def measure(out: Path | None) -> None:
    from watnn.bench.timing import time_once

    torch.backends.cudnn.benchmark = True
    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    for (channels, image), boxes in SHAPES.items():
        for taps in TAPS:
            layer = Layer.of(channels, image, BATCH, taps, "cuda", torch.bfloat16)
            x, dy = (t.permute(0, 3, 1, 2) for t in (layer.x, layer.dy))
            masked = layer.masked()
            right = {
                "forward": F.conv2d(x, masked, padding=1).permute(0, 2, 3, 1),
                "weight gradient": _dweight(dy, x, masked)[:, layer.taps],
            }
            torchs = {
                "forward": time_once(lambda x=x, w=masked: F.conv2d(x, w, padding=1), 10, "cuda").seconds,
                "weight gradient": time_once(lambda x=x, dy=dy, w=masked: _dweight(dy, x, w), 10, "cuda").seconds,
            }
            for box in boxes:
                for which, choice in choices(channels, box, taps, multiprocessors):
                    if which == "forward":
                        y = torch.full_like(layer.dy, torch.nan)
                        seconds = time_once(lambda layer=layer, choice=choice, y=y: forward(layer, choice, y), 7, "cuda").seconds  # fmt: skip
                        found = y
                    else:
                        parts = torch.full((choice.splits, 9, channels, channels), torch.nan, device="cuda")
                        seconds = time_once(lambda layer=layer, choice=choice, parts=parts: weight_gradient(layer, choice, parts), 7, "cuda").seconds  # fmt: skip
                        found = parts.sum(0).permute(1, 0, 2)[:, layer.taps]
                    error = float((found.float() - right[which].float()).norm() / right[which].float().norm())
                    row = {"pass": which, "channels": channels, "image": image, "taps": taps, "us": 1e6 * seconds,
                           "over_torch": seconds / torchs[which], "error": error, **choice._asdict()}  # fmt: skip
                    print(f"{channels}ch {image}x{image}, {taps} taps, {which}: {row['us']:.1f} us, "
                          f"{row['over_torch']:.2f} of torch's, error {error:.1e}, {choice}")  # fmt: skip
                    if out is not None:
                        with out.open("a") as file:
                            file.write(json.dumps(row) + "\n")


def _dweight(dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """torch's gradient as (O, 9, I)."""
    grads = torch.ops.aten.convolution_backward(
        dy, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [False, True, False]
    )
    return grads[1].permute(0, 2, 3, 1).flatten(1, 2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="a file that gets a line of JSON for each time")
    given = parser.parse_args()
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (9, 0):
        print("tma_study: it needs a GPU of compute capability 9.0 or more that torch can use", file=sys.stderr)
        return 2
    measure(given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
